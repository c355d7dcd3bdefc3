#include "worker/probe.h"

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
    UPDATE_RUNS = 100,         /* at most */
};
static const double UPDATE_SECONDS = 1; /* at least, unless there are so many runs */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double probe_median(double *times, int n)
{
    qsort(times, (size_t)n, sizeof *times, compare);
    return times[n / 2];
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
    out->h2d_both_rate = out->d2h_both_rate = (double)c->bytes / probe_median(times, PROBE_RUNS);
out:
    return rc;
}

/* Work of the processors, during which copies run, or nothing does. */
struct work {
    void (*run)(struct work *w);
    struct err err; /* of the run; rc of its code */
    int rc;
    atomic_bool done;
};

static void *run_work(void *ud)
{
    struct work *w = ud;
    w->run(w);
    atomic_store(&w->done, true);
    return NULL;
}

/* Copies both ways until the work is done; bytes a second each way. */
static int copy_meanwhile(const struct work *w, const struct copies *copies, double *rate,
                          struct err *err)
{
    double begun = clock_monotonic();
    int64_t n = 0;
    int rc = 0;
    for (; !atomic_load(&w->done); n++)
        TRY(copy_both(copies, err));
    *rate = (double)n * (double)copies->bytes / (clock_monotonic() - begun);
out:
    return rc;
}

/* `copies` and their rate may be NULL. */
static int do_work(struct work *w, const struct copies *copies, double *copy_rate, struct err *err)
{
    pthread_t id;
    int rc = 0;

    atomic_store(&w->done, false);
    if (!copies) {
        run_work(w);
    } else {
        int code = pthread_create(&id, NULL, run_work, w);
        if (code != 0)
            return err_set_errno(err, code, "cannot start a thread to measure the host's memory");
        rc = copy_meanwhile(w, copies, copy_rate, err);
        pthread_join(id, NULL);
    }
    return rc == 0 && w->rc != 0 ? err_set(err, w->rc, "%s", w->err.msg) : rc;
}

/* --- memory --- */

struct passes {
    struct work work;
    void *memory;
    size_t bytes;
    double rate;
};

static void run_passes(struct work *w)
{
    struct passes *p = (struct passes *)w;
    w->rc = probe_memory(p->memory, p->bytes, &p->rate, &w->err);
}

/* Alone and beside copies, which ask for memory themselves. What was there is lost. */
static int memory_rate(void *memory, size_t bytes, const struct copies *copies, double *rate,
                       struct err *err)
{
    struct passes p = {.work = {.run = run_passes}, .memory = memory, .bytes = bytes};
    double copy_rate;
    int rc = 0;

    TRY(do_work(&p.work, NULL, NULL, err));
    *rate = p.rate;
    TRY(do_work(&p.work, copies, &copy_rate, err));
    *rate = fmax(*rate, p.rate + 2 * copy_rate);
out:
    return rc;
}

/* --- updates --- */

struct updates {
    struct work work;
    struct update_pool *pool;
    char *aside[PART_COUNT]; /* or NULL: in place */
    struct adamw_args args;
    double seconds;
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

static void run_updates(struct work *w)
{
    struct updates *u = (struct updates *)w;
    double times[UPDATE_RUNS], begun = clock_monotonic();
    int n = -1; /* one run does not count */
    while (n < UPDATE_RUNS && (n < PROBE_RUNS || clock_monotonic() - begun < UPDATE_SECONDS)) {
        double start = clock_monotonic();
        w->rc = u->aside[PART_M] ? update_pool_adamw_aside(u->pool, &u->args, u->aside, NULL)
                                 : update_pool_adamw(u->pool, &u->args);
        if (w->rc != 0) {
            err_set(&w->err, w->rc, "AdamW of %d parameters", UPDATE_PARAMS);
            return;
        }
        if (n >= 0)
            times[n] = clock_monotonic() - start;
        n++;
    }
    u->seconds = probe_median(times, n);
}

/* Parameters a second, with copies running both ways all the while, and theirs, or without. */
static int update_rate(struct updates *u, const struct copies *copies, double *rate,
                       double *copy_rate, struct err *err)
{
    int rc = do_work(&u->work, copies, copy_rate, err);
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
    struct updates u = {.work = {.run = run_updates}};
    int rc = 0;

    /* as a job has it: in large pages, where the device's pinned memory has those */
    TRY(device_host_alloc(copies->device, bytes, "a probe buffer", &memory, err));
    TRY(memory_rate(memory, bytes, copies, &out->host_memory_rate, err));
    u.args = update_args(memory, cuda ? DT_BF16 : DT_F32);
    for (size_t i = 0; i < bytes / sizeof(float); i++)
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
