/* What the jobs' states require, looked at again and again: validation, slots, attempts. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/log.h"
#include "scheduler/scheduler_impl.h"
#include "scheduler/store_write.h"

enum {
    MAX_PLAN_CHILDREN = 2,
    BUSY_MS = 50,   /* how often attempts are looked at */
    IDLE_MS = 1000, /* and nothing in particular        */
    SWEEP_SECONDS = 60,
};

struct live *schedule_add(struct scheduler *s, struct job *job)
{
    struct live *l = xcalloc(1, sizeof(*l));

    l->job = *job;
    l->started_at = clock_monotonic();
    if (l->job.waits_for_memory && !l->job.attempt_live) /* else its end begins the time */
        l->retry_at = l->started_at + s->memory_wait_seconds;
    memset(job, 0, sizeof(*job));
    s->live = xrealloc(s->live, (size_t)(s->n_live + 1) * sizeof(s->live[0]));
    s->live[s->n_live++] = l;
    return l;
}

struct live *schedule_find(struct scheduler *s, const char *job_id)
{
    for (int64_t i = 0; i < s->n_live; i++)
        if (strcmp(s->live[i]->job.id, job_id) == 0)
            return s->live[i];
    return NULL;
}

static void live_destroy(struct live *l)
{
    plan_child_destroy(l->child);
    buf_fini(&l->silent);
    job_fini(&l->job);
    free(l);
}

void schedule_clear(struct scheduler *s)
{
    for (int64_t i = 0; i < s->n_live; i++)
        live_destroy(s->live[i]);
    free(s->live);
    s->live = NULL;
    s->n_live = 0;
}

int schedule_change(struct scheduler *s, struct live *l, const struct job_input *in,
                    struct err *err)
{
    enum job_status before = l->job.status;
    struct job next;
    int rc = 0;

    job_copy(&next, &l->job);
    TRY(store_begin(s->store, err));
    TRY(change_apply(&s->context, &next, in, err));
    TRY(store_update_job(s->store, &next, err));
    TRY(store_commit(s->store, err));
    job_fini(&l->job);
    l->job = next;
    if (l->job.status != before)
        log_info("scheduler", "job=%s status=%s", l->job.id, job_status_name(l->job.status));
    return 0;
out:
    store_rollback(s->store);
    job_fini(&next);
    return rc;
}

static void refuse(struct scheduler *s, struct live *l, const struct err *why)
{
    struct job_input in = {
        .kind = JOB_OCC_INVALID,
        .t = clock_wall(),
        .error_code = *why->reason ? why->reason : err_code_name(why->code),
        .error_message = why->msg,
        .error_param = *why->param ? why->param : NULL,
    };
    struct err err = {0};

    if (schedule_change(s, l, &in, &err) != 0) {
        log_warn("scheduler", "job=%s storing the validation failed: %s", l->job.id, err.msg);
        l->retry_at = clock_monotonic() + 1;
    }
}

/* A job for which there is no slot, nor ever will be, would wait without a word. */
static int check_slots(const struct scheduler *s, bool gpu, struct err *why)
{
    int rc;

    if ((gpu ? s->gpu_slots : s->cpu_slots) > 0)
        return 0;
    if (gpu)
        rc = err_set(why, ERR_UNSUPPORTED,
                     "the job needs a GPU, and this server was given none; set resources.device to "
                     "\"cpu\", or start castord with GPU slots");
    else
        rc = err_set(why, ERR_UNSUPPORTED,
                     "the job runs on the CPU, and this server was given no slot for that; %sstart "
                     "castord with slots.cpu of 1 or more in its configuration",
                     s->gpu_slots > 0 ? "set resources.device to \"gpu\", or " : "");
    err_set_reason(why, rc, gpu ? "no_gpu" : "no_cpu");
    return err_set_param(why, rc, "resources.device");
}

int schedule_check_plan(const struct scheduler *s, const struct job_spec *asked,
                        const struct plan_report *plan, struct err *why)
{
    bool gpu = strcmp(plan->device_kind, "cpu") != 0 && asked->resources.device != DEVICE_ONLY_CPU;

    return check_slots(s, gpu, why);
}

/* The child answered. Repeated while the store cannot take the answer. */
static void take_answer(struct scheduler *s, struct live *l)
{
    struct plan_report report = {0};
    struct err why = {0};
    struct job_input in = {.kind = JOB_OCC_VALIDATED, .t = clock_wall(), .plan = &report};
    int rc = plan_child_result(l->child, &report, &why);

    if (rc == 0 && !report.fits)
        why = report.error;
    else if (rc == 0 && strcmp(report.spec.id, l->job.id) != 0)
        err_set_reason(&why, err_set(&why, ERR_CORRUPT, "the plan is that of another job"),
                       "invalid_plan");
    else if (rc == 0)
        schedule_check_plan(s, &l->job.spec, &report, &why);
    if (why.code != ERR_OK)
        refuse(s, l, &why);
    else if (schedule_change(s, l, &in, &why) != 0) {
        log_warn("scheduler", "job=%s storing the plan failed: %s", l->job.id, why.msg);
        l->retry_at = clock_monotonic() + 1;
    }
    plan_report_fini(&report);
}

static int start_check(struct scheduler *s, struct live *l, struct err *err)
{
    char *jobdir = change_jobdir(&s->context, l->job.id);
    char *spec = job_dir_spec(jobdir);
    char **envp = NULL;
    int rc = 0;

    TRY(job_spec_save(spec, &l->job.spec, err));
    TRY(hub_access_environment(&s->hub, &l->job.spec, jobdir, NULL, &envp, err));
    TRY(plan_child_start(s->worker_path, jobdir, envp, &s->plan_limits, &l->child, err));
out:
    hub_access_free_environment(envp);
    free(spec);
    free(jobdir);
    return rc;
}

/* How far the child is with the data. It is progress: should it not be stored, the next one is. */
static void tell_download(struct scheduler *s, struct live *l)
{
    struct event event = {.type = EVENT_DOWNLOAD};
    struct job_input in = {.kind = JOB_OCC_EVENT, .t = clock_wall(), .event = &event};
    struct err err = {0};

    event.t = in.t;
    if (plan_child_download(l->child, &event.download.total_bytes_done,
                            &event.download.total_bytes_total) &&
        schedule_change(s, l, &in, &err) != 0)
        log_warn("scheduler", "job=%s storing a download's progress failed: %s", l->job.id,
                 err.msg);
}

static void validate(struct scheduler *s, struct live *l)
{
    struct err err = {0};
    int64_t running = 0;

    if (clock_monotonic() < l->retry_at)
        return;
    for (int64_t i = 0; i < s->n_live; i++)
        running += s->live[i]->child != NULL;
    if (!l->child && running < MAX_PLAN_CHILDREN && start_check(s, l, &err) != 0) {
        if (err.reason[0]) { /* it would be the same the next time */
            refuse(s, l, &err);
            return;
        }
        log_warn("scheduler", "job=%s cannot be checked now: %s", l->job.id, err.msg);
        l->retry_at = clock_monotonic() + 1;
    }
    if (l->child && plan_child_poll(l->child))
        take_answer(s, l);
    else if (l->child)
        tell_download(s, l);
}

/* Of a job that was queued by a castord that had slots of its kind. */
static void tell_no_slot(struct scheduler *s, struct live *l)
{
    struct job_input in = {.kind = JOB_OCC_NO_SLOT, .t = clock_wall()};
    struct err why = {0}, err = {0};

    if (l->job.status != JOB_QUEUED || l->job.told_no_slot || clock_monotonic() < l->retry_at ||
        check_slots(s, job_uses_gpu(&l->job), &why) == 0)
        return;
    in.error_code = why.reason;
    in.error_message = why.msg;
    if (schedule_change(s, l, &in, &err) != 0) {
        log_warn("scheduler", "job=%s storing that it has no slot failed: %s", l->job.id, err.msg);
        l->retry_at = clock_monotonic() + 1;
    }
}

/* The lowest free slot of a kind, -1 when all are taken. */
static int64_t free_slot(const struct scheduler *s, bool gpu)
{
    int64_t slots = gpu ? s->gpu_slots : s->cpu_slots;

    for (int64_t slot = 0; slot < slots; slot++) {
        bool taken = false;
        for (int64_t i = 0; i < s->n_live; i++) {
            const struct job *job = &s->live[i]->job;
            taken |= job->attempt_live && job->slot == slot && job_uses_gpu(job) == gpu;
        }
        if (!taken)
            return slot;
    }
    return -1;
}

static bool may_start(const struct scheduler *s, const struct live *l)
{
    bool freed = l->job.waits_for_memory && s->memory_freed_at > l->started_at;

    return l->job.status == JOB_QUEUED && !l->job.attempt_live &&
           (freed || clock_monotonic() >= l->retry_at);
}

/* Who is next: the highest priority, then the oldest. */
static struct live *next_queued(struct scheduler *s, bool gpu)
{
    struct live *best = NULL;

    for (int64_t i = 0; i < s->n_live; i++) {
        struct live *l = s->live[i];
        if (job_uses_gpu(&l->job) != gpu || !may_start(s, l))
            continue;
        if (!best || l->job.spec.scheduling.priority > best->job.spec.scheduling.priority)
            best = l;
    }
    return best;
}

static void fill_slots(struct scheduler *s, bool gpu)
{
    for (;;) {
        int64_t slot = free_slot(s, gpu);
        struct live *l = slot >= 0 ? next_queued(s, gpu) : NULL;
        struct err err = {0};
        if (!l)
            return;
        struct job_input in = {.kind = JOB_OCC_STARTED,
                               .t = clock_wall(),
                               .attempt = l->job.attempt + 1,
                               .slot = slot};
        if (schedule_change(s, l, &in, &err) != 0) {
            log_warn("scheduler", "job=%s cannot be started now: %s", l->job.id, err.msg);
            l->retry_at = clock_monotonic() + 1;
            return;
        }
        l->started_at = clock_monotonic();
        l->retry_at = 0;
    }
}

static bool is_in_use(const struct scheduler *s, const char *file_id)
{
    for (int64_t i = 0; i < s->n_live; i++) {
        const struct job_spec *spec = &s->live[i]->job.spec;
        if ((spec->training_file.id && strcmp(spec->training_file.id, file_id) == 0) ||
            (spec->validation_file.id && strcmp(spec->validation_file.id, file_id) == 0))
            return true;
    }
    return false;
}

/* Files whose time is over go, unless a job still needs them. */
static void sweep_files(struct scheduler *s)
{
    struct store_file *rows = NULL;
    struct err err = {0};
    int64_t n = 0;

    if (clock_monotonic() - s->swept_at < SWEEP_SECONDS)
        return;
    s->swept_at = clock_monotonic();
    if (store_list_expired_files(s->store, (int64_t)clock_wall(), &rows, &n, &err) != 0)
        log_warn("scheduler", "looking for expired files failed: %s", err.msg);
    for (int64_t i = 0; i < n; i++) {
        if (!is_in_use(s, rows[i].id) && store_delete_file(s->store, rows[i].id, NULL) == 0)
            fs_remove_tree(rows[i].path, NULL);
        store_file_fini(&rows[i]);
    }
    free(rows);
}

/* Should castord die before it comes to this, orphans.c sees to the token. */
static void bury(const struct scheduler *s, struct live *l)
{
    char *jobdir = change_jobdir(&s->context, l->job.id);

    hub_access_drop_token(jobdir);
    free(jobdir);
    live_destroy(l);
}

/* Forget jobs that need nothing more. */
static void drop_finished(struct scheduler *s)
{
    int64_t kept = 0;

    for (int64_t i = 0; i < s->n_live; i++) {
        const struct job *job = &s->live[i]->job;
        if (job_status_is_final(job->status) && !job->attempt_live)
            bury(s, s->live[i]);
        else
            s->live[kept++] = s->live[i];
    }
    s->n_live = kept;
}

int schedule_pass(struct scheduler *s)
{
    bool again = false, busy = false;

    for (int64_t i = 0; i < s->n_live; i++) {
        struct live *l = s->live[i];
        if (l->job.status == JOB_VALIDATING) {
            validate(s, l);
        }
        if (l->child && l->job.status != JOB_VALIDATING) {
            plan_child_destroy(l->child);
            l->child = NULL;
        }
        tell_no_slot(s, l);
    }
    fill_slots(s, false);
    fill_slots(s, true);
    for (int64_t i = 0; i < s->n_live; i++) {
        struct live *l = s->live[i];
        if (l->job.attempt_live)
            again |= attempt_pass(s, l);
        busy |= l->child || l->job.attempt_live || l->job.status == JOB_VALIDATING ||
                l->job.status == JOB_QUEUED;
    }
    drop_finished(s);
    sweep_files(s);
    return again ? 0 : busy ? BUSY_MS : IDLE_MS;
}
