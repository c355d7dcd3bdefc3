/*
 * The job directory is the interface between castord, the scheduler and the workers:
 *
 *   STATE/jobs/ftjob-.../
 *     spec.json                  castord writes, workers read (api/job_spec.h)
 *     hub-token                  the job's own hub token, mode 0600; castord removes it at the end
 *     control.jsonl              castord appends, rank 0 reads (api/control.h)
 *     attempt-N/events.jsonl     rank 0 appends, the scheduler tails (api/event.h)
 *     attempt-N/exit.json        the supervisor writes, last (api/attempt_exit.h)
 *     attempt-N/supervisor.json  pid and start time of the supervisor: there once it may run
 *     attempt-N/supervisor.wait  the same while it waits for the launcher's word
 *     attempt-N/supervisor.log   its stderr; made by the launcher
 *     attempt-N/rank-K.log       stderr of each rank
 *     attempt-N/crumb-K          breadcrumb of rank K: step, instruction, collective (mmap, binary)
 *     checkpoints/step-N/        resumable: weights, optimizer shards, RNG, data cursor
 *     output/                    the fine-tuned model in Hugging Face layout
 *     tmp-*                      work in progress; removed when an attempt starts
 *
 * Attempts count from 1. All functions return fresh strings freed with free().
 */
#ifndef CASTOR_API_JOB_DIR_H
#define CASTOR_API_JOB_DIR_H

#include <stdint.h>

#include "core/err.h"

char *job_dir_spec(const char *jobdir);
char *job_dir_hub_token(const char *jobdir);
char *job_dir_control(const char *jobdir);
char *job_dir_attempt(const char *jobdir, int64_t attempt);
char *job_dir_events(const char *jobdir, int64_t attempt);
char *job_dir_exit(const char *jobdir, int64_t attempt);
char *job_dir_supervisor(const char *jobdir, int64_t attempt);
char *job_dir_supervisor_wait(const char *jobdir, int64_t attempt);
char *job_dir_supervisor_log(const char *jobdir, int64_t attempt);
char *job_dir_rank_log(const char *jobdir, int64_t attempt, int64_t rank);
char *job_dir_crumb(const char *jobdir, int64_t attempt, int64_t rank);
char *job_dir_checkpoints(const char *jobdir);
char *job_dir_checkpoint(const char *jobdir, int64_t step);
char *job_dir_output(const char *jobdir);

/* The highest attempt-N there is, 0 when none. */
int job_dir_last_attempt(const char *jobdir, int64_t *attempt, struct err *err);
/* The steps of all complete checkpoints, ascending; *steps is malloc'ed. */
int job_dir_checkpoint_steps(const char *jobdir, int64_t **steps, int64_t *n, struct err *err);
/* The newest complete checkpoint's step, -1 when none. */
int job_dir_last_checkpoint(const char *jobdir, int64_t *step, struct err *err);

#endif
