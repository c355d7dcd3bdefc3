/* What HTTP threads ask of the scheduler thread: the bodies of the sched_post_* commands. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/control.h"
#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/hash.h"
#include "scheduler/scheduler_impl.h"
#include "scheduler/store_write.h"

enum { DEDUPE_SECONDS = 600, MAX_DRY_RUNS = 4 };

/* A spec names uploaded files by id; the store knows where they lie. */
static int resolve_file(struct scheduler *s, struct spec_file *file, const char *param,
                        struct err *err)
{
    struct store_file row = {0};
    int rc;

    if (!file->id || file->path || file->repo)
        return 0;
    rc = store_get_file(s->store, file->id, &row, NULL);
    if (rc == ERR_NOT_FOUND) {
        rc = err_set(err, ERR_INVALID, "%s: no such file: %s. Upload it to /v1/files first.", param,
                     file->id);
        err_set_reason(err, rc, "file_not_found");
        return err_set_param(err, rc, param);
    }
    if (rc != 0)
        return err_set(err, (enum err_code)rc, "%s could not be looked up", file->id);
    if (strcmp(row.purpose, "fine-tune") != 0) {
        rc = err_set(err, ERR_INVALID, "%s: %s has the purpose \"%s\", not \"fine-tune\".", param,
                     file->id, row.purpose);
        err_set_reason(err, rc, "invalid_file_purpose");
        err_set_param(err, rc, param);
    } else {
        free(file->filename);
        file->path = row.path;
        file->filename = row.filename;
        file->bytes = row.bytes;
        row.path = row.filename = NULL;
    }
    store_file_fini(&row);
    return rc;
}

static int resolve_files(struct scheduler *s, void *args, struct err *err)
{
    struct job_spec *spec = args;
    int rc = resolve_file(s, &spec->training_file, "training_file", err);

    return rc != 0 ? rc : resolve_file(s, &spec->validation_file, "validation_file", err);
}

static void fresh_id(char *out, size_t cap, const char *prefix)
{
    char random[25];

    hash_random_hex(random, 12);
    snprintf(out, cap, "%s%s", prefix, random);
}

struct create {
    const struct job_spec *spec;
    const char *dedupe;
    struct job *out;
};

static int store_new_job(struct scheduler *s, const struct job *job, const char *dedupe,
                         struct err *err)
{
    int rc = 0;

    TRY(store_begin(s->store, err));
    TRY(store_insert_job(s->store, job, dedupe, err));
    TRY(change_created(&s->context, job, err));
    TRY(store_commit(s->store, err));
out:
    if (rc != 0)
        store_rollback(s->store);
    return rc;
}

static int run_create(struct scheduler *s, void *args, struct err *err)
{
    struct create *create = args;
    double now = clock_wall();
    char *jobs = NULL, *jobdir = NULL, *path = NULL;
    struct job job;
    int rc = 0;

    if (create->dedupe && store_find_dedupe(s->store, create->dedupe, (int64_t)now - DEDUPE_SECONDS,
                                            create->out, NULL) == 0)
        return 0;
    job_init(&job);
    job_spec_copy(&job.spec, create->spec);
    TRY(resolve_files(s, &job.spec, err));
    fresh_id(job.id, sizeof(job.id), "ftjob-");
    memcpy(job.spec.id, job.id, sizeof(job.id));
    job.spec.created_at = now;
    job.created_at = (int64_t)now;
    jobs = fs_join(s->state_dir, "jobs");
    jobdir = change_jobdir(&s->context, job.id);
    path = job_dir_spec(jobdir);
    TRY(fs_mkdir_p(jobdir, false, err));
    TRY(hub_access_keep_token(&job.spec, jobdir, err));
    TRY(job_spec_save(path, &job.spec, err));
    TRY(fs_sync_dir(jobs, err)); /* the row must not outlive its directory's name */
    TRY(store_new_job(s, &job, create->dedupe, err));
    job_copy(create->out, &job);
    schedule_add(s, &job);
out:
    if (rc != 0 && jobdir)
        fs_remove_tree(jobdir, NULL);
    job_fini(&job);
    free(path);
    free(jobdir);
    free(jobs);
    return rc;
}

int sched_post_create(struct scheduler *s, const struct job_spec *spec, const char *dedupe,
                      struct job *out, struct err *err)
{
    struct create create = {.spec = spec, .dedupe = dedupe, .out = out};

    return scheduler_post(s, run_create, &create, err);
}

struct steer {
    const char *job_id;
    enum job_occurrence kind;
    struct job *out;
};

static int run_steer(struct scheduler *s, void *args, struct err *err)
{
    struct steer *steer = args;
    struct job_input in = {.kind = steer->kind, .t = clock_wall()};
    struct live *l = schedule_find(s, steer->job_id);
    struct job job = {0};
    struct control c;
    int rc = 0;

    control_init(&c, steer->kind == JOB_OCC_PAUSE ? CONTROL_PAUSE : CONTROL_CANCEL);
    in.control_id = c.id;
    if (l) {
        TRY(schedule_change(s, l, &in, err));
        job_copy(steer->out, &l->job);
        return 0;
    }
    TRY(store_get_job(s->store, steer->job_id, &job, err));
    TRY(job_apply(&job, &in, err)); /* a finished job: nothing changes, or a conflict */
    *steer->out = job;
    return 0;
out:
    job_fini(&job);
    return rc;
}

static int post_steer(struct scheduler *s, const char *job_id, enum job_occurrence kind,
                      struct job *out, struct err *err)
{
    struct steer steer = {.job_id = job_id, .kind = kind, .out = out};

    return scheduler_post(s, run_steer, &steer, err);
}

int sched_post_cancel(struct scheduler *s, const char *job_id, struct job *out, struct err *err)
{
    return post_steer(s, job_id, JOB_OCC_CANCEL, out, err);
}

int sched_post_pause(struct scheduler *s, const char *job_id, struct job *out, struct err *err)
{
    return post_steer(s, job_id, JOB_OCC_PAUSE, out, err);
}

int sched_post_resume(struct scheduler *s, const char *job_id, struct job *out, struct err *err)
{
    return post_steer(s, job_id, JOB_OCC_RESUME, out, err);
}

struct add_file {
    const char *filename, *purpose, *spooled_path;
    int64_t bytes, keep_seconds;
    struct store_file *out;
};

static int run_add_file(struct scheduler *s, void *args, struct err *err)
{
    struct add_file *add = args;
    struct store_file file = {.bytes = add->bytes};
    char id[JOB_ID_MAX];
    int rc = 0;

    fresh_id(id, sizeof(id), "file-");
    file.id = xstrdup(id);
    file.filename = xstrdup(add->filename);
    file.purpose = xstrdup(add->purpose);
    file.status = xstrdup("processed");
    file.path = xasprintf("%s/files/%s", s->state_dir, id);
    file.created_at = (int64_t)clock_wall();
    file.expires_at = add->keep_seconds > 0 ? file.created_at + add->keep_seconds : 0;
    TRY(fs_rename_sync(add->spooled_path, file.path, err));
    TRY(store_put_file(s->store, &file, err));
    *add->out = file;
    return 0;
out:
    /* Back to its owner, who removes it: also where the renaming was done and only its sync failed.
     */
    rename(file.path, add->spooled_path);
    store_file_fini(&file);
    return rc;
}

int sched_post_file(struct scheduler *s, const char *filename, const char *purpose,
                    const char *spooled_path, int64_t bytes, int64_t keep_seconds,
                    struct store_file *out, struct err *err)
{
    struct add_file add = {filename, purpose, spooled_path, bytes, keep_seconds, out};

    return scheduler_post(s, run_add_file, &add, err);
}

/* The row goes first: a row without a file is worse than a file without a row, which orphans.c
 * removes. */
static int run_delete_file(struct scheduler *s, void *args, struct err *err)
{
    const char *id = args;
    struct store_file file = {0};
    int rc = 0;

    TRY(store_get_file(s->store, id, &file, err));
    for (int64_t i = 0; i < s->n_live; i++) {
        const struct job *job = &s->live[i]->job;
        if (job_status_is_final(job->status) ||
            ((!job->spec.training_file.id || strcmp(job->spec.training_file.id, id) != 0) &&
             (!job->spec.validation_file.id || strcmp(job->spec.validation_file.id, id) != 0)))
            continue;
        rc = err_set(err, ERR_CONFLICT, "File %s is used by job %s, which is %s; cancel it first.",
                     id, job->id, job_status_name(job->status));
        err_set_reason(err, rc, "file_in_use");
        goto out;
    }
    TRY(store_delete_file(s->store, id, err));
    fs_remove_tree(file.path, NULL);
out:
    store_file_fini(&file);
    return rc;
}

int sched_post_delete_file(struct scheduler *s, const char *file_id, struct err *err)
{
    return scheduler_post(s, run_delete_file, (void *)(uintptr_t)file_id, err);
}

static int run_delete_model(struct scheduler *s, void *args, struct err *err)
{
    struct store_model model = {0};
    int rc = 0;

    TRY(store_get_model(s->store, args, &model, err));
    TRY(store_delete_model(s->store, args, err));
    fs_remove_tree(model.path, NULL);
out:
    store_model_fini(&model);
    return rc;
}

int sched_post_delete_model(struct scheduler *s, const char *model_id, struct err *err)
{
    return scheduler_post(s, run_delete_model, (void *)(uintptr_t)model_id, err);
}

static int enter_dry_run(struct scheduler *s, struct err *err)
{
    int rc = 0;

    pthread_mutex_lock(&s->mutex);
    if (s->dry_runs >= MAX_DRY_RUNS)
        rc = err_set(err, ERR_TIMEOUT, "%d dry runs are in progress already; try again later",
                     MAX_DRY_RUNS);
    else
        s->dry_runs++;
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

int sched_dry_run(struct scheduler *s, const struct job_spec *spec, struct plan_report *out,
                  struct err *err)
{
    struct plan_limits limits = s->plan_limits;
    struct job_spec copy = {0};
    char *dir = NULL, *path = NULL;
    char **envp = NULL;
    int rc = enter_dry_run(s, err);

    if (rc != 0)
        return rc;
    limits.least_download_rate = 0; /* a client waits for the answer */
    job_spec_copy(&copy, spec);
    fresh_id(copy.id, sizeof(copy.id), "ftjob-");
    copy.created_at = clock_wall();
    dir = xasprintf("%s/tmp/%s", s->state_dir, copy.id);
    path = job_dir_spec(dir);
    TRY(scheduler_post(s, resolve_files, &copy, err));
    TRY(fs_mkdir_p(dir, true, err));
    TRY(hub_access_keep_token(&copy, dir, err));
    TRY(job_spec_save(path, &copy, err));
    TRY(hub_access_environment(&s->hub, &copy, dir, NULL, &envp, err));
    TRY(plan_child_run(s->worker_path, dir, envp, &limits, out, err));
    if (out->fits && schedule_check_plan(s, spec, out, &out->error) != 0) {
        out->fits = false;
        json_decref(out->alternatives); /* of a plan that fits; none of them gives it a slot */
        out->alternatives = NULL;
    }
out:
    hub_access_free_environment(envp);
    fs_remove_tree(dir, NULL);
    free(path);
    free(dir);
    job_spec_fini(&copy);
    pthread_mutex_lock(&s->mutex);
    s->dry_runs--;
    pthread_mutex_unlock(&s->mutex);
    return rc;
}
