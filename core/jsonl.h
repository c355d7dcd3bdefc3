/*
 * Append-only files of JSON lines: events, control requests.
 *
 * Writer: each line goes out in ONE write(2) on an O_APPEND descriptor, newline included. When a
 * write fails half-way (disk full), the file is truncated back to its last newline, so a reader
 * never meets half a line followed by a whole one; the next append starts clean. One writer per
 * file, guarded by nothing: the job directory's contract says who writes what.
 *
 * Reader: tails by byte offset and ignores an unterminated last line (the writer may still be
 * writing it).
 */
#ifndef CASTOR_CORE_JSONL_H
#define CASTOR_CORE_JSONL_H

#include <jansson.h>
#include <stdint.h>

#include "core/err.h"

struct jsonl_writer {
    int fd; /* -1 when closed */
    char *path;
};

/* Opens for append, creating with mode 0644; an unterminated last line left by a dead writer is cut
 * off. */
int jsonl_writer_init(struct jsonl_writer *w, const char *path, struct err *err);
int jsonl_writer_append(struct jsonl_writer *w, const json_t *value, struct err *err);
int jsonl_writer_sync(struct jsonl_writer *w, struct err *err); /* fdatasync */
void jsonl_writer_fini(struct jsonl_writer *w);

/* Called once per complete line, in order. `offset_after` is the byte offset just behind its
 * newline; `value` is borrowed for the call. A line that is not valid JSON is passed with value ==
 * NULL. Non-zero stops reading and is returned. */
typedef int (*jsonl_line_fn)(void *ud, json_t *value, int64_t offset_after, struct err *err);

/* Read complete lines from *offset on; *offset advances past each line handed out. A missing file
 * is an empty one. Lines longer than max_line bytes are ERR_CORRUPT; a line for which there is not
 * enough memory is ERR_NOMEM and may be read later. */
int jsonl_read_from(const char *path, int64_t *offset, size_t max_line, jsonl_line_fn fn, void *ud,
                    struct err *err);

#endif
