/*
 * A job in OpenAI's shape, exactly its members and types, plus Castor's own: phase, progress,
 * queue, plan, base_model, attempt, and the extension objects of the request with the values that
 * hold. Fresh references.
 */
#ifndef CASTOR_SERVER_JOB_JSON_H
#define CASTOR_SERVER_JOB_JSON_H

#include <jansson.h>

#include "scheduler/job.h"
#include "scheduler/store.h"
#include "server/config.h"

/* now: Unix seconds, for estimated_finish. */
json_t *job_to_json(const struct job *job, const struct server_config *config, double now);
json_t *job_event_to_json(const struct store_event *e);
json_t *job_checkpoint_to_json(const struct store_checkpoint *c);

#endif
