#include "api/record.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/job_spec.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/json.h"

enum { PATH_CAP = 160 };
static const double size_max = 1152921504606846976.0; /* 2^60: far beyond any memory, sums fit */

static void *value_at(const struct record_field *f, const void *base)
{
    return (char *)(uintptr_t)base + f->offset;
}

static void init_field(const struct record_field *f, void *base)
{
    void *at = value_at(f, base);

    switch (f->kind) {
    case RECORD_INT:
    case RECORD_SIZE:
        *(int64_t *)at = (int64_t)f->initial;
        break;
    case RECORD_INT32:
    case RECORD_WORD:
        *(int *)at = (int)f->initial;
        break;
    case RECORD_REAL:
        *(double *)at = f->initial;
        break;
    case RECORD_BOOL:
        *(bool *)at = f->initial != 0;
        break;
    case RECORD_AUTO_INT:
        *(struct auto_int *)at = (struct auto_int){
            .is_auto = isnan(f->initial), .value = isnan(f->initial) ? 0 : (int64_t)f->initial};
        break;
    case RECORD_AUTO_REAL:
        *(struct auto_real *)at = (struct auto_real){.is_auto = isnan(f->initial),
                                                     .value = isnan(f->initial) ? 0 : f->initial};
        break;
    case RECORD_STRING:
    case RECORD_NAME:
    case RECORD_BORROWED:
        *(char **)at = NULL;
        break;
    case RECORD_CHARS:
        memset(at, 0, f->cap);
        break;
    }
}

void record_init(const struct record_field *fields, size_t n, void *base)
{
    for (size_t i = 0; i < n; i++)
        init_field(&fields[i], base);
}

void record_fini(const struct record_field *fields, size_t n, void *base)
{
    for (size_t i = 0; i < n; i++) {
        if (fields[i].kind != RECORD_STRING && fields[i].kind != RECORD_NAME)
            continue;
        char **text = value_at(&fields[i], base);
        free(*text);
        *text = NULL;
    }
}

int record_word_index(const char *const *words, const char *word)
{
    for (int i = 0; words[i]; i++)
        if (strcmp(words[i], word) == 0)
            return i;
    return -1;
}

/* Texts that are not UTF-8 cannot be JSON; they are shown with a question mark for each bad byte.
 */
static json_t *text_to_json(const char *text)
{
    json_t *value = json_string(text);

    if (value)
        return value;
    char *clean = xstrdup(text);
    for (char *c = clean; *c; c++)
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    value = json_string(clean);
    free(clean);
    return value;
}

/* NULL = absent. */
static json_t *field_to_json(const struct record_field *f, const void *base)
{
    const void *at = value_at(f, base);

    switch (f->kind) {
    case RECORD_INT:
    case RECORD_SIZE:
        return json_integer(*(const int64_t *)at);
    case RECORD_INT32:
        return json_integer(*(const int *)at);
    case RECORD_WORD:
        return json_string(f->words[*(const int *)at]);
    case RECORD_REAL:
        return json_real(*(const double *)at); /* NULL for NaN and infinity */
    case RECORD_BOOL:
        return json_boolean(*(const bool *)at);
    case RECORD_AUTO_INT: {
        const struct auto_int *v = at;
        return v->is_auto ? json_string("auto") : json_integer(v->value);
    }
    case RECORD_AUTO_REAL: {
        const struct auto_real *v = at;
        return v->is_auto ? json_string("auto") : json_real(v->value);
    }
    case RECORD_STRING:
    case RECORD_NAME:
    case RECORD_BORROWED: {
        const char *text = *(char *const *)at;
        return text ? text_to_json(text) : f->flags & RECORD_SHOW_NULL ? json_null() : NULL;
    }
    case RECORD_CHARS:
        return text_to_json(at);
    }
    return NULL;
}

/* Steal `value` into object at `path`. */
static void put(json_t *object, const char *path, json_t *value)
{
    char key[PATH_CAP];
    const char *dot;

    while ((dot = strchr(path, '.'))) {
        assert((size_t)(dot - path) < sizeof(key));
        memcpy(key, path, (size_t)(dot - path));
        key[dot - path] = '\0';
        json_t *inner = json_object_get(object, key);
        if (!json_is_object(inner)) {
            inner = json_object();
            json_object_set_new(object, key, inner);
        }
        object = inner;
        path = dot + 1;
    }
    json_object_set_new(object, path, value);
}

void record_write(const struct record_field *fields, size_t n, const void *base, json_t *object)
{
    for (size_t i = 0; i < n; i++) {
        json_t *value = field_to_json(&fields[i], base);
        if (value)
            put(object, fields[i].path, value);
    }
}

int record_parse_size(const char *text, int64_t *bytes, struct err *err)
{
    static const struct {
        const char *name;
        double factor;
    } units[] = {
        {"", 1},
        {"B", 1},
        {"KB", 1e3},
        {"MB", 1e6},
        {"GB", 1e9},
        {"TB", 1e12},
        {"KiB", 1024},
        {"MiB", 1048576},
        {"GiB", 1073741824.0},
        {"TiB", 1099511627776.0},
    };
    char *end = NULL;
    double number = -1;

    if (*text >= '0' && *text <= '9')
        number = strtod(text, &end);
    if (number >= 0 && !strpbrk(text, "xXpPeE")) { /* no hexadecimal, no exponents */
        while (*end == ' ')
            end++;
        for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
            double value = number * units[i].factor;
            if (strcasecmp(end, units[i].name) != 0 || !(value <= size_max))
                continue;
            *bytes = (int64_t)value;
            return 0;
        }
    }
    return err_set(err, ERR_INVALID,
                   "must be bytes as a whole number, or a text like \"40GiB\" or \"1.5TB\"");
}

static int refuse(struct err *err, const char *parent_path, const char *key, const char *text)
{
    char full[PATH_CAP];

    snprintf(full, sizeof(full), "%s%s%s", parent_path, *parent_path ? "." : "", key);
    int rc = err_set(err, ERR_INVALID, "%s %s", full, text);
    return err_set_param(err, rc, full);
}

static int read_word(const struct record_field *f, const json_t *value, const char *parent_path,
                     const char *key, int *out, struct err *err)
{
    struct buf text = {0};
    int index = json_is_string(value) ? record_word_index(f->words, json_string_value(value)) : -1;
    int rc = 0;

    if (index >= 0) {
        *out = index;
        return 0;
    }
    buf_add_str(&text, "must be");
    for (int i = 0; f->words[i]; i++)
        buf_printf(&text, "%s\"%s\"", i == 0 ? " " : f->words[i + 1] ? ", " : " or ", f->words[i]);
    rc = refuse(err, parent_path, key, buf_str(&text));
    buf_fini(&text);
    return rc;
}

static int read_size(const json_t *parent, const char *parent_path, const char *key, int64_t *out,
                     struct err *err)
{
    const json_t *value = json_object_get(parent, key);
    struct err why = {0};

    if (!json_is_string(value))
        return json_get_int64(parent, parent_path, key, false, 0, (int64_t)size_max, out, err);
    if (record_parse_size(json_string_value(value), out, &why) != 0)
        return refuse(err, parent_path, key, why.msg);
    return 0;
}

static int read_real(const struct record_field *f, const json_t *parent, const char *parent_path,
                     const char *key, double *out, struct err *err)
{
    bool any = f->min == 0 && f->max == 0;
    double value = 0;
    char text[96];
    int rc = json_get_double(parent, parent_path, key, false, any ? -INFINITY : f->min,
                             any ? INFINITY : f->max, &value, err);

    if (rc != 0)
        return rc;
    if ((f->flags & RECORD_ABOVE_MIN) && value <= f->min) {
        snprintf(text, sizeof(text), "must be above %.10g", f->min);
        return refuse(err, parent_path, key, text);
    }
    if ((f->flags & RECORD_BELOW_MAX) && value >= f->max) {
        snprintf(text, sizeof(text), "must be below %.10g", f->max);
        return refuse(err, parent_path, key, text);
    }
    *out = value;
    return 0;
}

static int read_int(const struct record_field *f, const json_t *parent, const char *parent_path,
                    const char *key, int64_t *out, struct err *err)
{
    bool any = f->min == 0 && f->max == 0;

    return json_get_int64(parent, parent_path, key, false, any ? INT64_MIN : (int64_t)f->min,
                          any ? INT64_MAX : (int64_t)f->max, out, err);
}

static bool is_name(const char *text)
{
    size_t n = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-");

    return n >= 1 && n <= 64 && text[n] == '\0';
}

static int read_text(const struct record_field *f, const json_t *parent, const char *parent_path,
                     const char *key, void *at, struct err *err)
{
    const char *text = NULL;
    int rc = json_get_string(parent, parent_path, key, false, &text, err);

    if (rc != 0)
        return rc;
    if (f->kind == RECORD_NAME && !is_name(text))
        return refuse(err, parent_path, key, "must be 1 to 64 characters of A-Z a-z 0-9 _ -");
    if (f->kind == RECORD_BORROWED) {
        *(const char **)at = text;
    } else if (f->kind == RECORD_CHARS) {
        snprintf(at, f->cap, "%s", text);
    } else {
        free(*(char **)at);
        *(char **)at = xstrdup(text);
    }
    return 0;
}

static int read_value(const struct record_field *f, const json_t *parent, const char *parent_path,
                      const char *key, void *base, struct err *err)
{
    const json_t *value = json_object_get(parent, key);
    bool is_auto = json_is_string(value) && strcmp(json_string_value(value), "auto") == 0;
    void *at = value_at(f, base);
    int64_t number = 0;
    int rc;

    switch (f->kind) {
    case RECORD_INT:
        return read_int(f, parent, parent_path, key, at, err);
    case RECORD_INT32:
        rc = json_get_int64(parent, parent_path, key, false, INT32_MIN, INT32_MAX, &number, err);
        if (rc == 0)
            *(int *)at = (int)number;
        return rc;
    case RECORD_REAL:
        return read_real(f, parent, parent_path, key, at, err);
    case RECORD_BOOL:
        return json_get_bool(parent, parent_path, key, false, at, err);
    case RECORD_WORD:
        return read_word(f, value, parent_path, key, at, err);
    case RECORD_SIZE:
        return read_size(parent, parent_path, key, at, err);
    case RECORD_AUTO_INT: {
        struct auto_int *v = at;
        if (!is_auto && json_is_string(value))
            return refuse(err, parent_path, key, "must be a whole number or \"auto\"");
        rc = is_auto ? 0 : read_int(f, parent, parent_path, key, &v->value, err);
        if (rc == 0)
            v->is_auto = is_auto;
        return rc;
    }
    case RECORD_AUTO_REAL: {
        struct auto_real *v = at;
        if (!is_auto && json_is_string(value))
            return refuse(err, parent_path, key, "must be a number or \"auto\"");
        rc = is_auto ? 0 : read_real(f, parent, parent_path, key, &v->value, err);
        if (rc == 0)
            v->is_auto = is_auto;
        return rc;
    }
    case RECORD_STRING:
    case RECORD_NAME:
    case RECORD_BORROWED:
    case RECORD_CHARS:
        return read_text(f, parent, parent_path, key, at, err);
    }
    return 0;
}

/* Is it the value's type that is wrong, or only its size? For the fault's code. */
static bool type_fits(enum record_kind kind, const json_t *value)
{
    switch (kind) {
    case RECORD_INT:
    case RECORD_INT32:
    case RECORD_REAL:
        return json_is_number(value);
    case RECORD_BOOL:
        return json_is_boolean(value);
    case RECORD_SIZE:
    case RECORD_AUTO_INT:
    case RECORD_AUTO_REAL:
        return json_is_number(value) || json_is_string(value);
    default:
        return json_is_string(value);
    }
}

int record_read_member(const struct record_field *field, const json_t *parent,
                       const char *parent_path, const char *key, void *base, struct err *err)
{
    const json_t *value = json_object_get(parent, key);
    int rc;

    if (!value || json_is_null(value))
        return 0;
    rc = read_value(field, parent, parent_path, key, base, err);
    if (rc != 0)
        rc = err_set_reason(err, rc,
                            type_fits(field->kind, value) ? "invalid_value" : "invalid_type");
    return rc;
}

json_t *record_lookup(const json_t *object, const char *path)
{
    char key[PATH_CAP];
    const char *dot;

    while ((dot = strchr(path, '.'))) {
        if ((size_t)(dot - path) >= sizeof(key))
            return NULL;
        memcpy(key, path, (size_t)(dot - path));
        key[dot - path] = '\0';
        object = json_object_get(object, key);
        path = dot + 1;
    }
    return json_object_get(object, path);
}

int record_read(const struct record_field *fields, size_t n, const json_t *object, void *base,
                struct err *err)
{
    int rc;

    record_init(fields, n, base);
    if (!json_is_object(object))
        return err_set(err, ERR_INVALID, "a JSON object was expected here");
    for (size_t i = 0; i < n; i++) {
        const char *dot = strrchr(fields[i].path, '.');
        char prefix[PATH_CAP] = "";
        const json_t *parent = object;

        if (dot) {
            assert((size_t)(dot - fields[i].path) < sizeof(prefix));
            memcpy(prefix, fields[i].path, (size_t)(dot - fields[i].path));
            parent = record_lookup(object, prefix);
        }
        const char *key = dot ? dot + 1 : fields[i].path;
        const json_t *value = json_object_get(parent, key);
        if ((!value || json_is_null(value)) && (fields[i].flags & RECORD_REQUIRED))
            return refuse(err, prefix, key, "is missing");
        rc = record_read_member(&fields[i], parent, prefix, key, base, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}
