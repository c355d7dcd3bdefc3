/*
 * Thrift's compact protocol, as far as Parquet's footer and page headers need it. A reader walks
 * untrusted bytes; once something is wrong (the bytes end, a nesting is deeper than
 * THRIFT_MAX_DEPTH, a length reaches beyond the end) `bad` stays set, and every call returns zero
 * or false: callers look at it where they would use what they read.
 *
 * Source: Apache Thrift, "Thrift compact protocol encoding".
 */
#ifndef CASTOR_WORKER_TEXT_THRIFT_H
#define CASTOR_WORKER_TEXT_THRIFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/bytes.h"

enum { THRIFT_MAX_DEPTH = 16 };

enum thrift_type {
    THRIFT_STOP,
    THRIFT_TRUE,
    THRIFT_FALSE,
    THRIFT_BYTE,
    THRIFT_I16,
    THRIFT_I32,
    THRIFT_I64,
    THRIFT_DOUBLE,
    THRIFT_BINARY,
    THRIFT_LIST,
    THRIFT_SET,
    THRIFT_MAP,
    THRIFT_STRUCT,
};

struct thrift {
    struct bytes in;
    bool bad;
    bool cut; /* it is bad because the bytes end: more of them may help */
};

/* The next field of a struct; *id is 0 before the first one. False at the struct's end. */
bool thrift_field(struct thrift *t, int *id, enum thrift_type *type);
/* A whole number, of a field or element of type BYTE, I16, I32 or I64; anything else is bad. */
int64_t thrift_int(struct thrift *t, enum thrift_type type);
bool thrift_bool(struct thrift *t, enum thrift_type type);
/* Points into the bytes. */
const char *thrift_binary(struct thrift *t, enum thrift_type type, size_t *n);
/* Elements of a list that must be of `element` type; at least one byte each is there. */
int64_t thrift_list(struct thrift *t, enum thrift_type type, enum thrift_type element);
/* False, and bad, when the field is no struct. */
bool thrift_is_struct(struct thrift *t, enum thrift_type type);
void thrift_skip(struct thrift *t, enum thrift_type type);

#endif
