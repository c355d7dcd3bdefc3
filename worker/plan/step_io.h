/*
 * What goes into a step and what comes out of it, as laid out in the plan's io places. One struct,
 * so that planner, executor and trainer agree on bytes. Two slots: while the device runs one step,
 * the host prepares the next and reads the results of the one before.
 */
#ifndef CASTOR_WORKER_PLAN_STEP_IO_H
#define CASTOR_WORKER_PLAN_STEP_IO_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/op_table.h"

enum { STEP_SLOTS = 2 };

/* The batch place: for each micro-batch these arrays of (B, T) int32, in this order. */
enum step_batch_array {
    STEP_TOKENS,
    STEP_TARGETS,
    STEP_POSITIONS,
    STEP_FIRST_KEY,
    STEP_BATCH_ARRAYS,
};

/* The rows place: row_loss of all rows (stat), then row_correct (int32). */

/* The scalars place: in first, then out. The host writes what stands before `clip` and nothing
 * else: the result of the pass before may still be on its way to the cpu queue. */
struct step_scalars {
    struct adamw_step adamw; /* in  */
    float grad_scale;        /* in: 1 / target tokens of the whole step */
    float pad[3];
    struct clip_result unclipped; /* in: coefficient 1, finite: for updates that do not wait */
    struct clip_result clip;      /* out */
    struct loss_scale loss_scale; /* out; stays from step to step where losses are scaled */
};

#endif
