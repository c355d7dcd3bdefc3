#include "api/event.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "api/record.h"

static const char *const type_words[] = {
    [EVENT_PHASE] = "phase",
    [EVENT_DOWNLOAD] = "download",
    [EVENT_PLAN] = "plan",
    [EVENT_STEP] = "step",
    [EVENT_EVAL] = "eval",
    [EVENT_SAMPLE] = "sample",
    [EVENT_CHECKPOINT] = "checkpoint",
    [EVENT_WARNING] = "warning",
    [EVENT_STOPPED] = "stopped",
    [EVENT_FINISHED] = "finished",
    [EVENT_FAILED] = "failed",
    NULL,
};

static const char *const phase_words[] = {
    [PHASE_RESOLVING] = "resolving",
    [PHASE_DOWNLOADING] = "downloading",
    [PHASE_LOADING] = "loading",
    [PHASE_COMPILING] = "compiling",
    [PHASE_TRAINING] = "training",
    [PHASE_EVALUATING] = "evaluating",
    [PHASE_CHECKPOINTING] = "checkpointing",
    [PHASE_EXPORTING] = "exporting",
    NULL,
};

static const char *const stop_words[] = {
    [STOP_CANCELLED] = "cancelled",
    [STOP_PAUSED] = "paused",
    [STOP_PREEMPTED] = "preempted",
    NULL,
};

#define AT(member) offsetof(struct event, member)
#define INT(path, member)                                                                          \
    {                                                                                              \
        path, RECORD_INT, AT(member)                                                               \
    }
#define NEED_INT(path, member)                                                                     \
    {                                                                                              \
        path, RECORD_INT, AT(member), .flags = RECORD_REQUIRED                                     \
    }
#define REAL(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_REAL, AT(member), .initial = NAN                                              \
    }
#define BOOL(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_BOOL, AT(member)                                                              \
    }
#define TEXT(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_BORROWED, AT(member)                                                          \
    }
#define NEED_TEXT(path, member)                                                                    \
    {                                                                                              \
        path, RECORD_BORROWED, AT(member), .flags = RECORD_REQUIRED                                \
    }
#define MEMORY(path, member)                                                                       \
    INT(path ".planned_peak", member.planned_peak), INT(path ".peak", member.peak),                \
        INT(path ".now", member.now)

static const struct record_field head_fields[] = {
    {"seq", RECORD_INT, AT(seq), .min = 1, .max = 9007199254740992.0, .flags = RECORD_REQUIRED},
    {"attempt", RECORD_INT, AT(attempt), .min = 1, .max = 1e9, .flags = RECORD_REQUIRED},
    {"t", RECORD_REAL, AT(t), .min = 0, .max = 1e11, .flags = RECORD_REQUIRED},
};
static const struct record_field phase_fields[] = {
    {"phase", RECORD_WORD, AT(phase), .words = phase_words, .flags = RECORD_REQUIRED},
};
static const struct record_field download_fields[] = {
    TEXT("file", download.file),
    INT("bytes_done", download.bytes_done),
    INT("bytes_total", download.bytes_total),
    INT("total_bytes_done", download.total_bytes_done),
    INT("total_bytes_total", download.total_bytes_total),
};
static const struct record_field step_fields[] = {
    NEED_INT("step", step.step),
    INT("total_steps", step.total_steps),
    REAL("epoch", step.epoch),
    REAL("loss", step.loss),
    REAL("accuracy", step.accuracy),
    REAL("grad_norm", step.grad_norm),
    BOOL("clipped", step.clipped),
    INT("clipped_steps", step.clipped_steps),
    INT("redone_steps", step.redone_steps),
    REAL("loss_scale", step.loss_scale),
    INT("skipped_steps", step.skipped_steps),
    REAL("learning_rate", step.learning_rate),
    INT("tokens", step.tokens),
    INT("target_tokens", step.target_tokens),
    INT("total_target_tokens", step.total_target_tokens),
    REAL("seconds", step.seconds),
    REAL("planned_seconds", step.planned_seconds),
    REAL("bound_seconds", step.bound_seconds),
    REAL("tokens_per_second", step.tokens_per_second),
    REAL("seconds_remaining", step.seconds_remaining),
    MEMORY("gpu", step.gpu),
    MEMORY("host", step.host),
    MEMORY("nvme", step.nvme),
    INT("h2d_bytes", step.h2d_bytes),
    INT("d2h_bytes", step.d2h_bytes),
    INT("disk_read_bytes", step.disk_read_bytes),
    INT("disk_write_bytes", step.disk_write_bytes),
    INT("network_bytes", step.network_bytes),
    REAL("stalls.h2d", step.stalls.h2d),
    REAL("stalls.d2h", step.stalls.d2h),
    REAL("stalls.disk", step.stalls.disk),
    REAL("stalls.updates", step.stalls.updates),
    REAL("update_seconds", step.update_seconds),
    REAL("cpu_update_share", step.cpu_update_share),
};
static const struct record_field eval_fields[] = {
    NEED_INT("step", eval.step),     REAL("loss", eval.loss),
    REAL("accuracy", eval.accuracy), INT("target_tokens", eval.target_tokens),
    BOOL("full", eval.full),         BOOL("best", eval.best),
};
static const struct record_field sample_fields[] = {
    NEED_INT("step", sample.step),
    INT("prompt_index", sample.prompt_index),
    NEED_TEXT("prompt", sample.prompt),
    NEED_TEXT("completion", sample.completion),
};
static const struct record_field checkpoint_fields[] = {
    NEED_INT("step", checkpoint.step),
    NEED_TEXT("path", checkpoint.path),
    INT("bytes", checkpoint.bytes),
    REAL("seconds", checkpoint.seconds),
    REAL("train_loss", checkpoint.train_loss),
    REAL("train_accuracy", checkpoint.train_accuracy),
    REAL("valid_loss", checkpoint.valid_loss),
    REAL("valid_accuracy", checkpoint.valid_accuracy),
    TEXT("request", checkpoint.request),
};
static const struct record_field warning_fields[] = {
    NEED_TEXT("code", warning.code),
    NEED_TEXT("message", warning.message),
};
static const struct record_field stopped_fields[] = {
    {"reason", RECORD_WORD, AT(stopped.reason), .words = stop_words, .flags = RECORD_REQUIRED},
    TEXT("request", stopped.request),
    INT("step", stopped.step),
    {"checkpoint_step", RECORD_INT, AT(stopped.checkpoint_step), .initial = -1},
};
static const struct record_field finished_fields[] = {
    INT("steps", finished.steps),
    INT("trained_tokens", finished.trained_tokens),
    NEED_TEXT("output", finished.output),
    REAL("train_loss", finished.train_loss),
    REAL("valid_loss", finished.valid_loss),
};
static const struct record_field failed_fields[] = {
    /* `code` is an err_code's name and is handled beside the table */
    NEED_TEXT("reason", failed.reason),
    NEED_TEXT("message", failed.message),
    TEXT("param", failed.param),
    BOOL("fits_alone", failed.fits_alone),
};

#define TABLE(name)                                                                                \
    {                                                                                              \
        name, sizeof(name) / sizeof((name)[0])                                                     \
    }
static const struct {
    const struct record_field *fields;
    size_t n;
} tables[] = {
    [EVENT_PHASE] = TABLE(phase_fields),
    [EVENT_DOWNLOAD] = TABLE(download_fields),
    [EVENT_PLAN] = {NULL, 0},
    [EVENT_STEP] = TABLE(step_fields),
    [EVENT_EVAL] = TABLE(eval_fields),
    [EVENT_SAMPLE] = TABLE(sample_fields),
    [EVENT_CHECKPOINT] = TABLE(checkpoint_fields),
    [EVENT_WARNING] = TABLE(warning_fields),
    [EVENT_STOPPED] = TABLE(stopped_fields),
    [EVENT_FINISHED] = TABLE(finished_fields),
    [EVENT_FAILED] = TABLE(failed_fields),
};
enum { N_HEAD = sizeof(head_fields) / sizeof(head_fields[0]) };

json_t *event_to_json(const struct event *event)
{
    json_t *line = json_object();

    assert((unsigned)event->type < sizeof(tables) / sizeof(tables[0]));
    json_object_set_new(line, "v", json_integer(1));
    record_write(head_fields, N_HEAD, event, line);
    json_object_set_new(line, "type", json_string(type_words[event->type]));
    record_write(tables[event->type].fields, tables[event->type].n, event, line);
    if (event->type == EVENT_PLAN)
        json_object_set(line, "plan", (json_t *)event->plan);
    if (event->type == EVENT_CHECKPOINT && event->checkpoint.kept)
        json_object_set(line, "kept", (json_t *)event->checkpoint.kept);
    if (event->type == EVENT_FAILED)
        json_object_set_new(line, "code", json_string(err_code_name(event->failed.code)));
    return line;
}

static int read_kept(const json_t *line, struct event *e, struct err *err)
{
    json_t *kept = json_object_get(line, "kept"), *step;
    size_t i;

    if (kept && !json_is_array(kept))
        return err_set(err, ERR_INVALID, "`kept` must be an array of steps");
    json_array_foreach(kept, i, step)
    {
        if (!json_is_integer(step))
            return err_set(err, ERR_INVALID, "`kept` must be an array of steps");
    }
    e->checkpoint.kept = kept;
    return 0;
}

int event_from_json(const json_t *line, struct event *out, struct err *err)
{
    const char *type = json_string_value(json_object_get(line, "type"));
    struct event e;
    int index, rc;

    memset(&e, 0, sizeof(e));
    rc = record_read(head_fields, N_HEAD, line, &e, err);
    if (rc != 0)
        return rc;
    index = type ? record_word_index(type_words, type) : -1;
    if (index < 0) {
        rc = err_set(err, ERR_UNSUPPORTED, "the event's type '%.40s' is not known here",
                     type ? type : "");
        return err_set_param(err, rc, "type");
    }
    e.type = (enum event_type)index;
    rc = record_read(tables[index].fields, tables[index].n, line, &e, err);
    if (rc != 0)
        return rc;
    if (e.type == EVENT_PLAN) {
        e.plan = json_object_get(line, "plan");
        if (!json_is_object(e.plan))
            return err_set(err, ERR_INVALID, "a plan event must carry an object `plan`");
    }
    if (e.type == EVENT_CHECKPOINT) {
        rc = read_kept(line, &e, err);
        if (rc != 0)
            return rc;
    }
    if (e.type == EVENT_FAILED)
        e.failed.code = err_code_from_name(json_string_value(json_object_get(line, "code")));
    *out = e;
    return 0;
}

const char *event_type_name(enum event_type type)
{
    return type_words[type];
}

const char *event_phase_name(enum event_phase phase)
{
    return phase_words[phase];
}
