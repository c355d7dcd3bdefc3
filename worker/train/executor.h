/*
 * The executor: obeys a plan's lists on a device. It allocates only when it is created (the arenas,
 * exactly as claimed), and inside a list it decides nothing: every address, order and wait is the
 * plan's.
 *
 * Steps are asynchronous and two may be in flight: fill a slot's batch, queue the step, and collect
 * its result later. Evaluation, logits and transfers return when they are done. One thread drives
 * an executor.
 *
 *   executor_batch(slot, micro) ...      pinned memory to fill
 *   executor_step(slot, input)
 *   executor_collect(slot, &result)      waits for the device
 */
#ifndef CASTOR_WORKER_TRAIN_EXECUTOR_H
#define CASTOR_WORKER_TRAIN_EXECUTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/device.h"
#include "worker/memory/nvme.h"
#include "worker/parallel/comm.h"
#include "worker/plan/plan.h"
#include "worker/text/dataset.h"
#include "worker/train/crumb.h"

struct executor;

struct executor_config {
    const struct plan *plan;    /* borrowed */
    struct device *device;      /* borrowed */
    struct comm *data_comm;     /* the data axis; borrowed */
    struct crumb *crumb;        /* or NULL; borrowed */
    const char *nvme_directory; /* where the disk tier lies; NULL when the plan has none */
    int update_threads;         /* for states in host memory; 0 = update_pool_all_threads() */
    uint64_t seed;
    double beta1, beta2, epsilon, weight_decay, max_grad_norm;
};

int executor_create(const struct executor_config *config, struct executor **out, struct err *err);
void executor_destroy(struct executor *e);

/* From the next step on losses are scaled, beginning so: for ops in float16, whose plan has `clip`.
 * Bias corrections count skipped steps too. No step may be in flight. */
int executor_set_loss_scale(struct executor *e, struct loss_scale scale, struct err *err);

/* Have the ops of the steps that are queued from now on watched, but for those of host threads;
 * NULL: no longer. Borrowed. */
void executor_watch(struct executor *e, const struct op_watch *watch);

/* The pinned arrays of one micro-batch in a slot: fills B, T and the pointers of *view. */
void executor_batch(struct executor *e, int slot, int64_t micro, struct batch *view);

struct step_input {
    int64_t step; /* from 1: counts random numbers and bias corrections */
    double learning_rate;
    double grad_scale;  /* 1 / target tokens of the step */
    bool wait_for_norm; /* leave speculative updates out: clipping is likely. Changes no number */
};

struct step_result {
    double loss_sum; /* over target tokens, in row order, in double */
    int64_t correct; /* target tokens that argmax gets right        */
    double grad_norm;
    bool clipped, finite;         /* !finite: the update was skipped            */
    struct loss_scale loss_scale; /* behind this step; zeros where losses are not scaled */
    /* Seconds that the compute queue stood still, by the queue that it waited for; likewise the
     * queue of fetches, for updates on the CPU or the disk, which is part of what compute waited
     * for fetches (updates that were waiting for the disk count as the disk); and that the update
     * threads worked since the step before was collected. */
    double stall[QUEUE_COUNT], fetch_stall[QUEUE_COUNT], updating;
};

/* Queue one optimizer step on the slot's batch. The slot must not be in flight. */
int executor_step(struct executor *e, int slot, const struct step_input *in, struct err *err);
/* Has the device finished the slot's step? */
bool executor_in_flight(const struct executor *e, int slot);
int executor_collect(struct executor *e, int slot, struct step_result *out, struct err *err);

/* Forward of one micro-batch, laid into slot 0's micro-batch 0, which must not be in flight:
 * loss_sum and correct. */
int executor_eval(struct executor *e, struct step_result *out, struct err *err);
/* Logits (vocab), float, behind token `position` of row 0 of slot 0's micro-batch 0. */
int executor_logits(struct executor *e, int64_t position, float *logits, struct err *err);

/* What a payload_fn returns for a payload to LOAD that is zero all over: `host` may hold anything.
 */
enum { PAYLOAD_IS_ZERO = -1 };
/* Called for every payload in list order, the optimizer state's slices put together. LOAD: fill
 * `host`; SAVE: `host` holds the payload. */
typedef int (*payload_fn)(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                          struct err *err);
int executor_transfer(struct executor *e, enum plan_list list, payload_fn fn, void *ud,
                      struct err *err);

/* Fetch the pages of host memory that nobody has written to yet: what the plan claims is held then,
 * and no other process can have it. While nothing is in flight; a moment where little is left. */
void executor_hold_memory(struct executor *e);

/* What the disk tier has carried; zeros when the plan has none. */
struct nvme_counters executor_disk_counters(struct executor *e);

#endif
