/*
 * How ops are tested. A case is one call of one op: its args with NULL pointers, and tensors bound
 * to the pointers, their values held as double. So the same case runs on every device and op table
 * of this machine (the CPU's, and those of a GPU where there is one), and in double for gradients.
 *
 * Every run: each tensor stands between sentinels, which must survive, as must the gaps between
 * rows and all inputs; assigned outputs, workspace and row gaps are filled with NaN beforehand; the
 * stream is not a default stream; the workspace has exactly the size that the table asked for.
 *
 * A tensor's values are compared with |a - b| <= tol * eps * (|b| + rms(b)), eps being that of the
 * table's compute type (or of the tensor's own, where coarser; an eighth of it for 16-bit types).
 * Where tables of 16 bits round what they sum, which is in attention, the error goes with those
 * summands and not with their sum: harness_attention.h. The worst use of the allowance is printed
 * for each op and table.
 *
 * Random values follow from a case's title alone, so no case changes another's.
 *
 * Arguments of a test program, for tools under which every call takes 10 to 50 times as long:
 *   --device cpu|cuda  leave out the other device's tables; with cuda the CPU only judges: nothing
 *                      is said of its own tables, nor of gradients in double
 *   --cases TEXT       leave out cases without TEXT in their title
 *   --elements N       leave out cases whose tensors have more than N elements in all
 *   --unset            leave what ops assign (where rows have no gaps) and their workspace as
 *                      allocated, not NaN, for a tool that finds reads of such memory
 * --cases and --elements hold for the check_ functions below; checks by hand, all of them small,
 * run always.
 */
#ifndef CASTOR_TESTS_OPS_HARNESS_H
#define CASTOR_TESTS_OPS_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/device.h"
#include "kernels/op_table.h"

enum { EL_REAL = -1, EL_GRAD = -2, EL_STAT = -3, EL_MASTER = -4 }; /* else an enum dtype */
enum role { ROLE_IN, ROLE_ASSIGN, ROLE_ADD, ROLE_INOUT };
enum { CASE_BINDS = 20 };

struct bind {
    const char *name;
    size_t slot; /* offset of the pointer in the args */
    int elem;
    enum role role;
    int64_t rows, cols, ld;
    int alias;    /* index of the input whose memory this output takes, or -1 */
    double *init; /* (rows, cols) */
};

union op_args {
    struct embed_args embed;
    struct norm_args norm;
    struct linear_args linear;
    struct act_args act;
    struct rope_args rope;
    struct attn_args attn;
    struct dropout_args dropout;
    struct loss_args loss;
    struct add_args add;
    struct sumsq_args sumsq;
    struct clip_args clip;
    struct adamw_args adamw;
    struct cast_args cast;
    struct round8_args round8;
};

struct op_case {
    char title[128];
    enum op op;
    double tol; /* in units of eps; case_init sets what suits the op */
    union op_args args;
    struct bind b[CASE_BINDS];
    int n;
};

struct target {
    struct device *device;
    struct stream *stream;
    const struct op_table *table;
};

struct result {
    int rc;
    double *v[CASE_BINDS]; /* (rows, cols) of every tensor after the run */
};

/* Start a case, and the random values of its title; `args` is copied. case_fini releases it. */
void case_init(struct op_case *c, enum op op, const void *args, size_t args_bytes, const char *fmt,
               ...) __attribute__((format(printf, 5, 6)));
void case_fini(struct op_case *c);
/* Bind a tensor of random values in [-1, 1) to a pointer of the args; ld 0 = cols. */
double *case_bind(struct op_case *c, const char *name, size_t slot, int elem, enum role role,
                  int64_t rows, int64_t cols, int64_t ld);
/* Bind an output to the memory of the tensor `input`, with its shape. */
void case_alias(struct op_case *c, const char *name, size_t slot, const char *input);
double *case_data(struct op_case *c, const char *name);
int case_index(const struct op_case *c, const char *name);
/* A struct bound as 32-bit integers, which the harness carries exactly, keeps its bits. */
void words_set(double *to, const void *from, size_t bytes);
void words_get(void *to, const double *from, size_t bytes);

#define BIND(c, type, field, elem, role, rows, cols, ld)                                           \
    case_bind(c, #field, offsetof(struct type, field), elem, role, rows, cols, ld)
#define ALIAS(c, type, field, input) case_alias(c, #field, offsetof(struct type, field), input)

/* Read the arguments, open the devices and list their tables. targets_get(0) is cpu-ref-f64, by
 * which the others are judged. */
void harness_open(int argc, char **argv);
/* Whether what ops assign is left unset: --unset. */
bool harness_unset(void);
int targets_count(void);
const struct target *targets_get(int i);
/* Print the worst use of the tolerances and `N passed, N failed`; the program's exit status. */
int harness_close(void);

/* Run `times` times on the same memory. Inputs are first rounded to the types of `like`. The result
 * is to be released. */
void case_run(const struct op_case *c, const struct target *t, const struct op_table *like,
              int times, struct result *r);
void result_fini(struct result *r);
/* The element type of a tensor in that table. */
enum dtype bind_dtype(const struct bind *b, const struct op_table *t);

/* Count one assertion; on failure print the text. */
bool expect(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* On every table: agree with the double table; with assigned outputs the same, and accumulated ones
 * twice as far, after a second call. */
void check_tables(const struct op_case *c);
/* On every table: exactly the values of the double table. For values that every type can hold. */
void check_exact(const struct op_case *c);
/* Agreement of two tensors in units of c->tol and eps of double. */
void check_same(const struct op_case *c, const char *what, const double *a, const double *b,
                int64_t n);

enum flow_kind {
    FLOW_SAVE, /* a value of forward (input or output) is an input of backward            */
    FLOW_SEED, /* the gradient of this output of forward is an input of backward, random  */
    FLOW_ONES, /* the same, but backward takes it to be `value` everywhere                */
    FLOW_GRAD  /* the gradient of this input of forward is an output of backward: checked */
};
struct flow {
    enum flow_kind kind;
    const char *forward, *backward;
    double value;
};
/* Check backward by central differences of forward in double, to 1e-7. */
void check_gradients(struct op_case *forward, struct op_case *backward, const struct flow *flow,
                     int n);

/* Random values of a test: the next of the sequence that belongs to `title`, which case_init sets.
 */
void random_start(const char *title);
double random_unit(void); /* in [-1, 1) */
int64_t random_below(int64_t n);

#endif
