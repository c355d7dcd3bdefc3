/* Statements: a template's text, prints and tags. */
#include "worker/text/template_parser.h"

static struct node *parse_body(struct parser *p, const char *const *ends);

static void end_block(struct parser *p)
{
    if (p->at->kind == TOKEN_BLOCK_END)
        parser_next(p);
    else
        parser_fail(p, "a tag goes on where it should end");
}

/* What may be assigned to: a name, an attribute of a namespace, or several names. */
static struct node *parse_target(struct parser *p, bool allow_attribute)
{
    struct node *first = NULL, *tuple = NULL;
    bool bracket = parser_take_op(p, "(");

    do {
        if (first && (parser_at_op(p, "=") || parser_at_name(p, "in") || parser_at_op(p, ")")))
            break;
        struct node *n = parser_new_node(p, NODE_NAME, NULL, NULL);
        n->name = parser_need_name(p);
        if (allow_attribute && parser_take_op(p, ".")) {
            n = parser_new_node(p, NODE_ATTR, n, NULL);
            n->name = parser_need_name(p);
        }
        if (first && !tuple) {
            tuple = parser_new_node(p, NODE_TUPLE, NULL, NULL);
            parser_add_node(p, &tuple->items, first);
        }
        if (tuple)
            parser_add_node(p, &tuple->items, n);
        first = first ? first : n;
    } while (!p->a->failed && parser_take_op(p, ","));
    if (bracket)
        parser_need_op(p, ")");
    return tuple ? tuple : first;
}

/* The name in the tag that ended parse_body; the tag's rest is the caller's. */
static bool take_end(struct parser *p, const char *name)
{
    if (!parser_at_name(p, name))
        return false;
    parser_next(p);
    return true;
}

static struct node *parse_if(struct parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif",
                                                                                        NULL};
    struct node *n = parser_new_node(p, NODE_IF, NULL, NULL);

    do {
        parser_add_node(p, &n->items, parse_tuple(p, true));
        end_block(p);
        parser_add_node(p, &n->items, parse_body(p, ends));
    } while (!p->a->failed && take_end(p, "elif"));
    if (take_end(p, "else")) {
        end_block(p);
        n->body = parse_body(p, last);
    }
    take_end(p, "endif");
    end_block(p);
    return n;
}

static struct node *parse_for(struct parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    struct node *n = parser_new_node(p, NODE_FOR, NULL, NULL);

    n->a = parse_target(p, false);
    if (!parser_take_name(p, "in"))
        parser_fail(p, "a loop needs 'in'");
    n->b = parse_tuple(p, false);
    if (parser_take_name(p, "if"))
        n->c = parse_expression(p, true);
    if (parser_at_name(p, "recursive"))
        parser_fail(p, "recursive loops are not supported");
    end_block(p);
    p->loops++;
    n->body = parse_body(p, ends);
    p->loops--;
    if (take_end(p, "else")) {
        end_block(p);
        n->other = parse_body(p, last);
    }
    take_end(p, "endfor");
    end_block(p);
    return n;
}

/* A block whose content is only its body. */
static void parse_rest(struct parser *p, struct node *n, const char *end)
{
    const char *const ends[] = {end, NULL};
    int loops = p->loops;

    end_block(p);
    if (n->kind != NODE_GENERATION)
        p->loops = 0; /* the body's text is caught: a loop cannot be left from inside */
    n->body = parse_body(p, ends);
    p->loops = loops;
    take_end(p, end);
    if (n->kind == NODE_MACRO && p->at->kind == TOKEN_NAME)
        parser_next(p); /* {% endmacro name %} */
    end_block(p);
}

static struct node *parse_set(struct parser *p)
{
    struct node *n = parser_new_node(p, NODE_SET, NULL, NULL);

    n->a = parse_target(p, true);
    if (parser_take_op(p, "=")) {
        n->b = parse_tuple(p, true);
        end_block(p);
        return n;
    }
    n->kind = NODE_SET_BLOCK;
    while (!p->a->failed && parser_take_op(p, "|"))
        n->b = parse_filter(p, n->b);
    parse_rest(p, n, "endset");
    return n;
}

static void parse_parameters(struct parser *p, struct node *n)
{
    parser_need_op(p, "(");
    while (!p->a->failed && !parser_take_op(p, ")")) {
        if (n->keywords.n) {
            parser_need_op(p, ",");
            if (parser_take_op(p, ")"))
                return;
        }
        const char *name = parser_need_name(p);
        parser_add_keyword(p, n, name, parser_take_op(p, "=") ? parse_expression(p, true) : NULL);
    }
}

static struct node *parse_macro(struct parser *p)
{
    struct node *n = parser_new_node(p, NODE_MACRO, NULL, NULL);

    n->name = parser_need_name(p);
    parse_parameters(p, n);
    parse_rest(p, n, "endmacro");
    return n;
}

static struct node *parse_call_block(struct parser *p)
{
    struct node *n = parser_new_node(p, NODE_CALL_BLOCK, NULL, NULL);

    if (parser_at_op(p, "("))
        parse_parameters(p, n);
    n->name = "caller";
    n->a = parse_unary(p, true);
    if (n->a->kind != NODE_CALL)
        parser_fail(p, "a {% call %} needs a call");
    parse_rest(p, n, "endcall");
    return n;
}

static struct node *parse_filter_block(struct parser *p)
{
    struct node *n = parser_new_node(p, NODE_FILTERED, NULL, NULL);

    n->b = parse_filter(p, NULL);
    while (!p->a->failed && parser_take_op(p, "|"))
        n->b = parse_filter(p, n->b);
    parse_rest(p, n, "endfilter");
    return n;
}

static struct node *parse_word(struct parser *p, enum node_kind kind)
{
    struct node *n = parser_new_node(p, kind, NULL, NULL);

    if (kind == NODE_GENERATION) {
        parse_rest(p, n, "endgeneration");
        return n;
    }
    if (p->loops == 0)
        parser_fail(p, "break and continue need a loop around");
    end_block(p);
    return n;
}

static struct node *parse_statement(struct parser *p)
{
    if (parser_take_name(p, "if"))
        return parse_if(p);
    if (parser_take_name(p, "for"))
        return parse_for(p);
    if (parser_take_name(p, "set"))
        return parse_set(p);
    if (parser_take_name(p, "macro"))
        return parse_macro(p);
    if (parser_take_name(p, "call"))
        return parse_call_block(p);
    if (parser_take_name(p, "filter"))
        return parse_filter_block(p);
    if (parser_take_name(p, "generation"))
        return parse_word(p, NODE_GENERATION);
    if (parser_take_name(p, "break"))
        return parse_word(p, NODE_BREAK);
    if (parser_take_name(p, "continue"))
        return parse_word(p, NODE_CONTINUE);
    return parser_fail(p, "a tag that is supported is needed");
}

static bool at_end(const struct parser *p, const char *const *ends)
{
    for (; *ends; ends++)
        if (parser_at_name(p, *ends))
            return true;
    return false;
}

/* Statements up to a tag that begins with one of `ends`, whose "{%" is taken, or, without ends, up
 * to the template's end. */
static struct node *parse_body(struct parser *p, const char *const *ends)
{
    struct node *body = parser_new_node(p, NODE_BODY, NULL, NULL);

    if (!parser_enter(p))
        return p->none;
    while (!p->a->failed) {
        if (p->at->kind == TOKEN_TEXT) {
            struct node *n = parser_new_node(p, NODE_TEXT, NULL, NULL);
            n->value = p->at->value;
            parser_add_node(p, &body->items, n);
            parser_next(p);
        } else if (p->at->kind == TOKEN_PRINT_BEGIN) {
            parser_next(p);
            struct node *n = parser_new_node(p, NODE_PRINT, NULL, NULL);
            n->a = parse_tuple(p, true);
            parser_add_node(p, &body->items, n);
            if (p->at->kind != TOKEN_PRINT_END)
                parser_fail(p, "a {{ }} goes on where it should end");
            parser_next(p);
        } else if (p->at->kind == TOKEN_BLOCK_BEGIN) {
            parser_next(p);
            if (ends && at_end(p, ends))
                break;
            parser_add_node(p, &body->items, parse_statement(p));
        } else {
            if (ends)
                parser_fail(p, "a block does not end");
            break;
        }
    }
    p->nesting--;
    return body;
}

struct node *template_parse(struct tv_arena *a, const char *text, size_t n)
{
    struct token_seq tokens = {0};
    struct node none = {.kind = NODE_CONST};
    struct parser p = {.a = a, .none = &none};

    template_lex(a, text, n, &tokens);
    if (a->failed)
        return NULL;
    p.at = tokens.items;
    struct node *root = parse_body(&p, NULL);
    return a->failed ? NULL : root;
}
