#include "scheduler/store_write.h"

#include <stdlib.h>

#include "scheduler/store_impl.h"

int store_put_file(struct store *s, const struct store_file *f, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_PUT_FILE, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, f->id);
    store_bind_text(q, 2, f->filename);
    store_bind_text(q, 3, f->purpose);
    store_bind_text(q, 4, f->status);
    store_bind_text(q, 5, f->status_details);
    store_bind_text(q, 6, f->path);
    store_bind_text(q, 7, f->job_id);
    sqlite3_bind_int64(q, 8, f->bytes);
    sqlite3_bind_int64(q, 9, f->created_at);
    sqlite3_bind_int64(q, 10, f->expires_at);
    return store_run(s, q, err);
}

static int delete_by_id(struct store *s, enum store_sql sql, const char *id, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, sql, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, id);
    return store_run(s, q, err);
}

int store_delete_file(struct store *s, const char *id, struct err *err)
{
    return delete_by_id(s, SQL_DELETE_FILE, id, err);
}

int store_delete_model(struct store *s, const char *id, struct err *err)
{
    return delete_by_id(s, SQL_DELETE_MODEL, id, err);
}

static bool is_live(const struct job *job)
{
    return !job_status_is_final(job->status) || job->attempt_live;
}

int store_insert_job(struct store *s, const struct job *job, const char *dedupe, struct err *err)
{
    const json_t *metadata = job->spec.metadata;
    json_t *state = job_state_to_json(job);
    json_t *spec = job_spec_to_json(&job->spec);
    sqlite3_stmt *q = NULL;
    int rc = 0;

    TRY(store_use(s, SQL_INSERT_JOB, &q, err));
    store_bind_text(q, 1, job->id);
    store_bind_text(q, 2, job_status_name(job->status));
    sqlite3_bind_int(q, 3, is_live(job));
    sqlite3_bind_int64(q, 4, job->spec.scheduling.priority);
    sqlite3_bind_int64(q, 5, job->created_at);
    store_bind_text(q, 6, dedupe);
    store_bind_json(q, 7, json_object_size(metadata) > 0 ? metadata : NULL);
    store_bind_json(q, 8, spec);
    store_bind_json(q, 9, state);
    store_bind_json(q, 10, job->plan);
    TRY(store_run(s, q, err));
out:
    json_decref(state);
    json_decref(spec);
    return rc;
}

int store_update_job(struct store *s, const struct job *job, struct err *err)
{
    json_t *state = job_state_to_json(job);
    json_t *spec = job_spec_to_json(&job->spec);
    sqlite3_stmt *q = NULL;
    int rc = 0;

    TRY(store_use(s, SQL_UPDATE_JOB, &q, err));
    store_bind_text(q, 1, job->id);
    store_bind_text(q, 2, job_status_name(job->status));
    sqlite3_bind_int(q, 3, is_live(job));
    store_bind_json(q, 4, state);
    store_bind_json(q, 5, spec);
    store_bind_json(q, 6, job->plan);
    TRY(store_run(s, q, err));
    if (sqlite3_changes(s->db) != 1)
        rc = err_set(err, ERR_NOT_FOUND, "No such job: %s.", job->id);
out:
    json_decref(state);
    json_decref(spec);
    return rc;
}

int store_insert_event(struct store *s, const char *job_id, int64_t created_at, const char *level,
                       const char *type, const char *message, const json_t *data, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_INSERT_EVENT, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, job_id);
    sqlite3_bind_int64(q, 2, created_at);
    store_bind_text(q, 3, level);
    store_bind_text(q, 4, type);
    store_bind_text(q, 5, message);
    store_bind_json(q, 6, data);
    return store_run(s, q, err);
}

int store_put_checkpoint(struct store *s, const struct store_checkpoint *c, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_PUT_CHECKPOINT, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, c->id);
    store_bind_text(q, 2, c->job_id);
    store_bind_text(q, 3, c->model);
    store_bind_text(q, 4, c->path);
    sqlite3_bind_int64(q, 5, c->created_at);
    sqlite3_bind_int64(q, 6, c->step);
    store_bind_json(q, 7, c->metrics);
    return store_run(s, q, err);
}

int store_keep_checkpoints(struct store *s, const char *job_id, int64_t step, const json_t *kept,
                           struct err *err)
{
    sqlite3_stmt *q;
    int rc = store_use(s, SQL_KEEP_CHECKPOINTS, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, job_id);
    sqlite3_bind_int64(q, 2, step);
    store_bind_json(q, 3, kept);
    return store_run(s, q, err);
}

int store_put_model(struct store *s, const struct store_model *m, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_PUT_MODEL, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, m->id);
    store_bind_text(q, 2, m->job_id);
    store_bind_text(q, 3, m->base);
    store_bind_text(q, 4, m->path);
    sqlite3_bind_int64(q, 5, m->created_at);
    return store_run(s, q, err);
}

int store_touch(struct store *s, int64_t now, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_TOUCH, &q, err);

    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, now);
    return store_run(s, q, err);
}
