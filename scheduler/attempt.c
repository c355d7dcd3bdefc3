/* The life of one attempt as the scheduler sees it: launch, tail, ask to stop, end. */
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "api/control.h"
#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/json.h"
#include "core/log.h"
#include "scheduler/scheduler_impl.h"

enum {
    MAX_LAUNCH_FAILURES = 5,
    LOG_TAIL = 400,
    EXIT_JSON_MAX = 4 << 20, /* 1024 ranks with their tails */
};
static const double retry_seconds = 1.0, undecided_seconds = 0.05;

bool job_uses_gpu(const struct job *job)
{
    const char *kind =
        json_string_value(json_object_get(json_object_get(job->plan, "device"), "kind"));

    if (job->spec.resources.device == DEVICE_ONLY_CPU)
        return false;
    return kind ? strcmp(kind, "cpu") != 0 : job->spec.resources.device == DEVICE_ONLY_GPU;
}

/* Device number `slot` of those castord itself may use, and none for a job of a CPU slot. Fresh;
 * NULL = leave the variable alone. */
static char *visible_devices(const struct scheduler *s, const struct job *job)
{
    const char *mine = getenv("CUDA_VISIBLE_DEVICES");

    if (!job_uses_gpu(job))
        return xstrdup("");
    if (s->gpu_slots < 2)
        return NULL;
    if (!mine || !*mine)
        return xasprintf("%" PRId64, job->slot);
    for (int64_t i = 0; i < job->slot; i++) {
        mine = strchr(mine, ',');
        if (!mine)
            return NULL;
        mine++;
    }
    return xstrndup(mine, strcspn(mine, ","));
}

static void retry_later(struct live *l, const char *doing, const struct err *err)
{
    log_warn("scheduler", "job=%s %s failed, trying again: %s", l->job.id, doing, err->msg);
    l->retry_at = clock_monotonic() + retry_seconds;
}

/* The end of a file, as text. */
static void add_log_tail(struct buf *out, const char *path)
{
    struct buf text = {0};

    fs_read_tail(path, LOG_TAIL, &text, NULL);
    while (text.len > 0 && text.data[text.len - 1] == '\n')
        text.data[--text.len] = '\0';
    if (text.len > 0)
        buf_printf(out, "; its last output: %s", text.data);
    buf_fini(&text);
}

static void describe_signal(struct buf *out, const char *who, int sig)
{
    buf_printf(out, "%s was ended by signal %d (%s)%s", who, sig, strsignal(sig),
               sig == SIGKILL ? ", perhaps because the host ran out of memory" : "");
}

/* From exit.json: the rank whose death ended the others. False when it does not say. */
static bool describe_rank(struct buf *out, const char *jobdir, int64_t attempt)
{
    char *path = job_dir_exit(jobdir, attempt);
    struct attempt_exit e = {0};
    json_t *value = NULL;
    bool said = false;

    if (json_parse_file(path, EXIT_JSON_MAX, JSON_MAX_DEPTH_REQUEST, &value, NULL) == 0 &&
        attempt_exit_from_json(value, &e, NULL) == 0)
        for (int64_t i = 0; i < e.n_ranks && !said; i++) {
            const struct rank_exit *r = &e.ranks[i];
            char who[64];
            if (r->rank != e.first_failed_rank)
                continue;
            snprintf(who, sizeof(who), "rank %" PRId64, r->rank);
            if (r->signal)
                describe_signal(out, who, r->signal);
            else
                buf_printf(out, "%s exited with status %d", who, r->exit_code);
            if (r->step >= 0)
                buf_printf(out, " in step %" PRId64 "%s%s", r->step, *r->where ? ", " : "",
                           r->where);
            if (*r->log_tail)
                buf_printf(out, "; its last output: %s", r->log_tail);
            said = true;
        }
    attempt_exit_fini(&e);
    json_decref(value);
    free(path);
    return said;
}

static void describe_death(struct buf *out, const struct scheduler *s, const struct live *l)
{
    char *jobdir = change_jobdir(&s->context, l->job.id);
    const struct attempt_process *p = &l->process;

    if (!describe_rank(out, jobdir, l->job.attempt)) {
        if (p->exited && WIFSIGNALED(p->wait_status))
            describe_signal(out, "the worker", WTERMSIG(p->wait_status));
        else if (p->exited)
            buf_printf(out, "the worker exited with status %d without saying how the job ended",
                       WEXITSTATUS(p->wait_status));
        else
            buf_add_str(out, "the worker is gone and left no word of how the job ended");
        char *log = job_dir_supervisor_log(jobdir, l->job.attempt);
        add_log_tail(out, log);
        free(log);
    }
    free(jobdir);
}

/* Twice as long every time: each attempt is a process, a directory and rows of events. */
static double memory_wait(const struct scheduler *s, int64_t refusals)
{
    enum { DOUBLINGS = 3 };
    return ldexp(s->memory_wait_seconds, refusals < DOUBLINGS ? (int)refusals : DOUBLINGS);
}

static void end_attempt(struct scheduler *s, struct live *l, const char *code, const char *message)
{
    struct job_input in = {.kind = JOB_OCC_ATTEMPT_ENDED,
                           .t = clock_wall(),
                           .attempt = l->job.attempt,
                           .error_code = code,
                           .error_message = message};
    struct err err = {0};

    if (schedule_change(s, l, &in, &err) != 0) {
        retry_later(l, "storing the attempt's end", &err);
        return;
    }
    l->has_process = false;
    l->launch_failures = 0;
    l->ending_since = 0;
    l->signal_sent = 0;
    l->silence = (struct silence){0};
    buf_fini(&l->silent);
    if (l->job.waits_for_memory) {
        l->retry_at = clock_monotonic() + memory_wait(s, l->refusals++);
    } else {
        l->refusals = 0;
        s->memory_freed_at = clock_monotonic();
    }
}

static int launch(struct scheduler *s, struct live *l, const char *jobdir, struct err *err)
{
    char *spec = job_dir_spec(jobdir);
    char *devices = visible_devices(s, &l->job);
    char **envp = NULL;
    struct launch request = {
        .worker_path = s->worker_path, .jobdir = jobdir, .attempt = l->job.attempt};
    int rc = 0;

    TRY(hub_access_environment(&s->hub, &l->job.spec, jobdir, devices, &envp, err));
    request.envp = envp;
    TRY(job_spec_save(spec, &l->job.spec, err));
    TRY(s->launcher->start(&request, &l->process, err));
    l->has_process = true;
    log_info("scheduler", "job=%s attempt=%" PRId64 " started pid=%" PRId64, l->job.id,
             l->job.attempt, l->process.record.pid);
out:
    hub_access_free_environment(envp);
    free(devices);
    free(spec);
    return rc;
}

/* The attempt's process: found again, or started. False: not this time. */
static bool ensure_process(struct scheduler *s, struct live *l)
{
    char *jobdir = change_jobdir(&s->context, l->job.id);
    struct err err = {0};
    int rc;

    rc = s->launcher->find(jobdir, l->job.attempt, &l->process, &err);
    if (rc == 0) {
        l->has_process = true;
        log_info("scheduler", "job=%s attempt=%" PRId64 " found again pid=%" PRId64, l->job.id,
                 l->job.attempt, l->process.record.pid);
    } else if (rc == ERR_NOT_FOUND) {
        err_clear(&err);
        rc = launch(s, l, jobdir, &err);
    }
    free(jobdir);
    if (rc == 0)
        return true;
    if (rc == ERR_CONFLICT) {
        l->retry_at = clock_monotonic() + undecided_seconds;
        return false;
    }
    /* What has a reason stays as it is. */
    if (!err.reason[0] && ++l->launch_failures < MAX_LAUNCH_FAILURES)
        retry_later(l, "starting the attempt", &err);
    else
        end_attempt(s, l, err.reason[0] ? err.reason : "launch_failed", err.msg);
    return false;
}

static void write_control(struct scheduler *s, struct live *l)
{
    bool stop = l->job.cancel_requested || l->job.timed_out;
    struct control c = {.t = clock_wall(), .type = stop ? CONTROL_CANCEL : CONTROL_PAUSE};
    struct err err = {0};

    if (!l->job.control_id[0] || strcmp(l->job.control_id, l->written_control) == 0)
        return;
    memcpy(c.id, l->job.control_id, sizeof(c.id));
    char *jobdir = change_jobdir(&s->context, l->job.id);
    if (control_append(jobdir, &c, &err) != 0)
        retry_later(l, "writing the request", &err);
    else
        memcpy(l->written_control, c.id, sizeof(c.id));
    free(jobdir);
}

static void send_signal(struct scheduler *s, struct live *l, int sig)
{
    if (l->signal_sent == sig || l->signal_sent == SIGKILL)
        return;
    log_info("scheduler", "job=%s attempt=%" PRId64 " sending %s", l->job.id, l->job.attempt,
             sig == SIGKILL ? "SIGKILL" : "SIGTERM");
    s->launcher->signal(&l->process, sig);
    l->signal_sent = sig;
}

/* An attempt that has to end: asked by a request first, then by SIGTERM, then by SIGKILL. */
static void hasten_end(struct scheduler *s, struct live *l)
{
    double waited = 0;

    if (l->job.status != JOB_RUNNING) {
        if (l->ending_since == 0)
            l->ending_since = clock_monotonic();
        waited = clock_monotonic() - l->ending_since;
    } else if (l->job.stop_asked_at > 0) {
        waited = clock_wall() - l->job.stop_asked_at;
    }
    if (waited > 2 * s->grace_seconds)
        send_signal(s, l, SIGKILL);
    else if (waited > s->grace_seconds)
        send_signal(s, l, SIGTERM);
}

static void check_time_limit(struct scheduler *s, struct live *l)
{
    const struct job *job = &l->job;
    int64_t limit = job->spec.scheduling.max_runtime_seconds;
    double t = clock_wall();
    struct control c;
    struct err err = {0};

    if (limit == 0 || job->status != JOB_RUNNING || job->timed_out || job->cancel_requested ||
        job->run_seconds + (t - job->attempt_started_at) <= (double)limit)
        return;
    control_init(&c, CONTROL_CANCEL);
    struct job_input in = {.kind = JOB_OCC_TIMEOUT, .t = t, .control_id = c.id};
    if (schedule_change(s, l, &in, &err) != 0)
        retry_later(l, "storing the time limit", &err);
}

/* A hung worker answers no request and no SIGTERM. */
static void check_silence(struct scheduler *s, struct live *l, bool heard)
{
    if (l->job.status != JOB_RUNNING || l->silent.len > 0)
        return;
    char *jobdir = change_jobdir(&s->context, l->job.id);
    if (silence_is_over_limit(&l->silence, jobdir, &l->job, s->silence_seconds, heard, &l->silent))
        send_signal(s, l, SIGKILL);
    free(jobdir);
}

bool attempt_pass(struct scheduler *s, struct live *l)
{
    struct err err = {0};
    int64_t n_lines = 0;
    bool alive, broken = false;

    if (clock_monotonic() < l->retry_at)
        return false;
    if (!l->has_process && !ensure_process(s, l))
        return false;
    /* Asked before tailing: a dead attempt writes nothing more, so the lines read below are all. */
    alive = s->launcher->is_alive(&l->process);
    int rc = tail_read(&s->context, &l->job, &n_lines, &broken, &err);
    if (rc != 0 && !broken) {
        retry_later(l, "storing events", &err);
        return false;
    }
    if (n_lines == TAIL_BATCH)
        return true;
    if (!alive) {
        struct buf cause = {0};
        const char *code = l->silent.len > 0 ? "worker_silent" : "worker_crashed";
        if (l->silent.len > 0)
            buf_add_str(&cause, buf_str(&l->silent));
        else if (broken)
            buf_printf(&cause, "the worker's events cannot be read: %s", err.msg);
        else
            describe_death(&cause, s, l);
        end_attempt(s, l, code, buf_str(&cause));
        buf_fini(&cause);
        return true;
    }
    if (broken)
        send_signal(s, l, SIGKILL);
    write_control(s, l);
    check_silence(s, l, n_lines > 0);
    check_time_limit(s, l);
    hasten_end(s, l);
    return false;
}
