#include "worker/text/examples.h"

#include <stdio.h>
#include <string.h>

#include "core/json.h"
#include "worker/text/csv.h"
#include "worker/text/line_reader.h"

struct reading {
    struct line_reader lines;
    enum data_format format; /* DATA_AUTO, DATA_PLAIN or DATA_TEXT: any JSONL */
    enum data_format shape;  /* of the objects */
    struct buf paragraph;    /* plain: the example so far */
    int64_t paragraph_line;
    bool paragraph_bad;
    bool is_csv, begun; /* begun: the first line that is not blank was seen */
    struct csv csv;
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

/* One object of the file, from a line of JSON or a row of CSV. */
static int take_object(struct reading *r, int64_t number, json_t *object, struct err *err)
{
    struct example example = {0};
    char why[256];
    int rc;

    if (!shape_read(object, r->shape, &example, why, sizeof(why)))
        rc = r->fault_fn(r->ud, number, why, err);
    else
        rc = r->fn(r->ud, number, &example, err);
    example_fini(&example);
    return rc;
}

static int take_json_line(struct reading *r, struct err *err)
{
    int64_t number = r->lines.number;
    struct err bad = {0};
    json_t *object = NULL;
    int rc = 0;

    if (is_blank(&r->lines.line))
        return 0;
    if (json_parse_limited(r->lines.line.data, r->lines.line.len, LINE_MAX_BYTES,
                           JSON_MAX_DEPTH_REQUEST, &object, &bad) != 0)
        rc = r->fault_fn(r->ud, number, bad.msg, err);
    else
        rc = take_object(r, number, object, err);
    json_decref(object);
    return rc;
}

static int end_row(struct reading *r, struct err *err)
{
    int64_t number = r->csv.line;
    char why[256];
    int rc = 0;

    if (number == 0)
        return 0;
    json_t *object = csv_take(&r->csv, why, sizeof(why));
    if (object)
        rc = take_object(r, number, object, err);
    else
        rc = r->fault_fn(r->ud, number, why, err);
    json_decref(object);
    return rc;
}

static int take_csv_line(struct reading *r, struct err *err)
{
    const struct buf *line = &r->lines.line;

    if (r->csv.line == 0 && is_blank(line))
        return 0;
    if (csv_add_line(&r->csv, r->lines.number, buf_str(line), line->len) ||
        r->csv.record.len > LINE_MAX_BYTES)
        return end_row(r, err);
    return 0;
}

static int end_paragraph(struct reading *r, struct err *err)
{
    int rc = 0;

    if (r->paragraph.len > 0 && !r->paragraph_bad) {
        struct example example = {
            .kind = EXAMPLE_TEXT, .text = r->paragraph.data, .n = r->paragraph.len};
        rc = r->fn(r->ud, r->paragraph_line, &example, err);
    }
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

/* The first line that is not blank says what a file is. True: it was a header and is used up. */
static bool begin_file(struct reading *r)
{
    const struct buf *line = &r->lines.line;
    enum data_format guess = guess_format(line);

    r->begun = true;
    if (r->format != DATA_PLAIN && guess == DATA_PLAIN)
        r->is_csv = csv_begin(&r->csv, buf_str(line), line->len);
    if (r->format == DATA_AUTO)
        r->format = guess;
    return r->is_csv;
}

static int take_line(struct reading *r, enum line_fault fault, struct err *err)
{
    if (fault != LINE_OK) {
        r->paragraph_bad = r->format == DATA_PLAIN;
        return r->fault_fn(r->ud, r->lines.number, line_fault_text(fault), err);
    }
    if (!r->begun && is_blank(&r->lines.line))
        return end_paragraph(r, err); /* one that was faulty */
    if (!r->begun && begin_file(r))
        return 0;
    if (r->is_csv)
        return take_csv_line(r, err);
    return r->format == DATA_TEXT ? take_json_line(r, err) : take_plain_line(r, err);
}

int examples_read(const char *path, enum data_format format, example_fn fn,
                  example_fault_fn fault_fn, void *ud, struct err *err)
{
    bool is_jsonl = format != DATA_AUTO && format != DATA_PLAIN;
    struct reading r = {.format = is_jsonl ? DATA_TEXT : format,
                        .shape = format,
                        .fn = fn,
                        .fault_fn = fault_fn,
                        .ud = ud};
    enum line_fault fault;
    bool got;
    int rc = 0;

    TRY(line_reader_init(&r.lines, path, err));
    for (;;) {
        TRY(line_reader_next(&r.lines, &got, &fault, err));
        if (!got)
            break;
        TRY(take_line(&r, fault, err));
    }
    TRY(end_row(&r, err));
    TRY(end_paragraph(&r, err));
out:
    csv_fini(&r.csv);
    line_reader_fini(&r.lines);
    buf_fini(&r.paragraph);
    return rc;
}
