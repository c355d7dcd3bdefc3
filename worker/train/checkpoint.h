/*
 * Checkpoints: checkpoints/step-N/ with
 *   state.safetensors   every trained tensor's parameter, master (where there is one; of a split
 * one the remainder) and moments, by tensor, so that a checkpoint resumes under another plan, also
 * one that splits masters or does not:
 * "<role>.<layer>.param|master|remainder|m|v|m_exponent|v_exponent"
 *   checkpoint.json     step, the run's memory (best loss, patience), what must match on resume
 * Random numbers and data order are functions of (seed, step), so the step is all there is to save
 * of them.
 *
 * Frozen weights are not saved: they come from where they came from at first, and are quantised
 * again where they lie so, to the same bits.
 *
 * Written to checkpoints/tmp-step-N, fsynced, renamed: a checkpoint that exists is complete.
 * Memory: one payload at a time; of quantised ones one tensor in float32 beside it.
 */
#ifndef CASTOR_WORKER_TRAIN_CHECKPOINT_H
#define CASTOR_WORKER_TRAIN_CHECKPOINT_H

#include <stdint.h>

#include "core/err.h"
#include "worker/train/executor.h"

/* What a run remembers besides tensors. */
struct run_state {
    int64_t step;                          /* optimizer steps done */
    int64_t trained_tokens, target_tokens; /* so far; the latter had a loss   */
    double train_loss, train_accuracy;     /* of the last step; NaN = none          */
    double valid_loss, valid_accuracy;     /* of the last evaluation; NaN = none    */
    double best_loss;                      /* lowest validation loss; NaN = none    */
    int64_t best_step;
    int64_t without_gain;                   /* evaluations since best_loss */
    double loss_scale;                      /* NaN = losses are not scaled */
    int64_t loss_scale_good, skipped_steps; /* struct loss_scale */
    int64_t eval_step; /* the last evaluation was made behind this step; -1 = none */
};

/* *bytes: size on disk. A step that has a checkpoint already keeps it: what is in it follows from
 * the step. */
int checkpoint_save(const char *jobdir, const struct plan *plan, struct executor *e,
                    const struct run_state *run, uint64_t seed, int64_t *bytes, struct err *err);
/* Rows of a micro-batch of the attempt that made it; 0 = it does not tell. */
int checkpoint_micro_batch(const char *jobdir, int64_t step, int64_t *rows, struct err *err);
/* `weights`: what is frozen; may be NULL when nothing is. */
struct weights_reader;
int checkpoint_load(const char *jobdir, int64_t step, struct weights_reader *weights,
                    const struct plan *plan, struct executor *e, uint64_t seed,
                    struct run_state *run, struct err *err);
/* Remove all but the newest `keep` and `best_step`. */
int checkpoint_prune(const char *jobdir, int64_t keep, int64_t best_step, struct err *err);

/* Load a model's published weights into a fresh run: parameters, masters, zero moments; adapters as
 * they start. */
int checkpoint_load_weights(struct weights_reader *weights, uint64_t seed, const struct plan *plan,
                            struct executor *e, struct err *err);

/* The name of a tensor's part in state.safetensors. */
void checkpoint_tensor_name(const struct model *m, int64_t tensor, const char *part, char out[96]);

#endif
