/*
 * Jansson with the guards that untrusted input needs, and path-aware getters.
 *
 * json_parse_limited refuses, before Jansson recurses: more than max_depth levels of nesting, more
 * than max_bytes, a NUL in a string, duplicate keys, invalid UTF-8, and numbers that are not
 * finite. Errors name the column, and in text of several lines the line; text that takes more
 * memory than there is (Jansson needs up to 20 times its size) is ERR_NOMEM. Objects own their
 * members as Jansson documents; functions here borrow.
 */
#ifndef CASTOR_CORE_JSON_H
#define CASTOR_CORE_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

enum { JSON_MAX_DEPTH_REQUEST = 32, JSON_MAX_DEPTH_FILE = 64 };

int json_parse_limited(const char *text, size_t n, size_t max_bytes, int max_depth, json_t **out,
                       struct err *err);
/* Read and parse a file. */
int json_parse_file(const char *path, size_t max_bytes, int max_depth, json_t **out,
                    struct err *err);
/* Compact, keys in insertion order, one line, no trailing newline; freed with free(). */
char *json_to_line(const json_t *value);

/* Typed members of `obj`. `path` is the path of obj itself ("" at the top) and goes into err->param
 * together with key. A missing key or null leaves *out alone and returns 0 when required is false.
 */
int json_get_int64(const json_t *obj, const char *path, const char *key, bool required, int64_t min,
                   int64_t max, int64_t *out, struct err *err);
int json_get_double(const json_t *obj, const char *path, const char *key, bool required, double min,
                    double max, double *out, struct err *err);
int json_get_bool(const json_t *obj, const char *path, const char *key, bool required, bool *out,
                  struct err *err);
/* Borrowed from obj. */
int json_get_string(const json_t *obj, const char *path, const char *key, bool required,
                    const char **out, struct err *err);
/* ERR_INVALID with the first key of `obj` that is not in the NULL-terminated list. */
int json_refuse_unknown(const json_t *obj, const char *path, const char *const *known,
                        struct err *err);

#endif
