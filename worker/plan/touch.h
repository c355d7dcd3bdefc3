/*
 * Which places an instruction reads and writes: the one description of that, shared by the
 * simulator's checks and by whoever wants to know when a place is in use.
 */
#ifndef CASTOR_WORKER_PLAN_TOUCH_H
#define CASTOR_WORKER_PLAN_TOUCH_H

#include "worker/plan/plan.h"

enum { INSTR_MAX_TOUCHES = 3 * BLOCK_MAX_CHUNKS + 8 };

struct touch {
    int32_t place;
    bool reads, writes;
};

/* Fills out[] and returns how many. */
int instr_touches(const struct plan *p, enum plan_list list, const struct instr *i,
                  struct touch out[INSTR_MAX_TOUCHES]);

#endif
