/*
 * What a job leaves behind: its model's name, and the result file step_metrics.csv, one row a step,
 * made from the stored metrics events. Columns: step, the metric names that checkpoints have, then
 * Castor's own. A step that was trained again after a restart has the newest numbers.
 */
#ifndef CASTOR_SCHEDULER_RESULT_H
#define CASTOR_SCHEDULER_RESULT_H

#include "core/buf.h"
#include "core/err.h"
#include "scheduler/job.h"
#include "scheduler/store.h"

/* "ft:<base>:<organization>:<suffix or empty>:<8 characters>", a pure function of the job. Fresh.
 */
char *result_model_name(const struct job *job, const char *organization);
/* The result file's id, a pure function of the job too. Fresh. */
char *result_file_id(const struct job *job);
int result_csv(struct store *store, const char *job_id, struct buf *out, struct err *err);

#endif
