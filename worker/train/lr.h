/*
 * The learning rate of a step. Warm-up rises linearly over the first warmup_ratio of all steps, so
 * that step 1 already moves: peak * step / (warmup + 1); then constant, linear to zero behind the
 * last step, or half a cosine (Loshchilov, Hutter, "SGDR", ICLR 2017, eq. 5 without restarts).
 */
#ifndef CASTOR_WORKER_TRAIN_LR_H
#define CASTOR_WORKER_TRAIN_LR_H

#include <stdint.h>

#include "api/job_spec.h"

/* step from 1 to total_steps. */
double lr_at(const struct spec_optimization *o, int64_t step, int64_t total_steps);

#endif
