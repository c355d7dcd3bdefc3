#include "worker/text/replacement.h"

#include <string.h>

#include "worker/text/utf8.h"

int replacement_init(struct replacement *r, const json_t *json, struct err *err)
{
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *literal = json_object_get(pattern, "String");
    const json_t *regex = json_object_get(pattern, "Regex"), *source = regex ? regex : literal;
    const json_t *content = json_object_get(json, "content");
    size_t n = json_string_length(source);

    if (!json_is_string(source) || !json_is_string(content) ||
        json_string_length(content) > REPLACEMENT_MAX_CONTENT)
        return err_set(err, ERR_UNSUPPORTED,
                       "this tokenizer's Replace has no pattern, or no content of at most %d bytes",
                       REPLACEMENT_MAX_CONTENT);
    buf_add(&r->content, json_string_value(content), json_string_length(content));
    if (literal && !regex && n > 0) {
        buf_add(&r->literal, json_string_value(source), n);
        return 0;
    }
    return regex_create(json_string_value(source), n, false, &r->regex, err);
}

void replacement_fini(struct replacement *r)
{
    buf_fini(&r->content);
    buf_fini(&r->literal);
    regex_destroy(r->regex);
    r->regex = NULL;
}

/* A match at the very beginning of more than one character, or one that leaves nothing, moves the
 * result's first character off the text's first. */
static void note_match(const struct replacement *r, const char *text, size_t start, size_t end,
                       bool *stays)
{
    size_t bytes;

    if (start != 0 || end == 0)
        return;
    utf8_read(text, end, &bytes);
    if (bytes < end || r->content.len == 0)
        *stays = false;
}

static const char *find_literal(const struct replacement *r, const char *at, size_t n)
{
    if (r->literal.len == 1)
        return memchr(at, r->literal.data[0], n);
    return memmem(at, n, r->literal.data, r->literal.len);
}

static int next_match(const struct replacement *r, struct regex_cursor *cursor, const char *text,
                      size_t n, size_t done, bool *found, size_t *start, size_t *end,
                      struct err *err)
{
    if (r->regex)
        return regex_next(cursor, found, start, end, err);
    const char *next = find_literal(r, text + done, n - done);
    *found = next != NULL;
    if (next) {
        *start = (size_t)(next - text);
        *end = *start + r->literal.len;
    }
    return 0;
}

int replacement_add(const struct replacement *r, const char *text, size_t n,
                    struct regex_cursor *cursor, size_t max_bytes, struct buf *out, bool *stays,
                    struct err *err)
{
    size_t done = 0, start, end;
    bool found;
    int rc = 0;

    if (n == 0)
        return 0;
    if (r->regex)
        regex_cursor_start(cursor, r->regex, text, n);
    for (;;) {
        TRY(next_match(r, cursor, text, n, done, &found, &start, &end, err));
        if (!found)
            break;
        note_match(r, text, start, end, stays);
        buf_add(out, text + done, start - done);
        buf_add(out, r->content.data, r->content.len);
        done = end;
        if (out->len > max_bytes)
            return err_set(err, ERR_INVALID,
                           "the tokenizer's Replace makes the text longer than %zu bytes",
                           max_bytes);
    }
    buf_add(out, text + done, n - done);
out:
    return rc;
}
