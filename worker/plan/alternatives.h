/*
 * What else a job could ask for: where it does not fit, the nearest settings that would; where it
 * does, those that a measured machine runs faster. Each is found by planning it.
 */
#ifndef CASTOR_WORKER_PLAN_ALTERNATIVES_H
#define CASTOR_WORKER_PLAN_ALTERNATIVES_H

#include "worker/plan/plan.h"

/* `plan`: of this input, or NULL where it was refused. An array of
 * {"change":"placement.policy \"auto\"","settings":{"placement":{"policy":"auto"}},
 *  "memory":{"gpu":bytes,"host":bytes,"nvme":bytes},"step_seconds":s}, the last one where a profile
 * is known; nearest, or fastest, first. A new reference. */
json_t *plan_alternatives(const struct plan_input *in, const struct plan *plan);

#endif
