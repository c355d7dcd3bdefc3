/*
 * The template language's syntax: text to tree. A subset of Jinja as chat templates are written in,
 * with trim_blocks and lstrip_blocks (worker/text/template.h lists it).
 *
 * Lexing follows Jinja: line ends are made \n, one at the very end is dropped, `-` at a tag's side
 * strips white space there, `+` keeps what trim_blocks or lstrip_blocks would take.
 *
 * The tree lies in the arena given, and is immutable afterwards. The source is untrusted: its size,
 * nesting and the memory are bounded; errors name the line.
 */
#ifndef CASTOR_WORKER_TEXT_TEMPLATE_PARSE_H
#define CASTOR_WORKER_TEXT_TEMPLATE_PARSE_H

#include "worker/text/template_value.h"

enum {
    TEMPLATE_MAX_BYTES = 512 << 10,
    TEMPLATE_MAX_NESTING = 120, /* of expressions and of blocks in a template */
};

enum token_kind {
    TOKEN_TEXT,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_PRINT_BEGIN,
    TOKEN_PRINT_END,
    TOKEN_NAME,
    TOKEN_CONST, /* a string or number, in value */
    TOKEN_OP,    /* its characters in value */
    TOKEN_EOF,
};

struct token {
    enum token_kind kind;
    int line;
    struct tv value; /* text, name (ended by NUL), string, number */
};

struct token_seq {
    struct token *items;
    size_t n, cap;
};

/* Lex the whole template into the arena; it fails on error. */
void template_lex(struct tv_arena *a, const char *text, size_t n, struct token_seq *out);

enum node_kind {
    /* expressions */
    NODE_CONST,   /* value */
    NODE_NAME,    /* name */
    NODE_LIST,    /* items */
    NODE_TUPLE,   /* items */
    NODE_DICT,    /* items: key, value, key, value... */
    NODE_ATTR,    /* a.name */
    NODE_ITEM,    /* a[b] */
    NODE_SLICE,   /* a[b:c:d]; each may be NULL */
    NODE_CALL,    /* a(items, keywords) */
    NODE_FILTER,  /* a | name(items, keywords); a is NULL for the content of a block */
    NODE_TEST,    /* a is name(items) */
    NODE_NEGATE,  /* -a */
    NODE_PLUS,    /* +a */
    NODE_BINARY,  /* a op b: one of + - * / % ~, 'f' for //, 'p' for ** */
    NODE_COMPARE, /* a, then items, each compared by the operator of its `op` */
    NODE_AND,
    NODE_OR,
    NODE_NOT,
    NODE_COND, /* a if b else c; c may be NULL */
    /* statements */
    NODE_TEXT,       /* value */
    NODE_PRINT,      /* a */
    NODE_IF,         /* items: condition, body, condition, body...; body: of else */
    NODE_FOR,        /* target a, in b, if c; body, other */
    NODE_SET,        /* target a = b */
    NODE_SET_BLOCK,  /* target a, filters b (NULL: none); body */
    NODE_FILTERED,   /* filters b; body */
    NODE_MACRO,      /* name; keywords are the parameters, a value NULL: no default; body */
    NODE_CALL_BLOCK, /* call a, its parameters in keywords; body */
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_GENERATION, /* body */
    NODE_BODY,       /* items: statements */
};

/* Comparison operators. */
enum compare_op { OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_IN, OP_NOT_IN };

struct node_seq {
    struct node **items;
    size_t n, cap;
};

struct node {
    enum node_kind kind;
    int line, op;
    const char *name;
    struct tv value;
    struct node *a, *b, *c, *d;
    struct node *body, *other; /* NODE_BODY */
    struct node_seq items;
    const char **keyword_names;
    struct node_seq keywords;
};

/* NULL where the arena failed. */
struct node *template_parse(struct tv_arena *a, const char *text, size_t n);

#endif
