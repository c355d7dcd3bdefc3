#include "worker/text/template_parse.h"

#include <string.h>

struct parser {
    struct tv_arena *a;
    const struct token *at;
    int nesting;
    int loops; /* that break and continue may leave */
    struct node *none;
};

static struct node *parse_expression(struct parser *p, bool with_condition);
static struct node *parse_unary(struct parser *p, bool with_filter);
static struct node *parse_body(struct parser *p, const char *const *ends);

/* --- tokens ----------------------------------------------------------------------------------- */

static struct node *fail(struct parser *p, const char *what)
{
    p->a->line = p->at->line;
    if (p->at->kind == TOKEN_NAME || p->at->kind == TOKEN_OP)
        tv_fail(p->a, "%s, not '%.*s'", what,
                (int)(p->at->value.str.n < 40 ? p->at->value.str.n : 40), p->at->value.str.s);
    else
        tv_fail(p->a, "%s", what);
    return p->none;
}

static void next(struct parser *p)
{
    if (p->at->kind != TOKEN_EOF && !p->a->failed)
        p->at++;
    p->a->line = p->at->line;
    tv_work(p->a, 1);
}

static bool at_op(const struct parser *p, const char *op)
{
    return p->at->kind == TOKEN_OP && tv_is(p->at->value, op);
}

static bool at_name(const struct parser *p, const char *name)
{
    return p->at->kind == TOKEN_NAME && tv_is(p->at->value, name);
}

static bool take_op(struct parser *p, const char *op)
{
    bool is = at_op(p, op) && !p->a->failed;

    if (is)
        next(p);
    return is;
}

static bool take_name(struct parser *p, const char *name)
{
    bool is = at_name(p, name) && !p->a->failed;

    if (is)
        next(p);
    return is;
}

static void need_op(struct parser *p, const char *op)
{
    char what[32] = "a tag needs ' '";

    what[13] = op[0];
    if (!take_op(p, op))
        fail(p, what);
}

static const char *need_name(struct parser *p)
{
    if (p->at->kind != TOKEN_NAME) {
        fail(p, "a name is needed");
        return "";
    }
    const char *name = p->at->value.kind == TV_STRING ? p->at->value.str.s : "";
    next(p);
    return name;
}

/* --- nodes ------------------------------------------------------------------------------------ */

static struct node *new_node(struct parser *p, enum node_kind kind, struct node *a, struct node *b)
{
    struct node *n = tv_alloc(p->a, sizeof(*n));

    if (!n)
        return p->none;
    *n = (struct node){.kind = kind, .line = p->at->line, .a = a, .b = b};
    return n;
}

static void add_node(struct parser *p, struct node_seq *s, struct node *n)
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

static void add_keyword(struct parser *p, struct node *to, const char *name, struct node *value)
{
    size_t n = to->keywords.n;
    const char **names = tv_alloc(p->a, (n + 1) * sizeof(*names));

    if (!names || !tv_work(p->a, n))
        return;
    if (n)
        memcpy(names, to->keyword_names, n * sizeof(*names));
    names[n] = name;
    to->keyword_names = names;
    add_node(p, &to->keywords, value);
}

static bool enter(struct parser *p)
{
    if (++p->nesting > TEMPLATE_MAX_NESTING)
        fail(p, "it is nested too deeply");
    return !p->a->failed;
}

/* --- expressions ------------------------------------------------------------------------------ */

/* Arguments behind "(", up to and with ")". */
static void parse_arguments(struct parser *p, struct node *call)
{
    while (!p->a->failed && !take_op(p, ")")) {
        if (call->items.n || call->keywords.n) {
            need_op(p, ",");
            if (take_op(p, ")"))
                return;
        }
        if (at_op(p, "*") || at_op(p, "**"))
            fail(p, "unpacked arguments are not supported");
        const struct token *second = p->at->kind == TOKEN_NAME ? p->at + 1 : p->at;
        if (second != p->at && second->kind == TOKEN_OP && tv_is(second->value, "=")) {
            const char *name = need_name(p);
            next(p);
            add_keyword(p, call, name, parse_expression(p, true));
        } else if (call->keywords.n) {
            fail(p, "an argument without a name stands behind one with a name");
        } else {
            add_node(p, &call->items, parse_expression(p, true));
        }
    }
}

/* Items up to and with `close`; *tuple says that there was a comma, or nothing. */
static void parse_items(struct parser *p, const char *close, struct node *list, bool *tuple)
{
    *tuple = at_op(p, close);
    while (!p->a->failed && !take_op(p, close)) {
        if (list->items.n) {
            need_op(p, ",");
            *tuple = true;
            if (take_op(p, close))
                return;
        }
        add_node(p, &list->items, parse_expression(p, true));
    }
}

static struct node *parse_dict(struct parser *p)
{
    struct node *dict = new_node(p, NODE_DICT, NULL, NULL);

    while (!p->a->failed && !take_op(p, "}")) {
        if (dict->items.n) {
            need_op(p, ",");
            if (take_op(p, "}"))
                break;
        }
        add_node(p, &dict->items, parse_expression(p, true));
        need_op(p, ":");
        add_node(p, &dict->items, parse_expression(p, true));
    }
    return dict;
}

static struct node *parse_constant(struct parser *p)
{
    struct node *n = new_node(p, NODE_CONST, NULL, NULL);
    struct buf joined = {0};

    n->value = p->at->value;
    next(p);
    if (n->value.kind != TV_STRING || p->at->kind != TOKEN_CONST)
        return n;
    buf_add(&joined, n->value.str.s, n->value.str.n);
    for (; p->at->kind == TOKEN_CONST && p->at->value.kind == TV_STRING && !p->a->failed; next(p))
        buf_add(&joined, p->at->value.str.s, p->at->value.str.n);
    n->value = tv_take_buf(p->a, &joined);
    return n;
}

static struct node *parse_name(struct parser *p)
{
    static const struct {
        const char *word;
        enum tv_kind kind;
        bool b;
    } words[] = {{"true", TV_BOOL, true},   {"True", TV_BOOL, true},  {"false", TV_BOOL, false},
                 {"False", TV_BOOL, false}, {"none", TV_NONE, false}, {"None", TV_NONE, false}};
    struct node *n = new_node(p, NODE_NAME, NULL, NULL);

    n->name = need_name(p);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(n->name, words[i].word) == 0) {
            n->kind = NODE_CONST;
            n->value = (struct tv){.kind = words[i].kind, .b = words[i].b};
        }
    return n;
}

static struct node *parse_primary(struct parser *p)
{
    bool tuple;

    if (p->at->kind == TOKEN_CONST)
        return parse_constant(p);
    if (p->at->kind == TOKEN_NAME)
        return parse_name(p);
    if (take_op(p, "(")) {
        struct node *n = new_node(p, NODE_TUPLE, NULL, NULL);
        parse_items(p, ")", n, &tuple);
        return tuple || p->a->failed ? n : n->items.items[0];
    }
    if (take_op(p, "[")) {
        struct node *n = new_node(p, NODE_LIST, NULL, NULL);
        parse_items(p, "]", n, &tuple);
        return n;
    }
    if (take_op(p, "{"))
        return parse_dict(p);
    return fail(p, "an expression is needed");
}

/* Behind "[". */
static struct node *parse_subscript(struct parser *p, struct node *of)
{
    struct node *n = new_node(p, NODE_ITEM, of, NULL);

    if (!at_op(p, ":"))
        n->b = parse_expression(p, true);
    if (take_op(p, ":")) {
        n->kind = NODE_SLICE;
        if (!at_op(p, ":") && !at_op(p, "]"))
            n->c = parse_expression(p, true);
        if (take_op(p, ":") && !at_op(p, "]"))
            n->d = parse_expression(p, true);
    }
    need_op(p, "]");
    return n;
}

static struct node *parse_postfix(struct parser *p, struct node *n)
{
    int count = 0;

    while (!p->a->failed) {
        if (take_op(p, ".")) {
            if (p->at->kind == TOKEN_CONST && p->at->value.kind == TV_INT) {
                n = new_node(p, NODE_ITEM, n, parse_constant(p));
            } else {
                n = new_node(p, NODE_ATTR, n, NULL);
                n->name = need_name(p);
            }
        } else if (take_op(p, "[")) {
            n = parse_subscript(p, n);
        } else if (take_op(p, "(")) {
            n = new_node(p, NODE_CALL, n, NULL);
            parse_arguments(p, n);
        } else {
            break;
        }
        if (++count > TEMPLATE_MAX_NESTING)
            fail(p, "an expression is too long");
    }
    return n;
}

/* name and arguments of a filter, applied to `to` (NULL: to a block). */
static struct node *parse_filter(struct parser *p, struct node *to)
{
    struct node *n = new_node(p, NODE_FILTER, to, NULL);

    n->name = need_name(p);
    if (take_op(p, "("))
        parse_arguments(p, n);
    return n;
}

static struct node *parse_test(struct parser *p, struct node *of)
{
    bool negated = take_name(p, "not");
    struct node *n = new_node(p, NODE_TEST, of, NULL);

    n->name = need_name(p);
    bool word = p->at->kind == TOKEN_NAME && !at_name(p, "else") && !at_name(p, "or") &&
                !at_name(p, "and") && !at_name(p, "is") && !at_name(p, "if");
    if (take_op(p, "("))
        parse_arguments(p, n);
    else if (p->at->kind == TOKEN_CONST || word || at_op(p, "[") || at_op(p, "{"))
        add_node(p, &n->items, parse_postfix(p, parse_primary(p)));
    return negated ? new_node(p, NODE_NOT, n, NULL) : n;
}

static struct node *parse_filters(struct parser *p, struct node *n)
{
    for (int count = 0; !p->a->failed; count++) {
        if (take_op(p, "|"))
            n = parse_filter(p, n);
        else if (take_name(p, "is"))
            n = parse_test(p, n);
        else if (take_op(p, "(")) {
            n = new_node(p, NODE_CALL, n, NULL);
            parse_arguments(p, n);
        } else
            break;
        if (count > TEMPLATE_MAX_NESTING)
            fail(p, "an expression is too long");
    }
    return n;
}

static struct node *parse_unary(struct parser *p, bool with_filter)
{
    struct node *n;

    if (!enter(p))
        return p->none;
    if (take_op(p, "-"))
        n = new_node(p, NODE_NEGATE, parse_unary(p, false), NULL);
    else if (take_op(p, "+"))
        n = new_node(p, NODE_PLUS, parse_unary(p, false), NULL);
    else
        n = parse_primary(p);
    n = parse_postfix(p, n);
    if (with_filter)
        n = parse_filters(p, n);
    p->nesting--;
    return n;
}

/* Left-associative operators, the loosest first. A long chain makes a deep tree, so it is bounded.
 */
static struct node *parse_binary(struct parser *p, int level)
{
    static const char *const levels[][5] = {
        {"+", "-"}, {"~"}, {"*", "/", "//", "%"}, {"**"}, {NULL}};
    struct node *n;
    int length = 0;

    if (!levels[level][0])
        return parse_unary(p, true);
    n = parse_binary(p, level + 1);
    for (bool found = true; found && !p->a->failed;) {
        found = false;
        for (int i = 0; levels[level][i] && !found; i++) {
            const char *op = levels[level][i];
            found = take_op(p, op);
            if (!found)
                continue;
            n = new_node(p, NODE_BINARY, n, parse_binary(p, level + 1));
            n->op = strcmp(op, "//") == 0 ? 'f' : strcmp(op, "**") == 0 ? 'p' : op[0];
            if (++length > TEMPLATE_MAX_NESTING)
                fail(p, "an expression is too long");
        }
    }
    return n;
}

static bool take_comparison(struct parser *p, int *op)
{
    static const char *const words[] = {[OP_EQ] = "==", [OP_NE] = "!=", [OP_LT] = "<",
                                        [OP_LE] = "<=", [OP_GT] = ">",  [OP_GE] = ">="};

    for (int i = 0; i <= OP_GE; i++)
        if (take_op(p, words[i])) {
            *op = i;
            return true;
        }
    if (take_name(p, "in")) {
        *op = OP_IN;
        return true;
    }
    if (at_name(p, "not") && p->at[1].kind == TOKEN_NAME && tv_is(p->at[1].value, "in")) {
        next(p);
        next(p);
        *op = OP_NOT_IN;
        return true;
    }
    return false;
}

static struct node *parse_compare(struct parser *p)
{
    struct node *n = parse_binary(p, 0), *chain = NULL;
    int op = 0;

    while (!p->a->failed && take_comparison(p, &op)) {
        if (!chain)
            chain = new_node(p, NODE_COMPARE, n, NULL);
        /* The operator belongs to a node of its own: operands may be shared constants. */
        struct node *operand = new_node(p, NODE_PLUS, parse_binary(p, 0), NULL);
        operand->op = op;
        add_node(p, &chain->items, operand);
    }
    return chain ? chain : n;
}

static struct node *parse_not(struct parser *p)
{
    if (!at_name(p, "not"))
        return parse_compare(p);
    if (!enter(p))
        return p->none;
    next(p);
    struct node *n = new_node(p, NODE_NOT, parse_not(p), NULL);
    p->nesting--;
    return n;
}

static struct node *parse_logic(struct parser *p, bool is_or)
{
    struct node *n = is_or ? parse_logic(p, false) : parse_not(p);

    for (int length = 0; !p->a->failed && take_name(p, is_or ? "or" : "and");) {
        n = new_node(p, is_or ? NODE_OR : NODE_AND, n,
                     is_or ? parse_logic(p, false) : parse_not(p));
        if (++length > TEMPLATE_MAX_NESTING)
            fail(p, "an expression is too long");
    }
    return n;
}

static struct node *parse_expression(struct parser *p, bool with_condition)
{
    struct node *n;

    if (!enter(p))
        return p->none;
    n = parse_logic(p, true);
    for (int length = 0; with_condition && !p->a->failed && take_name(p, "if"); length++) {
        n = new_node(p, NODE_COND, n, parse_logic(p, true));
        n->c = take_name(p, "else") ? parse_expression(p, true) : NULL;
        if (length > TEMPLATE_MAX_NESTING)
            fail(p, "an expression is too long");
    }
    p->nesting--;
    return n;
}

/* An expression, or several with commas between: a tuple. */
static struct node *parse_tuple(struct parser *p, bool with_condition)
{
    struct node *first = parse_expression(p, with_condition), *tuple;

    if (!at_op(p, ","))
        return first;
    tuple = new_node(p, NODE_TUPLE, NULL, NULL);
    add_node(p, &tuple->items, first);
    while (take_op(p, ",") && p->at->kind != TOKEN_BLOCK_END && p->at->kind != TOKEN_PRINT_END &&
           !at_op(p, "="))
        add_node(p, &tuple->items, parse_expression(p, with_condition));
    return tuple;
}

/* --- statements ------------------------------------------------------------------------------- */

static void end_block(struct parser *p)
{
    if (p->at->kind == TOKEN_BLOCK_END)
        next(p);
    else
        fail(p, "a tag goes on where it should end");
}

/* What may be assigned to: a name, an attribute of a namespace, or several names. */
static struct node *parse_target(struct parser *p, bool allow_attribute)
{
    struct node *first = NULL, *tuple = NULL;
    bool bracket = take_op(p, "(");

    do {
        if (first && (at_op(p, "=") || at_name(p, "in") || at_op(p, ")")))
            break;
        struct node *n = new_node(p, NODE_NAME, NULL, NULL);
        n->name = need_name(p);
        if (allow_attribute && take_op(p, ".")) {
            n = new_node(p, NODE_ATTR, n, NULL);
            n->name = need_name(p);
        }
        if (first && !tuple) {
            tuple = new_node(p, NODE_TUPLE, NULL, NULL);
            add_node(p, &tuple->items, first);
        }
        if (tuple)
            add_node(p, &tuple->items, n);
        first = first ? first : n;
    } while (!p->a->failed && take_op(p, ","));
    if (bracket)
        need_op(p, ")");
    return tuple ? tuple : first;
}

/* The name in the tag that ended parse_body; the tag's rest is the caller's. */
static bool take_end(struct parser *p, const char *name)
{
    if (!at_name(p, name))
        return false;
    next(p);
    return true;
}

static struct node *parse_if(struct parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif",
                                                                                        NULL};
    struct node *n = new_node(p, NODE_IF, NULL, NULL);

    do {
        add_node(p, &n->items, parse_tuple(p, true));
        end_block(p);
        add_node(p, &n->items, parse_body(p, ends));
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
    struct node *n = new_node(p, NODE_FOR, NULL, NULL);

    n->a = parse_target(p, false);
    if (!take_name(p, "in"))
        fail(p, "a loop needs 'in'");
    n->b = parse_tuple(p, false);
    if (take_name(p, "if"))
        n->c = parse_expression(p, true);
    if (at_name(p, "recursive"))
        fail(p, "recursive loops are not supported");
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
        next(p); /* {% endmacro name %} */
    end_block(p);
}

static struct node *parse_set(struct parser *p)
{
    struct node *n = new_node(p, NODE_SET, NULL, NULL);

    n->a = parse_target(p, true);
    if (take_op(p, "=")) {
        n->b = parse_tuple(p, true);
        end_block(p);
        return n;
    }
    n->kind = NODE_SET_BLOCK;
    while (!p->a->failed && take_op(p, "|"))
        n->b = parse_filter(p, n->b);
    parse_rest(p, n, "endset");
    return n;
}

static void parse_parameters(struct parser *p, struct node *n)
{
    need_op(p, "(");
    while (!p->a->failed && !take_op(p, ")")) {
        if (n->keywords.n) {
            need_op(p, ",");
            if (take_op(p, ")"))
                return;
        }
        const char *name = need_name(p);
        add_keyword(p, n, name, take_op(p, "=") ? parse_expression(p, true) : NULL);
    }
}

static struct node *parse_macro(struct parser *p)
{
    struct node *n = new_node(p, NODE_MACRO, NULL, NULL);

    n->name = need_name(p);
    parse_parameters(p, n);
    parse_rest(p, n, "endmacro");
    return n;
}

static struct node *parse_call_block(struct parser *p)
{
    struct node *n = new_node(p, NODE_CALL_BLOCK, NULL, NULL);

    if (at_op(p, "("))
        parse_parameters(p, n);
    n->name = "caller";
    n->a = parse_unary(p, true);
    if (n->a->kind != NODE_CALL)
        fail(p, "a {% call %} needs a call");
    parse_rest(p, n, "endcall");
    return n;
}

static struct node *parse_filter_block(struct parser *p)
{
    struct node *n = new_node(p, NODE_FILTERED, NULL, NULL);

    n->b = parse_filter(p, NULL);
    while (!p->a->failed && take_op(p, "|"))
        n->b = parse_filter(p, n->b);
    parse_rest(p, n, "endfilter");
    return n;
}

static struct node *parse_word(struct parser *p, enum node_kind kind)
{
    struct node *n = new_node(p, kind, NULL, NULL);

    if (kind == NODE_GENERATION) {
        parse_rest(p, n, "endgeneration");
        return n;
    }
    if (p->loops == 0)
        fail(p, "break and continue need a loop around");
    end_block(p);
    return n;
}

static struct node *parse_statement(struct parser *p)
{
    if (take_name(p, "if"))
        return parse_if(p);
    if (take_name(p, "for"))
        return parse_for(p);
    if (take_name(p, "set"))
        return parse_set(p);
    if (take_name(p, "macro"))
        return parse_macro(p);
    if (take_name(p, "call"))
        return parse_call_block(p);
    if (take_name(p, "filter"))
        return parse_filter_block(p);
    if (take_name(p, "generation"))
        return parse_word(p, NODE_GENERATION);
    if (take_name(p, "break"))
        return parse_word(p, NODE_BREAK);
    if (take_name(p, "continue"))
        return parse_word(p, NODE_CONTINUE);
    return fail(p, "a tag that is supported is needed");
}

static bool at_end(const struct parser *p, const char *const *ends)
{
    for (; *ends; ends++)
        if (at_name(p, *ends))
            return true;
    return false;
}

/* Statements up to a tag that begins with one of `ends`, whose "{%" is taken, or, without ends, up
 * to the template's end. */
static struct node *parse_body(struct parser *p, const char *const *ends)
{
    struct node *body = new_node(p, NODE_BODY, NULL, NULL);

    if (!enter(p))
        return p->none;
    while (!p->a->failed) {
        if (p->at->kind == TOKEN_TEXT) {
            struct node *n = new_node(p, NODE_TEXT, NULL, NULL);
            n->value = p->at->value;
            add_node(p, &body->items, n);
            next(p);
        } else if (p->at->kind == TOKEN_PRINT_BEGIN) {
            next(p);
            struct node *n = new_node(p, NODE_PRINT, NULL, NULL);
            n->a = parse_tuple(p, true);
            add_node(p, &body->items, n);
            if (p->at->kind != TOKEN_PRINT_END)
                fail(p, "a {{ }} goes on where it should end");
            next(p);
        } else if (p->at->kind == TOKEN_BLOCK_BEGIN) {
            next(p);
            if (ends && at_end(p, ends))
                break;
            add_node(p, &body->items, parse_statement(p));
        } else {
            if (ends)
                fail(p, "a block does not end");
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
