#include "worker/text/template_run.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

static struct tv eval(struct run *r, const struct node *n, struct scope *scope);

/* --- scopes --- */

static struct scope_entry *find_entry(struct run *r, const struct scope *scope, const char *name)
{
    for (struct scope_entry *e = scope->entries; e && tv_work(r->a, 1); e = e->next)
        if (strcmp(e->name, name) == 0)
            return e;
    return NULL;
}

void scope_set(struct run *r, struct scope *scope, const char *name, struct tv value)
{
    struct scope_entry *e = find_entry(r, scope, name);

    if (!e && (e = tv_alloc(r->a, sizeof(*e)))) {
        *e = (struct scope_entry){.next = scope->entries, .name = name};
        scope->entries = e;
    }
    if (e)
        e->value = value;
}

static struct tv lookup(struct run *r, const struct scope *scope, const char *name)
{
    for (; scope && tv_work(r->a, 1); scope = scope->parent) {
        const struct scope_entry *e = find_entry(r, scope, name);
        if (e)
            return e->value;
    }
    return run_function_named(name);
}

static struct scope *new_scope(struct run *r, struct scope *parent)
{
    struct scope *s = tv_alloc(r->a, sizeof(*s));

    if (s)
        *s = (struct scope){.parent = parent};
    return s;
}

static bool enter(struct run *r, const struct node *n)
{
    r->a->line = n->line;
    if (++r->depth > RUN_MAX_DEPTH)
        tv_fail(r->a, "it is nested too deeply, or calls itself without end");
    return tv_work(r->a, 1);
}

/* --- slices --- */

/* A bound of a slice, or its default; false when it is no integer. */
static bool slice_bound(struct run *r, const struct node *n, struct scope *scope, int64_t *out)
{
    struct tv v = n ? eval(r, n, scope) : (struct tv){.kind = TV_NONE};

    if (v.kind == TV_NONE)
        return false;
    if (v.kind != TV_INT && v.kind != TV_BOOL)
        tv_fail(r->a, "a slice needs integers, not %s", tv_kind_name(v));
    *out = tv_whole(v);
    return true;
}

static int64_t clamp(int64_t i, int64_t n, int64_t low, int64_t high)
{
    i += i < 0 ? n : 0;
    return i < low ? low : i > high ? high : i;
}

static struct tv slice(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv of = eval(r, n->a, scope), items, list;
    int64_t from = 0, to = 0, step = 1;
    bool has_from = slice_bound(r, n->b, scope, &from), has_to = slice_bound(r, n->c, scope, &to);

    slice_bound(r, n->d, scope, &step);
    if (of.kind != TV_STRING && of.kind != TV_LIST)
        return tv_fail(r->a, "%s cannot be sliced", tv_kind_name(of));
    if (step == 0 || step == INT64_MIN)
        return tv_fail(r->a, "a slice cannot have that step");
    if (of.kind == TV_STRING)
        tv_work(r->a, of.str.n / 16);
    int64_t count = of.kind == TV_LIST ? (int64_t)of.list->n : (int64_t)tv_characters(of);
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? count - 1 : count;
    from = has_from ? clamp(from, count, low, high) : step < 0 ? count - 1 : 0;
    to = has_to ? clamp(to, count, low, high) : step < 0 ? -1 : count;
    if (of.kind == TV_STRING && step == 1)
        return from < to ? run_substring(of, (size_t)from, (size_t)to) : tv_text("");
    items = tv_iterate(r->a, of);
    list = tv_new_list(r->a, of.kind == TV_LIST && of.list->is_tuple);
    for (int64_t i = from; (step > 0 ? i < to : i > to) && !r->a->failed; i += step) {
        tv_push(r->a, list, items.list->items[i]);
        if (step > 0 ? i > to - step : i < to - step)
            break;
    }
    if (of.kind == TV_LIST || r->a->failed)
        return list;
    struct buf out = {0};
    for (size_t i = 0; i < list.list->n; i++)
        tv_print(r->a, list.list->items[i], &out);
    return tv_take_buf(r->a, &out);
}

/* --- calls --- */

static bool eval_args(struct run *r, const struct node *n, struct scope *scope,
                      struct call_args *args)
{
    *args =
        (struct call_args){.n = n->items.n, .n_named = n->keywords.n, .names = n->keyword_names};
    args->items = tv_alloc(r->a, (args->n + 1) * sizeof(struct tv));
    args->named = tv_alloc(r->a, (args->n_named + 1) * sizeof(struct tv));
    for (size_t i = 0; i < args->n && args->items; i++)
        args->items[i] = eval(r, n->items.items[i], scope);
    for (size_t i = 0; i < args->n_named && args->named; i++)
        args->named[i] = eval(r, n->keywords.items[i], scope);
    r->a->line = n->line;
    return !r->a->failed;
}

const struct tv *call_arg(const struct call_args *args, size_t place, const char *name)
{
    if (place < args->n)
        return &args->items[place];
    for (size_t i = 0; i < args->n_named; i++)
        if (strcmp(args->names[i], name) == 0)
            return &args->named[i];
    return NULL;
}

/* What `body` writes. */
static struct tv catch_body(struct run *r, const struct node *body, struct scope *scope)
{
    struct buf caught = {0}, *out = r->out;
    bool was_caught = r->caught;

    r->out = &caught;
    r->caught = true;
    run_body(r, body, scope);
    r->out = out;
    r->caught = was_caught;
    return tv_take_buf(r->a, &caught);
}

static struct tv run_macro(struct run *r, const struct tv_macro *m, const struct call_args *args)
{
    const struct node *n = m->node;
    struct scope *scope = new_scope(r, m->scope);

    if (!scope)
        return TV_NOTHING;
    if (args->n > n->keywords.n)
        return tv_fail(r->a, "the macro '%.60s' takes %zu arguments", n->name, n->keywords.n);
    for (size_t i = 0; i < n->keywords.n && !r->a->failed; i++) {
        const struct tv *given = call_arg(args, i, n->keyword_names[i]);
        scope_set(r, scope, n->keyword_names[i],
                  given                  ? *given
                  : n->keywords.items[i] ? eval(r, n->keywords.items[i], scope)
                                         : TV_NOTHING);
    }
    for (size_t i = 0; i < args->n_named && !r->a->failed; i++) {
        size_t k = 0;
        while (k < n->keywords.n && strcmp(n->keyword_names[k], args->names[i]) != 0)
            k++;
        if (k < n->keywords.n)
            continue;
        if (strcmp(args->names[i], "caller") == 0)
            scope_set(r, scope, "caller", args->named[i]);
        else
            tv_fail(r->a, "the macro '%.60s' has no argument '%.60s'", n->name, args->names[i]);
    }
    return catch_body(r, n->body, scope);
}

static struct tv new_macro(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv_macro *m = tv_alloc(r->a, sizeof(*m));

    if (!m)
        return TV_NOTHING;
    *m = (struct tv_macro){n, scope};
    return (struct tv){.kind = TV_MACRO, .macro = m};
}

/* `caller` (may be NULL) is what a {% call %} block hands over. */
static struct tv call(struct run *r, const struct node *n, struct scope *scope,
                      const struct tv *caller)
{
    struct call_args args;
    struct tv object = TV_NOTHING, callee = TV_NOTHING;

    if (n->a->kind == NODE_ATTR) {
        object = eval(r, n->a->a, scope);
        if (object.kind == TV_DICT) {
            const struct tv *found = tv_find(r->a, object.dict, tv_text(n->a->name));
            callee = found ? *found : TV_NOTHING;
        }
    } else {
        callee = eval(r, n->a, scope);
    }
    if (!eval_args(r, n, scope, &args))
        return TV_NOTHING;
    if (caller) {
        const char **names = tv_alloc(r->a, (args.n_named + 1) * sizeof(*names));
        if (!names)
            return TV_NOTHING;
        if (args.n_named)
            memcpy(names, args.names, args.n_named * sizeof(*names));
        names[args.n_named] = "caller";
        args.names = names;
        args.named[args.n_named++] = *caller;
    }
    if (callee.kind == TV_MACRO)
        return run_macro(r, callee.macro, &args);
    if (callee.kind == TV_FUNCTION)
        return run_function(r, callee, &args);
    if (n->a->kind == NODE_ATTR)
        return run_method(r, object, n->a->name, &args);
    return tv_fail(r->a, "%s%.60s cannot be called", n->a->name ? n->a->name : tv_kind_name(callee),
                   n->a->name ? " is not known and" : "");
}

static struct tv filter(struct run *r, const struct node *n, struct tv of, struct scope *scope)
{
    struct call_args args;

    return eval_args(r, n, scope, &args) ? run_filter(r, n->name, of, &args) : TV_NOTHING;
}

static struct tv test(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv of = eval(r, n->a, scope);
    struct call_args args;

    return eval_args(r, n, scope, &args) ? tv_bool(run_test(r, n->name, of, &args)) : TV_NOTHING;
}

/* Filters of a block, the innermost first. */
static struct tv filter_text(struct run *r, const struct node *n, struct tv text,
                             struct scope *scope)
{
    return n ? filter(r, n, filter_text(r, n->a, text, scope), scope) : text;
}

/* --- expressions --- */

static struct tv compare_chain(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv left = eval(r, n->a, scope);

    for (size_t i = 0; i < n->items.n && !r->a->failed; i++) {
        struct tv right = eval(r, n->items.items[i]->a, scope);
        if (!run_compare(r, n->items.items[i]->op, left, right))
            return tv_bool(false);
        left = right;
    }
    return tv_bool(true);
}

static struct tv literal(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv v =
        n->kind == NODE_DICT ? tv_new_dict(r->a) : tv_new_list(r->a, n->kind == NODE_TUPLE);

    for (size_t i = 0; i < n->items.n && !r->a->failed; i += n->kind == NODE_DICT ? 2 : 1) {
        struct tv item = eval(r, n->items.items[i], scope);
        if (n->kind == NODE_DICT)
            tv_set(r->a, v, item, eval(r, n->items.items[i + 1], scope));
        else
            tv_push(r->a, v, item);
    }
    return v;
}

static struct tv sign(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv v = eval(r, n->a, scope);

    if (!tv_is_number(v))
        return tv_fail(r->a, "%s has no sign", tv_kind_name(v));
    if (n->kind == NODE_PLUS)
        return v;
    return run_negate(r, v);
}

static struct tv eval_inner(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv x;

    switch (n->kind) {
    case NODE_CONST:
        return n->value;
    case NODE_NAME:
        return lookup(r, scope, n->name);
    case NODE_LIST:
    case NODE_TUPLE:
    case NODE_DICT:
        return literal(r, n, scope);
    case NODE_ATTR:
        x = eval(r, n->a, scope);
        return run_attribute(r, x, n->name);
    case NODE_ITEM:
        x = eval(r, n->a, scope);
        return run_item(r, x, eval(r, n->b, scope));
    case NODE_SLICE:
        return slice(r, n, scope);
    case NODE_CALL:
        return call(r, n, scope, NULL);
    case NODE_FILTER:
        return filter(r, n, eval(r, n->a, scope), scope);
    case NODE_TEST:
        return test(r, n, scope);
    case NODE_NEGATE:
    case NODE_PLUS:
        return sign(r, n, scope);
    case NODE_BINARY:
        x = eval(r, n->a, scope);
        return run_binary(r, n->op, x, eval(r, n->b, scope));
    case NODE_COMPARE:
        return compare_chain(r, n, scope);
    case NODE_AND:
        x = eval(r, n->a, scope);
        return tv_truth(x) ? eval(r, n->b, scope) : x;
    case NODE_OR:
        x = eval(r, n->a, scope);
        return tv_truth(x) ? x : eval(r, n->b, scope);
    case NODE_NOT:
        return tv_bool(!tv_truth(eval(r, n->a, scope)));
    case NODE_COND:
        if (tv_truth(eval(r, n->b, scope)))
            return eval(r, n->a, scope);
        return n->c ? eval(r, n->c, scope) : TV_NOTHING;
    default:
        return tv_fail(r->a, "this is no expression");
    }
}

static struct tv eval(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv v = enter(r, n) ? eval_inner(r, n, scope) : TV_NOTHING;

    r->depth--;
    return r->a->failed ? TV_NOTHING : v;
}

/* --- statements --- */

static void write_value(struct run *r, struct tv v)
{
    tv_print(r->a, v, r->out);
    if (r->out->len > r->max_output)
        tv_fail(r->a, "it writes more than %zu bytes", r->max_output);
}

static void assign(struct run *r, const struct node *target, struct tv value, struct scope *scope)
{
    if (target->kind == NODE_NAME) {
        scope_set(r, scope, target->name, value);
    } else if (target->kind == NODE_ATTR) {
        struct tv object = eval(r, target->a, scope);
        if (object.kind != TV_DICT || !object.dict->is_namespace)
            tv_fail(r->a, "only a namespace's attributes can be set");
        else
            tv_set(r->a, object, tv_text(target->name), value);
    } else {
        struct tv items = tv_iterate(r->a, value);
        if (!r->a->failed && items.list->n != target->items.n)
            tv_fail(r->a, "%zu values cannot be unpacked into %zu names", items.list->n,
                    target->items.n);
        for (size_t i = 0; i < target->items.n && !r->a->failed; i++)
            assign(r, target->items.items[i], items.list->items[i], scope);
    }
}

/* The items that a loop visits. */
static struct tv loop_items(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv all = tv_iterate(r->a, eval(r, n->b, scope)), some;

    if (!n->c || r->a->failed)
        return all;
    some = tv_new_list(r->a, false);
    for (size_t i = 0; i < all.list->n && !r->a->failed; i++) {
        struct scope *inner = new_scope(r, scope);
        if (!inner)
            break;
        assign(r, n->a, all.list->items[i], inner);
        if (tv_truth(eval(r, n->c, inner)))
            tv_push(r->a, some, all.list->items[i]);
    }
    return some;
}

static void run_for(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv items = loop_items(r, n, scope);
    struct tv_loop *loop = tv_alloc(r->a, sizeof(*loop));

    if (!loop || r->a->failed)
        return;
    *loop = (struct tv_loop){.items = items.list};
    for (; loop->index < items.list->n && !r->a->failed; loop->index++) {
        struct scope *inner = new_scope(r, scope);
        if (!inner)
            break;
        assign(r, n->a, items.list->items[loop->index], inner);
        scope_set(r, inner, "loop", (struct tv){.kind = TV_LOOP, .loop = loop});
        run_body(r, n->body, inner);
        if (r->flow == FLOW_BREAK)
            break;
        r->flow = FLOW_ON;
    }
    r->flow = FLOW_ON;
    if (items.list->n == 0 && n->other)
        run_body(r, n->other, scope);
}

static void run_if(struct run *r, const struct node *n, struct scope *scope)
{
    for (size_t i = 0; i + 1 < n->items.n && !r->a->failed; i += 2)
        if (tv_truth(eval(r, n->items.items[i], scope))) {
            if (!r->a->failed)
                run_body(r, n->items.items[i + 1], scope);
            return;
        }
    if (n->body && !r->a->failed)
        run_body(r, n->body, scope);
}

static void run_generation(struct run *r, const struct node *n, struct scope *scope)
{
    struct chat_rendering *x = r->rendering;
    size_t from = r->out->len;

    run_body(r, n->body, scope);
    if (r->caught)
        tv_fail(r->a, "a generation block inside a macro or a set block is not supported");
    if (r->a->failed || r->out->len == from)
        return;
    if (x->n_generated == x->generated_cap) {
        x->generated_cap = x->generated_cap ? x->generated_cap * 2 : 8;
        x->generated = xrealloc(x->generated, x->generated_cap * sizeof(*x->generated));
    }
    x->generated[x->n_generated++] = (struct text_span){from, r->out->len};
}

static void run_call_block(struct run *r, const struct node *n, struct scope *scope)
{
    struct tv caller = new_macro(r, n, scope);

    write_value(r, call(r, n->a, scope, &caller));
}

static void run_statement(struct run *r, const struct node *n, struct scope *scope)
{
    switch (n->kind) {
    case NODE_TEXT:
        write_value(r, n->value);
        break;
    case NODE_PRINT:
        write_value(r, eval(r, n->a, scope));
        break;
    case NODE_IF:
        run_if(r, n, scope);
        break;
    case NODE_FOR:
        run_for(r, n, scope);
        break;
    case NODE_SET:
        assign(r, n->a, eval(r, n->b, scope), scope);
        break;
    case NODE_SET_BLOCK:
    case NODE_FILTERED: {
        struct scope *inner = new_scope(r, scope);
        if (!inner)
            break;
        struct tv text = filter_text(r, n->b, catch_body(r, n->body, inner), scope);
        if (n->kind == NODE_SET_BLOCK)
            assign(r, n->a, text, scope);
        else
            write_value(r, text);
        break;
    }
    case NODE_MACRO:
        scope_set(r, scope, n->name, new_macro(r, n, scope));
        break;
    case NODE_CALL_BLOCK:
        run_call_block(r, n, scope);
        break;
    case NODE_GENERATION:
        run_generation(r, n, scope);
        break;
    case NODE_BREAK:
        r->flow = FLOW_BREAK;
        break;
    case NODE_CONTINUE:
        r->flow = FLOW_CONTINUE;
        break;
    default:
        tv_fail(r->a, "this is no statement");
    }
}

void run_body(struct run *r, const struct node *body, struct scope *scope)
{
    for (size_t i = 0; i < body->items.n && r->flow == FLOW_ON; i++) {
        const struct node *n = body->items.items[i];
        if (enter(r, n))
            run_statement(r, n, scope);
        r->depth--;
        if (r->a->failed)
            return;
    }
}
