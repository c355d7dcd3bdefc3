#include "worker/train/step_profile.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "kernels/op_cost.h"

enum { SIDE_GPU = 8192, SIDE_CPU = 1024, CEILING_RUNS = 5 };

struct watched {
    enum op op;
    char shape[64];
    struct op_cost cost;
    struct event_mark *from, *to;
};

struct line {
    const struct watched *first;
    int64_t count;
    double seconds, floor;
};

struct step_profile {
    struct device *device;
    const struct op_table *ops;
    struct op_watch watch;
    struct watched *ops_seen;
    int64_t n, cap;
    double flops, bytes; /* a second */
    struct err failed;   /* of a mark */
};

/* --- watching --- */

static struct watched *next_slot(struct step_profile *p)
{
    if (p->n == p->cap) {
        int64_t cap = p->cap ? 2 * p->cap : 1024;
        p->ops_seen = xrealloc(p->ops_seen, (size_t)cap * sizeof *p->ops_seen);
        memset(p->ops_seen + p->cap, 0, (size_t)(cap - p->cap) * sizeof *p->ops_seen);
        p->cap = cap;
    }
    return &p->ops_seen[p->n];
}

static int begin_op(struct step_profile *p, enum op op, const void *args, struct stream *s,
                    struct err *err)
{
    struct watched *w = next_slot(p);
    int rc = 0;

    w->op = op;
    w->cost = op_cost(p->ops, op, args);
    op_describe(op, args, w->shape, sizeof w->shape);
    if (!w->from) {
        TRY(device_mark_create(p->device, &w->from, err));
        TRY(device_mark_create(p->device, &w->to, err));
    }
    TRY(device_mark_record(p->device, w->from, s, err));
out:
    return rc;
}

static void before(void *ud, enum op op, const void *args, struct stream *s)
{
    struct step_profile *p = ud;
    if (!p->failed.code)
        begin_op(p, op, args, s, &p->failed);
}

static void after(void *ud, struct stream *s)
{
    struct step_profile *p = ud;
    if (!p->failed.code && device_mark_record(p->device, p->ops_seen[p->n].to, s, &p->failed) == 0)
        p->n++;
}

const struct op_watch *step_profile_watch(struct step_profile *p)
{
    return &p->watch;
}

/* --- ceilings --- */

static int64_t ceiling_side(const struct step_profile *p)
{
    return p->device->kind == DEVICE_CPU ? SIDE_CPU : SIDE_GPU;
}

static struct linear_args ceiling_product(const struct step_profile *p)
{
    int64_t side = ceiling_side(p);
    return (struct linear_args){.N = side, .I = side, .O = side};
}

/* The fastest of some runs of a product of large matrices, whose values are small random numbers,
 * and of a copy of one of them. */
static int run_ceilings(struct step_profile *p, struct stream *s, char *memory, size_t matrix,
                        struct event_mark **mark, struct err *err)
{
    double side = (double)ceiling_side(p), seconds, best[2] = {1e9, 1e9};
    struct linear_args a = ceiling_product(p);
    int rc = 0;

    a.x = memory;
    a.w = memory + matrix;
    a.y = memory + 2 * matrix;
    a.workspace = memory + 3 * matrix;
    for (int run = 0; run < 2 * CEILING_RUNS; run++) {
        bool copy = run % 2;
        TRY(device_mark_record(p->device, mark[0], s, err));
        if (copy)
            TRY(device_copy(p->device, s, COPY_D2D, a.y, memory, matrix, err));
        else if ((rc = p->ops->linear_fwd(s, &a)) != 0)
            goto out;
        TRY(device_mark_record(p->device, mark[1], s, err));
        TRY(device_stream_sync(p->device, s, err));
        TRY(device_mark_elapsed(p->device, mark[0], mark[1], &seconds, err));
        if (seconds < best[copy])
            best[copy] = seconds;
    }
    p->flops = 2 * side * side * side / best[0];
    p->bytes = 2 * (double)matrix / best[1];
out:
    return rc;
}

static int fill_random(struct step_profile *p, struct stream *s, char *memory, size_t matrix,
                       struct err *err)
{
    enum { BLOCK = 1 << 18 };
    size_t block = BLOCK * dtype_size(p->ops->compute);
    float *values = xcalloc(BLOCK, sizeof *values);
    char *real = xmalloc(block);
    struct rng_stream stream = {.use = RNG_USE_INIT};
    int rc = 0;

    for (int64_t i = 0; i < BLOCK; i++)
        values[i] = rng_to_unit(rng_draw(stream, (uint64_t)i)) - 0.5f;
    dtype_convert(p->ops->compute, real, DT_F32, values, BLOCK);
    for (size_t at = 0; at < 2 * matrix; at += block)
        TRY(device_copy(p->device, s, COPY_H2D, memory + at, real, block, err));
    TRY(device_stream_sync(p->device, s, err));
out:
    free(values);
    free(real);
    return rc;
}

static int measure_ceilings(struct step_profile *p, struct err *err)
{
    struct linear_args a = ceiling_product(p);
    size_t matrix = (size_t)(a.N * a.I) * dtype_size(p->ops->compute);
    size_t bytes = 3 * matrix + p->ops->workspace(OP_LINEAR_FWD, &a);
    struct event_mark *mark[2] = {0};
    struct stream *s = NULL;
    void *memory = NULL;
    int rc = 0;

    TRY(device_alloc(p->device, bytes, "the profile's ceilings", &memory, err));
    TRY(device_stream_create(p->device, 0, &s, err));
    for (int k = 0; k < 2; k++)
        TRY(device_mark_create(p->device, &mark[k], err));
    TRY(fill_random(p, s, memory, matrix, err));
    TRY(run_ceilings(p, s, memory, matrix, mark, err));
out:
    for (int k = 0; k < 2; k++)
        if (mark[k])
            device_mark_destroy(p->device, mark[k]);
    if (s)
        device_stream_destroy(p->device, s);
    if (memory)
        device_free(p->device, memory, bytes);
    return rc;
}

/* --- life and result --- */

int step_profile_create(struct device *device, const struct op_table *ops,
                        struct step_profile **out, struct err *err)
{
    struct step_profile *p = xcalloc(1, sizeof *p);
    int rc = 0;

    p->device = device;
    p->ops = ops;
    p->watch = (struct op_watch){.before = before, .after = after, .ud = p};
    TRY(measure_ceilings(p, err));
    *out = p;
    p = NULL;
out:
    step_profile_destroy(p);
    return rc;
}

void step_profile_destroy(struct step_profile *p)
{
    if (!p)
        return;
    for (int64_t i = 0; i < p->cap; i++) {
        if (p->ops_seen[i].from)
            device_mark_destroy(p->device, p->ops_seen[i].from);
        if (p->ops_seen[i].to)
            device_mark_destroy(p->device, p->ops_seen[i].to);
    }
    free(p->ops_seen);
    free(p);
}

static int longest_first(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    return x->seconds < y->seconds ? 1 : x->seconds > y->seconds ? -1 : 0;
}

/* One line for all ops like w. */
static struct line *line_of(struct line *lines, int64_t *n, const struct watched *w)
{
    for (int64_t k = 0; k < *n; k++)
        if (lines[k].first->op == w->op && strcmp(lines[k].first->shape, w->shape) == 0)
            return &lines[k];
    lines[*n] = (struct line){.first = w};
    return &lines[(*n)++];
}

static int sum_up(struct step_profile *p, struct line *lines, int64_t *n, struct err *err)
{
    int rc = 0;

    for (int64_t i = 0; i < p->n; i++) {
        const struct watched *w = &p->ops_seen[i];
        struct line *l = line_of(lines, n, w);
        double by_flops = w->cost.flops / p->flops, by_bytes = w->cost.bytes / p->bytes, seconds;
        TRY(device_mark_elapsed(p->device, w->from, w->to, &seconds, err));
        l->count++;
        l->seconds += seconds;
        l->floor += by_flops > by_bytes ? by_flops : by_bytes;
    }
    qsort(lines, (size_t)*n, sizeof *lines, longest_first);
out:
    return rc;
}

int step_profile_print(struct step_profile *p, double step_seconds, struct buf *out,
                       struct err *err)
{
    struct line *lines = xcalloc((size_t)p->n + 1, sizeof *lines);
    double seconds = 0, bound = 0;
    int64_t n = 0;
    int rc = p->failed.code;

    if (rc) {
        *err = p->failed;
        goto out;
    }
    TRY(sum_up(p, lines, &n, err));
    buf_printf(out, "profile: product %.0f TFLOP/s, copy %.0f GB/s\n", p->flops * 1e-12,
               p->bytes * 1e-9);
    buf_printf(out, "%-18s %-34s %6s %10s %9s %9s %5s %9s\n", "op", "shape", "count", "total ms",
               "each us", "floor us", "of it", "excess ms");
    for (int64_t k = 0; k < n; k++) {
        const struct line *l = &lines[k];
        buf_printf(out, "%-18s %-34s %6lld %10.3f %9.1f %9.1f %4.0f%% %9.3f\n",
                   op_name(l->first->op), l->first->shape, (long long)l->count, l->seconds * 1e3,
                   l->seconds / (double)l->count * 1e6, l->floor / (double)l->count * 1e6,
                   100 * l->floor / l->seconds, (l->seconds - l->floor) * 1e3);
        seconds += l->seconds;
        bound += l->floor;
    }
    buf_printf(
        out,
        "profile: %lld ops %.3f ms, their floor %.3f ms; a step that nobody watched %.3f ms, "
        "%.1f %% of it beside the ops\n",
        (long long)p->n, seconds * 1e3, bound * 1e3, step_seconds * 1e3,
        100 * (step_seconds - seconds) / step_seconds);
out:
    free(lines);
    return rc;
}
