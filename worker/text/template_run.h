/*
 * Running a template's tree: scopes, expressions, statements (template_run.c), operators
 * (template_operators.c), and the filters,
 * tests, methods and functions they call (template_calls.c, template_methods.c). Private to
 * worker/text/template*.c.
 *
 * A run's errors are the arena's (worker/text/template_value.h). Nesting at run time, macros that
 * call themselves included, is bounded by RUN_MAX_DEPTH.
 */
#ifndef CASTOR_WORKER_TEXT_TEMPLATE_RUN_H
#define CASTOR_WORKER_TEXT_TEMPLATE_RUN_H

#include <time.h>

#include "worker/text/template.h"
#include "worker/text/template_parse.h"
#include "worker/text/template_value.h"

enum { RUN_MAX_DEPTH = 600, RUN_MAX_RANGE = 100000 };

struct scope_entry {
    struct scope_entry *next;
    const char *name;
    struct tv value;
};

struct scope {
    struct scope *parent;
    struct scope_entry *entries;
};

struct tv_macro {
    const struct node *node;
    struct scope *scope; /* where it was defined */
};

enum run_flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

struct run {
    struct tv_arena *a;
    struct buf *out;
    struct chat_rendering *rendering;
    bool caught; /* out is not the rendering's text */
    int depth;
    enum run_flow flow;
    size_t max_output;
    time_t now;
};

struct call_args {
    struct tv *items;
    size_t n;
    const char **names;
    struct tv *named;
    size_t n_named;
};

void run_body(struct run *r, const struct node *body, struct scope *scope);
void scope_set(struct run *r, struct scope *scope, const char *name, struct tv value);

/* The argument at `place` or of that name; NULL when it was not given. */
const struct tv *call_arg(const struct call_args *args, size_t place, const char *name);
/* object.name as a value; undefined where there is no such thing. */
struct tv run_attribute(struct run *r, struct tv object, const char *name);
struct tv run_item(struct run *r, struct tv object, struct tv key);
/* The bytes of the characters [from, to) of a string. */
struct tv run_substring(struct tv s, size_t from, size_t to);
/* A name of the language itself, or an undefined value. */
struct tv run_function_named(const char *name);

/* x op y, as in NODE_BINARY and enum compare_op; -v of a number. */
struct tv run_binary(struct run *r, int op, struct tv x, struct tv y);
bool run_compare(struct run *r, int op, struct tv x, struct tv y);
struct tv run_negate(struct run *r, struct tv v);

struct tv run_filter(struct run *r, const char *name, struct tv of, const struct call_args *args);
bool run_test(struct run *r, const char *name, struct tv of, const struct call_args *args);
struct tv run_method(struct run *r, struct tv object, const char *name,
                     const struct call_args *args);
struct tv run_function(struct run *r, struct tv function, const struct call_args *args);

/* Shared by filters and methods. */
struct tv string_strip(struct run *r, struct tv s, const struct tv *characters, bool left,
                       bool right);
struct tv string_replace(struct run *r, struct tv s, struct tv from, struct tv to, int64_t most);
struct tv string_upper(struct run *r, struct tv s, bool upper);
/* Of the words that begin behind one of `starts` (of the text alone, where it is NULL), or, with
 * any_start, behind anything but a letter. */
struct tv string_capitalize(struct run *r, struct tv s, const char *starts, bool any_start);
/* Are there letters with a case, and all of them of that one? */
bool string_is_cased(struct run *r, struct tv s, bool upper);
struct tv dict_pairs(struct run *r, struct tv dict);

#endif
