#include "server/job_json.h"

#include <math.h>

static json_t *text_or_null(const char *s)
{
    return s ? json_string(s) : json_null();
}

/* JSON has no NaN: what is not known is null. */
static json_t *real_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *time_or_null(int64_t t)
{
    return t > 0 ? json_integer(t) : json_null();
}

static json_t *auto_int_to_json(struct auto_int a)
{
    return a.is_auto ? json_string("auto") : json_integer(a.value);
}

static json_t *hyper_to_json(const struct spec_hyper *h)
{
    const struct auto_real *lr = &h->learning_rate_multiplier;

    return json_pack("{s:o, s:o, s:o}", "n_epochs", auto_int_to_json(h->n_epochs), "batch_size",
                     auto_int_to_json(h->batch_size), "learning_rate_multiplier",
                     lr->is_auto ? json_string("auto") : real_or_null(lr->value));
}

static json_t *error_to_json(const struct job *job)
{
    if (job->status != JOB_FAILED)
        return json_null();
    return json_pack("{s:s, s:s, s:s?}", "code", job->error_code ? job->error_code : "server_error",
                     "message",
                     job->error_message ? job->error_message
                                        : "the job failed without a message; see its events",
                     "param", job->error_param);
}

static json_t *progress_to_json(const struct job *job)
{
    json_t *p = json_object();
    double percent =
        job->total_steps > 0 ? 100.0 * (double)job->step / (double)job->total_steps : NAN;

    json_object_set_new(p, "step", json_integer(job->step));
    json_object_set_new(p, "total_steps",
                        job->total_steps > 0 ? json_integer(job->total_steps) : json_null());
    json_object_set_new(p, "epoch", real_or_null(job->epoch));
    json_object_set_new(p, "percent", real_or_null(percent));
    json_object_set_new(p, "trained_tokens", json_integer(job->trained_tokens));
    json_object_set_new(p, "train_loss", real_or_null(job->train_loss));
    json_object_set_new(p, "train_mean_token_accuracy", real_or_null(job->train_accuracy));
    json_object_set_new(p, "valid_loss", real_or_null(job->valid_loss));
    json_object_set_new(p, "valid_mean_token_accuracy", real_or_null(job->valid_accuracy));
    json_object_set_new(p, "tokens_per_second", real_or_null(job->tokens_per_second));
    json_object_set_new(p, "seconds_remaining", real_or_null(job->seconds_remaining));
    json_object_set_new(p, "bytes_done", json_integer(job->bytes_done));
    json_object_set_new(p, "bytes_total", json_integer(job->bytes_total));
    return p;
}

static json_t *queue_to_json(const struct job *job)
{
    if (job->status != JOB_QUEUED)
        return json_null();
    return json_pack("{s:I}", "position", (json_int_t)job->queue_position);
}

/* The extension objects are echoed in the words of the stored spec: one grammar, one writer. */
static void echo_extensions(json_t *o, const struct job_spec *spec)
{
    static const char *const names[] = {
        "dataset",    "optimization", "precision", "parallelism",    "placement",    "resources",
        "scheduling", "lora",         "hub",       "sample_prompts", "sample_tokens"};
    json_t *stored = job_spec_to_json(spec);

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        json_t *value = json_object_get(stored, names[i]);
        json_object_set_new(o, names[i], value ? json_incref(value) : json_null());
    }
    json_decref(stored);
}

/* The members that OpenAI documents. */
static json_t *openai_members(const struct job *job, const struct server_config *config, double now)
{
    const struct job_spec *spec = &job->spec;
    bool hide_pause = config->strict_openai_status && job->status == JOB_PAUSED;
    bool estimated =
        job->status == JOB_RUNNING && isfinite(job->seconds_remaining) && job->step > 0;
    json_t *o = json_object();
    json_t *results = json_array();

    if (job->result_file)
        json_array_append_new(results, json_string(job->result_file));
    json_object_set_new(o, "id", json_string(job->id));
    json_object_set_new(o, "object", json_string("fine_tuning.job"));
    json_object_set_new(o, "created_at", json_integer(job->created_at));
    json_object_set_new(o, "finished_at", time_or_null(job->finished_at));
    json_object_set_new(o, "model", text_or_null(spec->model.name));
    json_object_set_new(o, "fine_tuned_model", text_or_null(job->fine_tuned_model));
    json_object_set_new(o, "organization_id", json_string(config->organization));
    json_object_set_new(o, "status",
                        json_string(job_status_name(hide_pause ? JOB_QUEUED : job->status)));
    json_object_set_new(o, "hyperparameters", hyper_to_json(&spec->hyper));
    json_object_set_new(o, "method",
                        json_pack("{s:s, s:{s:o}}", "type", "supervised", "supervised",
                                  "hyperparameters", hyper_to_json(&spec->hyper)));
    json_object_set_new(o, "training_file", text_or_null(spec->training_file.id));
    json_object_set_new(o, "validation_file", text_or_null(spec->validation_file.id));
    json_object_set_new(o, "result_files", results);
    json_object_set_new(o, "trained_tokens",
                        job->status == JOB_SUCCEEDED ? json_integer(job->trained_tokens)
                                                     : json_null());
    json_object_set_new(o, "seed", json_integer(spec->seed));
    json_object_set_new(o, "error", error_to_json(job));
    json_object_set_new(o, "estimated_finish",
                        estimated
                            ? json_integer((json_int_t)(now + fmin(job->seconds_remaining, 1e12)))
                            : json_null());
    json_object_set_new(o, "integrations", json_array());
    json_object_set_new(o, "metadata", spec->metadata ? json_incref(spec->metadata) : json_null());
    json_object_set_new(o, "user_provided_suffix", text_or_null(spec->suffix));
    json_object_set_new(o, "usage_metrics", json_null());
    json_object_set_new(o, "shared_with_openai", json_false());
    return o;
}

/* Of data on the hub; null for an uploaded file. */
static json_t *dataset_to_json(const struct spec_file *file)
{
    if (!file->repo)
        return json_null();
    return json_pack("{s:s, s:s?, s:s?}", "repo", file->repo, "revision", file->revision, "commit",
                     file->commit);
}

json_t *job_to_json(const struct job *job, const struct server_config *config, double now)
{
    const struct spec_model *model = &job->spec.model;
    json_t *o = openai_members(job, config, now);
    bool active = job->status == JOB_RUNNING && job->has_phase;

    json_object_set_new(o, "started_at", time_or_null(job->started_at));
    json_object_set_new(o, "phase",
                        active ? json_string(event_phase_name(job->phase)) : json_null());
    json_object_set_new(o, "cancel_requested", json_boolean(job->cancel_requested));
    json_object_set_new(o, "pause_requested", json_boolean(job->pause_requested));
    json_object_set_new(o, "progress", progress_to_json(job));
    json_object_set_new(o, "queue", queue_to_json(job));
    json_object_set_new(o, "plan", job->plan ? json_incref(job->plan) : json_null());
    json_object_set_new(o, "base_model",
                        json_pack("{s:s?, s:s?, s:s?}", "repo", model->repo, "revision",
                                  model->revision, "commit", model->commit));
    json_object_set_new(o, "training_dataset", dataset_to_json(&job->spec.training_file));
    json_object_set_new(o, "validation_dataset", dataset_to_json(&job->spec.validation_file));
    json_object_set_new(o, "attempt", json_integer(job->attempt));
    json_object_set_new(o, "checkpoints_total", json_integer(job->checkpoints_total));
    echo_extensions(o, &job->spec);
    return o;
}

json_t *job_event_to_json(const struct store_event *e)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:s, s:O?}", "object", "fine_tuning.job.event",
                     "id", e->id, "created_at", (json_int_t)e->created_at, "level", e->level,
                     "message", e->message, "type", e->type, "data", e->data);
}

json_t *job_checkpoint_to_json(const struct store_checkpoint *c)
{
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:s, s:s?, s:I}", "object", "fine_tuning.job.checkpoint", "id",
                  c->id, "created_at", (json_int_t)c->created_at, "fine_tuning_job_id", c->job_id,
                  "fine_tuned_model_checkpoint", c->model, "step_number", (json_int_t)c->step);

    json_object_set_new(o, "metrics", c->metrics ? json_incref(c->metrics) : json_object());
    return o;
}
