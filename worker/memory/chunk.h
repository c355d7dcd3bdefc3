/*
 * Chunks: the unit of movement. A chunk packs tensors of one type, one trainability and one layout
 * into a flat buffer, in the order in which blocks use them. A block uses one or more chunks; a
 * tensor used by several blocks (a tied embedding) has a chunk of its own.
 *
 * A chunk has up to three payloads, which are placed and moved independently:
 *   PARAM  n elements of the compute type; of a quantised chunk, their codes and then their scales
 *          (kernels/quant.h)
 *   GRAD   n elements of the gradient type (compute type where narrow) for each use: uses
 *          accumulate apart and are summed once, in use order, so the result does not depend on
 *          how the uses interleave
 *   STATE  optimizer state, n elements each of [master,] first moment, second moment; the master
 *          is absent when the parameter itself has the master's type; of a split one it is the 16
 *          bits that the parameter lacks of it (kernels/adamw_math.h). Of moments that are 8-bit
 *          codes the exponents of both follow (kernels/moment_math.h)
 *
 * Frozen chunks have PARAM only and are read-only: never written back, free to drop.
 *
 * Within a chunk, tensors with weight decay come first: decay applies to elements [0, n_decay).
 * Every tensor starts at a multiple of CHUNK_ALIGN elements; the gaps hold zeros and stay zero
 * under every op.
 *
 * This is shape and state only: no memory is owned, where a payload lies is the plan's business.
 */
#ifndef CASTOR_WORKER_MEMORY_CHUNK_H
#define CASTOR_WORKER_MEMORY_CHUNK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"
#include "kernels/quant.h"

enum { CHUNK_ALIGN = 128 }; /* elements: 256 bytes of a 2-byte type, two blocks of quantised ones */

enum payload { PAYLOAD_PARAM, PAYLOAD_GRAD, PAYLOAD_STATE, PAYLOAD_COUNT };
const char *payload_name(enum payload p);

/*
 * What a chunk's parameters are being used for (after Fang et al., "Parallel training of
 * pre-trained models via chunk-based dynamic memory management", IEEE TPDS 2023).
 */
enum chunk_state {
    CHUNK_FREE,             /* not in compute memory               */
    CHUNK_HOLD,             /* there, not in use                   */
    CHUNK_COMPUTE,          /* a block runs on it now              */
    CHUNK_HOLD_AFTER_FWD,   /* there, forward use of this visit done */
    CHUNK_HOLD_AFTER_BWD,   /* there, gradient not complete yet or frozen */
    CHUNK_READY_FOR_REDUCE, /* gradient complete                   */
    CHUNK_STATE_COUNT,
};
const char *chunk_state_name(enum chunk_state s);
/* The one transition table. */
bool chunk_state_allowed(enum chunk_state from, enum chunk_state to);

struct chunk_member {
    int64_t tensor; /* the caller's tensor number */
    int64_t elements;
    int64_t offset; /* in elements, from the start of the chunk */
};

struct chunk {
    bool trainable;
    enum quant_format quant; /* QUANT_NONE: of the compute type; else it is frozen */
    bool narrow_grad;   /* its gradients are of the compute type; false unless the caller says so */
    int64_t uses;       /* blocks that use it: gradient slots */
    int64_t first_use;  /* the first of those blocks          */
    int64_t n, n_decay; /* elements, gaps included            */
    struct chunk_member *members;
    int64_t n_members;
};

struct chunk_set {
    struct chunk *chunks; /* ordered by first use */
    int64_t n_chunks;
    struct chunk_location {
        int64_t chunk, member;
    } * tensors; /* by tensor number */
    int64_t n_tensors;
};

/* What is packed: tensors with the blocks that use them, ascending. */
struct chunk_input {
    int64_t elements;
    bool decay, trainable;
    enum quant_format quant;
    int64_t first_block; /* lowest block using it */
    int64_t n_blocks;    /* how many use it       */
};

/* One chunk for each block's own tensors of equal trainability and format, one for each shared
 * tensor. */
void chunk_set_init(struct chunk_set *set, const struct chunk_input *tensors, int64_t n_tensors);
void chunk_set_fini(struct chunk_set *set);

struct chunk_types {
    enum dtype compute, grad, master, moment; /* master DT_I16: split; moment DT_U8: codes */
};
enum dtype chunk_grad_type(const struct chunk *c, struct chunk_types types);
/* The optimizer state's parts, in their order; returns how many. */
enum state_part { PART_MASTER, PART_M, PART_V, PART_M_EXPONENT, PART_V_EXPONENT, PART_COUNT };
struct chunk_part {
    enum state_part part;
    enum dtype type;
    int64_t every; /* so many elements have one: 1, or a divisor of CHUNK_ALIGN */
};
int chunk_state_parts(struct chunk_types types, struct chunk_part parts[PART_COUNT]);
/* Of n elements, a multiple of `every` or the last ones of a tensor. */
int64_t chunk_part_count(const struct chunk_part *p, int64_t n);
size_t chunk_part_bytes(const struct chunk_part *p, int64_t n);
/* Bytes of n elements of all of them. */
size_t chunk_state_bytes(struct chunk_types types, int64_t n);
/* Bytes of a payload in all, e.g. GRAD of all uses; 0 for what a frozen chunk does not have. */
size_t chunk_payload_bytes(const struct chunk *c, enum payload p, struct chunk_types types);
/* Byte offsets in PARAM: of a member's parameters or codes, and of a quantised one's scales. */
size_t chunk_param_at(const struct chunk *c, int64_t member, struct chunk_types types);
size_t chunk_scales_at(const struct chunk *c, int64_t member);
/* Does the state have a part of the master? */
bool chunk_has_master(struct chunk_types types);
/* Is all of the master there, so that the parameter can be made of it? */
bool chunk_has_whole_master(struct chunk_types types);

#endif
