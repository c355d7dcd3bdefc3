/*
 * Where a step's time goes: each op's time on the device beside its floor (kernels/op_cost.h), by
 * ceilings measured on the spot. Ops of one kind and shape make one line.
 *
 * An op's time lies between two marks of its stream, so it holds what the stream waited for the
 * host (launch gaps); marks themselves cost a microsecond or two, and steps that are watched are
 * not those that are timed.
 */
#ifndef CASTOR_WORKER_TRAIN_STEP_PROFILE_H
#define CASTOR_WORKER_TRAIN_STEP_PROFILE_H

#include "core/buf.h"
#include "core/err.h"
#include "kernels/device.h"
#include "worker/model/block.h"

struct step_profile;

/* Measures the ceilings; `device` and `ops` are borrowed. */
int step_profile_create(struct device *device, const struct op_table *ops,
                        struct step_profile **out, struct err *err);
void step_profile_destroy(struct step_profile *p);
/* For the executor while it queues the step to look at; borrowed. */
const struct op_watch *step_profile_watch(struct step_profile *p);
/* That step is done. The table, and how the sum of its ops compares with a step that was not
 * watched.
 */
int step_profile_print(struct step_profile *p, double step_seconds, struct buf *out,
                       struct err *err);

#endif
