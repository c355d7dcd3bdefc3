/* The methods and functions of the template language. Methods that would change a value are
 * refused, as in the sandbox that templates are written for. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "worker/text/template_run.h"
#include "worker/text/utf8.h"

/* --- strings --- */

/* What Python's str.isspace says. */
static bool is_space(uint32_t c)
{
    return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

static bool is_in(struct tv characters, const char *c, size_t n)
{
    for (size_t at = 0, m; at < characters.str.n; at += m) {
        utf8_read(characters.str.s + at, characters.str.n - at, &m);
        if (m == n && memcmp(characters.str.s + at, c, n) == 0)
            return true;
    }
    return false;
}

static bool strips(struct run *r, const struct tv *characters, const char *c, size_t n)
{
    size_t m;

    if (characters)
        return tv_work(r->a, characters->str.n / 16) && is_in(*characters, c, n);
    return is_space(utf8_read(c, n, &m));
}

struct tv string_strip(struct run *r, struct tv s, const struct tv *characters, bool left,
                       bool right)
{
    size_t from = 0, to = s.kind == TV_STRING ? s.str.n : 0, n;

    if (characters && characters->kind == TV_NONE)
        characters = NULL;
    if (s.kind != TV_STRING || (characters && characters->kind != TV_STRING))
        return tv_fail(r->a, "only characters of a string can be stripped");
    tv_work(r->a, to / 64);
    while (left && from < to && !r->a->failed) {
        utf8_read(s.str.s + from, to - from, &n);
        if (!strips(r, characters, s.str.s + from, n))
            break;
        from += n;
    }
    while (right && to > from && !r->a->failed) {
        for (n = 1; ((unsigned char)s.str.s[to - n] & 0xC0) == 0x80; n++)
            ;
        if (!strips(r, characters, s.str.s + to - n, n))
            break;
        to -= n;
    }
    return tv_string(s.str.s + from, to - from);
}

/* Where `what` is next at or behind `at`, or SIZE_MAX. */
static size_t find_from(struct tv in, struct tv what, size_t at)
{
    const char *p = what.str.n <= in.str.n - at
                        ? memmem(in.str.s + at, in.str.n - at, what.str.s, what.str.n)
                        : NULL;

    return p ? (size_t)(p - in.str.s) : SIZE_MAX;
}

struct tv string_replace(struct run *r, struct tv s, struct tv from, struct tv to, int64_t most)
{
    struct buf out = {0};
    size_t at = 0, found;

    if (s.kind != TV_STRING || from.kind != TV_STRING || to.kind != TV_STRING)
        return tv_fail(r->a, "only strings can be replaced");
    if (from.str.n == 0)
        return tv_fail(r->a, "an empty string cannot be replaced");
    tv_work(r->a, s.str.n / 16);
    for (; most != 0 && !r->a->failed && s.str.n && (found = find_from(s, from, at)) != SIZE_MAX;
         most--) {
        buf_add(&out, s.str.s + at, found - at);
        buf_add(&out, to.str.s, to.str.n);
        at = found + from.str.n;
        if (out.len > r->a->max_bytes)
            tv_fail(r->a, "a replaced text is too long");
        tv_work(r->a, 1 + to.str.n / 64);
    }
    if (s.str.n > at)
        buf_add(&out, s.str.s + at, s.str.n - at);
    return tv_take_buf(r->a, &out);
}

static void add_cased(struct buf *out, uint32_t c, bool upper)
{
    char bytes[4];

    if (upper && c == 0xDF) { /* the sharp s has no capital in most texts */
        buf_add_str(out, "SS");
        return;
    }
    c = (uint32_t)(upper ? utf8proc_toupper((utf8proc_int32_t)c)
                         : utf8proc_tolower((utf8proc_int32_t)c));
    buf_add(out, bytes, utf8_write(c, bytes));
}

struct tv string_upper(struct run *r, struct tv s, bool upper)
{
    struct buf out = {0};

    if (s.kind != TV_STRING)
        return TV_NOTHING;
    tv_work(r->a, s.str.n / 8);
    for (size_t at = 0, n; at < s.str.n && !r->a->failed; at += n)
        add_cased(&out, utf8_read(s.str.s + at, s.str.n - at, &n), upper);
    return tv_take_buf(r->a, &out);
}

static bool is_letter(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);

    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

struct tv string_capitalize(struct run *r, struct tv s, const char *starts, bool any_start)
{
    struct buf out = {0};
    bool start = true;

    if (s.kind != TV_STRING)
        return TV_NOTHING;
    tv_work(r->a, s.str.n / 8);
    for (size_t at = 0, n; at < s.str.n && !r->a->failed; at += n) {
        uint32_t c = utf8_read(s.str.s + at, s.str.n - at, &n);
        add_cased(&out, c, start);
        start = any_start ? !is_letter(c) : starts && c && c < 128 && strchr(starts, (int)c);
    }
    return tv_take_buf(r->a, &out);
}

bool string_is_cased(struct run *r, struct tv s, bool upper)
{
    bool any = false;

    if (s.kind != TV_STRING || !tv_work(r->a, s.str.n / 8))
        return false;
    for (size_t at = 0, n; at < s.str.n; at += n) {
        utf8proc_category_t k =
            utf8proc_category((utf8proc_int32_t)utf8_read(s.str.s + at, s.str.n - at, &n));
        if (k == (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU) || k == UTF8PROC_CATEGORY_LT)
            return false;
        any |= k == (upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
    }
    return any;
}

static struct tv split_words(struct run *r, struct tv s, int64_t most)
{
    struct tv list = tv_new_list(r->a, false);
    size_t at = 0, n;

    while (!r->a->failed) {
        while (at < s.str.n && is_space(utf8_read(s.str.s + at, s.str.n - at, &n)))
            at += n;
        if (at >= s.str.n)
            break;
        size_t from = at;
        while (at < s.str.n &&
               ((most == 0) || !is_space(utf8_read(s.str.s + at, s.str.n - at, &n)))) {
            if (most == 0)
                utf8_read(s.str.s + at, s.str.n - at, &n);
            at += n;
        }
        struct tv word = tv_string(s.str.s + from, at - from);
        tv_push(r->a, list, most == 0 ? string_strip(r, word, NULL, false, true) : word);
        most -= most > 0;
    }
    return list;
}

static struct tv split(struct run *r, struct tv s, const struct call_args *args, bool from_right)
{
    const struct tv *by = call_arg(args, 0, "sep"), *max = call_arg(args, 1, "maxsplit");
    int64_t most = max && max->kind == TV_INT ? max->i : -1;
    struct tv list = tv_new_list(r->a, false);
    size_t at = 0, found;

    tv_work(r->a, s.str.n / 8);
    if (!by || by->kind == TV_NONE)
        return from_right && most >= 0 ? tv_fail(r->a, "rsplit needs what to split by")
                                       : split_words(r, s, most);
    if (by->kind != TV_STRING || by->str.n == 0)
        return tv_fail(r->a, "split needs a string that is not empty");
    if (from_right && most >= 0) { /* leave the first ones together */
        int64_t parts = 0;
        for (size_t i = 0; s.str.n && (found = find_from(s, *by, i)) != SIZE_MAX; parts++)
            i = found + by->str.n;
        for (int64_t i = 0; i + most < parts; i++)
            at = find_from(s, *by, at) + by->str.n;
        if (most < parts && most > 0) {
            found = find_from(s, *by, at);
            tv_push(r->a, list, tv_string(s.str.s, found));
            at = found + by->str.n;
            most = -1;
        } else if (most == 0) {
            at = 0;
        }
    }
    for (; most != 0 && s.str.n && !r->a->failed && (found = find_from(s, *by, at)) != SIZE_MAX;
         most--) {
        tv_push(r->a, list, tv_string(s.str.s + at, found - at));
        at = found + by->str.n;
    }
    tv_push(r->a, list, tv_string(s.str.n ? s.str.s + at : "", s.str.n - at));
    return list;
}

static struct tv split_lines(struct run *r, struct tv s)
{
    struct tv list = tv_new_list(r->a, false);

    for (size_t at = 0; at < s.str.n && !r->a->failed;) {
        size_t end = at;
        while (end < s.str.n && s.str.s[end] != '\n' && s.str.s[end] != '\r')
            end++;
        tv_push(r->a, list, tv_string(s.str.s + at, end - at));
        at = end + 1 + (end + 1 < s.str.n && s.str.s[end] == '\r' && s.str.s[end + 1] == '\n');
    }
    return list;
}

/* Does s begin (or end) with `part`, or with one of a tuple's strings? */
static bool has_edge(struct run *r, struct tv s, struct tv part, bool end)
{
    if (part.kind == TV_LIST && part.list->is_tuple) {
        for (size_t i = 0; i < part.list->n && !r->a->failed; i++)
            if (part.list->items[i].kind == TV_STRING && has_edge(r, s, part.list->items[i], end))
                return true;
        return false;
    }
    if (part.kind != TV_STRING) {
        tv_fail(r->a, "a string begins and ends with strings, not with %s", tv_kind_name(part));
        return false;
    }
    return part.str.n <= s.str.n &&
           (part.str.n == 0 ||
            memcmp(end ? s.str.s + s.str.n - part.str.n : s.str.s, part.str.s, part.str.n) == 0);
}

static struct tv join(struct run *r, struct tv by, struct tv of)
{
    struct tv items = tv_iterate(r->a, of);
    struct buf out = {0};

    for (size_t i = 0; !r->a->failed && i < items.list->n; i++) {
        if (items.list->items[i].kind != TV_STRING)
            tv_fail(r->a, "join needs strings, not %s", tv_kind_name(items.list->items[i]));
        if (i)
            tv_print(r->a, by, &out);
        tv_print(r->a, items.list->items[i], &out);
    }
    return tv_take_buf(r->a, &out);
}

/* Is every character of a string that is not empty of some kind? */
static bool all_are(struct tv s, bool (*is)(uint32_t c))
{
    for (size_t at = 0, n; at < s.str.n; at += n)
        if (!is(utf8_read(s.str.s + at, s.str.n - at, &n)))
            return false;
    return s.str.n > 0;
}

static bool is_digit(uint32_t c)
{
    return utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ND;
}

static bool is_alphanumeric(uint32_t c)
{
    return is_letter(c) || is_digit(c);
}

static struct tv find_text(struct run *r, struct tv s, struct tv what, bool count)
{
    int64_t n = 0;
    size_t at = 0, found;

    if (what.kind != TV_STRING || (count && what.str.n == 0))
        return tv_fail(r->a, "a string has only strings in it");
    tv_work(r->a, s.str.n / 16);
    if (!count) {
        found = what.str.n == 0 ? 0 : s.str.n ? find_from(s, what, 0) : SIZE_MAX;
        return tv_int(found == SIZE_MAX ? -1 : (int64_t)tv_characters(tv_string(s.str.s, found)));
    }
    for (; s.str.n && (found = find_from(s, what, at)) != SIZE_MAX; n++)
        at = found + what.str.n;
    return tv_int(n);
}

enum method {
    M_STRIP,
    M_LSTRIP,
    M_RSTRIP,
    M_SPLIT,
    M_RSPLIT,
    M_SPLITLINES,
    M_STARTSWITH,
    M_ENDSWITH,
    M_REPLACE,
    M_UPPER,
    M_LOWER,
    M_TITLE,
    M_CAPITALIZE,
    M_JOIN,
    M_FIND,
    M_COUNT,
    M_ISDIGIT,
    M_ISALPHA,
    M_ISALNUM,
    M_ISSPACE,
    M_REMOVEPREFIX,
    M_REMOVESUFFIX,
    N_METHODS
};
static const struct {
    const char *name;
    size_t needs;
} methods[N_METHODS] = {
    [M_STRIP] = {"strip", 0},
    [M_LSTRIP] = {"lstrip", 0},
    [M_RSTRIP] = {"rstrip", 0},
    [M_SPLIT] = {"split", 0},
    [M_RSPLIT] = {"rsplit", 0},
    [M_SPLITLINES] = {"splitlines", 0},
    [M_STARTSWITH] = {"startswith", 1},
    [M_ENDSWITH] = {"endswith", 1},
    [M_REPLACE] = {"replace", 2},
    [M_UPPER] = {"upper", 0},
    [M_LOWER] = {"lower", 0},
    [M_TITLE] = {"title", 0},
    [M_CAPITALIZE] = {"capitalize", 0},
    [M_JOIN] = {"join", 1},
    [M_FIND] = {"find", 1},
    [M_COUNT] = {"count", 1},
    [M_ISDIGIT] = {"isdigit", 0},
    [M_ISALPHA] = {"isalpha", 0},
    [M_ISALNUM] = {"isalnum", 0},
    [M_ISSPACE] = {"isspace", 0},
    [M_REMOVEPREFIX] = {"removeprefix", 1},
    [M_REMOVESUFFIX] = {"removesuffix", 1},
};

static struct tv remove_edge(struct run *r, struct tv s, struct tv part, bool end)
{
    if (part.kind != TV_STRING || !has_edge(r, s, part, end))
        return s;
    return tv_string(end ? s.str.s : s.str.s + part.str.n, s.str.n - part.str.n);
}

static struct tv string_method(struct run *r, struct tv s, enum method m,
                               const struct call_args *args)
{
    const struct tv *first = args->n ? &args->items[0] : NULL;

    switch (m) {
    case M_STRIP:
    case M_LSTRIP:
    case M_RSTRIP:
        return string_strip(r, s, first, m != M_RSTRIP, m != M_LSTRIP);
    case M_SPLIT:
    case M_RSPLIT:
        return split(r, s, args, m == M_RSPLIT);
    case M_SPLITLINES:
        return split_lines(r, s);
    case M_STARTSWITH:
    case M_ENDSWITH:
        return tv_bool(has_edge(r, s, *first, m == M_ENDSWITH));
    case M_REPLACE: {
        const struct tv *count = call_arg(args, 2, "count");
        return string_replace(r, s, first[0], first[1], count ? count->i : -1);
    }
    case M_UPPER:
    case M_LOWER:
        return string_upper(r, s, m == M_UPPER);
    case M_TITLE:
    case M_CAPITALIZE:
        return string_capitalize(r, s, NULL, m == M_TITLE);
    case M_JOIN:
        return join(r, s, *first);
    case M_FIND:
    case M_COUNT:
        return find_text(r, s, *first, m == M_COUNT);
    case M_ISDIGIT:
        return tv_bool(all_are(s, is_digit));
    case M_ISALPHA:
        return tv_bool(all_are(s, is_letter));
    case M_ISALNUM:
        return tv_bool(all_are(s, is_alphanumeric));
    case M_ISSPACE:
        return tv_bool(all_are(s, is_space));
    default:
        return remove_edge(r, s, *first, m == M_REMOVESUFFIX);
    }
}

/* --- mappings, lists, loops --- */

struct tv dict_pairs(struct run *r, struct tv dict)
{
    struct tv list = tv_new_list(r->a, false);

    if (dict.kind != TV_DICT || dict.dict->is_namespace)
        return tv_fail(r->a, "%s has no items", tv_kind_name(dict));
    for (size_t i = 0; i < dict.dict->n && !r->a->failed; i++) {
        struct tv pair = tv_new_list(r->a, true);
        tv_push(r->a, pair, dict.dict->keys[i]);
        tv_push(r->a, pair, dict.dict->values[i]);
        tv_push(r->a, list, pair);
    }
    return list;
}

static struct tv dict_method(struct run *r, struct tv d, const char *name,
                             const struct call_args *args)
{
    if (strcmp(name, "items") == 0)
        return dict_pairs(r, d);
    if (strcmp(name, "keys") == 0)
        return tv_iterate(r->a, d);
    if (strcmp(name, "values") == 0) {
        struct tv list = tv_new_list(r->a, false);
        for (size_t i = 0; i < d.dict->n && !r->a->failed; i++)
            tv_push(r->a, list, d.dict->values[i]);
        return list;
    }
    if (strcmp(name, "get") == 0 && args->n) {
        const struct tv *found = tv_find(r->a, d.dict, args->items[0]);
        return found ? *found : args->n > 1 ? args->items[1] : (struct tv){.kind = TV_NONE};
    }
    return tv_fail(r->a, "a mapping has no method '%.60s' that can be called here", name);
}

static struct tv list_method(struct run *r, struct tv l, const char *name,
                             const struct call_args *args)
{
    bool index = strcmp(name, "index") == 0;
    int64_t count = 0;

    if ((!index && strcmp(name, "count") != 0) || args->n == 0)
        return tv_fail(r->a, "a list has no method '%.60s' that can be called here", name);
    for (size_t i = 0; i < l.list->n && !r->a->failed; i++)
        if (tv_equal(r->a, l.list->items[i], args->items[0])) {
            if (index)
                return tv_int((int64_t)i);
            count++;
        }
    return index ? tv_fail(r->a, "the value is not in the list") : tv_int(count);
}

struct tv run_method(struct run *r, struct tv object, const char *name,
                     const struct call_args *args)
{
    int m = 0;

    if (object.kind == TV_DICT && !object.dict->is_namespace)
        return dict_method(r, object, name, args);
    if (object.kind == TV_LIST)
        return list_method(r, object, name, args);
    if (object.kind == TV_LOOP && strcmp(name, "cycle") == 0 && args->n)
        return args->items[object.loop->index % args->n];
    while (m < N_METHODS && strcmp(methods[m].name, name) != 0)
        m++;
    if (object.kind != TV_STRING || m == N_METHODS)
        return tv_fail(r->a, "%s has no method '%.60s' that can be called here",
                       tv_kind_name(object), name);
    if (args->n < methods[m].needs)
        return tv_fail(r->a, "'%s' needs %zu arguments", name, methods[m].needs);
    if (!tv_work(r->a, 1 + object.str.n / 16)) /* most of them read the whole string */
        return TV_NOTHING;
    return string_method(r, object, (enum method)m, args);
}

/* --- functions --- */

struct tv run_function_named(const char *name)
{
    static const char *const names[] = {"raise_exception", "strftime_now", "range", "dict",
                                        "namespace"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name, names[i]) == 0) {
            struct tv f = tv_text(names[i]);
            f.kind = TV_FUNCTION;
            return f;
        }
    return TV_NOTHING;
}

static struct tv range(struct run *r, const struct call_args *args)
{
    int64_t bounds[3] = {0, 0, 1};
    struct tv list = tv_new_list(r->a, false);

    if (args->n < 1 || args->n > 3)
        return tv_fail(r->a, "range takes one to three integers");
    for (size_t i = 0; i < args->n; i++) {
        if (args->items[i].kind != TV_INT)
            return tv_fail(r->a, "range takes integers, not %s", tv_kind_name(args->items[i]));
        bounds[args->n == 1 ? 1 : i] = args->items[i].i;
    }
    if (bounds[2] == 0)
        return tv_fail(r->a, "range cannot have the step 0");
    __int128 i = bounds[0];
    for (int64_t n = 0; (bounds[2] > 0 ? i < bounds[1] : i > bounds[1]) && !r->a->failed; n++) {
        if (n == RUN_MAX_RANGE)
            return tv_fail(r->a, "a range has more than %d numbers", RUN_MAX_RANGE);
        tv_push(r->a, list, tv_int((int64_t)i));
        i += bounds[2];
    }
    return list;
}

static struct tv make_dict(struct run *r, const struct call_args *args, bool is_namespace)
{
    struct tv d = tv_new_dict(r->a);

    if (r->a->failed)
        return TV_NOTHING;
    for (size_t i = 0; i < args->n; i++) {
        if (args->items[i].kind != TV_DICT)
            return tv_fail(r->a, "dict and namespace take a mapping or names");
        for (size_t k = 0; k < args->items[i].dict->n; k++)
            tv_set(r->a, d, args->items[i].dict->keys[k], args->items[i].dict->values[k]);
    }
    for (size_t i = 0; i < args->n_named; i++)
        tv_set(r->a, d, tv_text(args->names[i]), args->named[i]);
    d.dict->is_namespace = is_namespace;
    return d;
}

struct tv run_function(struct run *r, struct tv f, const struct call_args *args)
{
    const struct tv *first = args->n ? &args->items[0] : NULL;

    f.kind = TV_STRING;
    if (tv_is(f, "range"))
        return range(r, args);
    if (tv_is(f, "dict") || tv_is(f, "namespace"))
        return make_dict(r, args, tv_is(f, "namespace"));
    if (!first || first->kind != TV_STRING)
        return tv_fail(r->a, "%s needs a string", f.str.s);
    if (tv_is(f, "raise_exception"))
        return tv_fail(r->a, "it refuses the conversation: %.*s",
                       (int)(first->str.n < 300 ? first->str.n : 300), first->str.s);
    char text[256];
    struct tm tm;
    struct tv format = tv_copy_string(r->a, first->str.s, first->str.n);
    if (r->a->failed || !gmtime_r(&r->now, &tm))
        return TV_NOTHING;
    size_t n = strftime(text, sizeof(text), format.str.s, &tm);
    if (n == 0 && format.str.n > 0)
        return tv_fail(r->a, "strftime_now makes no text of that format, or one that is too long");
    return tv_copy_string(r->a, text, n);
}
