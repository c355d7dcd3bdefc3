#include "scheduler/job.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "api/record.h"
#include "core/alloc.h"

static const char *const status_words[] = {
    [JOB_VALIDATING] = "validating_files",
    [JOB_QUEUED] = "queued",
    [JOB_RUNNING] = "running",
    [JOB_PAUSED] = "paused",
    [JOB_SUCCEEDED] = "succeeded",
    [JOB_FAILED] = "failed",
    [JOB_CANCELLED] = "cancelled",
    NULL,
};

const char *job_status_name(enum job_status status)
{
    return status_words[status];
}

bool job_status_is_final(enum job_status status)
{
    return status == JOB_SUCCEEDED || status == JOB_FAILED || status == JOB_CANCELLED;
}

/* event_phase_name's words, for the state's JSON. */
static const char *const phase_words[] = {"resolving",     "downloading", "loading",
                                          "compiling",     "training",    "evaluating",
                                          "checkpointing", "exporting",   NULL};

#define AT(member) offsetof(struct job, member)
#define INT(path, member)                                                                          \
    {                                                                                              \
        path, RECORD_INT, AT(member)                                                               \
    }
#define REAL(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_REAL, AT(member), .initial = NAN                                              \
    }
#define TIME(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_REAL, AT(member)                                                              \
    }
#define BOOL(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_BOOL, AT(member)                                                              \
    }
#define TEXT(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_STRING, AT(member)                                                            \
    }

/* clang-format off */
static const struct record_field state_fields[] = {
    INT("created_at", created_at), INT("started_at", started_at), INT("finished_at", finished_at),
    {"status", RECORD_WORD, AT(status), .words = status_words},
    INT("attempt", attempt), BOOL("attempt_live", attempt_live), INT("slot", slot),
    BOOL("waits_for_memory", waits_for_memory), BOOL("told_no_slot", told_no_slot),
    INT("restarts", restarts),
    TIME("attempt_started_at", attempt_started_at),
    TIME("run_seconds", run_seconds), BOOL("cancel_requested", cancel_requested),
    BOOL("pause_requested", pause_requested), BOOL("timed_out", timed_out),
    TIME("stop_asked_at", stop_asked_at),
    {"control_id", RECORD_CHARS, AT(control_id), .cap = 32},
    {"phase", RECORD_WORD, AT(phase), .words = phase_words}, BOOL("has_phase", has_phase),
    TEXT("fine_tuned_model", fine_tuned_model), TEXT("result_file", result_file),
    TEXT("error.code", error_code), TEXT("error.message", error_message),
    TEXT("error.param", error_param),
    INT("step", step), INT("total_steps", total_steps), INT("trained_tokens", trained_tokens),
    REAL("epoch", epoch), REAL("train_loss", train_loss), REAL("train_accuracy", train_accuracy),
    REAL("valid_loss", valid_loss), REAL("valid_accuracy", valid_accuracy),
    REAL("tokens_per_second", tokens_per_second), REAL("seconds_remaining", seconds_remaining),
    INT("bytes_done", bytes_done), INT("bytes_total", bytes_total),
    INT("checkpoints_total", checkpoints_total), INT("tail_offset", tail_offset),
};
/* clang-format on */
enum { N_STATE = sizeof(state_fields) / sizeof(state_fields[0]) };

void job_init(struct job *job)
{
    memset(job, 0, sizeof(*job));
    record_init(state_fields, N_STATE, job);
}

void job_fini(struct job *job)
{
    record_fini(state_fields, N_STATE, job);
    job_spec_fini(&job->spec);
    json_decref(job->plan);
    memset(job, 0, sizeof(*job));
}

void job_copy(struct job *to, const struct job *from)
{
    struct job copy = *from;

    for (size_t i = 0; i < N_STATE; i++) {
        char **text = (char **)((char *)&copy + state_fields[i].offset);
        if (state_fields[i].kind == RECORD_STRING && *text)
            *text = xstrdup(*text);
    }
    job_spec_copy(&copy.spec, &from->spec);
    copy.plan =
        from->plan ? json_deep_copy(from->plan) : NULL; /* reference counts are not atomic */
    *to = copy;
}

json_t *job_state_to_json(const struct job *job)
{
    json_t *state = json_object();

    record_write(state_fields, N_STATE, job, state);
    return state;
}

int job_state_from_json(const json_t *state, struct job *job, struct err *err)
{
    struct job fresh;
    int rc;

    job_init(&fresh);
    rc = record_read(state_fields, N_STATE, state, &fresh, err);
    if (rc != 0) {
        job_fini(&fresh);
        return rc;
    }
    memcpy(fresh.id, job->id, sizeof(fresh.id));
    fresh.spec = job->spec;
    fresh.plan = job->plan;
    record_fini(state_fields, N_STATE, job);
    *job = fresh;
    return 0;
}

static void set_text(char **text, const char *value)
{
    free(*text);
    *text = value ? xstrdup(value) : NULL;
}

static void finish(struct job *job, enum job_status status, double t)
{
    job->status = status;
    job->finished_at = (int64_t)t;
    job->has_phase = false;
    job->waits_for_memory = false;
}

static void fail(struct job *job, double t, const char *code, const char *message,
                 const char *param)
{
    finish(job, JOB_FAILED, t);
    set_text(&job->error_code, code ? code : "internal");
    set_text(&job->error_message, message ? message : "the job failed");
    set_text(&job->error_param, param);
}

static void fail_timed_out(struct job *job, double t)
{
    fail(job, t, "timeout",
         "the job ran longer than scheduling.max_runtime_seconds; raise that limit, or train fewer "
         "steps",
         "scheduling.max_runtime_seconds");
}

static int conflict(const struct job *job, const char *verb, struct err *err)
{
    int rc = err_set(err, ERR_CONFLICT, "Job %s cannot be %s: its status is %s.", job->id, verb,
                     status_words[job->status]);
    return err_set_reason(err, rc, "invalid_state");
}

/* Of data on the hub the child says which commit it found, and whether it is the converter's copy.
 */
static void take_commit(struct spec_file *mine, struct spec_file *planned)
{
    const char *commit = planned->commit ? planned->commit : "";

    if (!mine->repo || strlen(commit) != 40 || strspn(commit, "0123456789abcdef") != 40)
        return;
    free(mine->commit);
    mine->commit = xstrdup(commit);
    if (planned->revision && strcmp(planned->revision, "refs/convert/parquet") == 0) {
        free(mine->revision);
        mine->revision = xstrdup(planned->revision);
    }
}

/* The plan comes from a child process that read what strangers wrote: what identifies the job and
 * what the client fixed stays as it was. */
static void take_plan(struct job *job, const struct plan_report *plan)
{
    struct job_spec spec;
    json_t *report;

    job_spec_copy(&spec, &plan->spec);
    memcpy(spec.id, job->spec.id, sizeof(spec.id));
    spec.created_at = job->spec.created_at;
    spec.seed = job->spec.seed;
    spec.scheduling = job->spec.scheduling;
    if (job->spec.resources.device == DEVICE_ONLY_CPU)
        spec.resources.device = DEVICE_ONLY_CPU;
#define KEEP(member)                                                                               \
    do {                                                                                           \
        __typeof__(spec.member) old_ = spec.member;                                                \
        spec.member = job->spec.member;                                                            \
        job->spec.member = old_;                                                                   \
    } while (0)
    KEEP(model.name);
    KEEP(model.repo);
    KEEP(model.revision);
    KEEP(model.path);
    KEEP(training_file);
    KEEP(validation_file);
    KEEP(hub);
    KEEP(suffix);
    KEEP(metadata);
#undef KEEP
    take_commit(&spec.training_file, &job->spec.training_file);
    take_commit(&spec.validation_file, &job->spec.validation_file);
    job_spec_fini(&job->spec);
    job->spec = spec;
    report = plan_report_to_json(plan);
    json_object_del(report, "spec");
    json_decref(job->plan);
    job->plan = report;
    job->total_steps = plan->steps;
}

/* The attempt is over, and the job is not unless that was asked for. */
static void queue_again(struct job *job, double t)
{
    if (job->cancel_requested)
        finish(job, JOB_CANCELLED, t);
    else
        job->status = JOB_QUEUED;
    job->has_phase = false;
}

static void stopped(struct job *job, const struct event *e, double t)
{
    if (job->timed_out) {
        fail_timed_out(job, t);
        return;
    }
    switch (e->stopped.reason) {
    case STOP_CANCELLED:
        finish(job, JOB_CANCELLED, t);
        return;
    case STOP_PAUSED:
        job->status = JOB_PAUSED;
        job->pause_requested = false;
        job->control_id[0] = '\0';
        job->has_phase = false;
        break;
    case STOP_PREEMPTED:
        queue_again(job, t);
        break;
    }
}

static void failed(struct job *job, const struct event *e, double t)
{
    if (!e->failed.fits_alone) {
        fail(job, t, e->failed.reason, e->failed.message, e->failed.param);
    } else if (job->timed_out) {
        fail_timed_out(job, t);
    } else {
        queue_again(job, t);
        job->waits_for_memory = job->status == JOB_QUEUED;
    }
}

static void take_progress(struct job *job, const struct event *e)
{
    switch (e->type) {
    case EVENT_PHASE:
        job->phase = e->phase;
        job->has_phase = true;
        break;
    case EVENT_DOWNLOAD:
        job->bytes_done = e->download.total_bytes_done;
        job->bytes_total = e->download.total_bytes_total;
        break;
    case EVENT_STEP:
        job->step = e->step.step;
        if (e->step.total_steps > 0)
            job->total_steps = e->step.total_steps;
        job->trained_tokens = e->step.total_target_tokens;
        job->epoch = e->step.epoch;
        job->train_loss = e->step.loss;
        job->train_accuracy = e->step.accuracy;
        job->tokens_per_second = e->step.tokens_per_second;
        job->seconds_remaining = e->step.seconds_remaining;
        break;
    case EVENT_EVAL:
        job->valid_loss = e->eval.loss;
        job->valid_accuracy = e->eval.accuracy;
        break;
    case EVENT_CHECKPOINT:
        job->checkpoints_total++;
        break;
    default:
        break;
    }
}

static void take_event(struct job *job, const struct event *e, double t)
{
    if (job->status == JOB_VALIDATING && e->type == EVENT_DOWNLOAD)
        take_progress(job, e);
    if (job->status != JOB_RUNNING)
        return; /* behind a final event there is nothing to believe */
    switch (e->type) {
    case EVENT_STOPPED:
        stopped(job, e, t);
        break;
    case EVENT_FINISHED:
        job->trained_tokens = e->finished.trained_tokens;
        job->seconds_remaining = 0;
        finish(job, JOB_SUCCEEDED, t);
        break;
    case EVENT_FAILED:
        failed(job, e, t);
        break;
    default:
        take_progress(job, e);
    }
}

static void attempt_ended(struct job *job, const struct job_input *in)
{
    if (!job->attempt_live)
        return;
    job->attempt_live = false;
    if (in->t > job->attempt_started_at && !job->waits_for_memory)
        job->run_seconds += in->t - job->attempt_started_at;
    if (job->status != JOB_RUNNING)
        return;
    job->has_phase = false;
    if (job->cancel_requested) {
        finish(job, JOB_CANCELLED, in->t);
    } else if (job->timed_out) {
        fail_timed_out(job, in->t);
    } else if (job->restarts < job->spec.scheduling.max_restarts) {
        job->restarts++;
        job->status = JOB_QUEUED;
    } else {
        fail(job, in->t, in->error_code, in->error_message, in->error_param);
    }
}

static void ask_to_stop(struct job *job, const struct job_input *in)
{
    size_t n = in->control_id ? strnlen(in->control_id, sizeof(job->control_id) - 1) : 0;

    memcpy(job->control_id, in->control_id ? in->control_id : "", n);
    job->control_id[n] = '\0';
}

static int cancel(struct job *job, const struct job_input *in, struct err *err)
{
    switch (job->status) {
    case JOB_VALIDATING:
    case JOB_QUEUED:
    case JOB_PAUSED:
        finish(job, JOB_CANCELLED, in->t);
        return 0;
    case JOB_RUNNING:
        if (job->cancel_requested)
            return 0;
        job->cancel_requested = true;
        job->stop_asked_at = in->t;
        ask_to_stop(job, in);
        return 0;
    case JOB_CANCELLED:
        return 0;
    default:
        return conflict(job, "cancelled", err);
    }
}

static int pause_job(struct job *job, const struct job_input *in, struct err *err)
{
    if (job->status == JOB_PAUSED || (job->status == JOB_RUNNING && job->pause_requested))
        return 0;
    if (job->status != JOB_RUNNING || job->cancel_requested || job->timed_out)
        return conflict(job, "paused", err);
    job->pause_requested = true;
    ask_to_stop(job, in);
    return 0;
}

static void start(struct job *job, const struct job_input *in)
{
    job->status = JOB_RUNNING;
    job->attempt = in->attempt;
    job->attempt_live = true;
    job->waits_for_memory = false;
    job->told_no_slot = false;
    job->slot = in->slot;
    job->attempt_started_at = in->t;
    job->tail_offset = 0;
    job->has_phase = false;
    if (job->started_at == 0)
        job->started_at = (int64_t)in->t;
}

int job_apply(struct job *job, const struct job_input *in, struct err *err)
{
    switch (in->kind) {
    case JOB_OCC_VALIDATED:
        if (job->status != JOB_VALIDATING)
            return conflict(job, "queued after validation", err);
        take_plan(job, in->plan);
        job->status = JOB_QUEUED;
        return 0;
    case JOB_OCC_INVALID:
        if (job->status != JOB_VALIDATING)
            return conflict(job, "failed by validation", err);
        fail(job, in->t, in->error_code, in->error_message, in->error_param);
        return 0;
    case JOB_OCC_STARTED:
        if (job->status != JOB_QUEUED || job->attempt_live || in->attempt <= job->attempt)
            return conflict(job, "started", err);
        start(job, in);
        return 0;
    case JOB_OCC_EVENT:
        if (in->attempt == job->attempt)
            take_event(job, in->event, in->t);
        return 0;
    case JOB_OCC_ATTEMPT_ENDED:
        if (in->attempt == job->attempt)
            attempt_ended(job, in);
        return 0;
    case JOB_OCC_CANCEL:
        return cancel(job, in, err);
    case JOB_OCC_PAUSE:
        return pause_job(job, in, err);
    case JOB_OCC_RESUME:
        if (job->status != JOB_PAUSED)
            return conflict(job, "resumed", err);
        job->status = JOB_QUEUED;
        return 0;
    case JOB_OCC_NO_SLOT:
        if (job->status != JOB_QUEUED)
            return conflict(job, "told that it has no slot", err);
        job->told_no_slot = true;
        return 0;
    case JOB_OCC_TIMEOUT:
        if (job->status != JOB_RUNNING || job->timed_out || job->cancel_requested)
            return 0;
        job->timed_out = true;
        job->stop_asked_at = in->t;
        ask_to_stop(job, in);
        return 0;
    case JOB_OCC_COUNT:
        break;
    }
    assert(!"no such occurrence");
    return ERR_INTERNAL;
}
