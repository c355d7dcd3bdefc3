/*
 * A record: a C struct and its JSON object, tied by one table of fields. The table serves
 * initialising, reading (with type and range checks) and writing, so that the three cannot differ.
 *
 * A field's path has dots for nested objects ("gpu.planned_peak"). What the kinds are in C and in
 * JSON stands beside them. A NaN real and a NULL string are absent in JSON; absent members read as
 * the field's initial value. Used by everything in api/ that has a JSON form.
 */
#ifndef CASTOR_API_RECORD_H
#define CASTOR_API_RECORD_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

enum record_kind {
    RECORD_INT,       /* int64_t: a whole number                                              */
    RECORD_INT32,     /* int                                                                  */
    RECORD_REAL,      /* double                                                               */
    RECORD_BOOL,      /* bool                                                                 */
    RECORD_WORD,      /* an enum: one of `words`, counted from 0                              */
    RECORD_SIZE,      /* int64_t bytes: a whole number or a text like "40GiB"                 */
    RECORD_AUTO_INT,  /* struct auto_int: a whole number or "auto"                            */
    RECORD_AUTO_REAL, /* struct auto_real                                                     */
    RECORD_STRING,    /* char *, owned                                                        */
    RECORD_NAME,      /* char *, owned: 1..64 of A-Z a-z 0-9 _ -                              */
    RECORD_BORROWED,  /* const char * into the JSON value                                     */
    RECORD_CHARS,     /* char[cap]; a longer text is cut                                      */
};

enum record_flag {
    RECORD_REQUIRED = 1,  /* absent is an error                    */
    RECORD_ABOVE_MIN = 2, /* min itself is out of range             */
    RECORD_BELOW_MAX = 4, /* max itself is out of range             */
    RECORD_SHOW_NULL = 8, /* a NULL string is written as null       */
};

struct record_field {
    const char *path;
    enum record_kind kind;
    size_t offset;
    double min, max;          /* both 0: any                                               */
    double initial;           /* numbers, words, sizes; NaN is "auto" for the auto kinds   */
    const char *const *words; /* NULL-terminated */
    size_t cap;
    unsigned flags; /* enum record_flag */
};

/* Write initial values over the fields (strings become NULL, without freeing). */
void record_init(const struct record_field *fields, size_t n, void *base);
/* Free owned strings and set them to NULL. */
void record_fini(const struct record_field *fields, size_t n, void *base);
/* Set the fields' members in `object`, creating nested objects. */
void record_write(const struct record_field *fields, size_t n, const void *base, json_t *object);
/* record_init, then read every field of `object`; members that no field names are skipped. On
 * failure base may hold some values; call record_fini. */
int record_read(const struct record_field *fields, size_t n, const json_t *object, void *base,
                struct err *err);

/* One field: `key` of `parent`, whose own path is `parent_path` ("" at the top). An absent member
 * or null leaves the value alone. err->reason is "invalid_type" or "invalid_value". */
int record_read_member(const struct record_field *field, const json_t *parent,
                       const char *parent_path, const char *key, void *base, struct err *err);

/* The value at a path in dots, or NULL. */
json_t *record_lookup(const json_t *object, const char *path);
/* "40GiB", "1.5 TB", "1024": bytes. ERR_INVALID for anything else or beyond 2^60. */
int record_parse_size(const char *text, int64_t *bytes, struct err *err);
/* The word's index, -1 when it is not listed. */
int record_word_index(const char *const *words, const char *word);

#endif
