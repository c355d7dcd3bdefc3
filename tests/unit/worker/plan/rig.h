/* A small OPT-shaped model on the CPU device, for plan tests. */
#ifndef CASTOR_TESTS_PLAN_RIG_H
#define CASTOR_TESTS_PLAN_RIG_H

#include "kernels/device.h"
#include "worker/plan/plan.h"

struct rig {
    struct device *device;
    struct model model;
    struct plan_input in;
};

void rig_init(struct rig *r, int64_t layers, int64_t micro_batches);
void rig_fini(struct rig *r);

#endif
