/*
 * A job's state, and the pure function that changes it.
 *
 *   validating_files -> queued -> running -> succeeded | failed | cancelled
 *                                 running -> paused -> queued
 *                                 running -> queued (preempted, restarted after a crash, or
 *                                                    refused for memory that others hold)
 *
 * The final event of an attempt decides the status; its processes may live a little longer. While
 * attempt_live is set they may, so the job keeps its device slot and no other attempt starts.
 *
 * An attempt that failed for memory that other processes hold (event_failed.fits_alone) is
 * "not now": the job is queued again and waits_for_memory. It is no restart, its time does not
 * count as run time, and however often it happens the job does not fail by it. When such a job may
 * start again is the scheduler's to say (scheduler.h).
 *
 * Job state is the fold of what happened: job_apply takes the state and one occurrence and returns
 * the next state; it reads no clock, file or database, so replaying the same occurrences gives the
 * same state, and every transition is tested by a table. What the new state *requires* (start a
 * child, send a request) is decided by the scheduler from the state alone and is idempotent.
 */
#ifndef CASTOR_SCHEDULER_JOB_H
#define CASTOR_SCHEDULER_JOB_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/event.h"
#include "api/job_spec.h"
#include "api/plan_report.h"
#include "core/err.h"

enum job_status {
    JOB_VALIDATING,
    JOB_QUEUED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_SUCCEEDED,
    JOB_FAILED,
    JOB_CANCELLED,
};

const char *job_status_name(enum job_status status); /* OpenAI's words: "validating_files", ... */
bool job_status_is_final(enum job_status status);

struct job {
    char id[JOB_ID_MAX];
    struct job_spec spec;                        /* as created; resolved after validation */
    json_t *plan;                                /* the plan report without its spec, or NULL */
    int64_t created_at, started_at, finished_at; /* Unix seconds, 0 = not yet */
    enum job_status status;
    int64_t attempt;       /* the current or last one, 0 = none */
    bool attempt_live;     /* its processes have not been seen to be gone */
    bool waits_for_memory; /* since its last attempt was refused; until the next one starts */
    bool told_no_slot;     /* that its server has none of its kind; until an attempt starts */
    int64_t slot;          /* device slot of the live attempt, from 0 */
    int64_t restarts;      /* attempts that died without a final event and were followed by one */
    double attempt_started_at; /* Unix seconds */
    double run_seconds;        /* of all earlier attempts together */
    bool cancel_requested, pause_requested;
    bool timed_out;       /* max_runtime_seconds is over; ends as a failure */
    double stop_asked_at; /* when cancel or the time limit asked the attempt to end; 0 = not */
    char control_id[32];  /* the request in control.jsonl that answers the above, "" = none */
    enum event_phase phase;
    bool has_phase;
    char *fine_tuned_model;                         /* "ft:..." on success, else NULL */
    char *result_file;                              /* file id, else NULL              */
    char *error_code, *error_message, *error_param; /* NULL unless failed */
    /* progress: the newest step event */
    int64_t step, total_steps, trained_tokens;
    double epoch, train_loss, train_accuracy, valid_loss, valid_accuracy; /* NaN = none */
    double tokens_per_second, seconds_remaining;
    int64_t bytes_done, bytes_total; /* of the download */
    int64_t checkpoints_total;
    int64_t tail_offset;    /* bytes of the current attempt's events already folded */
    int64_t queue_position; /* 1 = next; 0 when not queued; computed on read */
};

/* No progress, no spec: NaN and zero. */
void job_init(struct job *job);
void job_fini(struct job *job);
/* A deep copy; *to is overwritten without being freed. */
void job_copy(struct job *to, const struct job *from);

/* The scalar state as one JSON object (without id, spec and plan), and back. */
json_t *job_state_to_json(const struct job *job);
int job_state_from_json(const json_t *state, struct job *job, struct err *err);

/* What can happen to a job. */
enum job_occurrence {
    JOB_OCC_VALIDATED,     /* plan report with fits == true                   */
    JOB_OCC_INVALID,       /* plan report with an error, or the child died     */
    JOB_OCC_STARTED,       /* an attempt's supervisor runs                     */
    JOB_OCC_EVENT,         /* one line of events.jsonl; a download while validating */
    JOB_OCC_ATTEMPT_ENDED, /* the supervisor is gone; with or without exit.json */
    JOB_OCC_CANCEL,        /* requested by a client                            */
    JOB_OCC_PAUSE,
    JOB_OCC_RESUME,
    JOB_OCC_NO_SLOT, /* it is queued, and this castord has no slot of its kind */
    JOB_OCC_TIMEOUT, /* scheduling.max_runtime_seconds is over     */
    JOB_OCC_COUNT,
};

struct job_input {
    enum job_occurrence kind;
    double t;
    int64_t attempt; /* STARTED, EVENT, ATTEMPT_ENDED: another attempt's are ignored */
    int64_t slot;    /* STARTED */
    const struct plan_report *plan; /* VALIDATED */
    const struct event *event;      /* EVENT     */
    const char *control_id;         /* CANCEL, PAUSE, TIMEOUT: id of the request to post */
    const char *error_code, *error_message,
        *error_param; /* INVALID, ATTEMPT_ENDED (cause of death), NO_SLOT */
};

/* Apply one occurrence. ERR_CONFLICT (state unchanged) when the state does not allow it, e.g.
 * resume of a job that is not paused; cancel of a cancelled job is fine and changes nothing. */
int job_apply(struct job *job, const struct job_input *in, struct err *err);

#endif
