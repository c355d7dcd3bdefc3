#include "scheduler/devices.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/json.h"
#include "scheduler/spawn.h"

enum { MAX_ANSWER = 4096, MAX_FILE = 64 << 20, MAX_GPUS = 4096 };
static const double reap_seconds = 1;

struct answer {
    char text[MAX_ANSWER];
    size_t len;
};

/* Until the pipe is closed, too much came, or time is over; false for the latter. */
static bool read_answer(int fd, double deadline, struct answer *a)
{
    for (;;) {
        double left = deadline - clock_monotonic();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (left <= 0)
            return false;
        if (poll(&p, 1, (int)(left * 1000) + 1) <= 0)
            continue;
        ssize_t n = read(fd, a->text + a->len, sizeof(a->text) - a->len);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return true;
        a->len += (size_t)n;
        if (a->len == sizeof(a->text))
            return true;
    }
}

/* Not reaped by that, so that its number stays taken. */
static bool has_ended(pid_t pid, double deadline)
{
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid)
            return true;
        if (clock_monotonic() >= deadline)
            return false;
        clock_sleep(0.005);
    }
}

/* A process that hangs inside a driver cannot even be killed: then it is left to itself. */
static int end_child(pid_t pid)
{
    int status = 0;

    kill(pid, SIGKILL); /* it may not lead its group yet */
    kill(-pid, SIGKILL);
    has_ended(pid, clock_monotonic() + reap_seconds);
    waitpid(pid, &status, WNOHANG);
    return status;
}

static int parse(const struct answer *a, int64_t *n, struct err *err)
{
    static const char *const known[] = {"cuda", NULL};
    json_t *value = NULL;
    int rc = 0;

    TRY(json_parse_limited(a->text, a->len, MAX_ANSWER, JSON_MAX_DEPTH_REQUEST, &value, err));
    TRY(json_refuse_unknown(value, "", known, err));
    TRY(json_get_int64(value, "", "cuda", true, 0, MAX_GPUS, n, err));
out:
    if (rc != 0)
        rc = err_wrap(err, ERR_CORRUPT, "the answer of `castor-worker --devices` makes no sense");
    json_decref(value);
    return rc;
}

int devices_count_gpus(const char *worker_path, int64_t seconds, int64_t *n, struct err *err)
{
    const char *const argv[] = {worker_path, "--devices", NULL};
    double deadline = clock_monotonic() + (double)seconds;
    struct answer answer = {.len = 0};
    bool in_time;
    int out[2], status = 0;
    pid_t pid = -1;
    int rc;

    if (pipe2(out, O_CLOEXEC) != 0)
        return err_set_errno(err, errno, "cannot make a pipe");
    struct spawn spawn = {.argv = argv,
                          .stdout_fd = out[1],
                          .stderr_fd = -1,
                          .gate_fd = -1,
                          .die_with_starter = true,
                          .max_file = MAX_FILE,
                          .max_cpu_seconds = seconds};
    rc = spawn_start(&spawn, &pid, err);
    close(out[1]);
    if (rc == 0) {
        fcntl(out[0], F_SETFL, O_NONBLOCK);
        in_time = read_answer(out[0], deadline, &answer) && has_ended(pid, deadline);
        status = end_child(pid);
        if (!in_time) {
            rc = err_set(err, ERR_TIMEOUT,
                         "looking for GPUs took longer than %" PRId64 " s; does nvidia-smi answer?",
                         seconds);
        } else if (WIFSIGNALED(status)) {
            rc = err_set(err, ERR_PEER, "looking for GPUs ended by signal %d (%s)",
                         WTERMSIG(status), strsignal(WTERMSIG(status)));
        } else if (WEXITSTATUS(status) != 0) {
            rc = err_set(err, ERR_PEER, "`%s --devices` ended with status %d", worker_path,
                         WEXITSTATUS(status));
        } else {
            rc = parse(&answer, n, err);
        }
    }
    close(out[0]);
    return rc;
}
