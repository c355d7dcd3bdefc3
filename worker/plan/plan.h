/*
 * A plan: where everything lies, and the lists that run on it.
 *
 * Input: the model's shapes, the resolved spec's frozen choices, the device's budgets and profile.
 * Output: chunks, places, lists, and the exact claim on every tier. Building a plan touches no
 * device (op-table workspace sizes are pure functions of shapes).
 *
 * Lists
 *   LIST_TRAIN   one optimizer step of `micro_batches` micro-batches
 *   LIST_EVAL    forward of one micro-batch, losses
 *   LIST_SAMPLE  forward of one row, logits of one position
 *   LIST_LOAD    every parameter payload and every slice of the state from host memory to where it
 *                lives: weights, or a checkpoint
 *   LIST_SAVE    all of them to host memory but what is frozen: checkpoint, export
 * In the last two the host's side (src of a load, dst of a save) is the staging place, or where the
 * payload lives in host memory; then src == dst and nothing is copied.
 *
 * What lives on the disk passes through host memory in slices of a chunk: of the optimizer state
 * for its update; of the parameters on their way to the gpu, and of a chunk's gradient, which waits
 * on the disk like the parameters, to and from its update. In moves of PARAM and GRAD between the
 * gpu and such a stage `slice` is the number of the piece.
 *
 * The training list is cyclic: updates on the cpu queue may still run while the next pass begins
 * (its instructions wait for them by `wait_prev`). The other lists start and end with all queues
 * idle.
 *
 * Frozen chunks are only read: no gradient slots, no state, no REDUCE, no UPDATE, never moved back.
 * Backward ends at the lowest block that trains (model_first_trained).
 *
 * Clipping needs the norm of all gradients, so updates stand behind NORM. A *speculative* update
 * runs in backward nevertheless, as if nothing were clipped, writes the new state to a second place
 * and leaves the old one alone. CONFIRM behind NORM finds that it holds, or does it again from the
 * old state: exact either way. Parameters are written in place; where they are the master, or the
 * upper half of a split one, what they were is kept behind the second state. Only of states in host
 * memory, in types whose losses are not scaled.
 *
 * Numbers do not depend on any of the planner's choices: gradients are rounded to the compute type
 * where they are consumed (kernels/op_table.h: sumsq, adamw), so they may travel in it; with
 * several groups a step the unfinished sum travels in its own type. On a GPU they do depend on the
 * algorithms of its matrix products, which are chosen by timing: equal bits are promised between
 * runs that share a file of those (device_plans_load), as all attempts of a job do.
 */
#ifndef CASTOR_WORKER_PLAN_PLAN_H
#define CASTOR_WORKER_PLAN_PLAN_H

#include <stdint.h>

#include "api/job_spec.h"
#include "api/plan_report.h"
#include "core/buf.h"
#include "core/err.h"
#include "kernels/op_table.h"
#include "worker/memory/chunk.h"
#include "worker/model/block.h"
#include "worker/model/model.h"
#include "worker/parallel/mesh.h"
#include "worker/plan/instr.h"
#include "worker/plan/profile.h"
#include "worker/plan/step_io.h"

enum plan_list { LIST_TRAIN, LIST_EVAL, LIST_SAMPLE, LIST_LOAD, LIST_SAVE, LIST_COUNT };
const char *plan_list_name(enum plan_list l);

/* What the planner decides. Chunks are counted in the order of their first use. */
enum { PLAN_AUTO = -1 };
struct plan_choices {
    int64_t group;       /* micro-batches a block's visit serves; all of them = layer-major  */
    int64_t resident;    /* so many first chunks have all payloads on the gpu; the others live in
                            host memory                                                      */
    int64_t nvme;        /* the optimizer states of so many last chunks live on the disk      */
    int64_t nvme_params; /* the parameters of so many last chunks do                       */
    int64_t keep; /* so many last layers keep their saved tensors from forward to backward; the
                     others recompute them                                            */
    int64_t offload_boundaries; /* 1: boundary activations wait in host memory            */
    int64_t offload_saved; /* so many of the layers that keep them, evenly spread, have their saved
                              tensors wait in host memory, too                            */
    int64_t turn;       /* so many pairs of consecutive uses, the closest ones first, between which
                           parameters stay on the gpu instead of being fetched again        */
    int64_t prefetch;   /* visits that a fetch runs ahead of its use                         */
    int64_t early;      /* so many chunks updated on the cpu queue are updated as their gradients
                           arrive, with clip speculatively; the others in the order in which the
                           next forward needs them; spread evenly over them                 */
    int64_t grad_homes; /* so many last chunks have host memory for a gradient that waits for its
                         update on the cpu queue and may not do so in the parameters' place. Others
                         share it, and each then waits for the updates before it            */
    int64_t slice;      /* elements of a slice of what lives on the disk, a multiple of
                           CHUNK_ALIGN; other states are one slice a chunk                  */
    int64_t cheap;      /* 1: saved tensors include what one pass makes again: block.h        */
    int64_t rounded;    /* so many first layers hold their weights' 8-bit copies through the step:
                           block.h                                                          */
    int64_t linger;     /* what leaves the gpu keeps its place while the next so many blocks run, so
                           that they need not wait for the copy                             */
    int64_t split_masters; /* 1: of float32 masters beside bfloat16 parameters the 16 bits are kept
                              that these lack: the same numbers in fewer bytes, but a gradient may
                              not wait in the parameters' place */
};
#define PLAN_CHOICES_AUTO                                                                          \
    ((struct plan_choices){.group = PLAN_AUTO,                                                     \
                           .resident = PLAN_AUTO,                                                  \
                           .nvme = PLAN_AUTO,                                                      \
                           .nvme_params = PLAN_AUTO,                                               \
                           .keep = PLAN_AUTO,                                                      \
                           .offload_boundaries = PLAN_AUTO,                                        \
                           .offload_saved = PLAN_AUTO,                                             \
                           .turn = PLAN_AUTO,                                                      \
                           .prefetch = PLAN_AUTO,                                                  \
                           .early = PLAN_AUTO,                                                     \
                           .grad_homes = PLAN_AUTO,                                                \
                           .slice = PLAN_AUTO,                                                     \
                           .cheap = PLAN_AUTO,                                                     \
                           .rounded = PLAN_AUTO,                                                   \
                           .linger = PLAN_AUTO,                                                    \
                           .split_masters = PLAN_AUTO})
_Static_assert(sizeof(struct plan_choices) == 16 * sizeof(int64_t),
               "PLAN_CHOICES_AUTO names every choice: one that it lacks would be forced to 0");

struct plan_input {
    const struct model *model;            /* borrowed, outlives the plan */
    const struct op_table *ops;           /* likewise                     */
    const struct device_profile *profile; /* or NULL: no times   */
    struct mesh mesh;
    int64_t rank;
    enum placement_policy policy;
    size_t limit[TIER_COUNT];     /* bytes; 0 = none for gpu and host, no such tier for nvme */
    const char *part[TIER_COUNT]; /* or NULL; what the limit is a part of, for a refusal: "the 300.0
                                     MiB that ... is limited to". Borrowed, outlives the plan */
    size_t
        together; /* bytes of gpu and host where they are one memory, a CPU's; 0 = they are not */
    const char *together_part; /* as above */
    bool one_memory;           /* and the job does not limit the gpu: auto moves nothing */
    bool clip; /* updates wait for the norm: max_grad_norm > 0, or gradients may overflow. Else they
                  neither wait nor look at it, and a NaN goes into the weights, as in PyTorch */
    enum master_kind master;  /* bf16 and split need ops that compute in bfloat16; fp32 ones are
                                 split where that is faster, plan_choices.split_masters */
    enum moment_kind moments; /* but fp32 ones are rounded stochastically */
    bool bf16_grads;          /* layers' gradients in bfloat16, which the ops must compute in ... */
    bool bf16_alone;          /* ... where one micro-batch is the step: there is nothing to sum */
    struct plan_choices force; /* members that are not PLAN_AUTO are obeyed: tests, experiments */
    int64_t micro_batch, micro_batches, seq_length;
    int64_t step_rows; /* for other micro-batches; 0 = that these are full */
    int64_t head_rows; /* at most */
    bool fp8;          /* block_shape.fp8 of training */
    double embed_dropout, hidden_dropout, attn_dropout;
};

/* Places that belong to the step as a whole; worker/plan/step_io.h says what lies in them. */
struct plan_io {
    int32_t batch;    /* gpu: the batches of all micro-batches              */
    int32_t rows;     /* gpu: losses and hits of every row of the step       */
    int32_t partials; /* gpu: norm partials of all chunks, double            */
    int32_t scalars;  /* gpu: struct step_scalars                            */
    int32_t clip;     /* host: struct step_scalars as NORM left it, for updates on the cpu queue;
                         NO_PLACE when there are none                        */
    int32_t rope;     /* gpu: rope tables or ALiBi's slopes, float; or NO_PLACE */
    int32_t logits;   /* gpu: one row, LIST_SAMPLE                           */
    int32_t host_batch[STEP_SLOTS], host_rows[STEP_SLOTS], host_scalars[STEP_SLOTS]; /* pinned */
    int32_t staging; /* pinned: the largest payload, or one row of logits    */
};

enum { CHUNK_MAX_USES = 4 };

/* A slice of a chunk's optimizer state: elements [first, first + n), first a multiple of
 * CHUNK_ALIGN. Its place holds [master,] first and second moment of those elements, one after the
 * other. */
struct plan_slice {
    int64_t first, n;
    int32_t home;   /* place of any tier */
    int32_t shadow; /* host: of speculative updates, NO_PLACE for others. Every training pass that
                       speculates writes the new state to the place that does not hold the old one;
                       without a whole master, behind the state the parameters as they were before.
                       Other passes leave the state where it is and update it there */
};

/* Of each chunk: where its payloads live from step to step, its gradient, and its norm partials.
 * Frozen chunks lack all but the parameter. */
struct plan_chunk {
    int32_t param;                /* place of any tier; on the disk, of the first piece */
    int64_t n_pieces;             /* on the disk: so many places, one behind the other; else 0 */
    int32_t grad[CHUNK_MAX_USES]; /* gpu, one slot a use, as REDUCE finds them; the sum ends in
                                     slot 0 */
    int32_t grad_home;            /* host, NO_PLACE = none: plan_choices.grad_homes */
    struct plan_slice *slices;
    int64_t n_slices; /* 0 = frozen */
    int64_t first_partial, n_partials;
    bool early; /* plan_choices */
};

struct plan {
    struct plan_input in;
    struct plan_choices chosen;
    struct block_shape shapes[LIST_COUNT]; /* of TRAIN, EVAL and SAMPLE */
    struct block_bytes *sizes[LIST_COUNT]; /* by block: of the same lists */
    struct chunk_set chunks;
    struct chunk_types types;
    struct plan_chunk *chunk; /* by chunk */
    struct place *places;
    int64_t n_places, cap_places;
    struct block_operands *operands;
    int64_t n_operands, cap_operands;
    struct instr_list lists[LIST_COUNT];
    struct plan_io io;
    int64_t n_partials;
    size_t for_good[TIER_COUNT]; /* bytes of persistent places, at the arena's low end */
    size_t claim[TIER_COUNT];    /* bytes of each tier's arena */
};

/* ERR_DEVICE_OOM (reason insufficient_memory) when it cannot fit: names the tier, what is needed
 * and the limit. */
int plan_build(const struct plan_input *in, struct plan **out, struct err *err);
void plan_destroy(struct plan *p);

/* Whether the block's rounded weights are held through the step (plan_choices.rounded). */
bool plan_holds_copies(const struct plan *p, int64_t block);
/* Bytes of a slice's state. */
size_t plan_slice_bytes(const struct plan *p, const struct plan_slice *s);
/* Of a chunk's pieces on the disk: where one begins in the whole, in bytes, and how long it is. The
 * pieces of one that trains are its slices. */
size_t plan_piece_at(const struct plan *p, int64_t piece);
size_t plan_piece_bytes(const struct plan *p, int64_t chunk, int64_t piece);
bool plan_moves_piece(const struct instr *i);
/* Bytes that a move carries over its link. */
size_t plan_move_bytes(const struct plan *p, const struct instr *i);
/* Rows (tokens) of a whole step, and the bytes of its batch and of its results. */
int64_t plan_step_rows(const struct plan *p);
size_t plan_batch_bytes(const struct plan *p);
size_t plan_rows_bytes(const struct plan *p);

/* What a list does to memory, links and time, found by folding over it. */
struct plan_simulation {
    struct plan_tier_memory
        memory[TIER_COUNT]; /* live bytes at the peak, by purpose; limit from the input */
    int64_t link_bytes[LINK_COUNT];
    /* NaN without a profile. With clipping these are of a step whose speculative updates hold, if
     * there are any. bound: the least that the list's work takes, by the busiest queue alone, the
     * disk, host memory, and backward with the updates that may not run beside it. */
    double seconds, bound;
    /* Of a training step in which all updates wait for the norm: NaN without clipping, too. */
    double seconds_clipped, bound_clipped;
    double break_even; /* share of clipped steps at which speculative updates gain nothing: 0
                          where there are none, 1 where they never cost anything */
};

/* ERR_INTERNAL when the list breaks a rule: overlapping live places, a wait for a later
 * instruction, a use of what was never written, residency at the end unlike the start. So every
 * plan is checked before it runs. */
int plan_simulate(const struct plan *p, enum plan_list list, struct plan_simulation *out,
                  struct err *err);

/* Seconds of a step, on an H100 where there is no profile; with clipping, of one whose updates wait
 * for the norm, as the search compares plans (search.c). */
double plan_seconds(const struct plan *p);

/* Fill the report's memory, links, times and instruction count. */
int plan_fill_report(const struct plan *p, struct plan_report *report, struct err *err);

/* A listing for people, one instruction a line. */
void plan_print(const struct plan *p, enum plan_list list, struct buf *out);

#endif
