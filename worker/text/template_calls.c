/* The filters of the template language. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text/template_run.h"
#include "worker/text/utf8.h"

/* --- helpers --- */

static struct tv need_string(struct run *r, struct tv v)
{
    struct buf text = {0};

    if (v.kind == TV_STRING)
        return v;
    tv_print(r->a, v, &text);
    return tv_take_buf(r->a, &text);
}

static const struct tv *arg(const struct call_args *args, size_t place, const char *name)
{
    return call_arg(args, place, name);
}

static int64_t int_arg(struct run *r, const struct call_args *args, size_t place, const char *name,
                       int64_t otherwise)
{
    const struct tv *v = arg(args, place, name);

    if (!v || v->kind == TV_NONE)
        return otherwise;
    if (v->kind != TV_INT && v->kind != TV_BOOL)
        tv_fail(r->a, "%s must be an integer, not %s", name, tv_kind_name(*v));
    return v->kind == TV_BOOL ? v->b : v->i;
}

/* A path of names and numbers, as "function.name". */
static struct tv attribute_path(struct run *r, struct tv of, struct tv path)
{
    if (path.kind == TV_INT) {
        bool inside = of.kind == TV_LIST && path.i >= 0 && path.i < (int64_t)of.list->n;
        return inside ? of.list->items[path.i] : TV_NOTHING;
    }
    if (path.kind != TV_STRING)
        return tv_fail(r->a, "an attribute's name must be a string");
    for (size_t at = 0; at <= path.str.n && !r->a->failed;) {
        const char *dot = path.str.n > at ? memchr(path.str.s + at, '.', path.str.n - at) : NULL;
        size_t end = dot ? (size_t)(dot - path.str.s) : path.str.n;
        struct tv name = tv_copy_string(r->a, path.str.s + at, end - at);
        if (r->a->failed)
            break;
        char *rest;
        long index = strtol(name.str.s, &rest, 10);
        if (name.str.n && !*rest)
            of = attribute_path(r, of, tv_int(index));
        else
            of = run_attribute(r, of, name.str.s);
        at = end + 1;
    }
    return of;
}

/* --- filters on lists --- */

static struct tv filter_join(struct run *r, struct tv of, const struct call_args *args)
{
    const struct tv *by = arg(args, 0, "d"), *attribute = arg(args, 1, "attribute");
    struct tv items = tv_iterate(r->a, of);
    struct buf out = {0};

    for (size_t i = 0; !r->a->failed && i < items.list->n; i++) {
        struct tv item = items.list->items[i];
        if (i && by)
            tv_print(r->a, *by, &out);
        tv_print(r->a, attribute ? attribute_path(r, item, *attribute) : item, &out);
    }
    return tv_take_buf(r->a, &out);
}

static struct tv filter_edge(struct run *r, struct tv of, bool last)
{
    struct tv items = tv_iterate(r->a, of);

    if (r->a->failed || items.list->n == 0)
        return TV_NOTHING;
    return items.list->items[last ? items.list->n - 1 : 0];
}

static struct tv filter_length(struct run *r, struct tv of, const struct call_args *args)
{
    switch (of.kind) {
    case TV_STRING:
        tv_work(r->a, of.str.n / 16);
        return tv_int((int64_t)tv_characters(of));
    case TV_LIST:
        return tv_int((int64_t)of.list->n);
    case TV_DICT:
        return tv_int((int64_t)of.dict->n);
    case TV_UNDEFINED:
        return tv_int(0);
    default:
        return tv_fail(r->a, "%s has no length", tv_kind_name(of));
    }
}

/* The arguments behind the first `skip`, as those of another filter or test. */
static struct call_args rest_of(const struct call_args *args, size_t skip)
{
    struct call_args rest = *args;

    rest.items += skip < args->n ? skip : args->n;
    rest.n -= skip < args->n ? skip : args->n;
    return rest;
}

static struct tv filter_map(struct run *r, struct tv of, const struct call_args *args)
{
    const struct tv *attribute = args->n ? NULL : arg(args, 0, "attribute");
    const struct tv *otherwise = attribute ? arg(args, 1, "default") : NULL;
    struct tv items = tv_iterate(r->a, of), list = tv_new_list(r->a, false);
    struct call_args rest = rest_of(args, 1);

    if (!attribute && (args->n == 0 || args->items[0].kind != TV_STRING))
        return tv_fail(r->a, "map needs a filter's name, or attribute=");
    for (size_t i = 0; !r->a->failed && i < items.list->n; i++) {
        struct tv item = items.list->items[i];
        item = attribute ? attribute_path(r, item, *attribute)
                         : run_filter(r, args->items[0].str.s, item, &rest);
        tv_push(r->a, list, item.kind == TV_UNDEFINED && otherwise ? *otherwise : item);
    }
    return list;
}

static struct tv choose(struct run *r, struct tv of, const struct call_args *args,
                        bool by_attribute, bool wanted)
{
    struct tv items = tv_iterate(r->a, of), list = tv_new_list(r->a, false);
    size_t test = by_attribute ? 1 : 0;
    struct call_args rest = rest_of(args, test + 1);

    if (args->n < test || (args->n > test && args->items[test].kind != TV_STRING))
        return tv_fail(r->a, "select and reject need an attribute's or a test's name");
    for (size_t i = 0; !r->a->failed && i < items.list->n; i++) {
        struct tv item = items.list->items[i];
        struct tv value = by_attribute ? attribute_path(r, item, args->items[0]) : item;
        bool yes =
            args->n > test ? run_test(r, args->items[test].str.s, value, &rest) : tv_truth(value);
        if (yes == wanted)
            tv_push(r->a, list, item);
    }
    return list;
}

static struct tv lower_key(struct run *r, struct tv v, bool case_sensitive)
{
    return v.kind == TV_STRING && !case_sensitive ? string_upper(r, v, false) : v;
}

/* Sort `list` by `keys` in place, stably: merge sort. */
static void merge_sort(struct run *r, struct tv *list, struct tv *keys, size_t n, struct tv *work,
                       bool reverse)
{
    size_t half = n / 2, i = 0, j = half, k = 0;

    if (n < 2 || r->a->failed)
        return;
    merge_sort(r, list, keys, half, work, reverse);
    merge_sort(r, list + half, keys + half, n - half, work, reverse);
    for (; k < n && !r->a->failed; k++) {
        int order = i < half && j < n ? tv_compare(r->a, keys[i], keys[j]) : 0;
        bool left = i < half && (j >= n || (reverse ? order >= 0 : order <= 0));
        size_t from = left ? i++ : j++;
        work[2 * k] = list[from];
        work[2 * k + 1] = keys[from];
    }
    for (k = 0; k < n && !r->a->failed; k++) {
        list[k] = work[2 * k];
        keys[k] = work[2 * k + 1];
    }
}

static struct tv sorted(struct run *r, struct tv list, const struct tv *keys_of, bool reverse)
{
    size_t n = list.kind == TV_LIST ? list.list->n : 0;
    struct tv *keys = tv_alloc(r->a, (n + 1) * sizeof(*keys));
    struct tv *work = tv_alloc(r->a, (2 * n + 1) * sizeof(*work));

    if (!keys || !work || r->a->failed)
        return TV_NOTHING;
    if (n)
        memcpy(keys, keys_of, n * sizeof(*keys));
    merge_sort(r, list.list->items, keys, n, work, reverse);
    return list;
}

static struct tv copy_list(struct run *r, struct tv of)
{
    struct tv items = tv_iterate(r->a, of), list = tv_new_list(r->a, false);

    for (size_t i = 0; !r->a->failed && i < items.list->n; i++)
        tv_push(r->a, list, items.list->items[i]);
    return list;
}

static struct tv filter_sort(struct run *r, struct tv of, const struct call_args *args)
{
    const struct tv *reverse = arg(args, 0, "reverse"), *exact = arg(args, 1, "case_sensitive");
    const struct tv *attribute = arg(args, 2, "attribute");
    struct tv list = copy_list(r, of), keys = tv_new_list(r->a, false);

    for (size_t i = 0; !r->a->failed && i < list.list->n; i++) {
        struct tv key = list.list->items[i];
        if (attribute && attribute->kind != TV_NONE)
            key = attribute_path(r, key, *attribute);
        tv_push(r->a, keys, lower_key(r, key, exact && tv_truth(*exact)));
    }
    return r->a->failed ? TV_NOTHING
                        : sorted(r, list, keys.list->items, reverse && tv_truth(*reverse));
}

static struct tv filter_dictsort(struct run *r, struct tv of, const struct call_args *args)
{
    const struct tv *exact = arg(args, 0, "case_sensitive"), *by = arg(args, 1, "by");
    const struct tv *reverse = arg(args, 2, "reverse");
    size_t which = by && tv_is(*by, "value") ? 1 : 0;
    struct tv pairs = dict_pairs(r, of), keys = tv_new_list(r->a, false);

    for (size_t i = 0; !r->a->failed && i < pairs.list->n; i++)
        tv_push(r->a, keys,
                lower_key(r, pairs.list->items[i].list->items[which], exact && tv_truth(*exact)));
    return r->a->failed ? TV_NOTHING
                        : sorted(r, pairs, keys.list->items, reverse && tv_truth(*reverse));
}

static struct tv filter_unique(struct run *r, struct tv of, const struct call_args *args)
{
    struct tv items = tv_iterate(r->a, of), list = tv_new_list(r->a, false);
    struct tv seen = tv_new_dict(r->a);

    for (size_t i = 0; !r->a->failed && i < items.list->n; i++) {
        struct tv key = lower_key(r, items.list->items[i], false);
        if (!r->a->failed && !tv_find(r->a, seen.dict, key)) {
            tv_set(r->a, seen, key, key);
            tv_push(r->a, list, items.list->items[i]);
        }
    }
    return list;
}

static struct tv filter_reverse(struct run *r, struct tv of, const struct call_args *args)
{
    struct tv items = tv_iterate(r->a, of), list = tv_new_list(r->a, false);
    struct buf text = {0};

    for (size_t i = r->a->failed ? 0 : items.list->n; i > 0 && !r->a->failed; i--) {
        if (of.kind == TV_STRING)
            tv_print(r->a, items.list->items[i - 1], &text);
        else
            tv_push(r->a, list, items.list->items[i - 1]);
    }
    return of.kind == TV_STRING ? tv_take_buf(r->a, &text) : list;
}

static struct tv filter_extreme(struct run *r, struct tv of, int sign)
{
    struct tv items = tv_iterate(r->a, of), best = TV_NOTHING;

    for (size_t i = 0; !r->a->failed && i < items.list->n; i++) {
        struct tv item = items.list->items[i];
        if (i == 0 ||
            sign * tv_compare(r->a, lower_key(r, item, false), lower_key(r, best, false)) > 0)
            best = item;
    }
    return best;
}

/* --- filters on single values --- */

static struct tv filter_default(struct run *r, struct tv of, const struct call_args *args)
{
    const struct tv *otherwise = arg(args, 0, "default_value"), *falsy = arg(args, 1, "boolean");
    bool replace = of.kind == TV_UNDEFINED || (falsy && tv_truth(*falsy) && !tv_truth(of));

    return !replace ? of : otherwise ? *otherwise : tv_text("");
}

static struct tv filter_tojson(struct run *r, struct tv of, const struct call_args *args)
{
    int64_t indent = int_arg(r, args, 1, "indent", -1);
    const struct tv *sort = arg(args, 3, "sort_keys");
    struct buf out = {0};

    if (arg(args, 2, "separators"))
        return tv_fail(r->a, "tojson with separators is not supported");
    if (indent > 16)
        return tv_fail(r->a, "tojson cannot indent by more than 16");
    tv_json(r->a, of, (int)(indent < 0 ? -1 : indent), sort && tv_truth(*sort), &out);
    return tv_take_buf(r->a, &out);
}

static struct tv filter_int(struct run *r, struct tv of, const struct call_args *args)
{
    int64_t otherwise = int_arg(r, args, 0, "default", 0);

    if (of.kind == TV_INT || of.kind == TV_BOOL)
        return tv_int(of.kind == TV_BOOL ? of.b : of.i);
    if (of.kind == TV_FLOAT && fabs(of.f) < 9e18)
        return tv_int((int64_t)of.f);
    if (of.kind == TV_STRING) {
        struct tv text = string_strip(r, of, NULL, true, true);
        char *end;
        if (r->a->failed || text.str.n == 0 || text.str.n > 40)
            return tv_int(otherwise);
        text = tv_copy_string(r->a, text.str.s, text.str.n);
        if (r->a->failed)
            return TV_NOTHING;
        long long i = strtoll(text.str.s, &end, 10);
        if (!*end)
            return tv_int(i);
        double f = strtod(text.str.s, &end);
        if (!*end && fabs(f) < 9e18)
            return tv_int((int64_t)f);
    }
    return tv_int(otherwise);
}

static struct tv filter_float(struct run *r, struct tv of, const struct call_args *args)
{
    const struct tv *otherwise = arg(args, 0, "default");
    struct tv f = {.kind = TV_FLOAT, .f = otherwise ? tv_number(*otherwise) : 0};

    if (tv_is_number(of)) {
        f.f = tv_number(of);
    } else if (of.kind == TV_STRING && of.str.n > 0 && of.str.n < 64) {
        char text[64], *end;
        memcpy(text, of.str.s, of.str.n);
        text[of.str.n] = '\0';
        double parsed = strtod(text, &end);
        if (!*end)
            f.f = parsed;
    }
    return f;
}

static struct tv filter_abs(struct run *r, struct tv of, const struct call_args *args)
{
    if (of.kind == TV_FLOAT)
        return (struct tv){.kind = TV_FLOAT, .f = fabs(of.f)};
    if (!tv_is_number(of) || (of.kind == TV_INT && of.i == INT64_MIN))
        return tv_fail(r->a, "%s has no absolute value", tv_kind_name(of));
    return tv_int(of.kind == TV_BOOL ? of.b : of.i < 0 ? -of.i : of.i);
}

static struct tv filter_indent(struct run *r, struct tv of, const struct call_args *args)
{
    int64_t width = int_arg(r, args, 0, "width", 4);
    const struct tv *first = arg(args, 1, "first"), *blank = arg(args, 2, "blank");
    struct tv text = need_string(r, of);
    struct buf out = {0};
    bool indents_first = first && tv_truth(*first), indents_blank = blank && tv_truth(*blank);

    if (width < 0 || width > 256)
        tv_fail(r->a, "indent takes a width from 0 to 256");
    for (size_t at = 0; !r->a->failed && at < text.str.n;) {
        const char *line = text.str.s + at, *newline = memchr(line, '\n', text.str.n - at);
        size_t n = newline ? (size_t)(newline - line) + 1 : text.str.n - at;
        bool is_blank = newline == line;
        if (at == 0 ? indents_first : !is_blank || indents_blank)
            for (int64_t i = 0; i < width; i++)
                buf_add_char(&out, ' ');
        buf_add(&out, line, n);
        at += n;
        if (out.len > r->a->max_bytes)
            tv_fail(r->a, "an indented text is too long");
        tv_work(r->a, n / 16 + 1);
    }
    return tv_take_buf(r->a, &out);
}

static struct tv filter_trim(struct run *r, struct tv of, const struct call_args *args)
{
    return string_strip(r, need_string(r, of), arg(args, 0, "chars"), true, true);
}

static struct tv filter_replace(struct run *r, struct tv of, const struct call_args *args)
{
    const struct tv *from = arg(args, 0, "old"), *to = arg(args, 1, "new");

    if (!from || !to)
        return tv_fail(r->a, "replace needs what to replace and by what");
    return string_replace(r, need_string(r, of), need_string(r, *from), need_string(r, *to),
                          int_arg(r, args, 2, "count", -1));
}

static struct tv filter_upper(struct run *r, struct tv of, const struct call_args *args)
{
    return string_upper(r, need_string(r, of), true);
}

static struct tv filter_lower(struct run *r, struct tv of, const struct call_args *args)
{
    return string_upper(r, need_string(r, of), false);
}

static struct tv filter_capitalize(struct run *r, struct tv of, const struct call_args *args)
{
    return string_capitalize(r, need_string(r, of), NULL, false);
}

static struct tv filter_title(struct run *r, struct tv of, const struct call_args *args)
{
    return string_capitalize(r, need_string(r, of), " \t\n\r\v\f-({[<", false);
}

static struct tv filter_string(struct run *r, struct tv of, const struct call_args *args)
{
    return need_string(r, of);
}

static struct tv filter_safe(struct run *r, struct tv of, const struct call_args *args)
{
    return need_string(r, of);
}

static struct tv filter_first(struct run *r, struct tv of, const struct call_args *args)
{
    return filter_edge(r, of, false);
}

static struct tv filter_last(struct run *r, struct tv of, const struct call_args *args)
{
    return filter_edge(r, of, true);
}

static struct tv filter_list(struct run *r, struct tv of, const struct call_args *args)
{
    return copy_list(r, of);
}

static struct tv filter_items(struct run *r, struct tv of, const struct call_args *args)
{
    return of.kind == TV_UNDEFINED ? tv_new_list(r->a, false) : dict_pairs(r, of);
}

static struct tv filter_max(struct run *r, struct tv of, const struct call_args *args)
{
    return filter_extreme(r, of, 1);
}

static struct tv filter_min(struct run *r, struct tv of, const struct call_args *args)
{
    return filter_extreme(r, of, -1);
}

static struct tv filter_select(struct run *r, struct tv of, const struct call_args *args)
{
    return choose(r, of, args, false, true);
}

static struct tv filter_reject(struct run *r, struct tv of, const struct call_args *args)
{
    return choose(r, of, args, false, false);
}

static struct tv filter_selectattr(struct run *r, struct tv of, const struct call_args *args)
{
    return args->n ? choose(r, of, args, true, true)
                   : tv_fail(r->a, "selectattr needs an attribute");
}

static struct tv filter_rejectattr(struct run *r, struct tv of, const struct call_args *args)
{
    return args->n ? choose(r, of, args, true, false)
                   : tv_fail(r->a, "rejectattr needs an attribute");
}

static const struct {
    const char *name;
    struct tv (*run)(struct run *r, struct tv of, const struct call_args *args);
} filters[] = {
    {"abs", filter_abs},
    {"capitalize", filter_capitalize},
    {"count", filter_length},
    {"d", filter_default},
    {"default", filter_default},
    {"dictsort", filter_dictsort},
    {"first", filter_first},
    {"float", filter_float},
    {"indent", filter_indent},
    {"int", filter_int},
    {"items", filter_items},
    {"join", filter_join},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"lower", filter_lower},
    {"map", filter_map},
    {"max", filter_max},
    {"min", filter_min},
    {"reject", filter_reject},
    {"rejectattr", filter_rejectattr},
    {"replace", filter_replace},
    {"reverse", filter_reverse},
    {"safe", filter_safe},
    {"select", filter_select},
    {"selectattr", filter_selectattr},
    {"sort", filter_sort},
    {"string", filter_string},
    {"title", filter_title},
    {"tojson", filter_tojson},
    {"trim", filter_trim},
    {"unique", filter_unique},
    {"upper", filter_upper},
};

struct tv run_filter(struct run *r, const char *name, struct tv of, const struct call_args *args)
{
    if (++r->depth > RUN_MAX_DEPTH) /* map(map(...)) */
        tv_fail(r->a, "it is nested too deeply");
    struct tv v = TV_NOTHING;
    size_t i = 0, n = sizeof(filters) / sizeof(filters[0]);
    while (i < n && strcmp(filters[i].name, name) != 0)
        i++;
    if (i == n)
        tv_fail(r->a, "the filter '%.60s' is not supported", name);
    else if (tv_work(r->a, 1))
        v = filters[i].run(r, of, args);
    r->depth--;
    return r->a->failed ? TV_NOTHING : v;
}
