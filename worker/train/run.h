/*
 * A run: what the parts of the trainer share while one attempt trains. Internal to this folder.
 */
#ifndef CASTOR_WORKER_TRAIN_RUN_H
#define CASTOR_WORKER_TRAIN_RUN_H

#include "worker/train/checkpoint.h"
#include "worker/train/control_reader.h"
#include "worker/train/event_writer.h"
#include "worker/train/executor.h"
#include "worker/train/session.h"
#include "worker/train/speculation.h"
#include "worker/train/trainer.h"

enum run_end { RUN_GOES_ON, RUN_CANCELLED, RUN_PAUSED, RUN_PREEMPTED, RUN_EARLY_STOP };

struct run {
    const struct trainer_options *options;
    struct session session;
    struct event_writer events;
    struct control_reader control;
    struct device *device;
    const struct op_table *ops;
    struct device_profile profile; /* of the plan, where `profiled` */
    bool profiled;
    struct session_memory memory; /* likewise */
    int memory_lock;              /* of host_memory_lock, until it is claimed; or -1 */
    bool fits_alone;              /* api/event.h, of a failure */
    struct plan *plan;
    struct plan_simulation planned;
    double cpu_update_share;
    struct speculation speculation;
    int64_t clipped_steps, redone_steps; /* of this attempt */
    struct comm *comm;
    struct crumb *crumb;
    struct executor *executor;
    struct run_state state;
    int64_t last_saved;   /* newest checkpoint's step, -1 = none */
    int64_t bad_steps;    /* non-finite ones in a row */
    double speed;         /* tokens a second, smoothed */
    double download_told; /* clock of the last download event */
    enum run_end end;
    char request[32]; /* id of the control request that ends the run, or "" */
};

int run_phase(struct run *r, enum event_phase phase, struct err *err);
int run_warn(struct run *r, const char *code, const char *message, struct err *err);

/* gemm_plans.c: the plans of matrix products (kernels/device.h), so that a job's later attempts and
 * the machine's later jobs compute as the first did. Load: this job's file, else the machine's;
 * shapes that neither has are planned by timing from here on. Save: to both, once a step has met
 * its shapes. */
int run_load_gemm_plans(struct run *r, struct err *err);
int run_save_gemm_plans(struct run *r, struct err *err);

/* evaluate.c: losses over the validation set, samples; both as events. No step may be in flight. */
int run_evaluate(struct run *r, struct err *err);
int run_sample(struct run *r, struct err *err);

/* profile_steps.c: a few steps, one of them watched. */
int run_profile(struct run *r, struct err *err);

/* step_loop.c: the training steps of this attempt; sets r->end. */
int run_steps(struct run *r, struct err *err);
/* Queue a step into its slot (step % STEP_SLOTS) with its rows of the data; what it was given. */
struct run_step {
    int64_t tokens, targets;
    double learning_rate;
    bool speculates; /* updates ahead of the norm, if the plan has any */
};
int run_queue_step(struct run *r, int64_t step, struct run_step *out, struct err *err);
/* Note that a request ends the run. */
void run_obey_stop(struct run *r, const struct control *c);
/* Checkpoint now; request = id of what asked for it, or NULL. */
int run_checkpoint(struct run *r, const char *request, struct err *err);

#endif
