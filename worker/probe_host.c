#include "worker/probe_host.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "kernels/moment_math.h"
#include "kernels/op_table.h"
#include "worker/train/update_pool.h"

enum {
    UPDATE_PARAMS = 128 << 20, /* 2 GiB: caches of hundreds of MiB hold none of it for long */
    TRIAD_DOUBLES = 128 << 20, /* 1 GiB an array, likewise; a thread has its part of it */
    TRIAD_PASSES = 4,          /* so that starting threads is nothing beside them */
    TRIAD_AHEAD = 512,
    LINE_DOUBLES = 8,
    MAX_THREADS = 256,
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double probe_median(double times[PROBE_RUNS])
{
    qsort(times, PROBE_RUNS, sizeof *times, compare);
    return times[PROBE_RUNS / 2];
}

/* --- memory (McCalpin's STREAM triad) --- */

struct triad {
    double *a, *b, *c;
    int64_t n;
    pthread_barrier_t *start, *end;
};

/* What is written is not read before, where the processor can do that. */
#if defined(__x86_64__)
typedef double pair __attribute__((vector_size(16)));
enum { TRIAD_MOVES = 3 };
static void put(double *to, double x, double y)
{
    __builtin_ia32_movntpd(to, (pair){x, y});
}
#else
enum { TRIAD_MOVES = 4 };
static void put(double *to, double x, double y)
{
    to[0] = x;
    to[1] = y;
}
#endif

/* Fetched ahead as updates do it: a core left to itself does not ask memory for all that it has. */
static void add_scaled(const struct triad *t)
{
    for (int64_t i = 0; i < t->n; i += LINE_DOUBLES) {
        __builtin_prefetch(t->b + i + TRIAD_AHEAD, 0, 3); /* beyond the end in vain */
        __builtin_prefetch(t->c + i + TRIAD_AHEAD, 0, 3);
        for (int64_t k = i; k < i + LINE_DOUBLES; k += 2)
            put(t->a + k, t->b[k] + 3.0 * t->c[k], t->b[k + 1] + 3.0 * t->c[k + 1]);
    }
}

static void *run_triad(void *ud)
{
    const struct triad *t = ud;
    for (int64_t i = 0; i < t->n; i++) { /* the pages are this thread's */
        t->a[i] = 1;
        t->b[i] = 2;
        t->c[i] = 3;
    }
    for (int k = 0; k < PROBE_RUNS; k++) {
        pthread_barrier_wait(t->start);
        for (int pass = 0; pass < TRIAD_PASSES; pass++)
            add_scaled(t);
        pthread_barrier_wait(t->end);
    }
    return NULL;
}

/* The best of its runs: it is a ceiling. */
static int triad_rate(struct device *d, double *rate, struct err *err)
{
    int threads = update_pool_all_threads() + 1;
    threads = threads > MAX_THREADS ? MAX_THREADS : threads;
    int64_t each = TRIAD_DOUBLES / threads / LINE_DOUBLES * LINE_DOUBLES;
    size_t bytes = (size_t)each * (size_t)threads * sizeof(double);
    double *arrays[3], best = INFINITY;
    void *memory = NULL;
    struct triad part[MAX_THREADS];
    pthread_t id[MAX_THREADS];
    pthread_barrier_t start, end;
    int started = 0;

    int rc = device_host_alloc(d, 3 * bytes, "a probe buffer", &memory, err);
    if (rc != 0)
        return rc;
    for (int k = 0; k < 3; k++)
        arrays[k] = (double *)memory + k * each * threads;
    pthread_barrier_init(&start, NULL, (unsigned)threads + 1);
    pthread_barrier_init(&end, NULL, (unsigned)threads + 1);
    for (; started < threads; started++) {
        part[started] = (struct triad){.a = arrays[0] + started * each,
                                       .b = arrays[1] + started * each,
                                       .c = arrays[2] + started * each,
                                       .n = each,
                                       .start = &start,
                                       .end = &end};
        int code = pthread_create(&id[started], NULL, run_triad, &part[started]);
        if (code != 0) /* those that run wait for one that never comes: the process is at an end */
            return err_set_errno(err, code, "cannot start %d threads to measure memory", threads);
    }
    for (int k = 0; k < PROBE_RUNS; k++) {
        pthread_barrier_wait(&start);
        double begin = clock_monotonic();
        pthread_barrier_wait(&end);
        best = fmin(best, clock_monotonic() - begin);
    }
    for (int t = 0; t < threads; t++)
        pthread_join(id[t], NULL);
    *rate = (double)TRIAD_MOVES * TRIAD_PASSES * (double)bytes / best;
    pthread_barrier_destroy(&start);
    pthread_barrier_destroy(&end);
    device_host_free(d, memory, 3 * bytes);
    return 0;
}

/* --- copies both ways --- */

struct copies {
    struct device *device;
    struct stream *up, *down;
    char *on_device, *pinned;
    size_t bytes; /* a copy: half of the memory goes up, the other half comes down */
};

static int copy_both(const struct copies *c, struct err *err)
{
    int rc = 0;
    TRY(device_copy(c->device, c->up, COPY_H2D, c->on_device, c->pinned, c->bytes, err));
    TRY(device_copy(c->device, c->down, COPY_D2H, c->pinned + c->bytes, c->on_device + c->bytes,
                    c->bytes, err));
    TRY(device_stream_sync(c->device, c->up, err));
    TRY(device_stream_sync(c->device, c->down, err));
out:
    return rc;
}

static int both_rates(const struct copies *c, struct device_profile *out, struct err *err)
{
    double times[PROBE_RUNS];
    int rc = 0;
    for (int k = -1; k < PROBE_RUNS; k++) {
        double start = clock_monotonic();
        TRY(copy_both(c, err));
        if (k >= 0)
            times[k] = clock_monotonic() - start;
    }
    out->h2d_both_rate = out->d2h_both_rate = (double)c->bytes / probe_median(times);
out:
    return rc;
}

/* --- updates --- */

struct updates {
    struct update_pool *pool;
    char *aside[PART_COUNT]; /* or NULL: in place */
    struct adamw_args args;
    double seconds;
    int rc;
    atomic_bool done;
};

/* A rounded gradient in the parameter's place, as a plan has it beside a whole master. */
static struct adamw_args update_args(char *memory, enum dtype param)
{
    static const struct adamw_step step = {.lr = 1e-3f, .bias1 = 0.1f, .bias2 = 0.001f};
    static const struct clip_result clip = {.coef = 1, .finite = 1};
    size_t n = UPDATE_PARAMS, whole = n * sizeof(float);
    return (struct adamw_args){.n = UPDATE_PARAMS,
                               .beta1 = 0.9f,
                               .beta2 = 0.999f,
                               .eps = 1e-8f,
                               .step = &step,
                               .clip = &clip,
                               .grad_type = param,
                               .master_type = DT_F32,
                               .moment_type = DT_F32,
                               .param_type = param,
                               .grad = memory + 3 * whole,
                               .master = memory,
                               .m = memory + whole,
                               .v = memory + 2 * whole,
                               .param = param == DT_F32 ? NULL : memory + 3 * whole};
}

/* Likewise with a split master and 8-bit moments, the gradient apart: the fewest bytes. */
static struct adamw_args fp8_update_args(char *memory)
{
    struct adamw_args a = update_args(memory, DT_BF16);
    size_t n = UPDATE_PARAMS;
    a.master_type = DT_I16;
    a.moment_type = DT_U8;
    a.param = memory + 2 * n;
    a.grad = memory + 4 * n;
    a.m = memory + 6 * n;
    a.v = memory + 7 * n;
    a.m_exponent = (uint8_t *)memory + 8 * n;
    a.v_exponent = a.m_exponent + n / MOMENT_BLOCK;
    return a;
}

static void *run_updates(void *ud)
{
    struct updates *u = ud;
    double times[PROBE_RUNS];
    for (int k = -1; k < PROBE_RUNS && u->rc == 0; k++) {
        double start = clock_monotonic();
        u->rc = u->aside[PART_M] ? update_pool_adamw_aside(u->pool, &u->args, u->aside, NULL)
                                 : update_pool_adamw(u->pool, &u->args);
        if (k >= 0)
            times[k] = clock_monotonic() - start;
    }
    if (u->rc == 0)
        u->seconds = probe_median(times);
    atomic_store(&u->done, true);
    return NULL;
}

/* Copies both ways until the updates are done; bytes a second each way. */
static int copy_meanwhile(const struct updates *u, const struct copies *copies, double *rate,
                          struct err *err)
{
    double begun = clock_monotonic();
    int64_t n = 0;
    int rc = 0;
    for (; !atomic_load(&u->done); n++)
        TRY(copy_both(copies, err));
    *rate = (double)n * (double)copies->bytes / (clock_monotonic() - begun);
out:
    return rc;
}

/* Parameters a second, with copies running both ways all the while, and theirs, or without. */
static int update_rate(struct updates *u, const struct copies *copies, double *rate,
                       double *copy_rate, struct err *err)
{
    pthread_t id;
    int rc = 0;

    atomic_store(&u->done, false);
    if (!copies) {
        run_updates(u);
    } else {
        int code = pthread_create(&id, NULL, run_updates, u);
        if (code != 0)
            return err_set_errno(err, code, "cannot start a thread to measure updates");
        rc = copy_meanwhile(u, copies, copy_rate, err);
        pthread_join(id, NULL);
    }
    if (rc == 0 && u->rc != 0)
        rc = err_set(err, u->rc, "AdamW of %d parameters", UPDATE_PARAMS);
    if (rc == 0)
        *rate = UPDATE_PARAMS / u->seconds;
    return rc;
}

static int update_rates(const struct copies *copies, struct device_profile *out, struct err *err)
{
    bool cuda = copies->device->kind == DEVICE_CUDA;
    const struct op_table *ops = cuda ? NULL : device_ops(copies->device, DT_F32);
    size_t part = (size_t)UPDATE_PARAMS * sizeof(float), bytes = 7 * part;
    void *memory = NULL;
    struct updates u = {0};
    int rc = 0;

    /* as a job has it: in large pages, where the device's pinned memory has those */
    TRY(device_host_alloc(copies->device, bytes, "a probe buffer", &memory, err));
    u.args = update_args(memory, cuda ? DT_BF16 : DT_F32);
    for (size_t i = 0; i < bytes / sizeof(float); i++) /* untouched pages would all be one page */
        ((float *)memory)[i] = 1e-3f;
    TRY(update_pool_create(update_pool_all_threads(), ops, &u.pool, err));
    TRY(update_rate(&u, NULL, &out->cpu_update_rate, NULL, err));
    TRY(update_rate(&u, copies, &out->cpu_update_copy_rate, &out->copy_update_rate, err));
    u.args.param = (char *)memory + 3 * part; /* a type beside a master: only such go aside */
    for (int k = PART_MASTER; k <= PART_V; k++)
        u.aside[k] = (char *)memory + (size_t)(4 + k) * part;
    TRY(update_rate(&u, NULL, &out->cpu_update_aside_rate, NULL, err));
    memset(u.aside, 0, sizeof u.aside);
    u.args = fp8_update_args(memory);
    memset(memory, 0, bytes);
    TRY(update_rate(&u, NULL, &out->cpu_update_fp8_rate, NULL, err));
    TRY(update_rate(&u, copies, &out->cpu_update_fp8_copy_rate, &out->copy_update_fp8_rate, err));
out:
    update_pool_destroy(u.pool);
    if (memory)
        device_host_free(copies->device, memory, bytes);
    return rc;
}

int probe_host(struct device *d, void *on_device, void *pinned, size_t bytes,
               struct device_profile *out, struct err *err)
{
    struct copies c = {.device = d, .on_device = on_device, .pinned = pinned, .bytes = bytes / 2};
    int rc = 0;

    TRY(device_stream_create(d, 0, &c.up, err));
    TRY(device_stream_create(d, 0, &c.down, err));
    TRY(triad_rate(d, &out->host_memory_rate, err));
    TRY(both_rates(&c, out, err));
    TRY(update_rates(&c, out, err));
    out->host_memory_rate = fmax(out->host_memory_rate, device_profile_host_shown(out));
out:
    if (c.up)
        device_stream_destroy(d, c.up);
    if (c.down)
        device_stream_destroy(d, c.down);
    return rc;
}
