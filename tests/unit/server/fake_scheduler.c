#include "tests/unit/server/fake_scheduler.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

struct fake_state fake = {.healthy = true, .plan_fits = true};

static char *copy(const char *s)
{
    return s ? xstrdup(s) : NULL;
}

/* --- filling --- */

void fake_add_file(const char *id, const char *purpose, const char *path, int64_t bytes)
{
    fake.files[fake.n_files++] = (struct store_file){.id = xstrdup(id),
                                                     .filename = xstrdup("data.jsonl"),
                                                     .purpose = xstrdup(purpose),
                                                     .status = xstrdup("processed"),
                                                     .path = xstrdup(path),
                                                     .bytes = bytes,
                                                     .created_at = 1700000000};
}

struct job *fake_add_job(const char *id, enum job_status status)
{
    struct job *job = &fake.jobs[fake.n_jobs++];

    job_init(job);
    job_spec_init(&job->spec);
    job->status = status;
    job->created_at = 1700000000 + fake.n_jobs;
    snprintf(job->id, sizeof(job->id), "%s", id);
    job->spec.model.name = xstrdup("org/name");
    job->spec.training_file.id = xstrdup("file-train");
    return job;
}

void fake_add_event(const char *job_id, const char *id)
{
    fake.events[fake.n_events++] = (struct store_event){.id = xstrdup(id),
                                                        .job_id = xstrdup(job_id),
                                                        .created_at = 1700000001,
                                                        .level = xstrdup("info"),
                                                        .type = xstrdup("message"),
                                                        .message = xstrdup("hello")};
}

void fake_add_checkpoint(const char *job_id, const char *id, int64_t step)
{
    fake.checkpoints[fake.n_checkpoints++] =
        (struct store_checkpoint){.id = xstrdup(id),
                                  .job_id = xstrdup(job_id),
                                  .model = xstrdup("ft:org/name:o::12345678:ckpt-step-4"),
                                  .path = xstrdup("/nowhere"),
                                  .created_at = 1700000002,
                                  .step = step,
                                  .metrics = json_pack("{s:i}", "step", (int)step)};
}

void fake_add_model(const char *id)
{
    fake.models[fake.n_models++] = (struct store_model){.id = xstrdup(id),
                                                        .job_id = xstrdup("ftjob-1"),
                                                        .base = xstrdup("org/name"),
                                                        .path = xstrdup("/nowhere"),
                                                        .created_at = 1700000003};
}

/* --- copies that the caller owns --- */

static struct store_file file_copy(const struct store_file *f)
{
    struct store_file out = *f;

    out.id = copy(f->id);
    out.filename = copy(f->filename);
    out.purpose = copy(f->purpose);
    out.status = copy(f->status);
    out.status_details = copy(f->status_details);
    out.path = copy(f->path);
    out.job_id = copy(f->job_id);
    return out;
}

static struct store_event event_copy(const struct store_event *e)
{
    struct store_event out = *e;

    out.id = copy(e->id);
    out.job_id = copy(e->job_id);
    out.level = copy(e->level);
    out.type = copy(e->type);
    out.message = copy(e->message);
    out.data = e->data ? json_incref(e->data) : NULL;
    return out;
}

static struct store_checkpoint checkpoint_copy(const struct store_checkpoint *c)
{
    struct store_checkpoint out = *c;

    out.id = copy(c->id);
    out.job_id = copy(c->job_id);
    out.model = copy(c->model);
    out.path = copy(c->path);
    out.metrics = json_incref(c->metrics);
    return out;
}

static struct store_model model_copy(const struct store_model *m)
{
    return (struct store_model){.id = copy(m->id),
                                .job_id = copy(m->job_id),
                                .base = copy(m->base),
                                .path = copy(m->path),
                                .created_at = m->created_at};
}

/* --- the store --- */

/* Rows are kept oldest first; `ids` of n rows. Fills the indices of a page, newest first. */
static int page_of(const char *const *ids, int n, struct store_page page, int *picked,
                   int64_t *n_out, bool *has_more, struct err *err)
{
    int at = page.ascending ? 0 : n - 1;
    int step = page.ascending ? 1 : -1;
    int64_t count = 0;

    if (fake.fail_read)
        return err_set(err, fake.fail_read, "the fake store was told to fail at /secret/castor.db");
    if (page.after) {
        while (at >= 0 && at < n && strcmp(ids[at], page.after) != 0)
            at += step;
        if (at < 0 || at >= n)
            return err_set(err, ERR_NOT_FOUND, "no row %s", page.after);
        at += step;
    }
    for (; at >= 0 && at < n && count < page.limit; at += step)
        picked[count++] = at;
    *has_more = at >= 0 && at < n;
    *n_out = count;
    return 0;
}

int store_open_reader(const char *state_dir, struct store **out, struct err *err)
{
    (void)state_dir, (void)err;
    *out = (struct store *)&fake;
    return 0;
}

void store_close(struct store *s)
{
    (void)s;
}

int store_get_file(struct store *s, const char *id, struct store_file *out, struct err *err)
{
    (void)s;
    if (fake.fail_read)
        return err_set(err, fake.fail_read, "the fake store was told to fail at /secret/castor.db");
    for (int i = 0; i < fake.n_files; i++) {
        if (strcmp(fake.files[i].id, id) == 0) {
            *out = file_copy(&fake.files[i]);
            return 0;
        }
    }
    return err_set(err, ERR_NOT_FOUND, "no file %s", id);
}

int store_list_files(struct store *s, const char *purpose, struct store_page page,
                     struct store_file **rows, int64_t *n, bool *has_more, struct err *err)
{
    const char *ids[FAKE_MAX];
    int from[FAKE_MAX], picked[FAKE_MAX], count = 0;

    (void)s;
    for (int i = 0; i < fake.n_files; i++) {
        if (!purpose || strcmp(fake.files[i].purpose, purpose) == 0) {
            from[count] = i;
            ids[count++] = fake.files[i].id;
        }
    }
    int rc = page_of(ids, count, page, picked, n, has_more, err);
    if (rc != 0)
        return rc;
    *rows = xcalloc((size_t)*n + 1, sizeof(**rows));
    for (int64_t i = 0; i < *n; i++)
        (*rows)[i] = file_copy(&fake.files[from[picked[i]]]);
    return 0;
}

static int job_find(const char *id, struct job **out, struct err *err)
{
    for (int i = 0; i < fake.n_jobs; i++) {
        if (strcmp(fake.jobs[i].id, id) == 0) {
            *out = &fake.jobs[i];
            return 0;
        }
    }
    return err_set(err, ERR_NOT_FOUND, "no job %s", id);
}

int store_get_job(struct store *s, const char *id, struct job *out, struct err *err)
{
    struct job *job = NULL;

    (void)s;
    if (fake.fail_read)
        return err_set(err, fake.fail_read, "the fake store was told to fail at /secret/castor.db");
    int rc = job_find(id, &job, err);
    if (rc == 0)
        job_copy(out, job);
    return rc;
}

int store_list_jobs(struct store *s, const json_t *metadata, const char *status,
                    struct store_page page, struct job **rows, int64_t *n, bool *has_more,
                    struct err *err)
{
    const char *ids[FAKE_MAX];
    int picked[FAKE_MAX];

    (void)s;
    json_decref(fake.seen_metadata);
    free(fake.seen_status);
    fake.seen_metadata = metadata ? json_deep_copy(metadata) : NULL;
    fake.seen_status = copy(status);
    for (int i = 0; i < fake.n_jobs; i++)
        ids[i] = fake.jobs[i].id;
    int rc = page_of(ids, fake.n_jobs, page, picked, n, has_more, err);
    if (rc != 0)
        return rc;
    *rows = xcalloc((size_t)*n + 1, sizeof(**rows));
    for (int64_t i = 0; i < *n; i++)
        job_copy(&(*rows)[i], &fake.jobs[picked[i]]);
    return 0;
}

int store_list_events(struct store *s, const char *job_id, struct store_page page,
                      struct store_event **rows, int64_t *n, bool *has_more, struct err *err)
{
    const char *ids[FAKE_MAX];
    int from[FAKE_MAX], picked[FAKE_MAX], count = 0;

    (void)s;
    for (int i = 0; i < fake.n_events; i++) {
        if (strcmp(fake.events[i].job_id, job_id) == 0) {
            from[count] = i;
            ids[count++] = fake.events[i].id;
        }
    }
    int rc = page_of(ids, count, page, picked, n, has_more, err);
    if (rc != 0)
        return rc;
    *rows = xcalloc((size_t)*n + 1, sizeof(**rows));
    for (int64_t i = 0; i < *n; i++)
        (*rows)[i] = event_copy(&fake.events[from[picked[i]]]);
    return 0;
}

int store_list_checkpoints(struct store *s, const char *job_id, struct store_page page,
                           struct store_checkpoint **rows, int64_t *n, bool *has_more,
                           struct err *err)
{
    const char *ids[FAKE_MAX];
    int from[FAKE_MAX], picked[FAKE_MAX], count = 0;

    (void)s;
    for (int i = 0; i < fake.n_checkpoints; i++) {
        if (strcmp(fake.checkpoints[i].job_id, job_id) == 0) {
            from[count] = i;
            ids[count++] = fake.checkpoints[i].id;
        }
    }
    int rc = page_of(ids, count, page, picked, n, has_more, err);
    if (rc != 0)
        return rc;
    *rows = xcalloc((size_t)*n + 1, sizeof(**rows));
    for (int64_t i = 0; i < *n; i++)
        (*rows)[i] = checkpoint_copy(&fake.checkpoints[from[picked[i]]]);
    return 0;
}

int store_get_model(struct store *s, const char *id, struct store_model *out, struct err *err)
{
    (void)s;
    for (int i = 0; i < fake.n_models; i++) {
        if (strcmp(fake.models[i].id, id) == 0) {
            *out = model_copy(&fake.models[i]);
            return 0;
        }
    }
    return err_set(err, ERR_NOT_FOUND, "no model %s", id);
}

int store_list_models(struct store *s, struct store_model **rows, int64_t *n, struct err *err)
{
    (void)s;
    if (fake.fail_read)
        return err_set(err, fake.fail_read, "the fake store was told to fail at /secret/castor.db");
    *rows = xcalloc((size_t)fake.n_models + 1, sizeof(**rows));
    for (int i = 0; i < fake.n_models; i++)
        (*rows)[i] = model_copy(&fake.models[i]);
    *n = fake.n_models;
    return 0;
}

/* --- the scheduler --- */

static int told_to_fail(struct err *err)
{
    enum err_code code = fake.fail;

    fake.calls++;
    fake.fail = 0;
    return code ? err_set(err, code, "the fake scheduler was told to fail at /secret/path") : 0;
}

int sched_post_create(struct scheduler *s, const struct job_spec *spec, const char *dedupe,
                      struct job *out, struct err *err)
{
    char id[JOB_ID_MAX];
    int rc = 0;

    (void)s;
    TRY(told_to_fail(err));
    for (int i = 0; dedupe && i < fake.n_jobs; i++) {
        if (fake.dedupe[i] && strcmp(fake.dedupe[i], dedupe) == 0) {
            job_copy(out, &fake.jobs[i]);
            return 0;
        }
    }
    snprintf(id, sizeof(id), "ftjob-%024d", fake.n_jobs + 1);
    struct job *job = fake_add_job(id, JOB_VALIDATING);
    json_t *stored = job_spec_to_json(spec);
    job_spec_fini(&job->spec);
    job_spec_init(&job->spec);
    rc = job_spec_from_json(stored, &job->spec, err);
    json_decref(stored);
    fake.dedupe[fake.n_jobs - 1] = copy(dedupe);
    job_copy(out, job);
out:
    return rc;
}

static int steer(const char *id, enum job_status to, struct job *out, struct err *err)
{
    struct job *job = NULL;
    int rc = 0;

    TRY(told_to_fail(err));
    TRY(job_find(id, &job, err));
    if (job_status_is_final(job->status) && job->status != to)
        return err_set(err, ERR_CONFLICT, "job %s is already %s", id, job_status_name(job->status));
    job->status = to;
    job_copy(out, job);
out:
    return rc;
}

int sched_post_cancel(struct scheduler *s, const char *job_id, struct job *out, struct err *err)
{
    (void)s;
    return steer(job_id, JOB_CANCELLED, out, err);
}

int sched_post_pause(struct scheduler *s, const char *job_id, struct job *out, struct err *err)
{
    (void)s;
    return steer(job_id, JOB_PAUSED, out, err);
}

int sched_post_resume(struct scheduler *s, const char *job_id, struct job *out, struct err *err)
{
    (void)s;
    return steer(job_id, JOB_QUEUED, out, err);
}

int sched_post_file(struct scheduler *s, const char *filename, const char *purpose,
                    const char *spooled_path, int64_t bytes, int64_t keep_seconds,
                    struct store_file *out, struct err *err)
{
    char id[32], path[512];
    int rc = 0;

    (void)s;
    TRY(told_to_fail(err));
    snprintf(id, sizeof(id), "file-%d", fake.n_files + 1);
    snprintf(path, sizeof(path), "%s.kept", spooled_path);
    if (rename(spooled_path, path) != 0)
        return err_set(err, ERR_IO, "cannot rename %s", spooled_path);
    fake_add_file(id, purpose, path, bytes);
    struct store_file *f = &fake.files[fake.n_files - 1];
    free(f->filename);
    f->filename = xstrdup(filename);
    f->expires_at = keep_seconds > 0 ? f->created_at + keep_seconds : 0;
    *out = file_copy(f);
out:
    return rc;
}

int sched_post_delete_file(struct scheduler *s, const char *file_id, struct err *err)
{
    (void)s, (void)file_id;
    return told_to_fail(err);
}

int sched_post_delete_model(struct scheduler *s, const char *model_id, struct err *err)
{
    (void)s, (void)model_id;
    return told_to_fail(err);
}

int sched_dry_run(struct scheduler *s, const struct job_spec *spec, struct plan_report *out,
                  struct err *err)
{
    int rc = 0;

    (void)s;
    TRY(told_to_fail(err));
    *out = (struct plan_report){.fits = fake.plan_fits, .step_seconds = NAN};
    out->step_seconds_bound = out->step_seconds_clipped = out->step_seconds_clipped_bound = NAN;
    json_t *stored = job_spec_to_json(spec);
    job_spec_init(&out->spec);
    rc = job_spec_from_json(stored, &out->spec, err);
    json_decref(stored);
    if (!out->fits)
        err_set(&out->error, ERR_DEVICE_OOM, "7 GiB are missing");
out:
    return rc;
}

int scheduler_healthy(struct scheduler *s, struct err *err)
{
    (void)s;
    return fake.healthy ? 0 : err_set(err, ERR_TIMEOUT, "the tick is stale");
}
