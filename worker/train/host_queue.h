/*
 * A host queue: one thread that runs jobs in the order they were pushed. The plan's cpu and disk
 * queues are host queues. What a job must wait for stands in the job: marks of streams and words of
 * other host queues; what streams wait for is the queue's own word, which counts the jobs that are
 * done.
 *
 * A job that fails stops the queue: its error is kept, the jobs behind it are passed over, and the
 * word goes on counting, so that no stream hangs. Whoever drives the device asks host_queue_error
 * before believing a result.
 *
 * Threads: one thread pushes and destroys; the queue's thread runs the jobs. Pushing allocates
 * nothing.
 */
#ifndef CASTOR_WORKER_TRAIN_HOST_QUEUE_H
#define CASTOR_WORKER_TRAIN_HOST_QUEUE_H

#include <stdint.h>

#include "core/err.h"
#include "kernels/device.h"
#include "kernels/op_table.h"
#include "worker/plan/instr.h"

struct host_queue;

struct host_wait {
    struct event_mark *mark; /* or NULL: then */
    struct seq_word *word;
    uint32_t value;
    enum queue from; /* whose work is waited for */
};

enum { HOST_JOB_MAX_WAITS = 2 * QUEUE_COUNT };

struct host_job {
    int (*run)(void *ud, const struct host_job *job, struct err *err);
    void *ud;
    const struct instr *instr;
    struct adamw_step adamw; /* of the step that the job belongs to, as the next two are */
    bool swapped;            /* old states lie in the second places */
    bool speculates;         /* speculative updates run */
    int64_t step;
    struct host_wait waits[HOST_JOB_MAX_WAITS];
    int n_waits;
};

/* `capacity`: most jobs that are ever pending. `name` is the thread's, at most 15 characters. */
int host_queue_create(struct device *device, const char *name, int64_t capacity,
                      struct host_queue **out, struct err *err);
/* Waits for the pending jobs. */
void host_queue_destroy(struct host_queue *q);

/* Returns the value that the queue's word has when the job is done. */
uint32_t host_queue_push(struct host_queue *q, const struct host_job *job);
struct seq_word *host_queue_word(const struct host_queue *q);
/* Block until the word has that value. */
void host_queue_wait(struct host_queue *q, uint32_t value);
/* Block until nothing is pending. */
void host_queue_drain(struct host_queue *q);
/* 0, or the first failed job's error. */
int host_queue_error(struct host_queue *q, struct err *err);

/* Seconds that the thread ran jobs, and that these waited before, by the queue whose work they
 * waited for, since the last call. */
void host_queue_times(struct host_queue *q, double *busy, double waited[QUEUE_COUNT]);

#endif
