#include "worker/text/template_parser.h"

#include <string.h>

/* --- tokens --- */

struct node *parser_fail(struct parser *p, const char *what)
{
    p->a->line = p->at->line;
    if (p->at->kind == TOKEN_NAME || p->at->kind == TOKEN_OP)
        tv_fail(p->a, "%s, not '%.*s'", what,
                (int)(p->at->value.str.n < 40 ? p->at->value.str.n : 40), p->at->value.str.s);
    else
        tv_fail(p->a, "%s", what);
    return p->none;
}

void parser_next(struct parser *p)
{
    if (p->at->kind != TOKEN_EOF && !p->a->failed)
        p->at++;
    p->a->line = p->at->line;
    tv_work(p->a, 1);
}

bool parser_at_op(const struct parser *p, const char *op)
{
    return p->at->kind == TOKEN_OP && tv_is(p->at->value, op);
}

bool parser_at_name(const struct parser *p, const char *name)
{
    return p->at->kind == TOKEN_NAME && tv_is(p->at->value, name);
}

bool parser_take_op(struct parser *p, const char *op)
{
    bool is = parser_at_op(p, op) && !p->a->failed;

    if (is)
        parser_next(p);
    return is;
}

bool parser_take_name(struct parser *p, const char *name)
{
    bool is = parser_at_name(p, name) && !p->a->failed;

    if (is)
        parser_next(p);
    return is;
}

void parser_need_op(struct parser *p, const char *op)
{
    char what[32] = "a tag needs ' '";

    what[13] = op[0];
    if (!parser_take_op(p, op))
        parser_fail(p, what);
}

const char *parser_need_name(struct parser *p)
{
    if (p->at->kind != TOKEN_NAME) {
        parser_fail(p, "a name is needed");
        return "";
    }
    const char *name = p->at->value.kind == TV_STRING ? p->at->value.str.s : "";
    parser_next(p);
    return name;
}

/* --- nodes --- */

struct node *parser_new_node(struct parser *p, enum node_kind kind, struct node *a, struct node *b)
{
    struct node *n = tv_alloc(p->a, sizeof(*n));

    if (!n)
        return p->none;
    *n = (struct node){.kind = kind, .line = p->at->line, .a = a, .b = b};
    return n;
}

void parser_add_node(struct parser *p, struct node_seq *s, struct node *n)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 4;
        struct node **items = tv_alloc(p->a, cap * sizeof(struct node *));
        if (!items)
            return;
        if (s->n)
            memcpy(items, s->items, s->n * sizeof(*items));
        s->items = items;
        s->cap = cap;
    }
    s->items[s->n++] = n;
}

void parser_add_keyword(struct parser *p, struct node *to, const char *name, struct node *value)
{
    size_t n = to->keywords.n;
    const char **names = tv_alloc(p->a, (n + 1) * sizeof(*names));

    if (!names || !tv_work(p->a, n))
        return;
    if (n)
        memcpy(names, to->keyword_names, n * sizeof(*names));
    names[n] = name;
    to->keyword_names = names;
    parser_add_node(p, &to->keywords, value);
}

bool parser_enter(struct parser *p)
{
    if (++p->nesting > TEMPLATE_MAX_NESTING)
        parser_fail(p, "it is nested too deeply");
    return !p->a->failed;
}
