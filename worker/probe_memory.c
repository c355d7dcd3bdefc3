/* How many bytes of host memory all processors read and write a second: a ceiling, so the best of
 * many short passes, between which others that share the memory come and go. */
#include <math.h>
#include <pthread.h>

#include "core/clock.h"
#include "worker/probe.h"
#include "worker/train/update_pool.h"

enum {
    ARRAYS = 3, /* at a time, as the updates of master and moments read and write them */
    AHEAD = 1024,
    LINE = 16, /* floats */
    MAX_THREADS = 256,
};
static const double LEAST_SECONDS = 1;

struct part {
    float *array[ARRAYS];
    int64_t n;
    pthread_barrier_t *start, *end;
    const bool *stop;
};

/* In place, so that no byte is moved that is not counted, and fetched ahead as updates do it: a
 * core left to itself does not ask memory for all that it has. */
#if defined(__x86_64__) && !defined(__clang__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
static void
pass(float *restrict a, float *restrict b, float *restrict c, int64_t n)
{
    for (int64_t i = 0; i < n; i += LINE) {
        __builtin_prefetch(a + i + AHEAD, 1, 3); /* beyond the end in vain */
        __builtin_prefetch(b + i + AHEAD, 1, 3);
        __builtin_prefetch(c + i + AHEAD, 1, 3);
        for (int64_t k = i; k < i + LINE; k++)
            a[k] = 0.5f * a[k] + 1;
        for (int64_t k = i; k < i + LINE; k++)
            b[k] = 0.5f * b[k] + 1;
        for (int64_t k = i; k < i + LINE; k++)
            c[k] = 0.5f * c[k] + 1;
    }
}

static void *run(void *ud)
{
    const struct part *p = ud;
    for (;;) {
        pthread_barrier_wait(p->start);
        if (*p->stop)
            return NULL;
        pass(p->array[0], p->array[1], p->array[2], p->n);
        pthread_barrier_wait(p->end);
    }
}

int probe_memory(void *memory, size_t bytes, double *rate, struct err *err)
{
    int threads = update_pool_all_threads() + 1, started = 0;
    threads = threads > MAX_THREADS ? MAX_THREADS : threads;
    int64_t each = (int64_t)(bytes / sizeof(float)) / ARRAYS / threads / LINE * LINE;
    struct part part[MAX_THREADS];
    pthread_t id[MAX_THREADS];
    pthread_barrier_t start, end;
    double best = INFINITY, begun = clock_monotonic();
    bool stop = false;

    pthread_barrier_init(&start, NULL, (unsigned)threads + 1);
    pthread_barrier_init(&end, NULL, (unsigned)threads + 1);
    for (; started < threads; started++) {
        struct part *p = &part[started];
        *p = (struct part){.n = each, .start = &start, .end = &end, .stop = &stop};
        for (int k = 0; k < ARRAYS; k++)
            p->array[k] = (float *)memory + (k * threads + started) * each;
        int code = pthread_create(&id[started], NULL, run, p);
        if (code != 0) /* those that run wait for one that never comes: the process is at an end */
            return err_set_errno(err, code, "cannot start %d threads to measure memory", threads);
    }
    while (!stop) {
        double now = clock_monotonic();
        stop = now - begun > LEAST_SECONDS;
        pthread_barrier_wait(&start);
        if (stop)
            break;
        pthread_barrier_wait(&end);
        best = fmin(best, clock_monotonic() - now);
    }
    for (int t = 0; t < threads; t++)
        pthread_join(id[t], NULL);
    pthread_barrier_destroy(&start);
    pthread_barrier_destroy(&end);
    *rate = 2.0 * (double)(each * threads * ARRAYS) * sizeof(float) / best;
    return 0;
}
