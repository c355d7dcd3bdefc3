/*
 * The instruction list: one optimizer step (or an evaluation, a sample, a checkpoint) as data. A
 * planner writes it, the simulator folds over it, the executor obeys it; no one else decides
 * anything.
 *
 * A *place* is a fixed range of addresses in one tier's arena, with a purpose. An instruction names
 * the places it reads and writes, so the simulator knows from the list alone what is live when, and
 * can prove that no two live places overlap. A training list is cyclic: what is resident at its end
 * is what was at its start.
 *
 * Order: instructions of one queue run in list order. An instruction also waits, on each other
 * queue, for the one named in `wait` (of this pass through the list, so it stands earlier) and in
 * `wait_prev` (of the pass before: a cyclic list is executed pass after pass without a pause
 * between them). Instructions before those on their queue are then done too. Executing the list
 * from front to back in one thread is always correct: that is what the CPU device does.
 *
 * GATHER, SEND, RECV and the queue comm are for jobs of several ranks: no planner writes them yet,
 * and nothing executes them.
 */
#ifndef CASTOR_WORKER_PLAN_INSTR_H
#define CASTOR_WORKER_PLAN_INSTR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/plan_report.h"
#include "worker/memory/chunk.h"

enum instr_op {
    /* payloads; queues h2d, d2h, read, write */
    INSTR_FETCH,   /* host place -> gpu place, whole or a piece */
    INSTR_EVICT,   /* gpu place -> host place; without a chunk: the step's scalars */
    INSTR_STAGE,   /* nvme place -> host place, whole or a slice */
    INSTR_UNSTAGE, /* host place -> nvme place */
    INSTR_GATHER,  /* comm: parameter shards of the data axis -> whole chunk in the gpu place */
    INSTR_DROP,    /* compute: the gpu place no longer holds the chunk; nothing is copied */

    /* blocks; queue compute */
    INSTR_FORWARD,  /* a block on one micro-batch; without y: recomputation, which fills `saved` */
    INSTR_BACKWARD, /* its gradient, from x and `saved` */

    /* gradients and updates */
    INSTR_REDUCE, /* compute: the chunk's gradient slots, summed in use order into slot 0 = src,
                     then over the data axis; norm partials; with dst, the sum rounded to the
                     compute type goes there, ready to travel */
    INSTR_SPILL,  /* d2h: rounded gradient, whole or a piece, gpu place -> host place */
    INSTR_NORM, /* compute: all partials -> global norm, clip coefficient, in the step's scalars */
    INSTR_UPDATE, /* compute or cpu, where the state lies: AdamW on one slice of a chunk; writes the
                     new parameters, on the cpu queue to the host place; with `shadow` before the
                     norm is known, as if nothing were clipped */
    INSTR_CONFIRM, /* cpu: behind the norm, what such an update wrote holds, or it is done again */

    /* boundary activations and their gradients */
    INSTR_SEND, /* comm: to the neighbouring stage */
    INSTR_RECV,
    INSTR_SAVE_ACT, /* d2h: gpu place -> host place */
    INSTR_LOAD_ACT, /* h2d: and back */
    INSTR_OP_COUNT,
};

enum queue {
    QUEUE_COMPUTE,
    QUEUE_H2D,
    QUEUE_D2H,
    QUEUE_COMM,
    QUEUE_CPU,
    QUEUE_READ,  /* of the disk, ...    */
    QUEUE_WRITE, /* ... both at a time */
    QUEUE_COUNT
};

enum { BLOCK_MAX_CHUNKS = 4, NO_PLACE = -1 };

struct place {
    enum plan_tier tier;
    enum plan_purpose purpose;
    size_t offset, bytes;
    bool persistent; /* live from step to step; others live from first to last use in a list */
};

/* Operands of FORWARD and BACKWARD: places, NO_PLACE where there is none. */
struct block_operands {
    int32_t n_chunks;
    int32_t chunk[BLOCK_MAX_CHUNKS];
    int32_t param[BLOCK_MAX_CHUNKS];
    int32_t grad[BLOCK_MAX_CHUNKS]; /* this block's slot of the chunk's gradient */
    int32_t x, y, dy, dx;           /* boundary activations and their gradients  */
    int32_t saved, scratch, held;   /* block.h */
};

struct instr {
    enum instr_op op;
    enum queue queue;
    int32_t block, chunk, micro; /* -1 = none */
    int32_t slice;               /* of the chunk's optimizer state, or piece of another payload on
                                    its way from or to the disk; -1 = none or the whole payload */
    enum payload payload;        /* of moves  */
    int32_t src, dst;          /* places of moves; UPDATE: src = gradient, dst = parameter, both of
                                  the whole chunk or, if `piece`, of the slice, and the same one
                                  where the gradient waits in the parameter's place */
    bool piece;                /* UPDATE                                                        */
    int32_t state;             /* UPDATE, CONFIRM: place of the slice's optimizer state         */
    int32_t shadow;            /* likewise of its second one, NO_PLACE = in place: in one pass that
                                  speculates the old state lies in `state` and the new one goes to
                                  `shadow`, in the next one the other way around                */
    int32_t operands;          /* FORWARD, BACKWARD: index into the plan's operands             */
    bool first_forward;        /* FORWARD: the block's first in this step                         */
    bool first_grad;           /* BACKWARD: first to touch its chunks' gradients in this step   */
    bool last_grad;            /* BACKWARD: the last one                                        */
    int32_t wait[QUEUE_COUNT]; /* by queue: instruction number, -1 = none */
    int32_t wait_prev[QUEUE_COUNT]; /* likewise, of the pass before            */
};

struct instr_list {
    struct instr *items;
    int64_t n, cap;
};

const char *instr_op_name(enum instr_op op);
const char *queue_name(enum queue q);
/* Append; returns the instruction's number. Members that are not used are -1 / false in the value
 * of instr_make. */
struct instr instr_make(enum instr_op op, enum queue queue);
int64_t instr_list_add(struct instr_list *l, struct instr i);
void instr_list_fini(struct instr_list *l);

#endif
