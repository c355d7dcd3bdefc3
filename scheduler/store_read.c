#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "scheduler/store.h"
#include "scheduler/store_impl.h"
#include "scheduler/store_write.h"

/* One row of a statement into a zeroed struct; on failure the struct may be half filled. */
typedef int (*read_fn)(sqlite3_stmt *q, void *row, struct err *err);
typedef void (*fini_fn)(void *row);

struct kind {
    size_t bytes;
    read_fn read;
    fini_fn fini;
};

static int read_file(sqlite3_stmt *q, void *row, struct err *err)
{
    struct store_file *f = row;

    f->id = store_column_text(q, 0);
    f->filename = store_column_text(q, 1);
    f->purpose = store_column_text(q, 2);
    f->status = store_column_text(q, 3);
    f->status_details = store_column_text(q, 4);
    f->path = store_column_text(q, 5);
    f->job_id = store_column_text(q, 6);
    f->bytes = sqlite3_column_int64(q, 7);
    f->created_at = sqlite3_column_int64(q, 8);
    f->expires_at = sqlite3_column_int64(q, 9);
    return 0;
}

static int read_job(sqlite3_stmt *q, void *row, struct err *err)
{
    struct job *job = row;
    json_t *spec = NULL, *state = NULL;
    int rc = 0;

    job_init(job);
    snprintf(job->id, sizeof(job->id), "%s", (const char *)sqlite3_column_text(q, 0));
    TRY(store_column_json(q, 1, &spec, err));
    TRY(job_spec_from_json(spec, &job->spec, err));
    TRY(store_column_json(q, 2, &state, err));
    TRY(job_state_from_json(state, job, err));
    TRY(store_column_json(q, 3, &job->plan, err));
    job->queue_position = sqlite3_column_int64(q, 4);
out:
    if (rc != 0)
        err_wrap(err, rc, "the stored job %s", job->id);
    json_decref(spec);
    json_decref(state);
    return rc;
}

static int read_event(sqlite3_stmt *q, void *row, struct err *err)
{
    struct store_event *e = row;

    /* 24 digits of the row's number: sorts like time, and needs no index of its own. */
    e->id = xasprintf("ftevent-%024" PRIx64, (uint64_t)sqlite3_column_int64(q, 0));
    e->job_id = store_column_text(q, 1);
    e->created_at = sqlite3_column_int64(q, 2);
    e->level = store_column_text(q, 3);
    e->type = store_column_text(q, 4);
    e->message = store_column_text(q, 5);
    return store_column_json(q, 6, &e->data, err);
}

static int read_checkpoint(sqlite3_stmt *q, void *row, struct err *err)
{
    struct store_checkpoint *c = row;

    c->id = store_column_text(q, 0);
    c->job_id = store_column_text(q, 1);
    c->model = store_column_text(q, 2);
    c->path = store_column_text(q, 3);
    c->created_at = sqlite3_column_int64(q, 4);
    c->step = sqlite3_column_int64(q, 5);
    return store_column_json(q, 6, &c->metrics, err);
}

static int read_model(sqlite3_stmt *q, void *row, struct err *err)
{
    struct store_model *m = row;

    m->id = store_column_text(q, 0);
    m->job_id = store_column_text(q, 1);
    m->base = store_column_text(q, 2);
    m->path = store_column_text(q, 3);
    m->created_at = sqlite3_column_int64(q, 4);
    return 0;
}

static void fini_file(void *row)
{
    store_file_fini(row);
}

static void fini_job(void *row)
{
    job_fini(row);
}

static void fini_event(void *row)
{
    store_event_fini(row);
}

static void fini_checkpoint(void *row)
{
    store_checkpoint_fini(row);
}

static void fini_model(void *row)
{
    store_model_fini(row);
}

static const struct kind file_kind = {sizeof(struct store_file), read_file, fini_file};
static const struct kind job_kind = {sizeof(struct job), read_job, fini_job};
static const struct kind event_kind = {sizeof(struct store_event), read_event, fini_event};
static const struct kind checkpoint_kind = {sizeof(struct store_checkpoint), read_checkpoint,
                                            fini_checkpoint};
static const struct kind model_kind = {sizeof(struct store_model), read_model, fini_model};

/* Up to `limit` rows of a bound statement (0 = all); a row more sets *has_more (may be NULL). */
static int collect(struct store *s, sqlite3_stmt *q, const struct kind *kind, int64_t limit,
                   void **rows, int64_t *n, bool *has_more, struct err *err)
{
    char *list = NULL;
    int64_t count = 0, cap = 0;
    bool row = false, more = false;
    int rc = 0;

    for (;;) {
        TRY(store_step(s, q, &row, err));
        if (!row)
            break;
        if (limit > 0 && count == limit) {
            more = true;
            break;
        }
        if (count == cap) {
            cap = cap ? 2 * cap : 16;
            list = xrealloc(list, (size_t)cap * kind->bytes);
        }
        char *at = list + (size_t)count * kind->bytes;
        memset(at, 0, kind->bytes);
        count++;
        TRY(kind->read(q, at, err));
    }
    *rows = list;
    *n = count;
    if (has_more)
        *has_more = more;
    list = NULL;
    count = 0;
out:
    store_done(q);
    for (int64_t i = 0; i < count; i++)
        kind->fini(list + (size_t)i * kind->bytes);
    free(list);
    return rc;
}

/* The one row of a bound statement; ERR_NOT_FOUND with `missing` when there is none. */
static int get_one(struct store *s, sqlite3_stmt *q, const struct kind *kind, void *out,
                   const char *missing, const char *id, struct err *err)
{
    void *rows = NULL;
    int64_t n = 0;
    int rc = collect(s, q, kind, 1, &rows, &n, NULL, err);

    if (rc != 0)
        return rc;
    if (n == 0) {
        free(rows);
        return err_set(err, ERR_NOT_FOUND, "%s: %.200s", missing, id);
    }
    memcpy(out, rows, kind->bytes);
    free(rows);
    return 0;
}

/* The row number behind an `after` id; 0 when there is no `after`. */
static int find_after(struct store *s, enum store_sql sql, const char *after, const char *owner,
                      int64_t *n, struct err *err)
{
    sqlite3_stmt *q = NULL;
    bool row = false;
    int rc = 0;

    *n = 0;
    if (!after)
        return 0;
    TRY(store_use(s, sql, &q, err));
    store_bind_text(q, 1, after);
    if (owner)
        store_bind_text(q, 2, owner);
    TRY(store_step(s, q, &row, err));
    if (row)
        *n = sqlite3_column_int64(q, 0);
    store_done(q);
    if (!row) {
        rc =
            err_set(err, ERR_NOT_FOUND, "`after` names nothing that is listed here: %.100s", after);
        err_set_param(err, rc, "after");
    }
out:
    return rc;
}

int store_get_file(struct store *s, const char *id, struct store_file *out, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_GET_FILE, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, id);
    return get_one(s, q, &file_kind, out, "No such File object", id, err);
}

int store_list_files(struct store *s, const char *purpose, struct store_page page,
                     struct store_file **rows, int64_t *n, bool *has_more, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int64_t after;
    int rc = 0;

    TRY(find_after(s, SQL_ROW_OF_FILE, page.after, NULL, &after, err));
    TRY(store_use(s, page.ascending ? SQL_LIST_FILES_UP : SQL_LIST_FILES, &q, err));
    store_bind_text(q, 1, purpose);
    sqlite3_bind_int64(q, 2, after);
    sqlite3_bind_int64(q, 3, page.limit + 1);
    TRY(collect(s, q, &file_kind, page.limit, (void **)rows, n, has_more, err));
out:
    return rc;
}

int store_list_expired_files(struct store *s, int64_t now, struct store_file **rows, int64_t *n,
                             struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_EXPIRED_FILES, &q, err);

    if (rc != 0)
        return rc;
    sqlite3_bind_int64(q, 1, now);
    return collect(s, q, &file_kind, 0, (void **)rows, n, NULL, err);
}

int store_get_job(struct store *s, const char *id, struct job *out, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_GET_JOB, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, id);
    rc = get_one(s, q, &job_kind, out, "Could not find fine tune", id, err);
    if (rc == ERR_NOT_FOUND) {
        err_set_param(err, rc, "fine_tune_id");
        err_set_reason(err, rc, "fine_tune_not_found");
    }
    return rc;
}

int store_list_jobs(struct store *s, const json_t *metadata, const char *status,
                    struct store_page page, struct job **rows, int64_t *n, bool *has_more,
                    struct err *err)
{
    sqlite3_stmt *q = NULL;
    int64_t after;
    int rc = 0;

    TRY(find_after(s, SQL_ROW_OF_JOB, page.after, NULL, &after, err));
    TRY(store_use(s, SQL_LIST_JOBS, &q, err));
    store_bind_text(q, 1, status);
    sqlite3_bind_int64(q, 2, after);
    sqlite3_bind_int64(q, 3, page.limit + 1);
    store_bind_json(q, 4, json_is_object(metadata) ? metadata : NULL);
    sqlite3_bind_int(q, 5, json_is_null(metadata));
    TRY(collect(s, q, &job_kind, page.limit, (void **)rows, n, has_more, err));
out:
    return rc;
}

int store_list_live_jobs(struct store *s, struct job **rows, int64_t *n, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_LIST_LIVE_JOBS, &q, err);

    return rc != 0 ? rc : collect(s, q, &job_kind, 0, (void **)rows, n, NULL, err);
}

int store_find_dedupe(struct store *s, const char *dedupe, int64_t since, struct job *out,
                      struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_FIND_DEDUPE, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, dedupe);
    sqlite3_bind_int64(q, 2, since);
    return get_one(s, q, &job_kind, out, "no job was created with this key", dedupe, err);
}

/* "ftevent-" and the row's number. */
static int event_row(const char *id, int64_t *n, struct err *err)
{
    char *end = NULL;
    unsigned long long number = 0;
    bool good = strlen(id) == 32 && strncmp(id, "ftevent-", 8) == 0 &&
                strspn(id + 8, "0123456789abcdef") == 24 && strncmp(id + 8, "00000000", 8) == 0;

    if (good)
        number = strtoull(id + 16, &end, 16);
    if (!good || number == 0 || number > INT64_MAX) {
        int rc =
            err_set(err, ERR_NOT_FOUND, "`after` names nothing that is listed here: %.100s", id);
        return err_set_param(err, rc, "after");
    }
    *n = (int64_t)number;
    return 0;
}

/* Is row n there and an event of this job? */
static int check_event(struct store *s, const char *job_id, int64_t n, const char *id,
                       struct err *err)
{
    sqlite3_stmt *q = NULL;
    bool row = false;
    int rc = 0;

    TRY(store_use(s, SQL_LIST_EVENTS_UP, &q, err));
    store_bind_text(q, 1, job_id);
    sqlite3_bind_int64(q, 2, n - 1);
    sqlite3_bind_int64(q, 3, 1);
    TRY(store_step(s, q, &row, err));
    row = row && sqlite3_column_int64(q, 0) == n;
    store_done(q);
    if (!row) {
        rc = err_set(err, ERR_NOT_FOUND, "`after` is no event of this job: %.100s", id);
        err_set_param(err, rc, "after");
    }
out:
    return rc;
}

int store_list_events(struct store *s, const char *job_id, struct store_page page,
                      struct store_event **rows, int64_t *n, bool *has_more, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int64_t after = 0;
    int rc = 0;

    if (page.after) {
        TRY(event_row(page.after, &after, err));
        TRY(check_event(s, job_id, after, page.after, err));
    }
    TRY(store_use(s, page.ascending ? SQL_LIST_EVENTS_UP : SQL_LIST_EVENTS, &q, err));
    store_bind_text(q, 1, job_id);
    sqlite3_bind_int64(q, 2, after);
    sqlite3_bind_int64(q, 3, page.limit + 1);
    TRY(collect(s, q, &event_kind, page.limit, (void **)rows, n, has_more, err));
out:
    return rc;
}

int store_each_metrics(struct store *s, const char *job_id, store_metrics_fn fn, void *ud,
                       struct err *err)
{
    sqlite3_stmt *q = NULL;
    bool row = false;
    int rc = 0;

    rc = store_use(s, SQL_LIST_METRICS, &q, err);
    if (rc != 0)
        return rc;
    store_bind_text(q, 1, job_id);
    for (;;) {
        json_t *data = NULL;
        TRY(store_step(s, q, &row, err));
        if (!row)
            break;
        TRY(store_column_json(q, 0, &data, err));
        rc = fn(ud, data, err);
        json_decref(data);
        if (rc != 0)
            break;
    }
out:
    store_done(q);
    return rc;
}

int store_list_checkpoints(struct store *s, const char *job_id, struct store_page page,
                           struct store_checkpoint **rows, int64_t *n, bool *has_more,
                           struct err *err)
{
    sqlite3_stmt *q = NULL;
    int64_t after;
    int rc = 0;

    TRY(find_after(s, SQL_ROW_OF_CHECKPOINT, page.after, job_id, &after, err));
    TRY(store_use(s, SQL_LIST_CHECKPOINTS, &q, err));
    store_bind_text(q, 1, job_id);
    sqlite3_bind_int64(q, 2, after);
    sqlite3_bind_int64(q, 3, page.limit + 1);
    TRY(collect(s, q, &checkpoint_kind, page.limit, (void **)rows, n, has_more, err));
out:
    return rc;
}

int store_get_model(struct store *s, const char *id, struct store_model *out, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_GET_MODEL, &q, err);

    if (rc != 0)
        return rc;
    store_bind_text(q, 1, id);
    return get_one(s, q, &model_kind, out, "No such model", id, err);
}

int store_list_models(struct store *s, struct store_model **rows, int64_t *n, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = store_use(s, SQL_LIST_MODELS, &q, err);

    return rc != 0 ? rc : collect(s, q, &model_kind, 0, (void **)rows, n, NULL, err);
}
