#include "server/pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "core/alloc.h"

struct pool_thread {
    struct pool *pool;
    void *state;
    pthread_t thread;
};

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t filled, idle;
    pool_fn fn;
    void **tasks; /* ring of max_tasks */
    int64_t max_tasks, head, queued;
    int64_t unfinished; /* reserved, queued or running */
    bool draining, stopping;
    struct pool_thread *threads;
    int64_t n_threads; /* started */
};

static void *thread_main(void *arg)
{
    struct pool_thread *t = arg;
    struct pool *p = t->pool;

    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (p->queued == 0 && !p->stopping)
            pthread_cond_wait(&p->filled, &p->lock);
        if (p->queued == 0)
            break;
        void *task = p->tasks[p->head];
        p->head = (p->head + 1) % p->max_tasks;
        p->queued--;
        pthread_mutex_unlock(&p->lock);
        p->fn(t->state, task);
        pthread_mutex_lock(&p->lock);
        if (--p->unfinished == 0)
            pthread_cond_broadcast(&p->idle);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int pool_create(int64_t n_threads, void *const *states, int64_t max_tasks, pool_fn fn,
                struct pool **out, struct err *err)
{
    struct pool *p = xcalloc(1, sizeof(*p));
    pthread_condattr_t attr;

    p->fn = fn;
    p->max_tasks = max_tasks;
    p->tasks = xcalloc((size_t)max_tasks, sizeof(*p->tasks));
    p->threads = xcalloc((size_t)n_threads, sizeof(*p->threads));
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->filled, NULL);
    pthread_cond_init(&p->idle, &attr);
    pthread_condattr_destroy(&attr);
    for (int64_t i = 0; i < n_threads; i++) {
        struct pool_thread *t = &p->threads[i];
        *t = (struct pool_thread){.pool = p, .state = states[i]};
        int e = pthread_create(&t->thread, NULL, thread_main, t);
        if (e != 0) {
            pool_destroy(p);
            return err_set_errno(err, e, "cannot start a handler thread");
        }
        p->n_threads++;
    }
    *out = p;
    return 0;
}

bool pool_reserve(struct pool *p)
{
    pthread_mutex_lock(&p->lock);
    bool ok = !p->draining && p->unfinished < p->max_tasks;
    p->unfinished += ok;
    pthread_mutex_unlock(&p->lock);
    return ok;
}

void pool_push(struct pool *p, void *task)
{
    pthread_mutex_lock(&p->lock);
    p->tasks[(p->head + p->queued) % p->max_tasks] = task;
    p->queued++;
    pthread_cond_signal(&p->filled);
    pthread_mutex_unlock(&p->lock);
}

bool pool_drain(struct pool *p, double seconds)
{
    struct timespec until;
    int e = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    pthread_mutex_lock(&p->lock);
    p->draining = true;
    while (p->unfinished > 0 && e != ETIMEDOUT)
        e = pthread_cond_timedwait(&p->idle, &p->lock, &until);
    bool is_idle = p->unfinished == 0;
    pthread_mutex_unlock(&p->lock);
    return is_idle;
}

void pool_destroy(struct pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->filled);
    pthread_mutex_unlock(&p->lock);
    for (int64_t i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i].thread, NULL);
    pthread_cond_destroy(&p->filled);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->lock);
    free(p->tasks);
    free(p->threads);
    free(p);
}
