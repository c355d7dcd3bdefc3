/*
 * Events: what a running attempt tells the world, one JSON line each in attempt-N/events.jsonl,
 * appended by rank 0 alone:
 *   {"v":1,"seq":12,"attempt":1,"t":1763848337.123,"type":"step", ...members of the type...}
 * seq counts from 1 within an attempt, without gaps. Job state is the fold of these events, so
 * every type says what happened, never what state to take. A reader skips types it does not know.
 *
 * Bytes are int64_t, times seconds, losses mean negative log-likelihood in nats per target token. A
 * double that is NaN is absent in JSON.
 */
#ifndef CASTOR_API_EVENT_H
#define CASTOR_API_EVENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"

enum event_type {
    EVENT_PHASE,
    EVENT_DOWNLOAD,
    EVENT_PLAN,
    EVENT_STEP,
    EVENT_EVAL,
    EVENT_SAMPLE,
    EVENT_CHECKPOINT,
    EVENT_WARNING,
    EVENT_STOPPED,  /* on request; the attempt ends */
    EVENT_FINISHED, /* success; the attempt ends    */
    EVENT_FAILED,   /* the attempt ends             */
};

/* What the attempt is doing. */
enum event_phase {
    PHASE_RESOLVING, /* references to commits       */
    PHASE_DOWNLOADING,
    PHASE_LOADING,   /* files to memory             */
    PHASE_COMPILING, /* planning, tuning, warm-up */
    PHASE_TRAINING,
    PHASE_EVALUATING,
    PHASE_CHECKPOINTING,
    PHASE_EXPORTING,
};

enum stop_reason { STOP_CANCELLED, STOP_PAUSED, STOP_PREEMPTED };

struct event_download {
    const char *file;
    int64_t bytes_done, bytes_total;             /* of this file           */
    int64_t total_bytes_done, total_bytes_total; /* of the whole download  */
};

/* One link's traffic or one tier's occupancy, planned and measured. */
struct event_memory {
    int64_t planned_peak, peak, now; /* bytes */
};

/* Seconds of a step in which a device stood still. Of h2d, the other two say why fetches waited;
 * an update that waits for the disk is the disk's. */
struct event_stalls {
    double h2d, d2h; /* for what comes from host memory, leaves the device */
    double disk;     /* for what is on the disk, or has to go there first  */
    double updates;  /* for the CPU's work on an update                    */
};

struct event_step {
    int64_t step, total_steps; /* step counts from 1 */
    double epoch;              /* share of the data seen: 1.25 = a quarter into the second pass */
    double loss;               /* of this step, before its update */
    double accuracy;           /* share of target tokens predicted by argmax */
    double grad_norm;          /* global L2, before clipping */
    bool clipped;
    int64_t
        clipped_steps;    /* of this attempt so far; in redone_steps of them updates that had run */
    int64_t redone_steps; /* ahead of the norm were done again */
    double loss_scale;    /* behind this step; NaN = losses are not scaled */
    int64_t skipped_steps; /* so far, for gradients that overflowed */
    double learning_rate;
    int64_t tokens;        /* input tokens of this step, padding not counted */
    int64_t target_tokens; /* those with a loss */
    int64_t total_target_tokens;
    double seconds; /* wall time of this step    */
    /* Of the plan report, step_seconds or, where this step's updates waited for the norm,
     * step_seconds_clipped; and its bound, what no order of the same work takes less than: T*. */
    double planned_seconds, bound_seconds;
    double tokens_per_second; /* tokens / seconds          */
    double seconds_remaining; /* estimate for the whole job */
    struct event_memory gpu, host, nvme;
    int64_t h2d_bytes, d2h_bytes, disk_read_bytes, disk_write_bytes, network_bytes;
    struct event_stalls stalls;
    double update_seconds;   /* that threads spent on updates in host memory               */
    double cpu_update_share; /* of the trained parameters: updated there, not on the device */
};

struct event_eval {
    int64_t step;
    double loss, accuracy;
    int64_t target_tokens;
    bool full; /* the whole validation set */
    bool best; /* lowest loss so far        */
};

struct event_sample {
    int64_t step;
    int64_t prompt_index;
    const char *prompt, *completion;
};

struct event_checkpoint {
    int64_t step;
    const char *path; /* relative to the job directory */
    int64_t bytes;
    double seconds;
    double train_loss, train_accuracy, valid_loss, valid_accuracy; /* newest known, NaN = none */
    const char *request; /* id of the control request it answers, or NULL */
    const json_t *kept;  /* array: the steps of all checkpoints there are now; NULL = not said */
};

struct event_failed {
    enum err_code code;
    const char
        *reason; /* machine-readable: "invalid_training_file", "nan_loss", "worker_crashed", ... */
    const char *message;
    const char *param; /* or NULL */
    /* The attempt lacked memory, of the host or the GPU, that other processes held as it started,
     * and nothing else: on a machine to itself it would have trained. It has done nothing, and the
     * job can be tried again when they are gone. A reader that cannot wait takes it for any other
     * failure. */
    bool fits_alone;
};

struct event {
    int64_t seq, attempt;
    double t;
    enum event_type type;
    union {
        enum event_phase phase;
        struct event_download download;
        const json_t *plan; /* the plan report, api/plan_report.h */
        struct event_step step;
        struct event_eval eval;
        struct event_sample sample;
        struct event_checkpoint checkpoint;
        struct {
            const char *code, *message;
        } warning;
        struct {
            enum stop_reason reason;
            const char *request;     /* control id, or NULL */
            int64_t step;            /* the last one done    */
            int64_t checkpoint_step; /* what a later attempt resumes from, -1 = nothing */
        } stopped;
        struct {
            int64_t steps, trained_tokens;
            const char *output; /* relative to the job directory */
            double train_loss, valid_loss;
        } finished;
        struct event_failed failed;
    };
};

/* Strings of an event parsed from JSON are borrowed from that JSON value. A type that is not known
 * here is ERR_UNSUPPORTED: skip the line. Any other error: the line is not an event. */
json_t *event_to_json(const struct event *event);
int event_from_json(const json_t *line, struct event *out, struct err *err);
const char *event_type_name(enum event_type type);
const char *event_phase_name(enum event_phase phase);

#endif
