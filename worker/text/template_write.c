/* Values as text: Python's repr and str, and JSON. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text/template_value.h"
#include "worker/text/utf8.h"

enum { MAX_NESTING = 100 };

/* The shortest text that reads back as the same double, laid out as Python does. */
static void add_float(double f, struct buf *out)
{
    char digits[40], mantissa[32];
    int precision = 1, exponent = 0, n = 0;

    if (!isfinite(f)) {
        buf_add_str(out, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    do
        snprintf(digits, sizeof(digits), "%.*e", precision - 1, f);
    while (strtod(digits, NULL) != f && ++precision <= 17);
    const char *e = strchr(digits, 'e');
    exponent = (int)strtol(e + 1, NULL, 10);
    if (digits[0] == '-')
        buf_add_char(out, '-');
    for (const char *c = digits; c < e; c++)
        if (*c >= '0' && *c <= '9')
            mantissa[n++] = *c;
    if (exponent < -4 || exponent >= 16) {
        buf_printf(out, "%c%s%.*se%c%02d", mantissa[0], n > 1 ? "." : "", n - 1, mantissa + 1,
                   exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    if (exponent < 0)
        buf_add_str(out, "0.");
    for (int i = exponent + 1; i < 0; i++)
        buf_add_char(out, '0');
    for (int i = 0; i < n || i <= exponent; i++) {
        if (exponent >= 0 && i == exponent + 1)
            buf_add_char(out, '.');
        buf_add_char(out, i < n ? mantissa[i] : '0');
    }
    if (exponent >= 0 && n <= exponent + 1)
        buf_add_str(out, ".0");
}

/* What print, repr and JSON write alike; false for the others. */
static bool add_number(struct tv v, struct buf *out)
{
    if (v.kind == TV_INT)
        buf_printf(out, "%" PRId64, v.i);
    else if (v.kind == TV_FLOAT)
        add_float(v.f, out);
    return v.kind == TV_INT || v.kind == TV_FLOAT;
}

static void repr_string(struct tv_string s, struct buf *out)
{
    bool single = s.n > 0 && memchr(s.s, '\'', s.n), twice = s.n > 0 && memchr(s.s, '"', s.n);
    char quote = single && !twice ? '"' : '\'';

    buf_add_char(out, quote);
    for (size_t at = 0, n; at < s.n; at += n) {
        uint32_t c = utf8_read(s.s + at, s.n - at, &n);
        if (c == (uint32_t)quote || c == '\\')
            buf_printf(out, "\\%c", (int)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            buf_add_str(out, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (c < 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0xAD)
            buf_printf(out, "\\x%02x", c);
        else
            buf_add(out, s.s + at, n);
    }
    buf_add_char(out, quote);
}

static bool may_write(struct tv_arena *a, const struct buf *out)
{
    if (out->len > a->max_bytes)
        tv_fail(a, "it writes more than %zu MiB", a->max_bytes >> 20);
    return tv_work(a, 1);
}

static void repr_deep(struct tv_arena *a, struct tv v, int depth, struct buf *out)
{
    if (!may_write(a, out) || add_number(v, out))
        return;
    if (depth > MAX_NESTING) {
        tv_fail(a, "a value is nested too deeply");
        return;
    }
    switch (v.kind) {
    case TV_UNDEFINED:
        buf_add_str(out, "Undefined");
        break;
    case TV_NONE:
        buf_add_str(out, "None");
        break;
    case TV_BOOL:
        buf_add_str(out, v.b ? "True" : "False");
        break;
    case TV_STRING:
        tv_work(a, v.str.n / 16);
        repr_string(v.str, out);
        break;
    case TV_LIST:
        buf_add_char(out, v.list->is_tuple ? '(' : '[');
        for (size_t i = 0; i < v.list->n && !a->failed; i++) {
            buf_add_str(out, i ? ", " : "");
            repr_deep(a, v.list->items[i], depth + 1, out);
        }
        buf_add_str(out, v.list->is_tuple ? v.list->n == 1 ? ",)" : ")" : "]");
        break;
    case TV_DICT:
        buf_add_char(out, '{');
        for (size_t i = 0; i < v.dict->n && !a->failed; i++) {
            buf_add_str(out, i ? ", " : "");
            repr_deep(a, v.dict->keys[i], depth + 1, out);
            buf_add_str(out, ": ");
            repr_deep(a, v.dict->values[i], depth + 1, out);
        }
        buf_add_char(out, '}');
        break;
    default:
        tv_fail(a, "%s cannot be written", tv_kind_name(v));
    }
}

void tv_print(struct tv_arena *a, struct tv v, struct buf *out)
{
    if (v.kind == TV_STRING && tv_work(a, v.str.n / 64)) {
        if (may_write(a, out))
            buf_add(out, v.str.s, v.str.n);
    } else if (v.kind != TV_UNDEFINED) {
        repr_deep(a, v, 0, out);
    }
}

static void json_string_to(struct tv_string s, struct buf *out)
{
    static const char letters[] = "\b\f\n\r\t\"\\", escapes[] = "bfnrt\"\\";

    buf_add_char(out, '"');
    for (size_t i = 0; i < s.n; i++) {
        const char *letter = s.s[i] ? strchr(letters, s.s[i]) : NULL;
        if (letter)
            buf_printf(out, "\\%c", escapes[letter - letters]);
        else if ((unsigned char)s.s[i] < 0x20)
            buf_printf(out, "\\u%04x", s.s[i]);
        else
            buf_add_char(out, s.s[i]);
    }
    buf_add_char(out, '"');
}

static void json_break(int indent, int depth, bool comma, struct buf *out)
{
    if (comma)
        buf_add_str(out, indent < 0 ? ", " : ",");
    if (indent < 0)
        return;
    buf_add_char(out, '\n');
    for (int i = 0; i < indent * depth; i++)
        buf_add_char(out, ' ');
}

/* Indices of the keys in the order to write them in. */
static size_t *key_order(struct tv_arena *a, const struct tv_dict *d, bool sort)
{
    size_t *order = tv_alloc(a, (d->n + 1) * sizeof(*order));

    for (size_t i = 0; order && i < d->n; i++) {
        size_t at = i;
        for (; sort && at > 0 && tv_compare(a, d->keys[order[at - 1]], d->keys[i]) > 0; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    return order;
}

static void json_deep(struct tv_arena *a, struct tv v, int indent, bool sort, int depth,
                      struct buf *out)
{
    if (!may_write(a, out))
        return;
    if (depth > MAX_NESTING) {
        tv_fail(a, "a value is nested too deeply");
    } else if (v.kind == TV_FLOAT && !isfinite(v.f)) {
        buf_add_str(out, isnan(v.f) ? "NaN" : v.f < 0 ? "-Infinity" : "Infinity");
    } else if (add_number(v, out)) {
        return;
    } else if (v.kind == TV_NONE) {
        buf_add_str(out, "null");
    } else if (v.kind == TV_BOOL) {
        buf_add_str(out, v.b ? "true" : "false");
    } else if (v.kind == TV_STRING) {
        tv_work(a, v.str.n / 16);
        json_string_to(v.str, out);
    } else if (v.kind == TV_LIST) {
        buf_add_char(out, '[');
        for (size_t i = 0; i < v.list->n && !a->failed; i++) {
            json_break(indent, depth + 1, i > 0, out);
            json_deep(a, v.list->items[i], indent, sort, depth + 1, out);
        }
        if (v.list->n)
            json_break(indent, depth, false, out);
        buf_add_char(out, ']');
    } else if (v.kind == TV_DICT && !v.dict->is_namespace) {
        const size_t *order = key_order(a, v.dict, sort);
        buf_add_char(out, '{');
        for (size_t i = 0; i < v.dict->n && order && !a->failed; i++) {
            struct tv key = v.dict->keys[order[i]];
            json_break(indent, depth + 1, i > 0, out);
            if (key.kind != TV_STRING) /* numbers and words become strings */
                buf_add_char(out, '"');
            json_deep(a, key, -1, sort, depth + 1, out);
            buf_add_str(out, key.kind != TV_STRING ? "\": " : ": ");
            json_deep(a, v.dict->values[order[i]], indent, sort, depth + 1, out);
        }
        if (v.dict->n)
            json_break(indent, depth, false, out);
        buf_add_char(out, '}');
    } else {
        tv_fail(a, "%s cannot be written as JSON", tv_kind_name(v));
    }
}

void tv_json(struct tv_arena *a, struct tv v, int indent, bool sort_keys, struct buf *out)
{
    json_deep(a, v, indent, sort_keys, 0, out);
}
