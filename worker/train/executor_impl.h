/*
 * What the files of the executor share. executor.c: life, steps, evaluation; executor_issue.c:
 * walks a list and ties its queues together; executor_block.c, executor_update.c, executor_move.c:
 * what the instructions do.
 */
#ifndef CASTOR_WORKER_TRAIN_EXECUTOR_IMPL_H
#define CASTOR_WORKER_TRAIN_EXECUTOR_IMPL_H

#include "worker/memory/arena.h"
#include "worker/train/executor.h"
#include "worker/train/host_queue.h"
#include "worker/train/update_pool.h"

/* Of one list: what its instructions leave behind for those that wait for them. Two of each, since
 * two passes may be in flight. */
struct list_edges {
    struct event_mark **mark[2]; /* by instruction of a stream; NULL where nobody waits */
    uint32_t *word[2];           /* by instruction of a host queue: the word's value when done  */
    int64_t pass;                /* passes issued since all queues were idle             */
};

/* executor_trail.c */
struct footprint {
    int64_t step;
    enum plan_list list;
    const struct instr *instr;
};
struct trail {
    struct seq_word *word;
    struct footprint *prints; /* a ring of the newest */
    int64_t cap;
    uint32_t issued;
};

/* Of one pass of the training list: what streams waited for. */
struct stalls {
    struct stall {
        enum queue queue, cause;
        struct event_mark *before, *behind;
    } * items;
    int64_t cap, used;
};

struct executor {
    struct executor_config config;
    const struct plan *plan;
    const struct op_table *ops;
    struct device *device;
    struct nvme_file *nvme;               /* or NULL: no place lies there                */
    struct arena arena[TIER_COUNT];       /* gpu: device memory; host: pinned           */
    struct stream *stream[QUEUE_COUNT];   /* of compute, h2d, d2h, comm; else NULL       */
    struct host_queue *host[QUEUE_COUNT]; /* of cpu, read and write, when a list uses them */
    struct update_pool *updates;          /* of the cpu queue, likewise                 */
    struct list_edges edges[LIST_COUNT];
    struct stalls stalls[2];     /* by the pass's parity */
    int slot_parity[STEP_SLOTS]; /* of the pass that a slot's step is */
    struct event_mark *done[STEP_SLOTS];
    struct trail trail;
    bool in_flight[STEP_SLOTS];
    bool scales_losses;
    const struct op_watch *watch; /* or NULL */
    struct adamw_step adamw;      /* likewise                 */
    int64_t step;                 /* of the list being executed */
    bool swapped;                 /* states that have two places lie in the second ones */
    bool speculates;              /* in the list being executed */
    int64_t logit_position;
    payload_fn transfer;
    void *transfer_ud;
    bool loads_zeros; /* the payload at hand is all zeros, the staging place is not */
};

/* Where a slice's state is between passes. */
int32_t executor_state_place(const struct executor *e, const struct plan_slice *s);
/* The address of a place; NULL for NO_PLACE. */
void *executor_at(struct executor *e, int32_t place);
struct step_scalars *executor_scalars(struct executor *e); /* device memory */
int32_t *executor_batch_array(struct executor *e, int32_t place, int64_t micro,
                              enum step_batch_array which);
/* Around an op that is no part of a block: tell whoever watches, and make its launch status an
 * error that says where. */
void executor_begin(struct executor *e, enum op op, const void *args, struct stream *s);
int executor_end(int rc, struct executor *e, const struct instr *i, struct stream *s,
                 struct err *err);
/* The latter without a watch: host threads. */
int executor_launched(int rc, const struct executor *e, const struct instr *i, struct err *err);

/* executor_trail.c: footprints of the compute stream's instructions. explain: what the device was
 * doing goes in front of an error of the device; returns rc. */
int executor_trail_init(struct executor *e, struct err *err);
void executor_trail_fini(struct executor *e);
int executor_trail_mark(struct executor *e, enum plan_list list, const struct instr *i,
                        struct stream *s, struct err *err);
int executor_trail_explain(const struct executor *e, int rc, struct err *err);

/* executor_issue.c */
int executor_edges_init(struct executor *e, struct err *err);
void executor_edges_fini(struct executor *e);
/* Queue a list. Returns when everything is issued; nothing is waited for but the pass before the
 * last. */
int executor_issue(struct executor *e, enum plan_list list, struct err *err);
/* Wait until all queues are idle; the first error of any. */
int executor_quiesce(struct executor *e, struct err *err);
int executor_host_error(struct executor *e, struct err *err);

/* executor_stalls.c. Let work on a queue's stream wait, and note how long it does. */
int executor_stalls_init(struct executor *e, struct err *err);
void executor_stalls_fini(struct executor *e);
int executor_watched_wait(struct executor *e, enum plan_list list, enum queue queue,
                          const struct host_wait *w, struct stream *s, struct err *err);
/* Of a pass whose compute queue is done: all that its fetches waited for is over then, too. */
int executor_sum_stalls(struct executor *e, int parity, struct step_result *out, struct err *err);
/* Behind it: what the update threads worked, and which of the waiting for them the disk caused. */
void executor_sum_updates(struct executor *e, struct step_result *out);

/* What an instruction does; s is its queue's stream. */
int executor_run_block(struct executor *e, enum plan_list list, const struct instr *i,
                       struct stream *s, struct err *err);
int executor_run_reduce(struct executor *e, const struct instr *i, struct stream *s,
                        struct err *err);
int executor_run_norm(struct executor *e, const struct instr *i, struct stream *s, struct err *err);
int executor_run_update(struct executor *e, const struct instr *i, struct stream *s,
                        struct err *err);
int executor_run_copy(struct executor *e, const struct instr *i, struct stream *s, struct err *err);
/* Jobs of the host queues; ud is the executor. */
int executor_host_update(void *ud, const struct host_job *job, struct err *err);
int executor_host_disk(void *ud, const struct host_job *job, struct err *err);

#endif
