#include "worker/text/examples.h"

#include <stdio.h>
#include <string.h>

#include "core/json.h"
#include "worker/text/line_reader.h"

struct reading {
    struct line_reader lines;
    enum data_format format;
    struct buf paragraph; /* plain: the example so far */
    int64_t paragraph_line;
    bool paragraph_bad;
    example_fn fn;
    example_fault_fn fault_fn;
    void *ud;
};

static bool is_blank(const struct buf *line)
{
    return line->len == 0 || strspn(line->data, " \t\v\f\r") == line->len;
}

static enum data_format guess_format(const struct buf *line)
{
    const char *text = line->data + strspn(line->data, " \t");

    return *text == '{' || (*text == '[' && text[1 + strspn(text + 1, " \t")] == '{') ? DATA_TEXT
                                                                                      : DATA_PLAIN;
}

/* What is wrong with the line's object as an example, in `why`; false when nothing is. */
static bool find_fault(const json_t *object, char *why, size_t cap)
{
    static const char *const other_shapes[] = {
        "prompt", "completion", "messages", "conversations", "instruction", "chosen", "rejected"};
    static const char *const kinds[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "an array", [JSON_STRING] = "a string",
        [JSON_INTEGER] = "a number", [JSON_REAL] = "a number",  [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",      [JSON_NULL] = "null",
    };
    const json_t *text = json_object_get(object, "text");

    if (!json_is_object(object)) {
        snprintf(why, cap, "the line is %s, not an object like {\"text\": \"...\"}%s",
                 kinds[json_typeof(object)],
                 json_is_array(object) ? "; write one example a line, without an array around"
                                       : "");
        return true;
    }
    for (size_t i = 0; i < sizeof(other_shapes) / sizeof(other_shapes[0]); i++)
        if (json_object_get(object, other_shapes[i])) {
            snprintf(why, cap,
                     "the line has \"%s\"; only examples of the form {\"text\": \"...\"} can be "
                     "trained on, so write the whole text in one string",
                     other_shapes[i]);
            return true;
        }
    if (!text)
        snprintf(why, cap, "the object has no \"text\"; an example is {\"text\": \"...\"}");
    else if (!json_is_string(text))
        snprintf(why, cap, "\"text\" must be a string, not %s", kinds[json_typeof(text)]);
    else if (json_string_length(text) == 0)
        snprintf(why, cap, "\"text\" is empty; remove the line");
    else
        return false;
    return true;
}

static int take_json_line(struct reading *r, struct err *err)
{
    int64_t number = r->lines.number;
    struct err bad = {0};
    json_t *object = NULL;
    char why[256];
    int rc = 0;

    if (is_blank(&r->lines.line))
        return 0;
    if (json_parse_limited(r->lines.line.data, r->lines.line.len, LINE_MAX_BYTES,
                           JSON_MAX_DEPTH_REQUEST, &object, &bad) != 0) {
        rc = r->fault_fn(r->ud, number, bad.msg, err);
    } else if (find_fault(object, why, sizeof(why))) {
        rc = r->fault_fn(r->ud, number, why, err);
    } else {
        const json_t *text = json_object_get(object, "text");
        rc = r->fn(r->ud, number, json_string_value(text), json_string_length(text), err);
    }
    json_decref(object);
    return rc;
}

static int end_paragraph(struct reading *r, struct err *err)
{
    int rc = 0;

    if (r->paragraph.len > 0 && !r->paragraph_bad)
        rc = r->fn(r->ud, r->paragraph_line, r->paragraph.data, r->paragraph.len, err);
    buf_clear(&r->paragraph);
    r->paragraph_bad = false;
    return rc;
}

static int take_plain_line(struct reading *r, struct err *err)
{
    if (is_blank(&r->lines.line))
        return end_paragraph(r, err);
    if (r->paragraph.len + r->lines.line.len > LINE_MAX_BYTES) {
        if (r->paragraph_bad)
            return 0;
        r->paragraph_bad = true;
        return r->fault_fn(r->ud, r->paragraph_line,
                           "the paragraph is longer than 10 MiB; put blank lines into it", err);
    }
    if (r->paragraph.len == 0)
        r->paragraph_line = r->lines.number;
    else
        buf_add_char(&r->paragraph, '\n');
    buf_add(&r->paragraph, r->lines.line.data, r->lines.line.len);
    return 0;
}

static int take_line(struct reading *r, enum line_fault fault, struct err *err)
{
    if (fault != LINE_OK) {
        r->paragraph_bad = r->format == DATA_PLAIN;
        return r->fault_fn(r->ud, r->lines.number, line_fault_text(fault), err);
    }
    if (r->format == DATA_AUTO && is_blank(&r->lines.line))
        return 0;
    if (r->format == DATA_AUTO)
        r->format = guess_format(&r->lines.line);
    return r->format == DATA_TEXT ? take_json_line(r, err) : take_plain_line(r, err);
}

int examples_read(const char *path, enum data_format format, example_fn fn,
                  example_fault_fn fault_fn, void *ud, struct err *err)
{
    struct reading r = {.format = format, .fn = fn, .fault_fn = fault_fn, .ud = ud};
    enum line_fault fault;
    bool got;
    int rc = 0;

    if (format == DATA_PROMPT || format == DATA_MESSAGES) {
        rc = err_set(err, ERR_UNSUPPORTED,
                     "data sets of prompts and of messages cannot be trained on; use lines of "
                     "{\"text\": \"...\"}");
        return err_set_reason(err, rc, "unsupported_dataset_format");
    }
    TRY(line_reader_init(&r.lines, path, err));
    for (;;) {
        TRY(line_reader_next(&r.lines, &got, &fault, err));
        if (!got)
            break;
        TRY(take_line(&r, fault, err));
    }
    TRY(end_paragraph(&r, err));
out:
    line_reader_fini(&r.lines);
    buf_fini(&r.paragraph);
    return rc;
}
