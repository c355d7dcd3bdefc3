/*
 * The scheduler: one thread that owns all job state. HTTP threads post commands and wait for the
 * answer; everything else they read from the store. The thread validates new jobs (castor-worker
 * --plan in a resource-limited child), gives queued jobs device slots, starts attempts (launcher),
 * tails their events into the store - rows and the new byte offset in one transaction, so exactly
 * once across restarts - and notices their end.
 *
 * Start-up: take the lock on the state directory (a second castord gets ERR_CONFLICT, after 2 s),
 * replay what attempts wrote meanwhile, re-adopt attempts that are still alive, and re-do whatever
 * the states require. Killing castord at any point therefore costs no training step and no event.
 *
 * A server may have no slot of a kind. A new job of that kind is refused (no_gpu, no_cpu); one that
 * an earlier castord queued stays queued, for the next may have slots again, and is told once.
 *
 * A job that was refused for memory that others hold (waits_for_memory, job.h) is started
 * again when an attempt of another job has ended since its own began, for that may have given back
 * what it lacks; and else memory_wait_seconds after its own ended, as nobody tells castord what
 * processes of others do, and twice as long each time that it is refused again, up to eight times.
 * An attempt that was itself refused held nothing, and its end starts no other. After a restart of
 * castord the time begins anew.
 *
 * Thread-safety: sched_post_* may be called from any thread; they block until the scheduler thread
 * has committed the result (milliseconds), at most 30 s (ERR_TIMEOUT).
 */
#ifndef CASTOR_SCHEDULER_SCHEDULER_H
#define CASTOR_SCHEDULER_SCHEDULER_H

#include <stdint.h>

#include "api/job_spec.h"
#include "api/plan_report.h"
#include "core/err.h"
#include "scheduler/hub_access.h"
#include "scheduler/job.h"
#include "scheduler/store.h"

struct scheduler;

struct scheduler_config {
    const char *state_dir;
    const char *worker_path; /* the castor-worker program */
    int64_t cpu_slots;       /* jobs that may run at once on the CPU; 1 */
    int64_t gpu_slots;    /* -1 = as many as GPUs are found; none with a warning if looking fails */
    int64_t plan_seconds; /* deadline of the --plan child, downloads left out (plan_child.h); 600 */
    size_t plan_memory;   /* memory limit of that child, bytes; 0 = 8 GiB */
    const struct hub_endpoint *hub_endpoints; /* besides the environment's own; copied */
    int64_t n_hub_endpoints;
    const char *organization;    /* shown as organization_id and in model names; "org-castor" */
    int64_t device_seconds;      /* that looking for GPUs may take; 0 = 20 */
    int64_t silence_seconds;     /* a live attempt that gives no sign of life for so long is ended;
                                    scheduler/silence.h; 0 = 1800 */
    int64_t memory_wait_seconds; /* see above; 0 = 300 */
    int64_t grace_seconds;       /* what an attempt that must end is given before SIGTERM, and again
                                    before SIGKILL; 0 = 30 */
};

int scheduler_create(const struct scheduler_config *config, struct scheduler **out,
                     struct err *err);
/* Stop the thread. Running attempts go on. */
void scheduler_destroy(struct scheduler *s);

/* Store a job: the directory with spec.json, then the row; it begins in validating_files. *spec is
 * copied; id and created_at are filled here. `dedupe` (may be NULL) makes a repeated create return
 * the first job within ten minutes. */
int sched_post_create(struct scheduler *s, const struct job_spec *spec, const char *dedupe,
                      struct job *out, struct err *err);
int sched_post_cancel(struct scheduler *s, const char *job_id, struct job *out, struct err *err);
int sched_post_pause(struct scheduler *s, const char *job_id, struct job *out, struct err *err);
int sched_post_resume(struct scheduler *s, const char *job_id, struct job *out, struct err *err);

/* Register an uploaded file: `spooled_path` is renamed to STATE/files/ID. It expires `keep_seconds`
 * after it was created; 0 = never. Fills *out. */
int sched_post_file(struct scheduler *s, const char *filename, const char *purpose,
                    const char *spooled_path, int64_t bytes, int64_t keep_seconds,
                    struct store_file *out, struct err *err);
/* ERR_CONFLICT while a job that is not final uses it. */
int sched_post_delete_file(struct scheduler *s, const char *file_id, struct err *err);
/* Removes the fine-tuned model's files; the job stays. */
int sched_post_delete_model(struct scheduler *s, const char *model_id, struct err *err);

/* Run castor-worker --plan on a spec without creating a job; blocking, from the calling thread. A
 * job that would be refused for want of a slot does not fit, and the report's error says so. */
int sched_dry_run(struct scheduler *s, const struct job_spec *spec, struct plan_report *out,
                  struct err *err);

/* The scheduler's tick is fresh and the database can be written: for readiness checks. */
int scheduler_healthy(struct scheduler *s, struct err *err);

#endif
