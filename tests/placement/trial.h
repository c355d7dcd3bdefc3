/*
 * A trial: a small model trained for a few steps under one plan, and everything that may be
 * compared afterwards. Steps overlap as they do in a job (two in flight). Failures of Castor are
 * reported by the return value and err; the test decides whether they were expected.
 */
#ifndef CASTOR_TESTS_PLACEMENT_TRIAL_H
#define CASTOR_TESTS_PLACEMENT_TRIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/device.h"
#include "worker/plan/plan.h"
#include "worker/train/executor.h"

enum {
    TRIAL_MAX_STEPS = 8,
    TRIAL_UPDATE_THREADS = 2, /* on a GPU's behalf, and the CPU's */
};

/* What defines the numbers: the same for every placement. */
struct trial_job {
    enum device_kind device;
    enum dtype compute;
    int64_t micro_batch, micro_batches, seq_length, head_rows;
    double dropout;
    double max_grad_norm; /* 0 = no clipping */
    enum master_kind master;
    enum moment_kind moments;
    bool fp8;
    bool overflow; /* the gradients of the second step are infinite: it must change nothing */
    int64_t steps;
};

/* Where things lie. */
struct trial_placement {
    enum placement_policy policy;
    size_t limit[TIER_COUNT];
    struct plan_choices force;
    const char *nvme_directory; /* or NULL */
};

struct trial_result {
    struct step_result step[TRIAL_MAX_STEPS];
    double eval_loss;
    char *weights; /* parameters and optimizer state, chunk after chunk, zeros for what is frozen;
                      owned */
    size_t weights_bytes;
    size_t claim[TIER_COUNT];
    struct plan_choices chosen;
    size_t param_bytes;                     /* of all parameters */
    size_t peak[TIER_COUNT];                /* counted */
    int64_t link_bytes[LINK_COUNT];         /* counted, of the training steps */
    int64_t planned_link_bytes[LINK_COUNT]; /* a step  */
};

/* A model that several trials share. */
struct trial_model {
    struct model model;
    const char *dir;
};
/* lora: adapters beside all linear layers, the weights frozen and, unless QUANT_NONE, quantised. */
int trial_model_open(const char *dir, bool lora, enum quant_format quant, struct trial_model *out,
                     struct err *err);
/* Likewise of another config, which is taken over, with the weights of `dir`. */
int trial_model_init(struct decoder_config *config, const char *dir, bool lora,
                     enum quant_format quant, struct trial_model *out, struct err *err);
void trial_model_close(struct trial_model *m);

/* What the planner is asked. */
struct plan_input trial_input(const struct trial_model *m, const struct trial_job *job,
                              const struct trial_placement *place, struct device *device);
/* Only the plan; free with plan_destroy. */
int trial_plan(const struct trial_model *m, const struct trial_job *job,
               const struct trial_placement *place, struct device *device, struct plan **out,
               struct err *err);

/* Train steps [first, job->steps) from `from` (what a trial's weights held behind step `first`), or
 * from the published weights when it is NULL. */
int trial_run(const struct trial_model *m, const struct trial_job *job,
              const struct trial_placement *place, int64_t first, const struct trial_result *from,
              struct trial_result *out, struct err *err);
void trial_result_fini(struct trial_result *r);

#endif
