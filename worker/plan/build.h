/*
 * Between the planner's files. A plan is made in this order:
 *
 *   chunks.c    pack tensors into chunks; the chunks a block uses
 *   homes.c     where payloads live from step to step, given the choices; places of the step's io
 *   visits.c    the order in which blocks are visited, and how long fetched parameters stay
 *   emit.c      the training list; forward.c: the evaluation and sampling lists; move.c: the
 *               loading and saving lists. Places that live for a while only have no address yet
 *   address.c   addresses for those
 *   waits.c     what each instruction waits for
 *   time.c      how long a list takes
 *   simulate.c  proof that the lists keep the rules; memory and traffic
 *   search.c    which choices
 *   refuse.c    what a job is told that does not fit
 */
#ifndef CASTOR_WORKER_PLAN_BUILD_H
#define CASTOR_WORKER_PLAN_BUILD_H

#include "worker/plan/plan.h"

/* A block at work on some micro-batches, once. */
struct visit {
    int64_t block;
    bool backward;
    int64_t first_micro, n_micro;
};

/* Parameters on the gpu from visit `first` to visit `last`, fetched ahead at visit `fetch`. */
struct stay {
    int64_t chunk, fetch, first, last;
};

struct itinerary {
    struct visit *visits;
    int64_t n_visits;
    struct stay *stays; /* of chunks that are not resident, by fetch */
    int64_t n_stays;
    int64_t *ends;      /* their numbers, by last */
    int64_t n_optional; /* pairs of uses that `turn` may join        */
};

/* build.c. Are the layers' gradients in bfloat16? */
bool plan_narrow_grads(const struct plan_input *in);
/* Cut the step into micro-batches of so many rows. */
void plan_cut_step(struct plan_input *in, int64_t rows);

/* chunks.c */
void plan_pack_chunks(struct plan *p);
/* How many chunks the input's plans have, and elements of a slice (plan_choices) that suit them. */
void plan_measure_chunks(const struct plan_input *in, int64_t *n_chunks, int64_t *slice);
/* The chunks of a block, at most BLOCK_MAX_CHUNKS; returns how many. */
int64_t plan_block_chunks(const struct plan *p, int64_t block, int64_t out[BLOCK_MAX_CHUNKS]);
/* How many blocks before `block` use the chunk: the block's gradient slot. */
int64_t plan_use_index(const struct plan *p, int64_t chunk, int64_t block);
/* Does the block look at the chunk's parameters? An embedding's backward does not at its tables. */
bool plan_needs_params(const struct plan *p, int64_t block, int64_t chunk, bool backward);

/* Places. A place without an address is for address.c to lay out. */
int32_t plan_add_place(struct plan *p, enum plan_tier tier, enum plan_purpose purpose, size_t bytes,
                       bool persistent);
/* Behind what is there for good already. */
int32_t plan_place_for_good(struct plan *p, enum plan_tier tier, enum plan_purpose purpose,
                            size_t bytes);
/* Host memory for what is on its way from or to the disk. In a step so many stages of a kind take
 * turns: one is read, one used and one written, and one more lets none wait. */
enum { PLAN_STAGES = 4 };
struct stages {
    enum payload payload;    /* STATE: of any slice of it; else of any piece of parameters */
    int32_t at[PLAN_STAGES]; /* places */
    int64_t turns;           /* so far */
};
int32_t plan_next_stage(struct plan *p, struct stages *s);
/* A move between the disk and a stage: STAGE or UNSTAGE, of a slice or piece. */
void plan_add_disk_move(struct plan *p, enum plan_list list, enum instr_op op, int64_t chunk,
                        int64_t slice, enum payload payload, int32_t src, int32_t dst);
int32_t plan_add_operands(struct plan *p, struct block_operands o);
bool plan_is_resident(const struct plan *p, int64_t chunk);

/* homes.c. Do the chunk's parameters, and its gradient until the update, live on the disk? */
bool plan_pages(const struct plan *p, int64_t chunk);
/* Is the chunk's early update speculative? */
bool plan_speculates(const struct plan *p, int64_t chunk);
/* Beside a whole master the parameters themselves are not read between their last fetch of a step
 * and the update that writes them anew, so the rounded gradient waits in their place, unless that
 * update may have to be done again. */
bool plan_grad_waits_in_param(const struct plan *p, int64_t chunk);
void plan_place_homes(struct plan *p);
void plan_place_io(struct plan *p);

/* visits.c; plan->chosen decides */
void plan_train_itinerary(const struct plan *p, struct itinerary *out);
void plan_forward_itinerary(const struct plan *p, struct itinerary *out);
void plan_itinerary_fini(struct itinerary *i);
/* The first of the stays that are fetched at a visit or later; of `ends`, that end there or later.
 */
int64_t plan_first_fetch(const struct itinerary *it, int64_t visit);
int64_t plan_first_end(const struct itinerary *it, int64_t visit);

void plan_emit_train(struct plan *p);
void plan_emit_forward(struct plan *p, enum plan_list list);
void plan_emit_moves(struct plan *p, enum plan_list list);

/* Instructions that both emit.c and forward.c write. */
struct block_operands plan_operands(const struct plan *p, int64_t block, const int32_t *param_at);
/* Fetches that begin at visit v; param_at, by chunk, takes their places. From the disk they pass
 * through `stages`. */
void plan_emit_fetches(struct plan *p, enum plan_list list, const struct itinerary *it, int64_t v,
                       struct stages *stages, int32_t *param_at);
void plan_emit_drops(struct plan *p, enum plan_list list, const struct itinerary *it, int64_t v,
                     int32_t *param_at);
size_t plan_boundary_bytes(const struct plan *p, enum plan_list list);

/* address.c. The floor: no layout of the list claims less. */
void plan_claim_floor(struct plan *p, enum plan_list list);
/* Addresses of one tier, behind what is there for good. Raises the claim; a tier whose limit does
 * not hold it claims more than the limit, and its places have no addresses then. */
void plan_lay_out(struct plan *p, enum plan_list list, enum plan_tier tier);
/* Bytes that the claim is over the tier's limit; the host's, also over what it shares with a CPU.
 */
size_t plan_over(const struct plan *p, enum plan_tier tier);
/* waits.c */
void plan_insert_waits(struct plan *p, enum plan_list list);

/* Is plan_choices.split_masters one of this input's? */
bool plan_may_split_masters(const struct plan_input *in);
/* The plan with these choices, none of them PLAN_AUTO: places without addresses, so that the claim
 * is but a floor; lists without waits, not verified; those that load and save are missing. */
struct plan *plan_draft(const struct plan_input *in, const struct plan_choices *choices);
/* These, too. */
void plan_draft_moves(struct plan *p);
/* The plan with all lists and addresses. */
struct plan *plan_make(const struct plan_input *in, const struct plan_choices *choices);
/* search.c: the plan for this input, likewise; ERR_DEVICE_OOM when nothing fits. */
int plan_choose(const struct plan_input *in, struct plan **out, struct err *err);
/* Of an input with which nothing fits: what the choices that come nearest to it claim. */
void plan_nearest_claims(const struct plan_input *in, size_t out[TIER_COUNT]);
/* refuse.c: what the choices claim, whatever the limits. */
void plan_claims(const struct plan_input *in, const struct plan_choices *choices,
                 size_t out[TIER_COUNT]);
/* ERR_DEVICE_OOM by what the choices that came nearest to fitting claim, with advice where there is
 * an err to hold it. */
int plan_refuse(const struct plan_input *in, const struct plan_choices *nearest, struct err *err);

/* compute_time.c. Seconds of a FORWARD or BACKWARD; at_best: of its products at the rate of large
 * ones, and of nothing else. */
double plan_block_seconds(const struct plan *p, enum plan_list list, const struct instr *i,
                          const struct device_profile *d, bool at_best);
/* time.c. What becomes of speculative updates: they hold, they are done again, or they are left out
 * and all is done behind the norm. */
enum speculation { SPECULATION_HOLDS, SPECULATION_FAILS, SPECULATION_OFF };
/* Blocks in the list's order take no less than this, whatever else is reordered; at_best: not even
 * where layers run as fast as matrix products, updates as host memory, and the disk as in its best
 * second. */
double plan_time_bound(const struct plan *p, enum plan_list list,
                       const struct device_profile *profile, enum speculation speculation,
                       bool at_best);
/* Seconds of an instruction while no other queue runs. */
double plan_instr_seconds(const struct plan *p, enum plan_list list, const struct instr *i,
                          const struct device_profile *profile);
/* Seconds that a list takes on a machine, pass behind pass. Waits have been inserted. */
double plan_time(const struct plan *p, enum plan_list list, const struct device_profile *profile,
                 enum speculation speculation);

#endif
