#include "worker/text/template_value.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/utf8.h"

enum { BLOCK_BYTES = 1 << 16, MAX_NESTING = 100 };

struct arena_block {
    struct arena_block *next;
    size_t used, cap;
    _Alignas(16) char bytes[];
};

/* --- arena --- */

void tv_arena_fini(struct tv_arena *a)
{
    while (a->blocks) {
        struct arena_block *next = a->blocks->next;
        free(a->blocks);
        a->blocks = next;
    }
    a->used = 0;
}

struct tv tv_fail(struct tv_arena *a, const char *fmt, ...)
{
    char text[512];
    va_list args;

    if (a->failed)
        return TV_NOTHING;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    /* A cut or an argument may have left half a character. */
    size_t good = utf8_check(text, strlen(text));
    a->failed = true;
    err_set(&a->err, ERR_INVALID, "the chat template fails in its line %d: %.*s", a->line,
            (int)good, text);
    return TV_NOTHING;
}

bool tv_work(struct tv_arena *a, size_t steps)
{
    a->steps += (int64_t)steps;
    if (a->steps > a->max_steps)
        tv_fail(a, "it takes more than %" PRId64 " steps", a->max_steps);
    return !a->failed;
}

void *tv_alloc(struct tv_arena *a, size_t bytes)
{
    struct arena_block *b = a->blocks;
    size_t need = (bytes + 15) & ~(size_t)15;

    if (a->failed)
        return NULL;
    if (bytes > a->max_bytes || a->used + need > a->max_bytes) {
        tv_fail(a, "it needs more than %zu MiB of memory", a->max_bytes >> 20);
        return NULL;
    }
    if (!b || b->cap - b->used < need) {
        size_t cap = need > BLOCK_BYTES ? need : BLOCK_BYTES;
        b = xmalloc(sizeof(*b) + cap);
        *b = (struct arena_block){.next = a->blocks, .cap = cap};
        a->blocks = b;
    }
    void *p = b->bytes + b->used;
    b->used += need;
    a->used += need;
    return p;
}

/* --- making --- */

struct tv tv_bool(bool b)
{
    return (struct tv){.kind = TV_BOOL, .b = b};
}

struct tv tv_int(int64_t i)
{
    return (struct tv){.kind = TV_INT, .i = i};
}

struct tv tv_string(const char *s, size_t n)
{
    return (struct tv){.kind = TV_STRING, .str = {s, n}};
}

struct tv tv_text(const char *s)
{
    return tv_string(s, strlen(s));
}

struct tv tv_copy_string(struct tv_arena *a, const char *s, size_t n)
{
    char *copy = tv_work(a, n / 64) ? tv_alloc(a, n + 1) : NULL;

    if (!copy)
        return TV_NOTHING;
    if (n)
        memcpy(copy, s, n);
    copy[n] = '\0';
    return tv_string(copy, n);
}

struct tv tv_take_buf(struct tv_arena *a, struct buf *b)
{
    struct tv v = tv_copy_string(a, buf_str(b), b->len);

    buf_fini(b);
    return v;
}

struct tv tv_new_list(struct tv_arena *a, bool is_tuple)
{
    struct tv_list *l = tv_alloc(a, sizeof(*l));

    if (!l)
        return TV_NOTHING;
    *l = (struct tv_list){.is_tuple = is_tuple};
    return (struct tv){.kind = TV_LIST, .list = l};
}

struct tv tv_new_dict(struct tv_arena *a)
{
    struct tv_dict *d = tv_alloc(a, sizeof(*d));

    if (!d)
        return TV_NOTHING;
    *d = (struct tv_dict){0};
    return (struct tv){.kind = TV_DICT, .dict = d};
}

/* A copy of `old` with room for twice as many. */
static struct tv *grown(struct tv_arena *a, const struct tv *old, size_t n, size_t cap)
{
    struct tv *items = tv_alloc(a, cap * sizeof(*items));

    if (items && n)
        memcpy(items, old, n * sizeof(*items));
    return items;
}

void tv_push(struct tv_arena *a, struct tv list, struct tv item)
{
    struct tv_list *l = list.list;

    if (list.kind != TV_LIST || !tv_work(a, 1))
        return;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 4;
        struct tv *items = grown(a, l->items, l->n, cap);
        if (!items)
            return;
        l->items = items;
        l->cap = cap;
    }
    l->items[l->n++] = item;
}

const struct tv *tv_find(struct tv_arena *a, const struct tv_dict *d, struct tv key)
{
    tv_work(a, d->n / 8);
    for (size_t i = 0; i < d->n && !a->failed; i++)
        if (tv_equal(a, d->keys[i], key))
            return &d->values[i];
    return NULL;
}

void tv_set(struct tv_arena *a, struct tv dict, struct tv key, struct tv value)
{
    struct tv_dict *d = dict.dict;

    if (dict.kind != TV_DICT || !tv_work(a, 1))
        return;
    struct tv *old = (struct tv *)tv_find(a, d, key);
    if (old) {
        *old = value;
        return;
    }
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 4;
        struct tv *keys = grown(a, d->keys, d->n, cap), *values = grown(a, d->values, d->n, cap);
        if (!keys || !values)
            return;
        d->keys = keys;
        d->values = values;
        d->cap = cap;
    }
    d->keys[d->n] = key;
    d->values[d->n++] = value;
}

/* Nesting is bounded by the parser that made `json`. */
struct tv tv_from_json(struct tv_arena *a, const json_t *json)
{
    struct tv v = {.kind = TV_NONE};
    const char *key;
    json_t *item;
    size_t i;

    tv_work(a, 1);
    switch (json ? json_typeof(json) : JSON_NULL) {
    case JSON_OBJECT:
        v = tv_new_dict(a);
        json_object_foreach((json_t *)json, key, item)
            tv_set(a, v, tv_text(key), tv_from_json(a, item));
        return v;
    case JSON_ARRAY:
        v = tv_new_list(a, false);
        json_array_foreach(json, i, item) tv_push(a, v, tv_from_json(a, item));
        return v;
    case JSON_STRING:
        return tv_string(json_string_value(json), json_string_length(json));
    case JSON_INTEGER:
        return tv_int(json_integer_value(json));
    case JSON_REAL:
        return (struct tv){.kind = TV_FLOAT, .f = json_real_value(json)};
    case JSON_TRUE:
        return tv_bool(true);
    case JSON_FALSE:
        return tv_bool(false);
    case JSON_NULL:
        break;
    }
    return v;
}

/* --- asking --- */

bool tv_is(struct tv v, const char *text)
{
    return v.kind == TV_STRING && v.str.n == strlen(text) && memcmp(v.str.s, text, v.str.n) == 0;
}

bool tv_truth(struct tv v)
{
    switch (v.kind) {
    case TV_UNDEFINED:
    case TV_NONE:
        return false;
    case TV_BOOL:
        return v.b;
    case TV_INT:
        return v.i != 0;
    case TV_FLOAT:
        return v.f != 0;
    case TV_STRING:
        return v.str.n > 0;
    case TV_LIST:
        return v.list->n > 0;
    case TV_DICT:
        return v.dict->is_namespace || v.dict->n > 0;
    default:
        return true;
    }
}

bool tv_is_number(struct tv v)
{
    return v.kind == TV_BOOL || v.kind == TV_INT || v.kind == TV_FLOAT;
}

double tv_number(struct tv v)
{
    return v.kind == TV_FLOAT ? v.f : v.kind == TV_BOOL ? v.b : (double)v.i;
}

int64_t tv_whole(struct tv v)
{
    return v.kind == TV_BOOL ? v.b : v.i;
}

static bool equal_deep(struct tv_arena *a, struct tv x, struct tv y, int depth)
{
    if (!tv_work(a, 1) || depth > MAX_NESTING)
        return false;
    if (tv_is_number(x) && tv_is_number(y))
        return x.kind == TV_FLOAT || y.kind == TV_FLOAT ? tv_number(x) == tv_number(y)
                                                        : tv_whole(x) == tv_whole(y);
    if (x.kind != y.kind)
        return false;
    switch (x.kind) {
    case TV_STRING:
        return x.str.n == y.str.n && tv_work(a, x.str.n / 64) &&
               memcmp(x.str.s, y.str.s, x.str.n) == 0;
    case TV_LIST:
        if (x.list->n != y.list->n || x.list->is_tuple != y.list->is_tuple)
            return false;
        for (size_t i = 0; i < x.list->n; i++)
            if (!equal_deep(a, x.list->items[i], y.list->items[i], depth + 1))
                return false;
        return true;
    case TV_DICT:
        if (x.dict->n != y.dict->n || x.dict->is_namespace || y.dict->is_namespace)
            return x.dict == y.dict;
        for (size_t i = 0; i < x.dict->n; i++) {
            const struct tv *other = tv_find(a, y.dict, x.dict->keys[i]);
            if (!other || !equal_deep(a, x.dict->values[i], *other, depth + 1))
                return false;
        }
        return true;
    case TV_UNDEFINED:
    case TV_NONE:
        return true;
    default:
        return x.macro == y.macro;
    }
}

bool tv_equal(struct tv_arena *a, struct tv x, struct tv y)
{
    return equal_deep(a, x, y, 0);
}

static int compare_deep(struct tv_arena *a, struct tv x, struct tv y, int depth)
{
    if (!tv_work(a, 1) || depth > MAX_NESTING)
        return 0;
    if (tv_is_number(x) && tv_is_number(y)) {
        if (x.kind == TV_FLOAT || y.kind == TV_FLOAT)
            return (tv_number(x) > tv_number(y)) - (tv_number(x) < tv_number(y));
        return (tv_whole(x) > tv_whole(y)) - (tv_whole(x) < tv_whole(y));
    }
    if (x.kind == TV_STRING && y.kind == TV_STRING) {
        size_t n = x.str.n < y.str.n ? x.str.n : y.str.n;
        tv_work(a, n / 64);
        int c = n ? memcmp(x.str.s, y.str.s, n) : 0;
        return c ? (c > 0) - (c < 0) : (x.str.n > y.str.n) - (x.str.n < y.str.n);
    }
    if (x.kind == TV_LIST && y.kind == TV_LIST) {
        for (size_t i = 0; i < x.list->n && i < y.list->n; i++) {
            int c = compare_deep(a, x.list->items[i], y.list->items[i], depth + 1);
            if (c || a->failed)
                return c;
        }
        return (x.list->n > y.list->n) - (x.list->n < y.list->n);
    }
    tv_fail(a, "%s and %s have no order", tv_kind_name(x), tv_kind_name(y));
    return 0;
}

int tv_compare(struct tv_arena *a, struct tv x, struct tv y)
{
    return compare_deep(a, x, y, 0);
}

const char *tv_kind_name(struct tv v)
{
    static const char *const names[] = {
        "an undefined value", "none",    "a boolean", "an integer", "a float", "a string", "a list",
        "a mapping",          "a macro", "a loop",    "a function"};
    return names[v.kind];
}

size_t tv_characters(struct tv v)
{
    size_t n = 0;

    for (size_t i = 0; i < v.str.n; i++)
        n += ((unsigned char)v.str.s[i] & 0xC0) != 0x80;
    return n;
}

struct tv tv_iterate(struct tv_arena *a, struct tv v)
{
    struct tv list = TV_NOTHING;

    if (v.kind == TV_LIST)
        return v;
    if (v.kind == TV_STRING || v.kind == TV_UNDEFINED ||
        (v.kind == TV_DICT && !v.dict->is_namespace))
        list = tv_new_list(a, false);
    else
        return tv_fail(a, "%s cannot be iterated over", tv_kind_name(v));
    if (v.kind == TV_DICT)
        for (size_t i = 0; i < v.dict->n; i++)
            tv_push(a, list, v.dict->keys[i]);
    for (size_t at = 0, n; v.kind == TV_STRING && at < v.str.n && !a->failed; at += n) {
        utf8_read(v.str.s + at, v.str.n - at, &n);
        tv_push(a, list, tv_string(v.str.s + at, n));
    }
    return list;
}
