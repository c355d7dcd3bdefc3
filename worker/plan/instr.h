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
 * Order: instructions of one queue run in list order. An instruction also waits for those named in
 * `wait`, which stand earlier in the list and on other queues. Executing the list from front to
 * back in one thread is always correct: that is what the CPU device does.
 *
 *   op        queue          what it does
 *   FETCH     h2d            payload: host place -> gpu place
 *   EVICT     d2h            payload: gpu place -> host place
 *   STAGE     disk           payload: nvme place -> host place
 *   UNSTAGE   disk           payload: host place -> nvme place
 *   GATHER    comm           parameter shards of the data axis -> whole chunk in the gpu place
 *   DROP      compute        the gpu place no longer holds the chunk (nothing is copied)
 *   FORWARD   compute        run a block on one micro-batch
 *   BACKWARD  compute        its gradient; recomputes what was not saved
 *   REDUCE    compute/comm   sum the chunk's gradient slots in use order, then over the data axis;
 * norm partials SPILL     d2h            gradient: gpu place -> host place NORM      compute all
 * partials -> global norm and clip coefficient UPDATE    compute/cpu    AdamW where the state lies;
 * writes the new parameters SEND/RECV comm           boundary activations or their gradients
 * to/from the neighbouring stage SAVE_ACT  d2h            boundary activation: gpu place -> host
 * place LOAD_ACT  h2d            and back
 */
#ifndef CASTOR_WORKER_PLAN_INSTR_H
#define CASTOR_WORKER_PLAN_INSTR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/plan_report.h"
#include "worker/memory/chunk.h"

enum instr_op {
    INSTR_FETCH,
    INSTR_EVICT,
    INSTR_STAGE,
    INSTR_UNSTAGE,
    INSTR_GATHER,
    INSTR_DROP,
    INSTR_FORWARD,
    INSTR_BACKWARD,
    INSTR_REDUCE,
    INSTR_SPILL,
    INSTR_NORM,
    INSTR_UPDATE,
    INSTR_SEND,
    INSTR_RECV,
    INSTR_SAVE_ACT,
    INSTR_LOAD_ACT,
    INSTR_OP_COUNT,
};

enum queue { QUEUE_COMPUTE, QUEUE_H2D, QUEUE_D2H, QUEUE_COMM, QUEUE_CPU, QUEUE_DISK, QUEUE_COUNT };

enum { INSTR_MAX_WAITS = 6, BLOCK_MAX_CHUNKS = 4, NO_PLACE = -1 };

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
    int32_t saved, scratch;
};

struct instr {
    enum instr_op op;
    enum queue queue;
    int32_t block, chunk, micro; /* -1 = none */
    enum payload payload;        /* of moves  */
    int32_t src, dst;            /* places of moves; UPDATE: src = gradient, dst = parameter   */
    int32_t state;               /* UPDATE: place of the optimizer state                          */
    int32_t operands;            /* FORWARD, BACKWARD: index into the plan's operands             */
    bool first_grad;             /* BACKWARD: first to touch its chunks' gradients in this step   */
    bool last_grad;              /* BACKWARD: the last one                                        */
    int32_t wait[INSTR_MAX_WAITS]; /* instruction numbers, -1 = none */
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
