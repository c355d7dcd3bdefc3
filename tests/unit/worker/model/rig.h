/*
 * A model on the CPU, driven block by block as the executor does, with every buffer
 * of exactly the size that was asked for, so that AddressSanitizer sees an overrun. Results are
 * doubles whatever the compute type. Failures abort the test.
 */
#ifndef CASTOR_TESTS_UNIT_WORKER_MODEL_RIG_H
#define CASTOR_TESTS_UNIT_WORKER_MODEL_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"
#include "worker/model/adapter.h"
#include "worker/model/block.h"

struct rig {
    struct model m;
    struct device *device;
    const struct op_table *ops;
    struct stream *stream;
    void **weights, **grads; /* by tensor */
    const float **scales;    /* of quantised weights, which lie behind their codes; or NULL */

    int64_t B, T;                                      /* the whole step's batch */
    int32_t *tokens, *targets, *positions, *first_key; /* (B, T); first_key may be NULL */
    double embed_dropout, hidden_dropout, attn_dropout, lora_dropout;
    int64_t head_rows;
    bool fp8, held_copies, keep_cheap;
    uint64_t seed;
    uint32_t step;
    float grad_scale;
    float *rope;         /* of configs with rope */
    float *alibi_slopes; /* of configs with ALiBi */
    bool recompute;      /* saved comes from a second forward, just before backward */
    bool freeze_all_but_norms;

    double *row_loss;     /* (B, T) of the last run */
    int32_t *row_correct; /* (B, T) */
};

/* Takes over *config. Weights are zero, gradients NaN. reference: the plain ops rather than the
 * fast ones, where a type has both. */
void rig_open(struct rig *r, struct decoder_config *config, enum dtype compute, bool reference,
              int64_t B, int64_t T);
void rig_close(struct rig *r);
/* Freeze the weights and give the rig adapters, all of them zero. */
void rig_adapt(struct rig *r, const struct adapter_config *c);
/* Quantise the layers' matrices as they are now; they are no longer for rig_weight. */
void rig_quantise(struct rig *r, enum quant_format format);

/* Uniform in +-spread, norms around 1, from a fixed seed. */
void rig_random_weights(struct rig *r, double spread);
/* Random tokens and targets, some without target; positions 0 .. T - 1. */
void rig_random_batch(struct rig *r);
/* Weights of a model directory into a rig made for its config. */
void rig_load(struct rig *r, const char *model_dir);

/* Forward and backward of the whole batch in micro-batches of `rows` sequences. `accum` is the mode
 * of the first of them; with ACCUM_ASSIGN the embedding's gradients are zeroed, as the contract
 * wants. */
void rig_train(struct rig *r, int64_t rows, enum accum accum);
/* Evaluation: fills row_loss; the sum of it. Dropout as set in the rig. */
double rig_evaluate(struct rig *r, int64_t rows);
/* (n, vocab) logits of rows [first, first + n) of the batch taken as one micro-batch. */
void rig_logits(struct rig *r, int64_t first, int64_t n, double *out);

/* The value of an element of a weight or gradient, in double. */
double rig_weight(const struct rig *r, int64_t tensor, int64_t i);
void rig_set_weight(struct rig *r, int64_t tensor, int64_t i, double value);
double rig_grad(const struct rig *r, int64_t tensor, int64_t i);
/* All gradients of the tensors from `first` on; the caller frees. */
double *rig_grads(const struct rig *r, int64_t first);

/* Asserts that d(sum of losses) by central differences in double, of some elements of each tensor
 * from `first` on, is at most 1e-7 away from the gradients of the last rig_train. */
void rig_check_gradients(struct rig *r, int64_t first);
/* Asserts that a = factor * b, to 1e-12 of b's largest element. */
void rig_expect_near(const double *a, const double *b, int64_t n, double factor);

#endif
