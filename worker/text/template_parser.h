/*
 * The inside of the template parser, shared by template_parser.c (tokens and nodes),
 * template_expression.c and template_parse.c (statements). Nobody else includes this.
 *
 * A recursive descent over the lexer's tokens. A mistake fails the arena, once; parsing then goes
 * on with p->none, takes no token any more and so comes to an end.
 */
#ifndef CASTOR_WORKER_TEXT_TEMPLATE_PARSER_H
#define CASTOR_WORKER_TEXT_TEMPLATE_PARSER_H

#include <stdbool.h>

#include "worker/text/template_parse.h"

struct parser {
    struct tv_arena *a;
    const struct token *at;
    int nesting;
    int loops; /* that break and continue may leave */
    struct node *none;
};

/* Tokens: look at the next one, take it where it is the one, or insist that it is. */
void parser_next(struct parser *p);
bool parser_at_op(const struct parser *p, const char *op);
bool parser_at_name(const struct parser *p, const char *name);
bool parser_take_op(struct parser *p, const char *op);
bool parser_take_name(struct parser *p, const char *name);
void parser_need_op(struct parser *p, const char *op);
const char *parser_need_name(struct parser *p);
/* Fail with what is wrong and the token at hand; returns p->none. */
struct node *parser_fail(struct parser *p, const char *what);
/* One level deeper; false, and failed, where that is too deep. The caller counts p->nesting down.
 */
bool parser_enter(struct parser *p);

/* Nodes, in the arena. */
struct node *parser_new_node(struct parser *p, enum node_kind kind, struct node *a, struct node *b);
void parser_add_node(struct parser *p, struct node_seq *s, struct node *n);
void parser_add_keyword(struct parser *p, struct node *to, const char *name, struct node *value);

/* template_expression.c */
struct node *parse_filter(struct parser *p, struct node *to);
struct node *parse_unary(struct parser *p, bool with_filter);
struct node *parse_expression(struct parser *p, bool with_condition);
/* An expression, or several with commas between: a tuple. */
struct node *parse_tuple(struct parser *p, bool with_condition);

#endif
