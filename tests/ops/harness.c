#include "tests/ops/harness.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/rng.h"
#include "tests/ops/harness_attention.h"
#include "tests/ops/harness_op.h"

enum { MAX_TARGETS = 16 };

static struct target targets[MAX_TARGETS];
static struct device *devices[MAX_TARGETS];
static struct stream *streams[MAX_TARGETS];
static int target_count, device_total;
static long passed, failed, unsupported, left_out;
static double worst[MAX_TARGETS][OP_COUNT];
static double worst_gradient[OP_COUNT];
static struct rng_stream random_stream = {.use = RNG_USE_INIT};
static uint64_t random_index;

static struct {
    const char *cases; /* NULL: all */
    int64_t elements;
    bool cpu, cuda, unset;
} options = {.elements = INT64_MAX, .cpu = true, .cuda = true};

/* FNV-1a (Fowler, Noll, Vo) of 64 bits. */
void random_start(const char *title)
{
    uint64_t hash = 0xcbf29ce484222325u;

    for (; *title; title++)
        hash = (hash ^ (unsigned char)*title) * 0x100000001b3u;
    random_stream.seed = hash;
    random_index = 0;
}

double random_unit(void)
{
    static struct rng_block block; /* of four numbers: rng_draw's, each block made once */

    if (random_index % 4 == 0)
        block = rng_draw4(random_stream, random_index / 4);
    return 2.0 * (double)rng_to_unit(block.v[random_index++ % 4]) - 1.0;
}

int64_t random_below(int64_t n)
{
    return (int64_t)((random_unit() + 1) / 2 * (double)n);
}

bool expect(bool ok, const char *fmt, ...)
{
    if (ok) {
        passed++;
        return true;
    }
    va_list ap;
    va_start(ap, fmt);
    printf("FAILED: ");
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    failed++;
    return false;
}

/* --- arguments --- */

static void usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [--device cpu|cuda] [--cases TEXT] [--elements N] [--unset]\n"
            "(tests/ops/harness.h)\n",
            program);
    exit(2);
}

static void options_read(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--unset") == 0) {
            options.unset = true;
            continue;
        }
        i++;
        if (strcmp(argv[i - 1], "--cases") == 0)
            options.cases = value;
        else if (strcmp(argv[i - 1], "--elements") == 0)
            options.elements = strtoll(value, NULL, 10);
        else if (strcmp(argv[i - 1], "--device") == 0 && strcmp(value, "cpu") == 0)
            options.cuda = false;
        else if (strcmp(argv[i - 1], "--device") == 0 && strcmp(value, "cuda") == 0)
            options.cpu = false;
        else
            usage(argv[0]);
    }
}

bool harness_unset(void)
{
    return options.unset;
}

static bool selected(const struct op_case *c)
{
    int64_t elements = 0;

    for (int i = 0; i < c->n; i++)
        elements += c->b[i].alias >= 0 ? 0 : c->b[i].rows * c->b[i].cols;
    bool is = elements <= options.elements && (!options.cases || strstr(c->title, options.cases));
    left_out += !is;
    return is;
}

/* --- targets --- */

static void open_device(enum device_kind kind, int index, bool reference_ops,
                        const enum dtype *types, int n)
{
    struct err err = {0};
    struct device_options o = {.reference_ops = reference_ops};
    struct device *d = NULL;
    struct stream *s = NULL;

    if (device_open(kind, index, &o, &d, &err) != 0 || device_stream_create(d, 0, &s, &err) != 0) {
        fprintf(stderr, "%s\n", err.msg);
        exit(2);
    }
    devices[device_total] = d;
    streams[device_total++] = s;
    for (int i = 0; i < n; i++) {
        const struct op_table *table = device_ops(d, types[i]);
        if (table)
            targets[target_count++] = (struct target){d, s, table};
    }
}

void harness_open(int argc, char **argv)
{
    static const enum dtype REFERENCE[] = {DT_F64, DT_F32}, CPU[] = {DT_F32, DT_BF16},
                            CUDA[] = {DT_F32, DT_BF16, DT_F16};
    setvbuf(stdout, NULL, _IOLBF, 0);
    options_read(argc, argv);
    open_device(DEVICE_CPU, 0, true, REFERENCE, options.cpu ? 2 : 1);
    if (options.cpu)
        open_device(DEVICE_CPU, 0, false, CPU, 2);
    if (options.cuda && device_count(DEVICE_CUDA) > 0)
        open_device(DEVICE_CUDA, 0, false, CUDA, 3);
    assert(targets[0].table->compute == DT_F64);
}

int targets_count(void)
{
    return target_count;
}

const struct target *targets_get(int i)
{
    return &targets[i];
}

int harness_close(void)
{
    for (int op = 0; op < OP_COUNT; op++) {
        for (int i = 1; i < target_count; i++)
            if (worst[i][op] > 0)
                printf("%-18s %-12s worst error %7.3f%% of the tolerance\n", op_name((enum op)op),
                       targets[i].table->name, 100 * worst[i][op]);
        if (worst_gradient[op] > 0)
            printf("%-18s %-12s worst error %7.3f%% of the tolerance\n", op_name((enum op)op),
                   "gradient", 100 * worst_gradient[op]);
    }
    for (int i = 0; i < device_total; i++) {
        device_stream_destroy(devices[i], streams[i]);
        device_close(devices[i]);
    }
    if (unsupported > 0)
        printf("%ld runs left out: a table does not support the shape\n", unsupported);
    if (left_out > 0)
        printf("%ld checks left out by --cases or --elements\n", left_out);
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed > 0;
}

/* --- cases --- */

void case_init(struct op_case *c, enum op op, const void *args, size_t args_bytes, const char *fmt,
               ...)
{
    int used = snprintf(c->title, sizeof c->title, "%s ", op_name(op));
    va_list ap;

    assert(args_bytes <= sizeof c->args);
    va_start(ap, fmt);
    vsnprintf(c->title + used, sizeof c->title - (size_t)used, fmt, ap);
    va_end(ap);
    random_start(c->title);
    c->op = op;
    c->tol = 32;
    c->n = 0;
    memset(&c->args, 0, sizeof c->args);
    memcpy(&c->args, args, args_bytes);
}

void case_fini(struct op_case *c)
{
    for (int i = 0; i < c->n; i++)
        free(c->b[i].init);
    c->n = 0;
}

double *case_bind(struct op_case *c, const char *name, size_t slot, int elem, enum role role,
                  int64_t rows, int64_t cols, int64_t ld)
{
    assert(c->n < CASE_BINDS);
    struct bind *b = &c->b[c->n++];
    *b = (struct bind){name, slot, elem, role, rows, cols, ld ? ld : cols, -1, NULL};
    assert(b->ld >= cols);
    b->init = xcalloc((size_t)(rows * cols), sizeof *b->init);
    for (int64_t i = 0; i < rows * cols; i++)
        b->init[i] = random_unit();
    return b->init;
}

int case_index(const struct op_case *c, const char *name)
{
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->b[i].name, name) == 0)
            return i;
    fprintf(stderr, "%s has no tensor %s\n", c->title, name);
    exit(2);
}

void words_set(double *to, const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes / 4; i++) {
        int32_t word;
        memcpy(&word, (const char *)from + 4 * i, sizeof word);
        to[i] = (double)word;
    }
}

void words_get(void *to, const double *from, size_t bytes)
{
    for (size_t i = 0; i < bytes / 4; i++) {
        int32_t word = (int32_t)from[i];
        memcpy((char *)to + 4 * i, &word, sizeof word);
    }
}

void case_alias(struct op_case *c, const char *name, size_t slot, const char *input)
{
    int i = case_index(c, input);
    const struct bind *in = &c->b[i];
    case_bind(c, name, slot, in->elem, ROLE_ASSIGN, in->rows, in->cols, in->ld);
    c->b[c->n - 1].alias = i;
}

double *case_data(struct op_case *c, const char *name)
{
    return c->b[case_index(c, name)].init;
}

/* --- comparing --- */

/* Sums run in float even where values have 16 bits, so these round a few times only: an eighth of
 * the allowance of the wide types, in units of their own eps. */
static double dtype_eps(enum dtype t)
{
    return t == DT_F64    ? DBL_EPSILON
           : t == DT_F32  ? (double)FLT_EPSILON
           : t == DT_F16  ? 0x1p-13
           : t == DT_BF16 ? 0x1p-10
                          : 0;
}

static bool is_output(const struct bind *b)
{
    return b->role != ROLE_IN;
}

/* dout v^T - dout o in attention's backward cancels where few keys are seen (the first row's is
 * exactly zero): the error is that of two dot products much larger than the gradients. Measured
 * over the cases of test_attention: up to 59 eps in float32. */
static double wide_tolerance(const struct op_case *c)
{
    return c->op == OP_ATTN_BWD ? fmax(c->tol, 96) : c->tol;
}

static void compare_one(const struct op_case *c, int ti, const struct result *got,
                        const struct result *want)
{
    const struct op_table *table = targets[ti].table;
    bool narrow = table->compute == DT_BF16 || table->compute == DT_F16;
    double *summands[CASE_BINDS] = {0}, used;

    if (narrow)
        attention_summands(c, table, summands);
    for (int i = 0; i < c->n; i++) {
        const struct bind *b = &c->b[i];
        int64_t n = b->rows * b->cols;
        if (!is_output(b))
            continue;
        enum dtype own = bind_dtype(b, table);
        double eps = fmax(dtype_eps(table->compute), dtype_eps(own));
        if (own == DT_I32)
            eps = 0;
        if (summands[i])
            used = attention_error(got->v[i], want->v[i], summands[i], n, table->compute,
                                   wide_tolerance(c) * (double)FLT_EPSILON);
        else
            used =
                tensor_error(got->v[i], want->v[i], n, (narrow ? c->tol : wide_tolerance(c)) * eps);
        worst[ti][c->op] = fmax(worst[ti][c->op], used);
        expect(used <= 1, "%s on %s: %s is off by %.3g times the tolerance", c->title, table->name,
               b->name, used);
        free(summands[i]);
    }
}

static void compare_twice(const struct op_case *c, int ti, const struct result *once)
{
    const struct target *t = &targets[ti];
    struct result twice;

    case_run(c, t, t->table, 2, &twice);
    for (int i = 0; i < c->n; i++) {
        const struct bind *b = &c->b[i];
        int64_t n = b->rows * b->cols;
        if (b->role == ROLE_ASSIGN)
            expect(memcmp(once->v[i], twice.v[i], (size_t)n * sizeof(double)) == 0,
                   "%s on %s: %s differs after a second call", c->title, t->table->name, b->name);
        if (b->role != ROLE_ADD)
            continue;
        double *one = xcalloc((size_t)n, sizeof *one), *two = xcalloc((size_t)n, sizeof *two);
        for (int64_t k = 0; k < n; k++) {
            one[k] = 2 * (once->v[i][k] - b->init[k]);
            two[k] = twice.v[i][k] - b->init[k];
        }
        double eps = dtype_eps(bind_dtype(b, t->table));
        double used = tensor_error(two, one, n, c->tol * fmax(eps, 0x1p-23));
        expect(used <= 1, "%s on %s: %s does not accumulate (%.3g times the tolerance)", c->title,
               t->table->name, b->name, used);
        free(one);
        free(two);
    }
    result_fini(&twice);
}

/* A second call means the same only where no input was overwritten by the first. */
static bool repeatable(const struct op_case *c)
{
    for (int i = 0; i < c->n; i++)
        if (c->b[i].alias >= 0 || c->b[i].role == ROLE_INOUT)
            return false;
    return true;
}

void check_tables(const struct op_case *c)
{
    if (!selected(c))
        return;
    for (int ti = options.cpu ? 0 : 1; ti < target_count; ti++) {
        const struct target *t = &targets[ti];
        struct result got, want;
        case_run(c, t, t->table, 1, &got);
        if (got.rc == ERR_UNSUPPORTED && t->device->kind == DEVICE_CUDA) {
            unsupported++;
            result_fini(&got);
            continue;
        }
        if (!expect(got.rc == 0, "%s on %s: error %d", c->title, t->table->name, got.rc))
            continue;
        case_run(c, &targets[0], t->table, 1, &want);
        compare_one(c, ti, &got, &want);
        if (repeatable(c))
            compare_twice(c, ti, &got);
        result_fini(&got);
        result_fini(&want);
    }
}

/* Equal as numbers: a table may have -0 where another has 0, but nothing equals a NaN. */
static bool equal(const double *a, const double *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (a[i] != b[i])
            return false;
    return true;
}

void check_exact(const struct op_case *c)
{
    struct result want, got;

    if (!selected(c))
        return;
    case_run(c, &targets[0], targets[0].table, 1, &want);
    for (int ti = 1; ti < target_count; ti++) {
        case_run(c, &targets[ti], targets[0].table, 1, &got);
        if (got.rc == 0)
            for (int i = 0; i < c->n; i++) {
                const struct bind *b = &c->b[i];
                expect(equal(got.v[i], want.v[i], b->rows * b->cols), "%s on %s: %s is not exact",
                       c->title, targets[ti].table->name, b->name);
            }
        else
            expect(got.rc == ERR_UNSUPPORTED, "%s on %s: error %d", c->title,
                   targets[ti].table->name, got.rc);
        result_fini(&got);
    }
    result_fini(&want);
}

void check_same(const struct op_case *c, const char *what, const double *a, const double *b,
                int64_t n)
{
    double used = tensor_error(a, b, n, c->tol * DBL_EPSILON);
    expect(used <= 1, "%s: %s is off by %.3g times the tolerance", c->title, what, used);
}

/* --- gradients --- */

static double weighted_loss(const struct op_case *forward, double *const weights[])
{
    struct result r;
    double sum = 0;

    case_run(forward, &targets[0], targets[0].table, 1, &r);
    for (int i = 0; i < forward->n; i++)
        for (int64_t k = 0; weights[i] && k < forward->b[i].rows * forward->b[i].cols; k++)
            sum += weights[i][k] * r.v[i][k];
    result_fini(&r);
    return sum;
}

/* Fourth-order central difference of the weighted loss at element x. */
static double slope_at(const struct op_case *forward, double *const weights[], double *x)
{
    static const double STEP = 1e-3;
    double keep = *x, f[4];

    for (int i = 0; i < 4; i++) {
        *x = keep + STEP * (i < 2 ? i - 2 : i - 1); /* -2, -1, 1, 2 */
        f[i] = weighted_loss(forward, weights);
    }
    *x = keep;
    return (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * STEP);
}

static void compare_gradient(struct op_case *forward, struct op_case *backward,
                             const struct flow *f, double *const weights[], const double *analytic)
{
    struct bind *in = &forward->b[case_index(forward, f->forward)];
    const struct bind *out = &backward->b[case_index(backward, f->backward)];
    int64_t n = in->rows * in->cols;
    double *numeric = xcalloc((size_t)n, sizeof *numeric);
    double *got = xcalloc((size_t)n, sizeof *got);

    assert(n == out->rows * out->cols);
    for (int64_t k = 0; k < n; k++) {
        numeric[k] = slope_at(forward, weights, &in->init[k]);
        got[k] = analytic[k] - (out->role == ROLE_ADD ? out->init[k] : 0);
    }
    double used = tensor_error(got, numeric, n, 1e-7);
    worst_gradient[backward->op] = fmax(worst_gradient[backward->op], used);
    expect(used <= 1, "%s: gradient of %s is off by %.3g times the tolerance", backward->title,
           f->forward, used);
    free(numeric);
    free(got);
}

void check_gradients(struct op_case *forward, struct op_case *backward, const struct flow *flow,
                     int n)
{
    double *weights[CASE_BINDS] = {0};
    struct result saved, grads;

    if (!selected(backward))
        return;
    case_run(forward, &targets[0], targets[0].table, 1, &saved);
    for (int i = 0; i < n; i++) {
        int from = case_index(forward, flow[i].forward);
        int64_t count = forward->b[from].rows * forward->b[from].cols;
        double *to = flow[i].backward ? case_data(backward, flow[i].backward) : NULL;
        if (flow[i].kind == FLOW_SAVE)
            memcpy(to, is_output(&forward->b[from]) ? saved.v[from] : forward->b[from].init,
                   (size_t)count * sizeof *to);
        if (flow[i].kind != FLOW_SEED && flow[i].kind != FLOW_ONES)
            continue;
        weights[from] = xcalloc((size_t)count, sizeof(double));
        for (int64_t k = 0; k < count; k++)
            weights[from][k] = flow[i].kind == FLOW_ONES ? flow[i].value : to[k];
    }
    case_run(backward, &targets[0], targets[0].table, 1, &grads);
    for (int i = 0; i < n; i++)
        if (flow[i].kind == FLOW_GRAD && options.cpu)
            compare_gradient(forward, backward, &flow[i], weights,
                             grads.v[case_index(backward, flow[i].backward)]);
    for (int i = 0; i < CASE_BINDS; i++)
        free(weights[i]);
    result_fini(&saved);
    result_fini(&grads);
}
