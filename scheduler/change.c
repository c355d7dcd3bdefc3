#include "scheduler/change.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "core/hash.h"
#include "scheduler/result.h"
#include "scheduler/store_write.h"

char *change_jobdir(const struct change_context *c, const char *job_id)
{
    return xasprintf("%s/jobs/%s", c->state_dir, job_id);
}

/* Steals data. */
static int add_row(const struct change_context *c, const struct job *job, double t,
                   const char *level, const char *type, json_t *data, struct err *err,
                   const char *fmt, ...) __attribute__((format(printf, 8, 9)));

static int add_row(const struct change_context *c, const struct job *job, double t,
                   const char *level, const char *type, json_t *data, struct err *err,
                   const char *fmt, ...)
{
    struct err clean = {0}; /* makes valid UTF-8 of whatever is quoted */
    va_list args;
    int rc;

    va_start(args, fmt);
    err_setv(&clean, ERR_INVALID, fmt, args);
    va_end(args);
    rc = store_insert_event(c->store, job->id, (int64_t)t, level, type, clean.msg, data, err);
    json_decref(data);
    return rc;
}

int change_created(const struct change_context *c, const struct job *job, struct err *err)
{
    int rc = add_row(c, job, (double)job->created_at, "info", "message", NULL, err,
                     "Created fine-tuning job: %s", job->id);

    if (rc == 0)
        rc = add_row(c, job, (double)job->created_at, "info", "message", NULL, err,
                     "Validating training file: %s",
                     job->spec.training_file.id ? job->spec.training_file.id : "");
    return rc;
}

static void put_real(json_t *object, const char *key, double value)
{
    if (isfinite(value))
        json_object_set_new(object, key, json_real(value));
}

static json_t *memory_json(const struct event_memory *m)
{
    return json_pack("{s:I,s:I,s:I}", "planned_peak", (json_int_t)m->planned_peak, "peak",
                     (json_int_t)m->peak, "now", (json_int_t)m->now);
}

static int step_row(const struct change_context *c, const struct job *job, const struct event *e,
                    struct err *err)
{
    const struct event_step *s = &e->step;
    json_t *data = json_object();
    json_t *memory = json_object();
    json_t *stalls = json_object();

    json_object_set_new(data, "step", json_integer(s->step));
    json_object_set_new(data, "total_steps", json_integer(s->total_steps));
    put_real(data, "train_loss", s->loss);
    put_real(data, "train_mean_token_accuracy", s->accuracy);
    put_real(data, "epoch", s->epoch);
    put_real(data, "learning_rate", s->learning_rate);
    put_real(data, "grad_norm", s->grad_norm);
    json_object_set_new(data, "clipped", json_boolean(s->clipped));
    json_object_set_new(data, "clipped_steps", json_integer(s->clipped_steps));
    json_object_set_new(data, "redone_steps", json_integer(s->redone_steps));
    if (isfinite(s->loss_scale)) {
        put_real(data, "loss_scale", s->loss_scale);
        json_object_set_new(data, "skipped_steps", json_integer(s->skipped_steps));
    }
    json_object_set_new(data, "tokens", json_integer(s->tokens));
    json_object_set_new(data, "trained_tokens", json_integer(s->total_target_tokens));
    put_real(data, "tokens_per_second", s->tokens_per_second);
    put_real(data, "seconds", s->seconds);
    put_real(data, "planned_seconds", s->planned_seconds);
    put_real(data, "bound_seconds", s->bound_seconds);
    put_real(data, "efficiency", s->bound_seconds / s->seconds);
    put_real(data, "update_seconds", s->update_seconds);
    put_real(data, "cpu_update_share", s->cpu_update_share);
    put_real(stalls, "h2d", s->stalls.h2d);
    put_real(stalls, "d2h", s->stalls.d2h);
    put_real(stalls, "disk", s->stalls.disk);
    put_real(stalls, "updates", s->stalls.updates);
    json_object_set_new(data, "stalls", stalls);
    json_object_set_new(memory, "gpu", memory_json(&s->gpu));
    json_object_set_new(memory, "host", memory_json(&s->host));
    json_object_set_new(memory, "nvme", memory_json(&s->nvme));
    json_object_set_new(data, "memory", memory);
    json_object_set_new(data, "links",
                        json_pack("{s:I,s:I,s:I,s:I,s:I}", "h2d", (json_int_t)s->h2d_bytes, "d2h",
                                  (json_int_t)s->d2h_bytes, "disk_read",
                                  (json_int_t)s->disk_read_bytes, "disk_write",
                                  (json_int_t)s->disk_write_bytes, "network",
                                  (json_int_t)s->network_bytes));
    return add_row(c, job, e->t, "info", "metrics", data, err,
                   "Step %" PRId64 "/%" PRId64 ": training loss=%.4f", s->step, s->total_steps,
                   s->loss);
}

static int eval_row(const struct change_context *c, const struct job *job, const struct event *e,
                    struct err *err)
{
    const struct event_eval *v = &e->eval;
    json_t *data = json_object();

    json_object_set_new(data, "step", json_integer(v->step));
    put_real(data, v->full ? "full_valid_loss" : "valid_loss", v->loss);
    put_real(data, v->full ? "full_valid_mean_token_accuracy" : "valid_mean_token_accuracy",
             v->accuracy);
    json_object_set_new(data, "best", json_boolean(v->best));
    return add_row(c, job, e->t, "info", "metrics", data, err,
                   "Step %" PRId64 ": %svalidation loss=%.4f%s", v->step, v->full ? "full " : "",
                   v->loss, v->best ? ", the best so far" : "");
}

static int checkpoint_rows(const struct change_context *c, const struct job *job,
                           const struct event *e, struct err *err)
{
    const struct event_checkpoint *k = &e->checkpoint;
    char *jobdir = change_jobdir(c, job->id);
    char *model = result_model_name(job, c->organization);
    struct store_checkpoint row = {
        .job_id = (char *)job->id,
        .created_at = (int64_t)e->t,
        .step = k->step,
        .metrics = json_object(),
    };
    char random[25];
    int rc = 0;

    hash_random_hex(random, 12);
    row.id = xasprintf("ftckpt_%s", random);
    row.model = xasprintf("%s:ckpt-step-%" PRId64, model, k->step);
    row.path =
        job_dir_checkpoint(jobdir, k->step); /* its place is fixed; the event's is not trusted */
    json_object_set_new(row.metrics, "step", json_integer(k->step));
    put_real(row.metrics, "train_loss", k->train_loss);
    put_real(row.metrics, "train_mean_token_accuracy", k->train_accuracy);
    put_real(row.metrics, "valid_loss", k->valid_loss);
    put_real(row.metrics, "valid_mean_token_accuracy", k->valid_accuracy);
    TRY(store_put_checkpoint(c->store, &row, err));
    if (k->kept) /* the worker removed the others; said in the event, so that a replay is exact */
        TRY(store_keep_checkpoints(c->store, job->id, k->step, k->kept, err));
    TRY(add_row(c, job, e->t, "info", "message", json_incref(row.metrics), err,
                "Checkpoint created at step %" PRId64, k->step));
out:
    json_decref(row.metrics);
    free(row.id);
    free(row.model);
    free(row.path);
    free(model);
    free(jobdir);
    return rc;
}

static int event_rows(const struct change_context *c, const struct job *job, const struct event *e,
                      struct err *err)
{
    switch (e->type) {
    case EVENT_PHASE:
        return add_row(c, job, e->t, "info", "message",
                       json_pack("{s:s}", "phase", event_phase_name(e->phase)), err, "Phase: %s",
                       event_phase_name(e->phase));
    case EVENT_PLAN:
        return add_row(c, job, e->t, "info", "message",
                       json_pack("{s:O?}", "memory", json_object_get(e->plan, "memory")), err,
                       "Plan made: %" PRId64 " steps",
                       (int64_t)json_integer_value(json_object_get(e->plan, "steps")));
    case EVENT_STEP:
        return step_row(c, job, e, err);
    case EVENT_EVAL:
        return eval_row(c, job, e, err);
    case EVENT_SAMPLE:
        return add_row(c, job, e->t, "info", "message",
                       json_pack("{s:I,s:I,s:s,s:s}", "step", (json_int_t)e->sample.step,
                                 "prompt_index", (json_int_t)e->sample.prompt_index, "prompt",
                                 e->sample.prompt, "completion", e->sample.completion),
                       err, "Sample at step %" PRId64, e->sample.step);
    case EVENT_CHECKPOINT:
        return checkpoint_rows(c, job, e, err);
    case EVENT_WARNING:
        return add_row(c, job, e->t, "warn", "message", json_pack("{s:s}", "code", e->warning.code),
                       err, "%s", e->warning.message);
    default: /* downloads are progress; the final ones show as a change of status */
        return 0;
    }
}

static int status_row(const struct change_context *c, const struct job *job, enum job_status before,
                      double t, struct err *err)
{
    json_t *data = json_pack("{s:s,s:I}", "status", job_status_name(job->status), "attempt",
                             (json_int_t)job->attempt);
    const char *level = job->status == JOB_FAILED ? "error" : "info";
    char text[128];
    const char *message = text;

    switch (job->status) {
    case JOB_QUEUED:
        message = before == JOB_VALIDATING ? "Files validated, moving job to queued state"
                  : before == JOB_PAUSED   ? "Job resumed and queued"
                                           : "The attempt ended early; the job is queued again";
        break;
    case JOB_RUNNING:
        message = "Fine-tuning job started";
        if (job->attempt > 1) {
            snprintf(text, sizeof(text), "Fine-tuning job started again, attempt %" PRId64,
                     job->attempt);
            message = text;
        }
        break;
    case JOB_PAUSED:
        snprintf(text, sizeof(text), "Job paused at step %" PRId64, job->step);
        break;
    case JOB_SUCCEEDED:
        message = "The job has successfully completed";
        break;
    case JOB_FAILED:
        message = job->error_message;
        json_object_set_new(data, "code", json_string(job->error_code));
        break;
    case JOB_CANCELLED:
        message = "Job cancelled";
        break;
    case JOB_VALIDATING:
        message = "Validating files";
        break;
    }
    return add_row(c, job, t, level, "message", data, err, "%s", message);
}

static int waits_row(const struct change_context *c, const struct job *job, const struct event *e,
                     struct err *err)
{
    json_t *data = json_pack("{s:s,s:I,s:s}", "status", job_status_name(job->status), "attempt",
                             (json_int_t)job->attempt, "code", "waits_for_memory");

    return add_row(
        c, job, e->t, "warn", "message", data, err,
        "Waiting for memory that other processes hold: with the machine to itself the job "
        "fits. It is started again when another job has ended, or else after some minutes, more "
        "of them each time. Refused now: %s",
        e->failed.message);
}

static int no_slot_row(const struct change_context *c, const struct job *job,
                       const struct job_input *in, struct err *err)
{
    json_t *data = json_pack("{s:s,s:I,s:s}", "status", job_status_name(job->status), "attempt",
                             (json_int_t)job->attempt, "code", in->error_code);

    return add_row(c, job, in->t, "warn", "message", data, err,
                   "Waiting for a slot that this server does not have: %s. The job stays queued "
                   "until there is one, or it is cancelled",
                   in->error_message);
}

/* The result file and the model. The file lies on disk before its row; its name is the job's, so a
 * change that is repeated writes the same file again. */
static int succeed(const struct change_context *c, struct job *job, double t, struct err *err)
{
    char *jobdir = change_jobdir(c, job->id);
    char *file_id = result_file_id(job);
    char *model = result_model_name(job, c->organization);
    struct store_file file = {
        .id = file_id,
        .filename = "step_metrics.csv",
        .purpose = "fine-tune-results",
        .status = "processed",
        .job_id = job->id,
        .created_at = (int64_t)t,
    };
    struct store_model row = {
        .id = model, .job_id = job->id, .base = job->spec.model.name, .created_at = (int64_t)t};
    struct buf csv = {0};
    int rc = 0;

    file.path = xasprintf("%s/files/%s", c->state_dir, file_id);
    row.path = job_dir_output(jobdir);
    TRY(result_csv(c->store, job->id, &csv, err));
    TRY(fs_write_file_atomic(file.path, buf_str(&csv), csv.len, err));
    file.bytes = (int64_t)csv.len;
    TRY(store_put_file(c->store, &file, err));
    TRY(store_put_model(c->store, &row, err));
    job->result_file = file_id;
    job->fine_tuned_model = model;
    file_id = NULL;
    model = NULL;
out:
    buf_fini(&csv);
    free(file.path);
    free(row.path);
    free(file_id);
    free(model);
    free(jobdir);
    return rc;
}

int change_apply(const struct change_context *c, struct job *job, const struct job_input *in,
                 struct err *err)
{
    bool asked_before = job->cancel_requested || job->pause_requested || job->timed_out;
    enum job_status before = job->status;
    int rc = 0;

    if (in->kind == JOB_OCC_EVENT && in->attempt != job->attempt)
        return 0;
    TRY(job_apply(job, in, err));
    if (in->kind == JOB_OCC_EVENT)
        TRY(event_rows(c, job, in->event, err));
    if (in->kind == JOB_OCC_NO_SLOT)
        TRY(no_slot_row(c, job, in, err));
    if (!asked_before && (job->cancel_requested || job->pause_requested || job->timed_out))
        TRY(add_row(c, job, in->t, "info", "message", NULL, err, "%s",
                    job->cancel_requested  ? "Cancellation requested"
                    : job->pause_requested ? "Pause requested"
                                           : "The time limit is over; stopping"));
    if (job->status != before && job->status == JOB_SUCCEEDED)
        TRY(succeed(c, job, in->t, err));
    if (job->status != before && job->waits_for_memory)
        TRY(waits_row(c, job, in->event, err));
    else if (job->status != before)
        TRY(status_row(c, job, before, in->t, err));
out:
    return rc;
}
