/*
 * A change of a job: job_apply, and everything the change leaves in the store besides the job's own
 * row: event rows, checkpoint rows, on success the result file and the model. Called inside a
 * transaction of the caller, who commits and then keeps the changed job, or rolls back and drops
 * it; repeating a change that was rolled back does the same again.
 */
#ifndef CASTOR_SCHEDULER_CHANGE_H
#define CASTOR_SCHEDULER_CHANGE_H

#include "core/err.h"
#include "scheduler/job.h"
#include "scheduler/store.h"

struct change_context {
    struct store *store; /* the writing connection */
    const char *state_dir, *organization;
};

int change_apply(const struct change_context *c, struct job *job, const struct job_input *in,
                 struct err *err);
/* The event row of a job's creation. */
int change_created(const struct change_context *c, const struct job *job, struct err *err);
char *change_jobdir(const struct change_context *c, const char *job_id); /* fresh */

/* Hand the complete lines of the current attempt's events.jsonl from job->tail_offset on to
 * change_apply, and commit rows, job and new offset together; at most TAIL_BATCH lines. *n_lines
 * counts them. On failure nothing has changed, so that trying again loses and doubles nothing;
 * *broken says that the file itself is at fault and trying again is of no use. */
enum { TAIL_BATCH = 256, TAIL_MAX_LINE = 8 << 20 };
int tail_read(const struct change_context *c, struct job *job, int64_t *n_lines, bool *broken,
              struct err *err);

#endif
