#include "scheduler/plan_child.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "api/event.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/json.h"
#include "scheduler/spawn.h"

/* Of each file that the child writes: parts of data sets on the hub, and data tokenized. Weights
 * are not fetched, and whether the disk has room for the rest is looked at before. */
static const size_t max_file = (size_t)256 << 30;

struct plan_child {
    pid_t pid;
    int out_fd, err_fd;
    struct buf out, log;
    double deadline; /* monotonic */
    struct plan_limits limits;
    int64_t fetched, to_fetch; /* bytes of the download */
    double told_at;            /* monotonic: when it last told about it, or started */
    bool tells;                /* something new about it */
    bool ended, timed_out, too_long;
    int wait_status;
};

static int open_pipes(int out[2], int log[2], struct err *err)
{
    if (pipe2(out, O_CLOEXEC) != 0)
        return err_set_errno(err, errno, "cannot make a pipe");
    if (pipe2(log, O_CLOEXEC) != 0) {
        int rc = err_set_errno(err, errno, "cannot make a pipe");
        close(out[0]);
        close(out[1]);
        return rc;
    }
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    fcntl(log[0], F_SETFL, O_NONBLOCK);
    return 0;
}

int plan_child_start(const char *worker_path, const char *jobdir, char *const *envp,
                     const struct plan_limits *limits, struct plan_child **out, struct err *err)
{
    const char *const argv[] = {worker_path, "--plan", jobdir, NULL};
    int pipe_out[2], pipe_log[2];
    pid_t pid = -1;
    int rc = open_pipes(pipe_out, pipe_log, err);

    if (rc != 0)
        return rc;
    struct spawn spawn = {
        .argv = argv,
        .envp = envp,
        .stdout_fd = pipe_out[1],
        .stderr_fd = pipe_log[1],
        .gate_fd = -1,
        .die_with_starter = true,
        .max_memory = limits->memory,
        .max_file = max_file,
        .max_cpu_seconds = limits->seconds,
    };
    rc = spawn_start(&spawn, &pid, err);
    close(pipe_out[1]);
    close(pipe_log[1]);
    if (rc != 0) {
        close(pipe_out[0]);
        close(pipe_log[0]);
        return rc;
    }
    struct plan_child *c = xcalloc(1, sizeof(*c));
    c->pid = pid;
    c->out_fd = pipe_out[0];
    c->err_fd = pipe_log[0];
    c->limits = *limits;
    c->told_at = clock_monotonic();
    c->deadline = c->told_at + (double)limits->seconds;
    *out = c;
    return 0;
}

int plan_child_fd(const struct plan_child *c)
{
    return c->out_fd;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* What is in the pipe now. stdout is kept whole up to its limit, of stderr the end. */
static void drain(struct plan_child *c, int *fd, struct buf *to, size_t keep)
{
    char chunk[16384];

    while (*fd >= 0 && !c->too_long) {
        ssize_t n = read(*fd, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            close_fd(fd);
            return;
        }
        buf_add(to, chunk, (size_t)n);
        if (to == &c->out) {
            c->too_long = to->len > keep;
        } else if (to->len > keep) {
            memmove(to->data, to->data + to->len - keep, keep);
            to->len = keep;
            to->data[keep] = '\0';
            return; /* a child that writes without end must not keep us here */
        }
    }
}

/* The limit's seconds of CPU time from now on. */
static void renew_cpu_time(const struct plan_child *c)
{
    struct rlimit cpu;
    struct timespec used;
    clockid_t clock;

    if (clock_getcpuclockid(c->pid, &clock) != 0 || clock_gettime(clock, &used) != 0 ||
        prlimit(c->pid, RLIMIT_CPU, NULL, &cpu) != 0)
        return;
    cpu.rlim_cur = (rlim_t)(used.tv_sec + c->limits.seconds);
    prlimit(c->pid, RLIMIT_CPU, &cpu, NULL);
}

static void take_download(struct plan_child *c, const struct event_download *d)
{
    double now = clock_monotonic(), spent = now - c->told_at;
    int64_t done = d->total_bytes_done, least = c->limits.least_download_rate;

    if (least > 0 && done > c->fetched) {
        double paid = (double)(done - c->fetched) / (double)least;
        c->deadline += paid < spent ? paid : spent;
        renew_cpu_time(c);
    }
    c->fetched = done > c->fetched ? done : c->fetched;
    c->to_fetch = d->total_bytes_total;
    c->told_at = now;
    c->tells = true;
}

/* Take the lines off the output that are events. What follows them is the report. */
static void take_events(struct plan_child *c)
{
    enum { MAX_LINE = 16384 };

    for (;;) {
        const char *end = c->out.len ? memchr(c->out.data, '\n', c->out.len) : NULL;
        size_t n = end ? (size_t)(end - c->out.data) + 1 : 0;
        struct event event;
        json_t *line = NULL;

        if (n == 0 || n > MAX_LINE ||
            json_parse_limited(c->out.data, n, MAX_LINE, JSON_MAX_DEPTH_REQUEST, &line, NULL) != 0)
            return;
        bool taken = event_from_json(line, &event, NULL) == 0;
        if (taken && event.type == EVENT_DOWNLOAD)
            take_download(c, &event.download);
        json_decref(line);
        if (!taken)
            return;
        memmove(c->out.data, c->out.data + n, c->out.len - n + 1);
        c->out.len -= n;
    }
}

bool plan_child_download(struct plan_child *c, int64_t *done, int64_t *total)
{
    bool tells = c->tells;

    *done = c->fetched;
    *total = c->to_fetch;
    c->tells = false;
    return tells;
}

static void kill_group(struct plan_child *c)
{
    kill(c->pid, SIGKILL); /* it may not lead its group yet */
    kill(-c->pid, SIGKILL);
    while (waitpid(c->pid, &c->wait_status, 0) < 0 && errno == EINTR)
        continue;
    c->ended = true;
    close_fd(&c->out_fd);
    close_fd(&c->err_fd);
}

bool plan_child_poll(struct plan_child *c)
{
    siginfo_t info = {0};

    if (c->ended)
        return true;
    /* Asked before reading: what it wrote before its end is in the pipe by then. Not reaped yet, so
     * that its number stays taken while the rest of the group is killed. */
    bool exited = waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
                  info.si_pid == c->pid;
    drain(c, &c->out_fd, &c->out, PLAN_MAX_OUTPUT);
    drain(c, &c->err_fd, &c->log, PLAN_LOG_TAIL);
    take_events(c);
    c->timed_out = !exited && clock_monotonic() >= c->deadline;
    if (exited || c->too_long || c->timed_out)
        kill_group(c);
    return c->ended;
}

static int crashed(const struct plan_child *c, struct err *err)
{
    int rc;

    if (WIFSIGNALED(c->wait_status))
        rc = err_set(err, ERR_PEER, "checking the job ended by signal %d (%s)%s%s",
                     WTERMSIG(c->wait_status), strsignal(WTERMSIG(c->wait_status)),
                     c->log.len ? "; its last output: " : "", buf_str(&c->log));
    else
        rc = err_set(err, ERR_PEER, "checking the job ended with status %d and no answer%s%s",
                     WEXITSTATUS(c->wait_status), c->log.len ? "; its last output: " : "",
                     buf_str(&c->log));
    return err_set_reason(err, rc, "worker_crashed");
}

int plan_child_result(const struct plan_child *c, struct plan_report *out, struct err *err)
{
    bool good_exit = WIFEXITED(c->wait_status) && WEXITSTATUS(c->wait_status) <= 1;
    struct plan_report report = {0};
    json_t *value = NULL;
    int rc = 0;

    if (c->timed_out) {
        rc = err_set(err, ERR_TIMEOUT,
                     "checking the model and the data took longer than %" PRId64
                     " s; try again, or raise the limit",
                     c->limits.seconds);
        return err_set_reason(err, rc, "timeout");
    }
    if (c->too_long) {
        rc = err_set(err, ERR_CORRUPT, "checking the job answered with more than %d bytes",
                     PLAN_MAX_OUTPUT);
        return err_set_reason(err, rc, "invalid_plan");
    }
    if (!good_exit || c->out.len == 0)
        return crashed(c, err);
    TRY(json_parse_limited(c->out.data, c->out.len, PLAN_MAX_OUTPUT, JSON_MAX_DEPTH_REQUEST, &value,
                           err));
    TRY(plan_report_from_json(value, &report, err));
    if (report.fits != (WEXITSTATUS(c->wait_status) == 0)) {
        rc = err_set(err, ERR_CORRUPT, "the answer and the exit status %d contradict each other",
                     WEXITSTATUS(c->wait_status));
        goto out;
    }
    *out = report;
    memset(&report, 0, sizeof(report));
out:
    if (rc != 0) {
        err_wrap(err, rc, "the answer of `castor-worker --plan` makes no sense");
        err_set_reason(err, rc, "invalid_plan");
    }
    plan_report_fini(&report);
    json_decref(value);
    return rc;
}

void plan_child_destroy(struct plan_child *c)
{
    if (!c)
        return;
    if (!c->ended)
        kill_group(c);
    buf_fini(&c->out);
    buf_fini(&c->log);
    free(c);
}

int plan_child_run(const char *worker_path, const char *jobdir, char *const *envp,
                   const struct plan_limits *limits, struct plan_report *out, struct err *err)
{
    struct plan_child *c = NULL;
    int rc = plan_child_start(worker_path, jobdir, envp, limits, &c, err);

    if (rc != 0)
        return rc;
    while (!plan_child_poll(c)) {
        struct pollfd fd = {.fd = c->out_fd, .events = POLLIN};
        poll(&fd, 1, 20);
    }
    rc = plan_child_result(c, out, err);
    plan_child_destroy(c);
    return rc;
}
