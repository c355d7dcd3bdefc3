#include "worker/text/line_reader.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/utf8.h"

enum { BLOCK_BYTES = 1 << 18 };

int line_reader_init(struct line_reader *r, const char *path, struct err *err)
{
    struct input input = {0};
    int rc = input_init(&input, path, err);

    if (rc == 0)
        *r = (struct line_reader){.input = input, .block = xmalloc(BLOCK_BYTES), .at_start = true};
    return rc;
}

void line_reader_fini(struct line_reader *r)
{
    input_fini(&r->input);
    free(r->block);
    buf_fini(&r->line);
    memset(r, 0, sizeof(*r));
}

static int fill_block(struct line_reader *r, struct err *err)
{
    size_t got = 0;
    int rc = input_read(&r->input, r->block, BLOCK_BYTES, &got, err);

    if (rc != 0)
        return rc;
    r->at = 0;
    r->n = got;
    r->at_end = got == 0;
    return 0;
}

static enum line_fault check_line(struct line_reader *r)
{
    struct buf *line = &r->line;
    const char *text = buf_str(line);

    if (r->at_start && line->len >= 2 &&
        (memcmp(text, "\xFF\xFE", 2) == 0 || memcmp(text, "\xFE\xFF", 2) == 0))
        return LINE_UTF16;
    if (r->at_start && line->len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) {
        line->len -= 3;
        memmove(line->data, line->data + 3, line->len + 1);
    }
    r->at_start = false;
    if (line->len > 0 && line->data[line->len - 1] == '\r')
        line->data[--line->len] = '\0';
    if (line->len > 0 && memchr(line->data, '\0', line->len))
        return LINE_HAS_NUL;
    return utf8_check(buf_str(line), line->len) == line->len ? LINE_OK : LINE_NOT_UTF8;
}

int line_reader_next(struct line_reader *r, bool *got, enum line_fault *fault, struct err *err)
{
    bool too_long = false, any = false;
    const char *newline = NULL;

    buf_clear(&r->line);
    while (!newline && !r->at_end) {
        if (r->at == r->n) {
            int rc = fill_block(r, err);
            if (rc != 0)
                return rc;
            continue;
        }
        any = true;
        newline = memchr(r->block + r->at, '\n', r->n - r->at);
        size_t n = newline ? (size_t)(newline - (r->block + r->at)) : r->n - r->at;
        too_long |= n > LINE_MAX_BYTES - r->line.len;
        if (!too_long)
            buf_add(&r->line, r->block + r->at, n);
        r->at += n + (newline != NULL);
    }
    *got = any;
    if (any) {
        r->number++;
        *fault = check_line(r);
        if (too_long)
            *fault = LINE_TOO_LONG;
    }
    return 0;
}

const char *line_fault_text(enum line_fault fault)
{
    switch (fault) {
    case LINE_TOO_LONG:
        return "the line is longer than 10 MiB; split it into several examples";
    case LINE_NOT_UTF8:
        return "the line is not valid UTF-8; save the file as UTF-8";
    case LINE_UTF16:
        return "the file is UTF-16; save it as UTF-8";
    case LINE_HAS_NUL:
        return "the line has a NUL byte; this is not a text file";
    case LINE_OK:
        break;
    }
    return "the line is fine";
}
