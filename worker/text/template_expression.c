/* Expressions: Jinja's operators from the weakest to the strongest, filters, tests, literals. */
#include "worker/text/template_parser.h"

#include <string.h>

/* Arguments behind "(", up to and with ")". */
static void parse_arguments(struct parser *p, struct node *call)
{
    while (!p->a->failed && !parser_take_op(p, ")")) {
        if (call->items.n || call->keywords.n) {
            parser_need_op(p, ",");
            if (parser_take_op(p, ")"))
                return;
        }
        if (parser_at_op(p, "*") || parser_at_op(p, "**"))
            parser_fail(p, "unpacked arguments are not supported");
        const struct token *second = p->at->kind == TOKEN_NAME ? p->at + 1 : p->at;
        if (second != p->at && second->kind == TOKEN_OP && tv_is(second->value, "=")) {
            const char *name = parser_need_name(p);
            parser_next(p);
            parser_add_keyword(p, call, name, parse_expression(p, true));
        } else if (call->keywords.n) {
            parser_fail(p, "an argument without a name stands behind one with a name");
        } else {
            parser_add_node(p, &call->items, parse_expression(p, true));
        }
    }
}

/* Items up to and with `close`; *tuple says that there was a comma, or nothing. */
static void parse_items(struct parser *p, const char *close, struct node *list, bool *tuple)
{
    *tuple = parser_at_op(p, close);
    while (!p->a->failed && !parser_take_op(p, close)) {
        if (list->items.n) {
            parser_need_op(p, ",");
            *tuple = true;
            if (parser_take_op(p, close))
                return;
        }
        parser_add_node(p, &list->items, parse_expression(p, true));
    }
}

static struct node *parse_dict(struct parser *p)
{
    struct node *dict = parser_new_node(p, NODE_DICT, NULL, NULL);

    while (!p->a->failed && !parser_take_op(p, "}")) {
        if (dict->items.n) {
            parser_need_op(p, ",");
            if (parser_take_op(p, "}"))
                break;
        }
        parser_add_node(p, &dict->items, parse_expression(p, true));
        parser_need_op(p, ":");
        parser_add_node(p, &dict->items, parse_expression(p, true));
    }
    return dict;
}

static struct node *parse_constant(struct parser *p)
{
    struct node *n = parser_new_node(p, NODE_CONST, NULL, NULL);
    struct buf joined = {0};

    n->value = p->at->value;
    parser_next(p);
    if (n->value.kind != TV_STRING || p->at->kind != TOKEN_CONST)
        return n;
    buf_add(&joined, n->value.str.s, n->value.str.n);
    for (; p->at->kind == TOKEN_CONST && p->at->value.kind == TV_STRING && !p->a->failed;
         parser_next(p))
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
    struct node *n = parser_new_node(p, NODE_NAME, NULL, NULL);

    n->name = parser_need_name(p);
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
    if (parser_take_op(p, "(")) {
        struct node *n = parser_new_node(p, NODE_TUPLE, NULL, NULL);
        parse_items(p, ")", n, &tuple);
        return tuple || p->a->failed ? n : n->items.items[0];
    }
    if (parser_take_op(p, "[")) {
        struct node *n = parser_new_node(p, NODE_LIST, NULL, NULL);
        parse_items(p, "]", n, &tuple);
        return n;
    }
    if (parser_take_op(p, "{"))
        return parse_dict(p);
    return parser_fail(p, "an expression is needed");
}

/* Behind "[". */
static struct node *parse_subscript(struct parser *p, struct node *of)
{
    struct node *n = parser_new_node(p, NODE_ITEM, of, NULL);

    if (!parser_at_op(p, ":"))
        n->b = parse_expression(p, true);
    if (parser_take_op(p, ":")) {
        n->kind = NODE_SLICE;
        if (!parser_at_op(p, ":") && !parser_at_op(p, "]"))
            n->c = parse_expression(p, true);
        if (parser_take_op(p, ":") && !parser_at_op(p, "]"))
            n->d = parse_expression(p, true);
    }
    parser_need_op(p, "]");
    return n;
}

static struct node *parse_postfix(struct parser *p, struct node *n)
{
    int count = 0;

    while (!p->a->failed) {
        if (parser_take_op(p, ".")) {
            if (p->at->kind == TOKEN_CONST && p->at->value.kind == TV_INT) {
                n = parser_new_node(p, NODE_ITEM, n, parse_constant(p));
            } else {
                n = parser_new_node(p, NODE_ATTR, n, NULL);
                n->name = parser_need_name(p);
            }
        } else if (parser_take_op(p, "[")) {
            n = parse_subscript(p, n);
        } else if (parser_take_op(p, "(")) {
            n = parser_new_node(p, NODE_CALL, n, NULL);
            parse_arguments(p, n);
        } else {
            break;
        }
        if (++count > TEMPLATE_MAX_NESTING)
            parser_fail(p, "an expression is too long");
    }
    return n;
}

/* name and arguments of a filter, applied to `to` (NULL: to a block). */
struct node *parse_filter(struct parser *p, struct node *to)
{
    struct node *n = parser_new_node(p, NODE_FILTER, to, NULL);

    n->name = parser_need_name(p);
    if (parser_take_op(p, "("))
        parse_arguments(p, n);
    return n;
}

static struct node *parse_test(struct parser *p, struct node *of)
{
    bool negated = parser_take_name(p, "not");
    struct node *n = parser_new_node(p, NODE_TEST, of, NULL);

    n->name = parser_need_name(p);
    bool word = p->at->kind == TOKEN_NAME && !parser_at_name(p, "else") &&
                !parser_at_name(p, "or") && !parser_at_name(p, "and") && !parser_at_name(p, "is") &&
                !parser_at_name(p, "if");
    if (parser_take_op(p, "("))
        parse_arguments(p, n);
    else if (p->at->kind == TOKEN_CONST || word || parser_at_op(p, "[") || parser_at_op(p, "{"))
        parser_add_node(p, &n->items, parse_postfix(p, parse_primary(p)));
    return negated ? parser_new_node(p, NODE_NOT, n, NULL) : n;
}

static struct node *parse_filters(struct parser *p, struct node *n)
{
    for (int count = 0; !p->a->failed; count++) {
        if (parser_take_op(p, "|"))
            n = parse_filter(p, n);
        else if (parser_take_name(p, "is"))
            n = parse_test(p, n);
        else if (parser_take_op(p, "(")) {
            n = parser_new_node(p, NODE_CALL, n, NULL);
            parse_arguments(p, n);
        } else
            break;
        if (count > TEMPLATE_MAX_NESTING)
            parser_fail(p, "an expression is too long");
    }
    return n;
}

struct node *parse_unary(struct parser *p, bool with_filter)
{
    struct node *n;

    if (!parser_enter(p))
        return p->none;
    if (parser_take_op(p, "-"))
        n = parser_new_node(p, NODE_NEGATE, parse_unary(p, false), NULL);
    else if (parser_take_op(p, "+"))
        n = parser_new_node(p, NODE_PLUS, parse_unary(p, false), NULL);
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
            found = parser_take_op(p, op);
            if (!found)
                continue;
            n = parser_new_node(p, NODE_BINARY, n, parse_binary(p, level + 1));
            n->op = strcmp(op, "//") == 0 ? 'f' : strcmp(op, "**") == 0 ? 'p' : op[0];
            if (++length > TEMPLATE_MAX_NESTING)
                parser_fail(p, "an expression is too long");
        }
    }
    return n;
}

static bool take_comparison(struct parser *p, int *op)
{
    static const char *const words[] = {[OP_EQ] = "==", [OP_NE] = "!=", [OP_LT] = "<",
                                        [OP_LE] = "<=", [OP_GT] = ">",  [OP_GE] = ">="};

    for (int i = 0; i <= OP_GE; i++)
        if (parser_take_op(p, words[i])) {
            *op = i;
            return true;
        }
    if (parser_take_name(p, "in")) {
        *op = OP_IN;
        return true;
    }
    if (parser_at_name(p, "not") && p->at[1].kind == TOKEN_NAME && tv_is(p->at[1].value, "in")) {
        parser_next(p);
        parser_next(p);
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
            chain = parser_new_node(p, NODE_COMPARE, n, NULL);
        /* The operator belongs to a node of its own: operands may be shared constants. */
        struct node *operand = parser_new_node(p, NODE_PLUS, parse_binary(p, 0), NULL);
        operand->op = op;
        parser_add_node(p, &chain->items, operand);
    }
    return chain ? chain : n;
}

static struct node *parse_not(struct parser *p)
{
    if (!parser_at_name(p, "not"))
        return parse_compare(p);
    if (!parser_enter(p))
        return p->none;
    parser_next(p);
    struct node *n = parser_new_node(p, NODE_NOT, parse_not(p), NULL);
    p->nesting--;
    return n;
}

static struct node *parse_logic(struct parser *p, bool is_or)
{
    struct node *n = is_or ? parse_logic(p, false) : parse_not(p);

    for (int length = 0; !p->a->failed && parser_take_name(p, is_or ? "or" : "and");) {
        n = parser_new_node(p, is_or ? NODE_OR : NODE_AND, n,
                            is_or ? parse_logic(p, false) : parse_not(p));
        if (++length > TEMPLATE_MAX_NESTING)
            parser_fail(p, "an expression is too long");
    }
    return n;
}

struct node *parse_expression(struct parser *p, bool with_condition)
{
    struct node *n;

    if (!parser_enter(p))
        return p->none;
    n = parse_logic(p, true);
    for (int length = 0; with_condition && !p->a->failed && parser_take_name(p, "if"); length++) {
        n = parser_new_node(p, NODE_COND, n, parse_logic(p, true));
        n->c = parser_take_name(p, "else") ? parse_expression(p, true) : NULL;
        if (length > TEMPLATE_MAX_NESTING)
            parser_fail(p, "an expression is too long");
    }
    p->nesting--;
    return n;
}

/* An expression, or several with commas between: a tuple. */
struct node *parse_tuple(struct parser *p, bool with_condition)
{
    struct node *first = parse_expression(p, with_condition), *tuple;

    if (!parser_at_op(p, ","))
        return first;
    tuple = parser_new_node(p, NODE_TUPLE, NULL, NULL);
    parser_add_node(p, &tuple->items, first);
    while (parser_take_op(p, ",") && p->at->kind != TOKEN_BLOCK_END &&
           p->at->kind != TOKEN_PRINT_END && !parser_at_op(p, "="))
        parser_add_node(p, &tuple->items, parse_expression(p, with_condition));
    return tuple;
}
