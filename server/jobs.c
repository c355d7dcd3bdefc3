/* /v1/fine_tuning/jobs: create, list, look at and steer jobs. */
#include <stdlib.h>
#include <string.h>

#include "api/hub_endpoint.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/json.h"
#include "server/job_json.h"
#include "server/page.h"
#include "server/routes.h"

enum { JOBS_PAGE_MAX = 1000 };

static void reply_job(struct ctx *ctx, const struct job *job, struct reply *rep)
{
    reply_json(rep, 200, job_to_json(job, ctx->config, clock_wall()));
}

/* The one text that clients know for a job that is not there. */
static int job_error(int rc, const char *id, struct err *err)
{
    if (rc != ERR_NOT_FOUND)
        return rc;
    err_clear(err);
    err_set(err, rc, "Could not find fine tune: %.100s", id);
    err_set_reason(err, rc, "fine_tune_not_found");
    return err_set_param(err, rc, "fine_tune_id");
}

/* A file that the body names: must be there, usable and for fine-tuning. Whatever else is wrong
 * with the body, this is said in the same answer. */
static int find_data_file(struct ctx *ctx, const json_t *body, const char *param,
                          struct spec_file *out, struct fault_list *faults, struct err *err)
{
    const char *id = json_string_value(json_object_get(body, param));
    struct store_file file = {0};
    int rc = 0;

    if (!id || strncmp(id, "file-", 5) != 0)
        return 0; /* absent, or a fault that the body's own check names */
    rc = store_get_file(ctx->reader, id, &file, err);
    if (rc == ERR_NOT_FOUND) {
        err_clear(err);
        rc = 0;
        fault_add(faults, param, "file_not_found",
                  "%s: there is no file '%.100s'; upload it with purpose fine-tune first", param,
                  id);
        goto out;
    }
    if (rc != 0)
        goto out;
    if (strcmp(file.purpose, "fine-tune") != 0)
        fault_add(faults, param, "invalid_file_purpose",
                  "%s: file '%s' has the purpose '%s'; upload it with purpose fine-tune", param, id,
                  file.purpose);
    else if (strcmp(file.status, "error") == 0)
        fault_add(faults, param, "invalid_file", "%s: file '%s' cannot be used: %s", param, id,
                  file.status_details ? file.status_details : "its check failed");
    else if (out->id && strcmp(out->id, id) == 0) {
        free(out->path);
        free(out->filename);
        out->path = xstrdup(file.path);
        out->filename = xstrdup(file.filename);
        out->bytes = file.bytes;
    }
out:
    store_file_fini(&file);
    return rc;
}

/* A model on this machine: only where the administrator allows it, and by its true path. */
static void check_local_model(const struct ctx *ctx, struct job_spec *spec,
                              struct fault_list *faults)
{
    char *real;

    if (!spec->model.path)
        return;
    real = config_local_model(ctx->config, spec->model.path);
    if (!real) {
        fault_add(faults, "model", "local_model_not_allowed",
                  "model: this server does not load models from that path; name one on the hub as "
                  "\"organization/name\", or add its directory to local_model_dirs in castord's "
                  "configuration");
        return;
    }
    free(spec->model.path);
    spec->model.path = real;
}

/* A job goes to the hub of castord's environment, or to one that the administrator listed. Which
 * one is settled now: a job must not follow a server that is restarted with another. */
static void settle_hub(const struct ctx *ctx, struct job_spec *spec, struct fault_list *faults)
{
    struct buf allowed = {0};

    if (!spec->hub.endpoint)
        (void)hub_endpoint_default(&spec->hub.endpoint,
                                   NULL); /* else the worker says what is wrong */
    else if (!config_hub_allowed(ctx->config, spec->hub.endpoint, &allowed))
        fault_add(faults, "hub.endpoint", "hub_not_allowed",
                  "hub.endpoint: this server does not use the hub %s. It uses: %s. Another one is "
                  "for the administrator to add to hub_endpoints in castord's configuration",
                  spec->hub.endpoint, buf_str(&allowed));
    buf_fini(&allowed);
}

/* A client names a volume; where it lies is the administrator's to say. */
static void settle_volume(const struct ctx *ctx, struct job_spec *spec, struct fault_list *faults)
{
    struct buf names = {0};
    const char *name = spec->placement.nvme_path;
    const char *path = name ? config_volume(ctx->config, name, &names) : NULL;

    if (path)
        spec->placement.nvme_directory = xstrdup(path);
    else if (name && names.len > 0)
        fault_add(faults, "placement.nvme_path", "unknown_volume",
                  "placement.nvme_path: this server has no volume \"%s\"; it has: %s", name,
                  buf_str(&names));
    else if (name)
        fault_add(faults, "placement.nvme_path", "unknown_volume",
                  "placement.nvme_path: this server has no volumes; they are for the administrator "
                  "to add to volumes in castord's configuration");
    buf_fini(&names);
}

/* ?dry_run=true, beside the body's member of that name. */
static int query_dry_run(const struct request *req, bool *dry_run, struct err *err)
{
    static const char *const known[] = {"dry_run", NULL};
    const char *text = request_query(req, "dry_run");
    int rc = 0;

    TRY(request_check_query(req, known, err));
    if (text && strcmp(text, "true") != 0 && strcmp(text, "false") != 0) {
        err_set(err, ERR_INVALID, "query parameter 'dry_run' must be true or false");
        rc = err_set_param(err, ERR_INVALID, "dry_run");
    } else if (text && strcmp(text, "true") == 0) {
        *dry_run = true;
    }
out:
    return rc;
}

static int run_dry(struct ctx *ctx, const struct job_spec *spec, struct reply *rep, struct err *err)
{
    struct plan_report report = {0};
    int rc = 0;

    if (!slow_enter(ctx, rep))
        return 0;
    TRY(sched_dry_run(ctx->scheduler, spec, &report, err));
    reply_json(rep, 200, plan_report_to_json(&report));
out:
    slow_leave(ctx);
    plan_report_fini(&report);
    return rc;
}

static int reply_repeat(struct ctx *ctx, const char *job_id, struct reply *rep, struct err *err)
{
    struct job job = {0};
    int rc = 0;

    TRY(store_get_job(ctx->reader, job_id, &job, err));
    reply_job(ctx, &job, rep);
out:
    job_fini(&job);
    return rc;
}

static int run_create(struct ctx *ctx, const struct request *req, const struct job_spec *spec,
                      struct reply *rep, struct err *err)
{
    struct dedupe_ticket ticket;
    struct job job = {0};
    int rc = 0;

    switch (dedupe_begin(ctx->dedupe, req, &ticket)) {
    case DEDUPE_REPEAT:
        return reply_repeat(ctx, ticket.job_id, rep, err);
    case DEDUPE_MISMATCH:
        reply_error(rep, 422, NULL, "idempotency_key_reused",
                    "this Idempotency-Key was used with another body; use a new key for a new job");
        return 0;
    case DEDUPE_BUSY:
        return err_set(err, ERR_CONFLICT,
                       "a request with the same Idempotency-Key is still being worked on; look "
                       "for its job in the list of jobs");
    case DEDUPE_UNTRACKED:
    case DEDUPE_FIRST:
        break;
    }
    rc = sched_post_create(ctx->scheduler, spec, ticket.has_client_key ? ticket.key : NULL, &job,
                           err);
    dedupe_end(ctx->dedupe, &ticket, rc == 0 ? job.id : NULL);
    if (rc == 0)
        reply_job(ctx, &job, rep);
    job_fini(&job);
    return rc;
}

/* Create and estimate take the same body. */
static int take_spec(struct ctx *ctx, const struct request *req, bool dry_run, struct reply *rep,
                     struct err *err)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};
    json_t *body = NULL;
    bool asked = false;
    int rc = 0;

    job_spec_init(&spec);
    TRY(request_json(req, &body, err));
    job_spec_from_request(body, &spec, &asked, &faults); /* what it returns is in the faults */
    TRY(find_data_file(ctx, body, "training_file", &spec.training_file, &faults, err));
    TRY(find_data_file(ctx, body, "validation_file", &spec.validation_file, &faults, err));
    check_local_model(ctx, &spec, &faults);
    settle_hub(ctx, &spec, &faults);
    settle_volume(ctx, &spec, &faults);
    if (faults.n > 0)
        reply_faults(rep, &faults);
    else if (dry_run || asked)
        rc = run_dry(ctx, &spec, rep, err);
    else
        rc = run_create(ctx, req, &spec, rep, err);
out:
    json_decref(body);
    fault_list_fini(&faults);
    job_spec_fini(&spec);
    return rc;
}

int jobs_create(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    bool dry_run = false;
    int rc = 0;

    TRY(query_dry_run(req, &dry_run, err));
    TRY(take_spec(ctx, req, dry_run, rep, err));
out:
    return rc;
}

int jobs_estimate(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    static const char *const known[] = {NULL};
    int rc = 0;

    TRY(request_check_query(req, known, err));
    TRY(take_spec(ctx, req, true, rep, err));
out:
    return rc;
}

/* metadata[k]=v pairs as an object; `metadata=` and `metadata=null` as JSON null; NULL = no filter.
 */
static int metadata_filter(const struct request *req, json_t **out, struct err *err)
{
    json_t *filter = NULL;
    bool none = false;

    for (int i = 0; i < req->n_query; i++) {
        const char *name = req->query[i].name, *value = req->query[i].value;
        if (strcmp(name, "metadata") == 0) {
            none = *value == '\0' || strcmp(value, "null") == 0;
            if (!none) {
                json_decref(filter);
                err_set(err, ERR_INVALID,
                        "write the filter as metadata[key]=value, or "
                        "metadata=null for jobs without metadata");
                return err_set_param(err, ERR_INVALID, "metadata");
            }
        } else if (strncmp(name, "metadata[", 9) == 0) {
            filter = filter ? filter : json_object();
            json_object_setn_new(filter, name + 9, strlen(name) - 10, json_string(value));
        }
    }
    if (none && filter) {
        json_decref(filter);
        err_set(err, ERR_INVALID, "metadata=null and metadata[key]=value exclude each other");
        return err_set_param(err, ERR_INVALID, "metadata");
    }
    *out = none ? json_null() : filter;
    return 0;
}

static int status_check(const char *status, struct err *err)
{
    if (!status)
        return 0;
    for (int s = JOB_VALIDATING; s <= JOB_CANCELLED; s++)
        if (strcmp(status, job_status_name((enum job_status)s)) == 0)
            return 0;
    err_set(err, ERR_INVALID,
            "query parameter 'status' must be one of validating_files, queued, running, paused, "
            "succeeded, failed, cancelled");
    return err_set_param(err, ERR_INVALID, "status");
}

int jobs_list(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    static const char *const known[] = {"after",    "limit",      "order", "status",
                                        "metadata", "metadata[]", NULL};
    const char *status = request_query(req, "status");
    struct store_page page;
    struct job *rows = NULL;
    json_t *metadata = NULL, *data = NULL;
    bool has_more = false;
    int64_t n = 0;
    int rc = 0;

    TRY(request_check_query(req, known, err));
    TRY(page_from_query(req, 20, JOBS_PAGE_MAX, &page, err));
    TRY(status_check(status, err));
    TRY(metadata_filter(req, &metadata, err));
    TRY(page_error(store_list_jobs(ctx->reader, metadata, status, page, &rows, &n, &has_more, err),
                   &page, err));
    data = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(data, job_to_json(&rows[i], ctx->config, clock_wall()));
    page_reply(rep, data, has_more, false);
out:
    for (int64_t i = 0; i < n; i++)
        job_fini(&rows[i]);
    free(rows);
    json_decref(metadata);
    return rc;
}

int jobs_get(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct job job = {0};
    int rc = 0;

    TRY(job_error(store_get_job(ctx->reader, req->object, &job, err), req->object, err));
    reply_job(ctx, &job, rep);
out:
    job_fini(&job);
    return rc;
}

typedef int (*steer_fn)(struct scheduler *s, const char *job_id, struct job *out, struct err *err);

static int jobs_steer(struct ctx *ctx, const struct request *req, steer_fn steer, struct reply *rep,
                      struct err *err)
{
    struct job job = {0};
    int rc = 0;

    TRY(request_no_body(req, err));
    TRY(job_error(steer(ctx->scheduler, req->object, &job, err), req->object, err));
    reply_job(ctx, &job, rep);
out:
    if (rc == ERR_CONFLICT && err->reason[0] == '\0')
        err_set_reason(err, rc, "invalid_state");
    job_fini(&job);
    return rc;
}

int jobs_cancel(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    return jobs_steer(ctx, req, sched_post_cancel, rep, err);
}

int jobs_pause(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    return jobs_steer(ctx, req, sched_post_pause, rep, err);
}

int jobs_resume(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    return jobs_steer(ctx, req, sched_post_resume, rep, err);
}

/* Events and checkpoints: the job must be there, also when its list is empty. */
static int find_page(struct ctx *ctx, const struct request *req, int64_t default_limit,
                     struct store_page *page, struct err *err)
{
    static const char *const known[] = {"after", "limit", "order", NULL};
    struct job job = {0};
    int rc = 0;

    TRY(request_check_query(req, known, err));
    TRY(page_from_query(req, default_limit, JOBS_PAGE_MAX, page, err));
    TRY(job_error(store_get_job(ctx->reader, req->object, &job, err), req->object, err));
out:
    job_fini(&job);
    return rc;
}

int jobs_events(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct store_event *rows = NULL;
    struct store_page page;
    json_t *data = NULL;
    bool has_more = false;
    int64_t n = 0;
    int rc = 0;

    TRY(find_page(ctx, req, 20, &page, err));
    TRY(page_error(store_list_events(ctx->reader, req->object, page, &rows, &n, &has_more, err),
                   &page, err));
    data = json_array();
    for (int64_t i = 0; i < n; i++) {
        json_array_append_new(data, job_event_to_json(&rows[i]));
        store_event_fini(&rows[i]);
    }
    page_reply(rep, data, has_more, false);
out:
    free(rows);
    return rc;
}

int jobs_checkpoints(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct store_checkpoint *rows = NULL;
    struct store_page page;
    json_t *data = NULL;
    bool has_more = false;
    int64_t n = 0;
    int rc = 0;

    TRY(find_page(ctx, req, 10, &page, err));
    TRY(page_error(
        store_list_checkpoints(ctx->reader, req->object, page, &rows, &n, &has_more, err), &page,
        err));
    data = json_array();
    for (int64_t i = 0; i < n; i++) {
        json_array_append_new(data, job_checkpoint_to_json(&rows[i]));
        store_checkpoint_fini(&rows[i]);
    }
    page_reply(rep, data, has_more, true);
out:
    free(rows);
    return rc;
}
