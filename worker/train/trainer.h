/*
 * The trainer: one attempt of a job on one rank, from spec.json to output/. It resumes from the
 * newest checkpoint, reports by events, obeys control.jsonl at step boundaries, and on SIGTERM
 * checkpoints and stops.
 */
#ifndef CASTOR_WORKER_TRAIN_TRAINER_H
#define CASTOR_WORKER_TRAIN_TRAINER_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/job_spec.h"
#include "core/err.h"
#include "kernels/device.h"
#include "worker/plan/profile.h"

struct trainer_options {
    const char *jobdir;
    int64_t attempt, rank;
    int64_t steps_in_flight; /* 1 or 2; 0 = what suits the device. Changes no result, only when the
                                result of a step is looked at */
    const volatile sig_atomic_t *terminate; /* set by the signal handler */
    bool
        profile; /* some steps only: print step_profile.h's table on stdout and stop as cancelled */
};

/* Writes a final event (finished, stopped or failed) whatever happens; the error is also returned.
 */
int trainer_run(const struct trainer_options *options, struct err *err);

/* The device a spec asks for: the GPU when there is one, else the CPU. */
int trainer_open_device(const struct job_spec *spec, struct device **out, struct err *err);
/* Its op table for spec.precision.compute. */
struct op_table;
int trainer_pick_ops(struct device *d, const struct job_spec *spec, const struct op_table **out,
                     struct err *err);
/* Device memory that a plan may use, whatever limit the job has: of `all` bytes, when `left` are
 * free. Never 0, which session_memory takes for no limit. */
size_t trainer_limit(enum device_kind kind, size_t all, size_t left);
/* Likewise of a device that nobody else uses: as its profile has found it. */
size_t trainer_limit_alone(enum device_kind kind, const struct device_profile *p);
int trainer_device_limit(struct device *d, size_t *limit, struct err *err);

#endif
