/*
 * Laying out places: an address allocator for planners. Persistent places are bumped onto a tier
 * first; then each list lays its transient places out from the same mark, since only one list runs
 * at a time. Copying a struct layout is how that mark is kept.
 */
#ifndef CASTOR_WORKER_PLAN_LAYOUT_H
#define CASTOR_WORKER_PLAN_LAYOUT_H

#include "worker/plan/plan.h"

struct layout {
    struct plan *plan;
    size_t at[TIER_COUNT]; /* next free address */
};

/* A place of `bytes` (rounded up to DEVICE_ALIGN) at the tier's cursor. Raises the tier's claim. */
int32_t layout_place(struct layout *l, enum plan_tier tier, enum plan_purpose purpose, size_t bytes,
                     bool persistent);
#endif
