/*
 * Blocks: forward and backward of the three kinds, written once over the op table. A block is a
 * pure function of the pointers in struct block_run: it allocates nothing, moves nothing between
 * memories, and knows neither chunks nor ranks.
 *
 * The planner asks block_sizes for the bytes a call needs and gives it fixed addresses; inside
 * `saved` and `scratch` the block lays out its own tensors.
 *
 * Backward reads x again, and `saved` as forward left it. Dropout acts whenever a rate in the shape
 * is above 0, with train or without, so that recomputation draws the same masks.
 *
 * Residual stream: x and y are (B*T, hidden) in the compute type. The head's backward does forward,
 * loss and gradient in one pass over slices of rows (config of the plan: head_rows), so full logits
 * never exist; its forward (evaluation, sampling) gives losses or the logits of some rows.
 */
#ifndef CASTOR_WORKER_MODEL_BLOCK_H
#define CASTOR_WORKER_MODEL_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/device.h"
#include "kernels/op_table.h"
#include "worker/model/model.h"

struct block_shape {
    int64_t B, T;      /* sequences and tokens a sequence of one micro-batch   */
    int64_t head_rows; /* rows of logits at a time; frozen in the resolved spec */
    bool train;        /* saved tensors for backward are kept                  */
    bool keep_cheap;   /* and those that one pass over memory makes again: norm outputs and
                          activations of layers with the norm in front */
    bool fp8; /* layers' own products round their operands to 8 bits; embedding, head, attention's
                 products and adapters do not. With keep_cheap what is kept of a norm's output or
                 an activation is of 8 bits, too, where nothing else reads it; without it, too,
                 what a gated activation is made of, and its output */
    bool narrow_grads; /* layers' weight gradients are of the compute type: op_table.h, op_narrow.
                          Embedding and head add up many pieces in a micro-batch: theirs are not */
    double embed_dropout, hidden_dropout, attn_dropout; /* 0 unless training   */
    double lora_dropout;                                /* likewise: of the adapters' input */
};

struct block_bytes {
    size_t saved;           /* kept from forward to backward, per micro-batch (0 unless train) */
    size_t forward_scratch; /* gone after the call */
    size_t backward_scratch;
    size_t held;        /* kept through a step, for all micro-batches (0 unless fp8 and train) */
    size_t held_copies; /* that, and the weights rounded for forward, made once a step instead of
                           once a micro-batch */
};

/* Bytes for a block under a shape, with this op table's types and workspaces. Every size is a
 * multiple of DEVICE_ALIGN. */
struct block_bytes block_sizes(const struct model *m, int64_t block,
                               const struct block_shape *shape, const struct op_table *ops);

/* Told of every op: before it is queued, and behind it. For measuring. An op that is left out after
 * all is told of only by the first. */
struct op_watch {
    void (*before)(void *ud, enum op op, const void *args, struct stream *s);
    void (*after)(void *ud, struct stream *s);
    void *ud;
};

struct block_run {
    const struct model *model;
    int64_t block;
    struct block_shape shape;
    struct device *device; /* clears norm gradients at ACCUM_ASSIGN (their op only adds) and fp8's
                              magnitudes */
    const struct op_table *ops;
    struct stream *stream;
    const struct op_watch *watch; /* or NULL */

    void *const *weights; /* by position in block_desc.tensors; device memory, compute type. The
                             tables of an embedding may be NULL in its backward, which does not
                             look at them */
    /* Likewise: the scales of weights that lie quantised (tensor_desc.quant), whose pointers are to
     * their codes; NULL: there are none */
    const float *const *scales;
    void *const
        *grads; /* likewise, grad type (or narrow); NULL entries are frozen; backward only    */
    enum accum grad_accum; /* ACCUM_ASSIGN: first micro-batch of the step. An embedding table's
                              gradient is always accumulated by the embedding block: the caller
                              zeroes it. The head treats a tied table like any other matrix */

    /* the micro-batch, device memory, (B, T) */
    const int32_t *tokens, *targets, *positions, *first_key;
    const float *rope; /* model_rope_tables, or NULL */
    int64_t rope_positions;
    const float *alibi_slopes; /* (heads) or NULL */

    const void *x; /* (B*T, hidden) input of layers and head */
    void *y;       /* (B*T, hidden) = output of embedding and layers. NULL in a layer's forward with
                      train: recomputation, which fills `saved` and skips what only y needs */
    void *saved, *scratch;
    void *held;         /* of held or held_copies bytes, or NULL where they are 0 */
    bool held_copies;   /* which of them */
    bool first_forward; /* forward: the step's first of this block, which fills `held` */

    /* backward */
    const void *dy; /* (B*T, hidden): gradient of y; unused by the head */
    void *dx; /* (B*T, hidden) =: gradient of x; unused by the embedding; may alias dy (not x). Room
                 to work in, undefined afterwards, where nothing that trains lies below */

    /* head */
    const float *grad_scale;             /* device: 1 / target tokens of the whole step */
    const struct loss_scale *loss_scale; /* device, or NULL */
    void *row_loss;                      /* (B*T) stat =  */
    int32_t *row_correct;                /* (B*T) =       */
    void *logits; /* forward only, (logit_rows, vocab) =, or NULL: losses are wanted instead.
                     Before logit_scale and final_softcap */
    int64_t logit_first, logit_rows;

    /* random numbers: dropout masks are a function of these */
    uint64_t seed;
    uint32_t step;
    int64_t first_sequence; /* index of sequence 0 of this micro-batch in the whole step's batch */
};

int block_forward(const struct block_run *r, struct err *err);
int block_backward(const struct block_run *r, struct err *err);

/* Costs for the simulator: floating-point operations of one call (multiply-add = 2), of products
 * with the block's matrices and of attention. */
struct block_flops {
    double products, attention;
};
struct block_flops block_flops(const struct model *m, int64_t block,
                               const struct block_shape *shape, bool backward);
/* What multiprocessors could do meanwhile that have no tile in the last wave of a layer's products
 * (kernels/op_cost.h), in floating-point operations. */
double block_idle_flops(const struct model *m, int64_t block, const struct block_shape *shape,
                        bool backward, int64_t multiprocessors);
/* Bytes read and written by those passes of a layer over memory that depend on how it is run:
 * roundings to 8 bits, and in backward the making of what keep_cheap would have kept. */
struct block_passes {
    bool backward, first_forward, held_copies;
};
double block_pass_bytes(const struct model *m, int64_t block, const struct block_shape *shape,
                        const struct block_passes *p);

/* The tables of rotary positions in sequences of `positions` tokens, into host memory: cos
 * (positions, rope.dim / 2), then sin; where layers with a window have a base of their own, both
 * once more for those. model_rope_floats floats in all. */
int64_t model_rope_floats(const struct decoder_config *c, int64_t positions);
void model_rope_tables(const struct decoder_config *c, int64_t positions, float *tables);
/* ALiBi's slope of each head (Press et al., "Train short, test long", 2022), (heads), host memory.
 */
void model_alibi_slopes(const struct decoder_config *c, float *slopes);

#endif
