#include "core/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"

struct place {
    char text[64];
};

/* Text of one line may be a line of something larger, which has its own number there. */
static struct place place_of(const char *text, size_t n, int64_t line, int64_t column)
{
    struct place at;
    if (memchr(text, '\n', n))
        snprintf(at.text, sizeof at.text, "line %" PRId64 ", column %" PRId64, line, column);
    else
        snprintf(at.text, sizeof at.text, "column %" PRId64, column);
    return at;
}

/* Jansson recurses once a level, so the depth is checked before it sees the text. Brackets inside
 * strings do not count; columns count characters, as Jansson's do. */
static int check_depth(const char *text, size_t n, int max_depth, struct err *err)
{
    bool in_string = false;
    int depth = 0;
    int64_t line = 1, column = 0;

    for (size_t i = 0; i < n; i++) {
        char c = text[i];

        if (((unsigned char)c & 0xC0) != 0x80)
            column++;
        if (c == '\n') {
            line++;
            column = 0;
        }
        if (in_string) {
            if (c == '\\' && i + 1 < n && text[i + 1] != '\n') {
                i++; /* the next byte is one of ASCII, or the text is refused later */
                column++;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > max_depth)
                return err_set(err, ERR_INVALID, "JSON is nested more than %d levels deep at %s",
                               max_depth, place_of(text, n, line, column).text);
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return 0;
}

int json_parse_limited(const char *text, size_t n, size_t max_bytes, int max_depth, json_t **out,
                       struct err *err)
{
    json_error_t error;
    int rc;

    if (n > max_bytes)
        return err_set(err, ERR_INVALID, "JSON of %zu bytes is larger than the %zu allowed", n,
                       max_bytes);
    rc = check_depth(text, n, max_depth, err);
    if (rc != 0)
        return rc;
    json_t *value = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!value && !*error.text) /* Jansson names a cause for all else */
        return err_set(err, ERR_NOMEM,
                       "reading JSON of %zu bytes needs more memory than there is; raise the "
                       "limit, or use a smaller file",
                       n);
    if (!value) {
        /* Jansson quotes the input; it may hold a key or a person's text, and this error is
         * logged, so the place has to do. */
        char *quote = strstr(error.text, " near '");
        if (quote)
            *quote = '\0';
        return err_set(err, ERR_INVALID, "JSON is not valid at %s: %s",
                       place_of(text, n, error.line, error.column).text, error.text);
    }
    *out = value;
    return 0;
}

int json_parse_file(const char *path, size_t max_bytes, int max_depth, json_t **out,
                    struct err *err)
{
    struct buf text = {0};
    int rc = 0;

    TRY(fs_read_file(path, max_bytes, &text, err));
    rc = json_parse_limited(buf_str(&text), text.len, max_bytes, max_depth, out, err);
    if (rc != 0)
        err_wrap(err, rc, "%s", path);
out:
    buf_fini(&text);
    return rc;
}

char *json_to_line(const json_t *value)
{
    char *line = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);

    if (!line) { /* every json_t that Jansson lets exist can be written; what is left is memory */
        fprintf(stderr, "out of memory while writing JSON\n");
        abort();
    }
    return line;
}

static const char *kind_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

/* ERR_INVALID about member `key` (or obj itself when key is ""), with its full path as param. */
static int refuse(struct err *err, const char *path, const char *key, const char *text)
{
    char full[sizeof(((struct err *)0)->param)];

    snprintf(full, sizeof(full), "%s%s%s", path, *path && *key ? "." : "", key);
    int rc = err_set(err, ERR_INVALID, "%s %s", *full ? full : "the JSON value", text);
    return err_set_param(err, rc, full);
}

static int refuse_kind(struct err *err, const char *path, const char *key, const char *wanted,
                       const json_t *got)
{
    char text[96];

    snprintf(text, sizeof(text), "must be %s, not %s", wanted, kind_name(got));
    return refuse(err, path, key, text);
}

/* The member's value, or NULL when there is none and that is allowed. */
static int find(const json_t *obj, const char *path, const char *key, bool required,
                json_t **member, struct err *err)
{
    json_t *value;

    if (obj && !json_is_object(obj) && !json_is_null(obj))
        return refuse_kind(err, path, "", "an object", obj);
    value = json_object_get(obj, key);
    if (!value || json_is_null(value)) {
        if (required)
            return refuse(err, path, key, "is missing, and there is no default for it");
        value = NULL;
    }
    *member = value;
    return 0;
}

int json_get_int64(const json_t *obj, const char *path, const char *key, bool required, int64_t min,
                   int64_t max, int64_t *out, struct err *err)
{
    json_t *value;
    char text[160];
    int64_t number;
    int rc = find(obj, path, key, required, &value, err);

    if (rc != 0 || !value)
        return rc;
    if (json_is_integer(value)) {
        number = json_integer_value(value);
    } else if (json_is_real(value) && json_real_value(value) == floor(json_real_value(value)) &&
               fabs(json_real_value(value)) <= 9007199254740992.0) {
        /* JSON does not tell 3.0 from 3, and clients send both; beyond 2^53 it is not exact. */
        number = (int64_t)json_real_value(value);
    } else if (json_is_real(value)) {
        snprintf(text, sizeof(text), "must be a whole number, not %.17g", json_real_value(value));
        return refuse(err, path, key, text);
    } else {
        return refuse_kind(err, path, key, "a whole number", value);
    }
    if (number < min || number > max) {
        if (max == INT64_MAX)
            snprintf(text, sizeof(text), "must be at least %" PRId64 ", not %" PRId64, min, number);
        else
            snprintf(text, sizeof(text), "must be from %" PRId64 " to %" PRId64 ", not %" PRId64,
                     min, max, number);
        return refuse(err, path, key, text);
    }
    *out = number;
    return 0;
}

int json_get_double(const json_t *obj, const char *path, const char *key, bool required, double min,
                    double max, double *out, struct err *err)
{
    json_t *value;
    char text[160];
    int rc = find(obj, path, key, required, &value, err);

    if (rc != 0 || !value)
        return rc;
    if (!json_is_number(value))
        return refuse_kind(err, path, key, "a number", value);
    double number = json_number_value(value);
    if (!(number >= min && number <= max)) {
        if (isinf(max))
            snprintf(text, sizeof(text), "must be at least %.10g, not %.10g", min, number);
        else
            snprintf(text, sizeof(text), "must be from %.10g to %.10g, not %.10g", min, max,
                     number);
        return refuse(err, path, key, text);
    }
    *out = number;
    return 0;
}

int json_get_bool(const json_t *obj, const char *path, const char *key, bool required, bool *out,
                  struct err *err)
{
    json_t *value;
    int rc = find(obj, path, key, required, &value, err);

    if (rc != 0 || !value)
        return rc;
    if (!json_is_boolean(value))
        return refuse_kind(err, path, key, "true or false", value);
    *out = json_is_true(value);
    return 0;
}

int json_get_string(const json_t *obj, const char *path, const char *key, bool required,
                    const char **out, struct err *err)
{
    json_t *value;
    int rc = find(obj, path, key, required, &value, err);

    if (rc != 0 || !value)
        return rc;
    if (!json_is_string(value))
        return refuse_kind(err, path, key, "a string", value);
    *out = json_string_value(value);
    return 0;
}

static bool is_listed(const char *key, const char *const *known)
{
    for (; *known; known++)
        if (strcmp(key, *known) == 0)
            return true;
    return false;
}

int json_refuse_unknown(const json_t *obj, const char *path, const char *const *known,
                        struct err *err)
{
    struct buf text = {0};
    const char *key;
    json_t *value;
    int rc = 0;

    if (!obj || json_is_null(obj))
        return 0;
    if (!json_is_object(obj))
        return refuse_kind(err, path, "", "an object", obj);
    json_object_foreach((json_t *)obj, key, value)
    {
        if (is_listed(key, known))
            continue;
        buf_add_str(&text, "is not known here; use");
        for (const char *const *k = known; *k; k++)
            buf_printf(&text, "%s%s", k == known ? " " : k[1] ? ", " : " or ", *k);
        rc = refuse(err, path, key, *known ? buf_str(&text) : "is not known here");
        rc = err_set_reason(err, rc, "unknown_parameter");
        buf_fini(&text);
        return rc;
    }
    return 0;
}
