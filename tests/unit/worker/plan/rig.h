/* A small OPT-shaped model on the CPU device, for plan tests. */
#ifndef CASTOR_TESTS_PLAN_RIG_H
#define CASTOR_TESTS_PLAN_RIG_H

#include "kernels/device.h"
#include "worker/plan/plan.h"

struct rig {
    struct device *device;
    struct model model;
    struct plan_input in;
    struct plan *plan; /* the last one that rig_plan made */
};

void rig_init(struct rig *r, int64_t layers, int64_t micro_batches);
void rig_fini(struct rig *r);

/* Freezes all but the matrices of the last layer. */
void rig_freeze(struct rig *r);

/* The plan of r->in. It lives until the next call or rig_fini. */
struct plan *rig_plan(struct rig *r);

/* Whether two places of a plan share memory. */
bool rig_overlap(const struct plan *p, int64_t a, int64_t b);

/* A simulation of the plan's training list, which must be sound. */
struct plan_simulation rig_simulate(const struct plan *p);

/* A machine with one rate of operations, one of all memories and links (bytes a second), one of
 * updates on the CPU (parameters a second), and no disk. */
struct device_profile rig_profile(double flops, double bytes, double updates);

#endif
