/*
 * Values of the template language: what Python's would be, as far as chat templates see them.
 *
 * All of them live in an arena, which is freed as a whole; it has a limit, and beyond it, or after
 * any other error, it *fails*: the first error is kept in arena->err, allocations return NULL, and
 * functions return undefined values that the rest of the program passes on harmlessly. So only
 * loops ask whether the arena has failed; the caller asks once, at the end. Work is counted in
 * steps, which are limited likewise. One thread.
 *
 * Strings are UTF-8 with a length; indices count characters. Integers are 64-bit, and overflow is
 * an error. Printing a list or dict follows Python's repr (characters above U+00FF are taken as
 * printable).
 */
#ifndef CASTOR_WORKER_TEXT_TEMPLATE_VALUE_H
#define CASTOR_WORKER_TEXT_TEMPLATE_VALUE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"

struct arena_block;

struct tv_arena {
    struct arena_block *blocks;
    size_t used, max_bytes;
    int64_t steps, max_steps;
    int line; /* of the template, for errors */
    bool failed;
    struct err err;
};

enum tv_kind {
    TV_UNDEFINED,
    TV_NONE,
    TV_BOOL,
    TV_INT,
    TV_FLOAT,
    TV_STRING,
    TV_LIST,
    TV_DICT,
    TV_MACRO,
    TV_LOOP,
    TV_FUNCTION, /* a global one, by its name in str */
};

struct tv_string {
    const char *s;
    size_t n;
};

struct tv {
    enum tv_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        struct tv_string str;
        struct tv_list *list;
        struct tv_dict *dict;
        struct tv_macro *macro;
        struct tv_loop *loop;
    };
};

struct tv_list {
    struct tv *items;
    size_t n, cap;
    bool is_tuple;
};

/* In insertion order. */
struct tv_dict {
    struct tv *keys, *values;
    size_t n, cap;
    bool is_namespace;
};

struct tv_loop {
    const struct tv_list *items;
    size_t index; /* from 0 */
};

static const struct tv TV_NOTHING = {.kind = TV_UNDEFINED};

void tv_arena_fini(struct tv_arena *a);
/* NULL after a failure. */
void *tv_alloc(struct tv_arena *a, size_t bytes);
/* Note an error; returns an undefined value. */
struct tv tv_fail(struct tv_arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Count work; false when it is too much. */
bool tv_work(struct tv_arena *a, size_t steps);

struct tv tv_bool(bool b);
struct tv tv_int(int64_t i);
/* Borrows. */
struct tv tv_string(const char *s, size_t n);
struct tv tv_text(const char *s);
/* Copies into the arena. */
struct tv tv_copy_string(struct tv_arena *a, const char *s, size_t n);
/* Takes the content over and frees the buffer. */
struct tv tv_take_buf(struct tv_arena *a, struct buf *b);
struct tv tv_new_list(struct tv_arena *a, bool is_tuple);
struct tv tv_new_dict(struct tv_arena *a);
void tv_push(struct tv_arena *a, struct tv list, struct tv item);
void tv_set(struct tv_arena *a, struct tv dict, struct tv key, struct tv value);
/* NULL when there is none. */
const struct tv *tv_find(struct tv_arena *a, const struct tv_dict *d, struct tv key);
struct tv tv_from_json(struct tv_arena *a, const json_t *json);

bool tv_is(struct tv v, const char *text);
bool tv_truth(struct tv v);
bool tv_is_number(struct tv v); /* bool, int, float */
double tv_number(struct tv v);
int64_t tv_whole(struct tv v); /* of a bool or int */
bool tv_equal(struct tv_arena *a, struct tv x, struct tv y);
/* -1, 0, 1; what has no order fails. */
int tv_compare(struct tv_arena *a, struct tv x, struct tv y);
/* The word for a kind in messages. */
const char *tv_kind_name(struct tv v);
/* Items of what can be iterated: list, dict (its keys), string (its characters), nothing. */
struct tv tv_iterate(struct tv_arena *a, struct tv v);
/* Characters of a string. */
size_t tv_characters(struct tv v);

/* Append as print does (values in lists as repr does), as json.dumps(ensure_ascii=False) does.
 * indent < 0: one line. */
void tv_print(struct tv_arena *a, struct tv v, struct buf *out);
void tv_json(struct tv_arena *a, struct tv v, int indent, bool sort_keys, struct buf *out);

#endif
