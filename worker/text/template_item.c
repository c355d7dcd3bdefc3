/* Parts of values: attributes, items, characters. */
#include <string.h>

#include "worker/text/template_run.h"
#include "worker/text/utf8.h"

static struct tv loop_attribute(struct run *r, const struct tv_loop *l, const char *name)
{
    size_t i = l->index, n = l->items->n;

    if (strcmp(name, "index") == 0)
        return tv_int((int64_t)i + 1);
    if (strcmp(name, "index0") == 0)
        return tv_int((int64_t)i);
    if (strcmp(name, "revindex") == 0)
        return tv_int((int64_t)(n - i));
    if (strcmp(name, "revindex0") == 0)
        return tv_int((int64_t)(n - i) - 1);
    if (strcmp(name, "first") == 0)
        return tv_bool(i == 0);
    if (strcmp(name, "last") == 0)
        return tv_bool(i + 1 == n);
    if (strcmp(name, "length") == 0)
        return tv_int((int64_t)n);
    if (strcmp(name, "depth") == 0) /* there are no recursive loops */
        return tv_int(1);
    if (strcmp(name, "depth0") == 0)
        return tv_int(0);
    if (strcmp(name, "previtem") == 0)
        return i > 0 ? l->items->items[i - 1] : TV_NOTHING;
    if (strcmp(name, "nextitem") == 0)
        return i + 1 < n ? l->items->items[i + 1] : TV_NOTHING;
    return tv_fail(r->a, "loop.%.40s is not supported", name);
}

struct tv run_attribute(struct run *r, struct tv object, const char *name)
{
    if (object.kind == TV_UNDEFINED)
        return tv_fail(r->a, "an undefined value has no '%.60s'", name);
    if (object.kind == TV_LOOP)
        return loop_attribute(r, object.loop, name);
    if (object.kind == TV_DICT) {
        const struct tv *found = tv_find(r->a, object.dict, tv_text(name));
        return found ? *found : TV_NOTHING;
    }
    return TV_NOTHING;
}

struct tv run_substring(struct tv s, size_t from, size_t to)
{
    size_t at = 0, start = s.str.n, end = s.str.n, n;

    for (size_t i = 0; at < s.str.n; i++, at += n) {
        if (i == from)
            start = at;
        if (i == to) {
            end = at;
            break;
        }
        utf8_read(s.str.s + at, s.str.n - at, &n);
    }
    return start < end ? tv_string(s.str.s + start, end - start) : tv_text("");
}

struct tv run_item(struct run *r, struct tv object, struct tv key)
{
    if (object.kind == TV_UNDEFINED)
        return tv_fail(r->a, "an undefined value has no items");
    if (object.kind == TV_DICT) {
        const struct tv *found = tv_find(r->a, object.dict, key);
        return found ? *found : TV_NOTHING;
    }
    if (object.kind == TV_LOOP && key.kind == TV_STRING)
        return run_attribute(r, object, key.str.s);
    if (key.kind != TV_INT && key.kind != TV_BOOL)
        return TV_NOTHING;
    int64_t i = tv_whole(key);
    if (object.kind == TV_LIST) {
        i += i < 0 ? (int64_t)object.list->n : 0;
        return i >= 0 && i < (int64_t)object.list->n ? object.list->items[i] : TV_NOTHING;
    }
    if (object.kind == TV_STRING && tv_work(r->a, object.str.n / 16)) {
        int64_t n = (int64_t)tv_characters(object);
        i += i < 0 ? n : 0;
        return i >= 0 && i < n ? run_substring(object, (size_t)i, (size_t)i + 1) : TV_NOTHING;
    }
    return TV_NOTHING;
}
