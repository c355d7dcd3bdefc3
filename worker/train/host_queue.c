#include "worker/train/host_queue.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"

struct host_queue {
    struct device *device;
    struct seq_word *word;
    pthread_t thread;
    bool started;

    pthread_mutex_t lock;
    pthread_cond_t pushed;
    struct host_job *jobs; /* ring */
    int64_t capacity;
    uint32_t head, tail; /* jobs done or running, jobs pushed; both only grow */
    bool closing;
    bool failed;
    struct err error;
    double busy, waited[QUEUE_COUNT];
};

/* One wait after the other: what is still to come when the first one is over is the next one's. */
static int wait_for(struct host_queue *q, const struct host_job *job, double waited[QUEUE_COUNT],
                    struct err *err)
{
    double from = clock_monotonic();
    int rc = 0;
    for (int w = 0; w < job->n_waits; w++) {
        if (job->waits[w].mark)
            TRY(device_mark_sync(q->device, job->waits[w].mark, err));
        else
            device_word_sync(job->waits[w].word, job->waits[w].value);
        double now = clock_monotonic();
        waited[job->waits[w].from] += now - from;
        from = now;
    }
out:
    return rc;
}

static void run_job(struct host_queue *q, const struct host_job *job)
{
    struct err err = {0};
    double waited[QUEUE_COUNT] = {0};
    int rc = wait_for(q, job, waited, &err);
    double start = clock_monotonic();
    if (rc == 0)
        rc = job->run(job->ud, job, &err);
    double end = clock_monotonic();

    pthread_mutex_lock(&q->lock);
    for (int k = 0; k < QUEUE_COUNT; k++)
        q->waited[k] += waited[k];
    q->busy += end - start;
    if (rc != 0) {
        q->failed = true;
        q->error = err;
    }
    pthread_mutex_unlock(&q->lock);
}

static void *run_queue(void *ud)
{
    struct host_queue *q = ud;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        while (q->head == q->tail && !q->closing)
            pthread_cond_wait(&q->pushed, &q->lock);
        if (q->head == q->tail)
            break;
        const struct host_job *job = &q->jobs[q->head % (uint32_t)q->capacity];
        bool skip = q->failed;
        pthread_mutex_unlock(&q->lock);
        if (!skip)
            run_job(q, job);
        pthread_mutex_lock(&q->lock);
        q->head++;
        device_word_advance(q->word, q->head);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

/* Signals are the main thread's business. */
static int start_thread(struct host_queue *q, const char *name, struct err *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&q->thread, NULL, run_queue, q);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        return err_set_errno(err, code, "cannot start the thread %s", name);
    pthread_setname_np(q->thread, name);
    q->started = true;
    return 0;
}

int host_queue_create(struct device *device, const char *name, int64_t capacity,
                      struct host_queue **out, struct err *err)
{
    struct host_queue *q = xcalloc(1, sizeof *q);
    int rc = 0;

    assert(capacity > 0);
    q->device = device;
    /* A power of two, so that counters may wrap. */
    for (q->capacity = 1; q->capacity < capacity;)
        q->capacity *= 2;
    q->jobs = xcalloc((size_t)q->capacity, sizeof *q->jobs);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->pushed, NULL);
    TRY(device_word_create(device, &q->word, err));
    TRY(start_thread(q, name, err));
    *out = q;
    q = NULL;
out:
    host_queue_destroy(q);
    return rc;
}

void host_queue_destroy(struct host_queue *q)
{
    if (!q)
        return;
    if (q->started) {
        pthread_mutex_lock(&q->lock);
        q->closing = true;
        pthread_cond_signal(&q->pushed);
        pthread_mutex_unlock(&q->lock);
        pthread_join(q->thread, NULL);
    }
    device_word_destroy(q->device, q->word);
    pthread_cond_destroy(&q->pushed);
    pthread_mutex_destroy(&q->lock);
    free(q->jobs);
    free(q);
}

uint32_t host_queue_push(struct host_queue *q, const struct host_job *job)
{
    pthread_mutex_lock(&q->lock);
    assert(q->tail - q->head < (uint32_t)q->capacity);
    q->jobs[q->tail % (uint32_t)q->capacity] = *job;
    uint32_t value = ++q->tail;
    pthread_cond_signal(&q->pushed);
    pthread_mutex_unlock(&q->lock);
    return value;
}

struct seq_word *host_queue_word(const struct host_queue *q)
{
    return q->word;
}

void host_queue_wait(struct host_queue *q, uint32_t value)
{
    device_word_sync(q->word, value);
}

void host_queue_drain(struct host_queue *q)
{
    pthread_mutex_lock(&q->lock);
    uint32_t value = q->tail;
    pthread_mutex_unlock(&q->lock);
    device_word_sync(q->word, value);
}

int host_queue_error(struct host_queue *q, struct err *err)
{
    pthread_mutex_lock(&q->lock);
    int rc = q->failed ? (int)q->error.code : 0;
    if (rc != 0 && err)
        *err = q->error;
    pthread_mutex_unlock(&q->lock);
    return rc;
}

void host_queue_times(struct host_queue *q, double *busy, double waited[QUEUE_COUNT])
{
    pthread_mutex_lock(&q->lock);
    *busy = q->busy;
    q->busy = 0;
    memcpy(waited, q->waited, sizeof q->waited);
    memset(q->waited, 0, sizeof q->waited);
    pthread_mutex_unlock(&q->lock);
}
