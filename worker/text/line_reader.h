/*
 * Lines of a text file, compressed or not (worker/text/input.h), streamed: memory is one line,
 * whatever the file's size. A line ends at \n or \r\n; the last one needs no end. A UTF-8
 * byte-order mark in front is passed over. One thread; zero-initialise, line_reader_fini is
 * idempotent.
 */
#ifndef CASTOR_WORKER_TEXT_LINE_READER_H
#define CASTOR_WORKER_TEXT_LINE_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"
#include "worker/text/input.h"

enum { LINE_MAX_BYTES = 10 << 20 };

struct line_reader {
    struct input input;
    char *block;
    size_t at, n; /* unread part of the block */
    struct buf line;
    int64_t number; /* of the current line, from 1 */
    bool at_end, at_start;
};

/* What can be wrong with a line, apart from what it says. */
enum line_fault { LINE_OK, LINE_TOO_LONG, LINE_NOT_UTF8, LINE_UTF16, LINE_HAS_NUL };

int line_reader_init(struct line_reader *r, const char *path, struct err *err);
void line_reader_fini(struct line_reader *r);
/* The next line, without its end, in r->line, or *got = false behind the last. A faulty line is
 * read over whole, so that the next call goes on behind it; of one that is too long only the
 * beginning is kept. */
int line_reader_next(struct line_reader *r, bool *got, enum line_fault *fault, struct err *err);
/* A sentence for people. */
const char *line_fault_text(enum line_fault fault);

#endif
