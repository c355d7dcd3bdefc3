/*
 * What else a job could ask for: where it does not fit, the nearest settings that would; where it
 * does, those that a measured machine runs faster. Each is found by planning it.
 */
#ifndef CASTOR_WORKER_PLAN_ALTERNATIVES_H
#define CASTOR_WORKER_PLAN_ALTERNATIVES_H

#include "worker/plan/plan.h"

/* `most`: what the job's limits could be raised to, in bytes; 0 = it has no such limit. `plan`: of
 * this input, or NULL where it was refused. An array of
 * {"change":"placement.policy \"auto\"","settings":{"placement":{"policy":"auto"}},
 *  "memory":{"gpu":bytes,"host":bytes,"nvme":bytes},"step_seconds":s}, the last one where a profile
 * is known; nearest, or fastest, first. Where it takes two settings the change names both, with a
 * comma between them. A new reference. */
json_t *plan_alternatives(const struct plan_input *in, const size_t most[TIER_COUNT],
                          const struct plan *plan);

#endif
