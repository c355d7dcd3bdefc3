#include "worker/train/update_pool.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "kernels/adamw_aside.h"
#include "kernels/device.h"
#include "kernels/moment_math.h"

enum {
    COPY_PIECE = 1 << 22, /* bytes */
    PIECE = 1 << 16,      /* elements at most: far more than a piece's overhead */
    SPINS = 1 << 12,      /* looks at the ticket before sleeping: some 50 microseconds */
    SPINS_DONE = 1 << 8   /* before yielding, for the last pieces of others */
};

/* The ticket: in its upper half the number of the update, in the lower one how many pieces nobody
 * has taken yet. Whoever takes one by lowering it owns that piece; until all taken ones are done
 * the update stays as it is. */
struct update_pool {
    struct device *device;
    struct stream *stream; /* of one thread */
    const struct op_table *ops;
    struct seq_word *word; /* the update's number, for sleepers */
    pthread_t *threads;
    int n_threads; /* beside the caller */

    int (*run)(struct update_pool *p, int64_t piece); /* the update, or a copy */
    struct adamw_args args;
    char *aside[PART_COUNT]; /* where the new state's parts go */
    void *kept;              /* where parameters go as they were, or NULL */
    char *to;
    const char *from; /* NULL: zeros */
    size_t bytes;
    int64_t piece; /* elements of one, but the last */
    int64_t pieces;
    uint64_t ticket; /* atomic */
    int64_t done;    /* atomic: pieces */
    int failed;      /* atomic: return code of a piece that failed */
    bool closing;    /* atomic */
};

static void *advanced(const void *p, int64_t elements, enum dtype type)
{
    return p ? (char *)(uintptr_t)p + (size_t)elements * dtype_size(type) : NULL;
}

/* At most `most` elements from `first` on. */
static struct adamw_args part_of(const struct adamw_args *a, int64_t first, int64_t most)
{
    int64_t left = a->n - first, decay = a->n_decay - first;
    struct adamw_args p = *a;
    p.n = left < most ? left : most;
    p.n_decay = decay < 0 ? 0 : decay < p.n ? decay : p.n;
    p.grad = advanced(a->grad, first, a->grad_type);
    p.master = advanced(a->master, first, a->master_type);
    p.m = advanced(a->m, first, a->moment_type);
    p.v = advanced(a->v, first, a->moment_type);
    p.m_exponent = advanced(a->m_exponent, first / MOMENT_BLOCK, DT_U8);
    p.v_exponent = advanced(a->v_exponent, first / MOMENT_BLOCK, DT_U8);
    p.param = advanced(a->param, first, a->param_type);
    p.first = a->first + first;
    return p;
}

/* Take pieces until none is left; returns the ticket without any. */
static uint64_t work(struct update_pool *p)
{
    uint64_t t = __atomic_load_n(&p->ticket, __ATOMIC_ACQUIRE);
    while ((uint32_t)t > 0) {
        if (!__atomic_compare_exchange_n(&p->ticket, &t, t - 1, false, __ATOMIC_ACQ_REL,
                                         __ATOMIC_ACQUIRE))
            continue;
        int rc = p->run(p, p->pieces - (int64_t)(uint32_t)t);
        if (rc != 0)
            __atomic_store_n(&p->failed, rc, __ATOMIC_RELAXED);
        __atomic_fetch_add(&p->done, 1, __ATOMIC_ACQ_REL);
        t = __atomic_load_n(&p->ticket, __ATOMIC_ACQUIRE);
    }
    return t;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void *run_thread(void *ud)
{
    struct update_pool *p = ud;
    while (!__atomic_load_n(&p->closing, __ATOMIC_ACQUIRE)) {
        uint64_t empty = work(p);
        int spins = 0;
        while (spins < SPINS && __atomic_load_n(&p->ticket, __ATOMIC_ACQUIRE) == empty) {
            relax();
            spins++;
        }
        if (spins == SPINS)
            device_word_sync(p->word, (uint32_t)(empty >> 32) + 1);
    }
    return NULL;
}

/* --- life --- */

static bool usable_processors(cpu_set_t *set)
{
    CPU_ZERO(set);
    return sched_getaffinity(0, sizeof *set, set) == 0 && CPU_COUNT(set) > 0;
}

int update_pool_all_threads(void)
{
    cpu_set_t set;
    int n = usable_processors(&set) ? CPU_COUNT(&set) : 1;
    return n > 2 ? n - 1 : n;
}

/* The k-th usable processor behind the first. Where there are fewer, the thread stays free. */
static void bind_thread(pthread_t thread, int k)
{
    cpu_set_t all, one;
    if (!usable_processors(&all))
        return;
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all) || seen++ != k + 1)
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(thread, sizeof one, &one);
    }
}

/* Signals are the main thread's business. */
static int start_threads(struct update_pool *p, int n, bool bound, struct err *err)
{
    sigset_t all, before;
    int code = 0;

    p->threads = xcalloc((size_t)n + 1, sizeof *p->threads);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int k = 0; k < n && code == 0; k++) {
        code = pthread_create(&p->threads[k], NULL, run_thread, p);
        if (code != 0)
            break;
        pthread_setname_np(p->threads[k], "castor-adamw");
        if (bound)
            bind_thread(p->threads[k], k);
        p->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code ? err_set_errno(err, code, "cannot start %d threads for updates", n) : 0;
}

int update_pool_create(int threads, const struct op_table *ops, struct update_pool **out,
                       struct err *err)
{
    static const struct device_options one = {.threads = 1};
    struct update_pool *p = xcalloc(1, sizeof *p);
    int rc = 0;

    assert(threads >= 1);
    TRY(device_open(DEVICE_CPU, 0, &one, &p->device, err));
    TRY(device_stream_create(p->device, 0, &p->stream, err));
    TRY(device_word_create(p->device, &p->word, err));
    p->ops = ops ? ops : device_ops(p->device, DT_F32);
    TRY(start_threads(p, threads - 1, !ops, err));
    *out = p;
    p = NULL;
out:
    update_pool_destroy(p);
    return rc;
}

void update_pool_destroy(struct update_pool *p)
{
    if (!p)
        return;
    if (p->word) {
        __atomic_store_n(&p->closing, true, __ATOMIC_RELEASE);
        device_word_advance(p->word, (uint32_t)(p->ticket >> 32) + 1);
    }
    for (int k = 0; k < p->n_threads; k++)
        pthread_join(p->threads[k], NULL);
    free(p->threads);
    device_word_destroy(p->device, p->word);
    device_stream_destroy(p->device, p->stream);
    device_close(p->device);
    free(p);
}

/* --- updating --- */

/* Let everybody run the pieces. */
static int run_all(struct update_pool *p, int (*run)(struct update_pool *p, int64_t piece),
                   int64_t pieces)
{
    uint32_t number = (uint32_t)(__atomic_load_n(&p->ticket, __ATOMIC_RELAXED) >> 32) + 1;

    assert(pieces <= UINT32_MAX);
    p->run = run;
    p->pieces = pieces;
    __atomic_store_n(&p->done, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&p->failed, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&p->ticket, (uint64_t)number << 32 | (uint32_t)p->pieces, __ATOMIC_RELEASE);
    if (p->n_threads > 0)
        device_word_advance(p->word, number);
    work(p);
    for (int spins = 0; __atomic_load_n(&p->done, __ATOMIC_ACQUIRE) < p->pieces; spins++) {
        if (spins < SPINS_DONE)
            relax();
        else
            sched_yield();
    }
    return __atomic_load_n(&p->failed, __ATOMIC_RELAXED);
}

/* As many pieces for every thread, of whole blocks of moments: of 64 pieces among 15 threads, 11
 * would wait for the last four. */
static int64_t piece_of(const struct update_pool *p, int64_t n)
{
    int64_t threads = p->n_threads + 1, turns = (n + threads * PIECE - 1) / (threads * PIECE);
    int64_t each = (n + turns * threads - 1) / (turns * threads);
    return (each + MOMENT_BLOCK - 1) / MOMENT_BLOCK * MOMENT_BLOCK;
}

/* All pieces of the update a. */
static int run_pieces(struct update_pool *p, const struct adamw_args *a,
                      int (*run)(struct update_pool *p, int64_t piece))
{
    assert(a->n > 0);
    p->args = *a;
    p->piece = piece_of(p, a->n);
    return run_all(p, run, (a->n + p->piece - 1) / p->piece);
}

static int run_update(struct update_pool *p, int64_t piece)
{
    struct adamw_args a = part_of(&p->args, piece * p->piece, p->piece);
    return p->ops->adamw(p->stream, &a);
}

int update_pool_adamw(struct update_pool *p, const struct adamw_args *a)
{
    return run_pieces(p, a, run_update);
}

static int run_aside(struct update_pool *p, int64_t piece)
{
    int64_t first = piece * p->piece;
    struct adamw_args a = part_of(&p->args, first, p->piece);
    void **old[3] = {&a.master, &a.m, &a.v};
    enum dtype types[3] = {a.master_type, a.moment_type, a.moment_type};
    void *new[3], *kept = advanced(p->kept, first, a.param_type);

    for (int k = 0; k < 3; k++)
        new[k] = advanced(p->aside[PART_MASTER + k], first, types[k]);
    if (a.param && adamw_goes_aside(a.grad_type, a.param_type, a.master_type, a.moment_type)) {
        adamw_aside(&a, new[0], new[1], new[2], kept);
        return 0;
    }
    if (kept)
        memcpy(kept, a.param ? a.param : a.master, (size_t)a.n * dtype_size(a.param_type));
    for (int k = 0; k < 3; k++)
        if (new[k])
            *old[k] = memcpy(new[k], *old[k], (size_t)a.n * dtype_size(types[k]));
    if (a.m_exponent) {
        size_t blocks = (size_t)((a.n + MOMENT_BLOCK - 1) / MOMENT_BLOCK);
        a.m_exponent =
            memcpy(p->aside[PART_M_EXPONENT] + first / MOMENT_BLOCK, a.m_exponent, blocks);
        a.v_exponent =
            memcpy(p->aside[PART_V_EXPONENT] + first / MOMENT_BLOCK, a.v_exponent, blocks);
    }
    return p->ops->adamw(p->stream, &a);
}

int update_pool_adamw_aside(struct update_pool *p, const struct adamw_args *a,
                            char *const to[PART_COUNT], void *kept)
{
    assert(a->clip->finite);
    p->kept = kept;
    memcpy(p->aside, to, sizeof p->aside);
    return run_pieces(p, a, run_aside);
}

static int run_copy(struct update_pool *p, int64_t piece)
{
    size_t first = (size_t)piece * COPY_PIECE, left = p->bytes - first;
    size_t n = left < COPY_PIECE ? left : COPY_PIECE;
    if (p->from)
        memcpy(p->to + first, p->from + first, n);
    else
        memset(p->to + first, 0, n);
    return 0;
}

void update_pool_copy(struct update_pool *p, void *to, const void *from, size_t bytes)
{
    p->to = to;
    p->from = from;
    p->bytes = bytes;
    run_all(p, run_copy, (int64_t)((bytes + COPY_PIECE - 1) / COPY_PIECE));
}
