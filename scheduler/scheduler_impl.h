/*
 * Private to scheduler/: the scheduler's state. Everything but the command queue belongs to the
 * scheduler thread.
 */
#ifndef CASTOR_SCHEDULER_SCHEDULER_IMPL_H
#define CASTOR_SCHEDULER_SCHEDULER_IMPL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "scheduler/change.h"
#include "scheduler/launcher.h"
#include "scheduler/plan_child.h"
#include "scheduler/scheduler.h"
#include "scheduler/silence.h"

/* A job that still needs attention: not final, or with an attempt that may live. */
struct live {
    struct job job;
    struct plan_child *child;       /* while validating */
    struct attempt_process process; /* of the live attempt, once known */
    bool has_process;
    char written_control[32]; /* id of the request that is known to be in control.jsonl */
    int64_t launch_failures;
    double retry_at;     /* monotonic: nothing is tried again before */
    int64_t refusals;    /* in a row, for memory that others hold, since castord started */
    double started_at;   /* monotonic: the last attempt, or castord if that came later */
    double ending_since; /* monotonic: the final event was seen, the process lives on; 0 = no */
    struct silence silence;
    struct buf silent; /* why the live attempt is being ended for its silence, or empty */
    int signal_sent;   /* to the live attempt: 0, SIGTERM or SIGKILL */
};

typedef int (*command_fn)(struct scheduler *s, void *args, struct err *err);

/* On the stack of the thread that posted it. */
struct command {
    command_fn run;
    void *args;
    struct err err;
    int rc;
    bool started, done;
    struct command *next;
};

struct scheduler {
    char *state_dir, *worker_path, *organization;
    int64_t cpu_slots, gpu_slots;
    double grace_seconds, silence_seconds, memory_wait_seconds;
    struct plan_limits plan_limits;
    struct hub_access hub;
    const struct launcher_ops *launcher;
    int lock_fd;

    struct store *store;
    struct change_context context;
    struct live **live; /* oldest job first */
    int64_t n_live;
    double swept_at;        /* monotonic: expired files were looked for */
    double memory_freed_at; /* monotonic: the last end of an attempt that may have held memory */

    pthread_t thread;
    bool has_thread;
    int wake[2]; /* a byte written to [1] ends the thread's wait */

    pthread_mutex_t mutex; /* guards the rest */
    pthread_cond_t changed;
    struct command *first, **last;
    bool stopping;
    double ticked_at;  /* monotonic */
    double touched_at; /* monotonic: the database was last written for a health check */
    int dry_runs;      /* in progress */
};

/* schedule.c: do what the states require; returns the milliseconds until the next look. */
int schedule_pass(struct scheduler *s);
struct live *schedule_add(struct scheduler *s, struct job *job); /* takes *job */
struct live *schedule_find(struct scheduler *s, const char *job_id);
void schedule_clear(struct scheduler *s);
/* One occurrence in a transaction of its own; on failure nothing changed. */
int schedule_change(struct scheduler *s, struct live *l, const struct job_input *in,
                    struct err *err);

/* Is there a slot for such a plan of a job that asked for this? If not, reason "no_gpu" or "no_cpu"
 * and what to change. From any thread. */
int schedule_check_plan(const struct scheduler *s, const struct job_spec *asked,
                        const struct plan_report *plan, struct err *why);

/* attempt.c: what a live attempt needs. Returns true when it should be looked at again at once. */
bool attempt_pass(struct scheduler *s, struct live *l);
bool job_uses_gpu(const struct job *job);

/* orphans.c: remove directories of jobs and files that never got into the store, or are no longer
 * in it. Before the thread starts. */
void orphans_remove(struct scheduler *s);

/* scheduler.c: run a command in the scheduler thread. */
int scheduler_post(struct scheduler *s, command_fn run, void *args, struct err *err);

#endif
