#include "server/file_check.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/buf.h"
#include "core/clock.h"
#include "core/json.h"
#include "core/log.h"
#include "scheduler/spawn.h"

enum { ANSWER_MAX_BYTES = 1 << 20 }; /* the checker names up to 10,000 lines */

static int child_start(const struct file_check *check, const char *path, int out_fd, pid_t *pid,
                       struct err *err)
{
    const char *const argv[] = {check->worker_path, "--check", path, NULL};
    struct spawn spawn = {
        .argv = argv,
        .stdout_fd = out_fd,
        .stderr_fd = -1,
        .gate_fd = -1,
        .max_memory = (size_t)check->bytes,
        .max_file = 1, /* it has nothing to write; 0 would be no limit */
        .max_cpu_seconds = check->seconds + 1,
    };

    return spawn_start(&spawn, pid, err);
}

/* Read the child's answer until it ends or the deadline passes; false = deadline. */
static bool answer_read(int fd, double deadline, struct buf *answer)
{
    char piece[4096];

    for (;;) {
        double left = deadline - clock_monotonic();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (left <= 0)
            return false;
        int ready = poll(&p, 1, (int)(left * 1000) + 1);
        if (ready <= 0)
            continue; /* EINTR or nothing yet: the clock decides */
        ssize_t n = read(fd, piece, sizeof(piece));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return true;
        if (answer->len <= ANSWER_MAX_BYTES) /* more is read, so that the child can end, and lost */
            buf_add(answer, piece, (size_t)n);
    }
}

/* The child closed its output: it ends at once, or is made to. */
static int child_wait(pid_t pid, double deadline, bool *killed)
{
    int status = 0;

    for (;;) {
        pid_t got = waitpid(pid, &status, *killed ? 0 : WNOHANG);
        if (got == pid || (got < 0 && errno != EINTR))
            return status;
        if (!*killed && clock_monotonic() > deadline) {
            kill(-pid, SIGKILL);
            kill(pid, SIGKILL);
            *killed = true;
        } else if (!*killed) {
            clock_sleep(0.002);
        }
    }
}

static void faults_read(const struct buf *answer, struct fault_list *faults)
{
    json_t *root = NULL;
    const json_t *list;
    json_t *item;
    size_t i;

    if (json_parse_limited(buf_str(answer), answer->len, ANSWER_MAX_BYTES, JSON_MAX_DEPTH_REQUEST,
                           &root, NULL) == 0) {
        list = json_object_get(root, "faults");
        json_array_foreach((json_t *)list, i, item)
        {
            const char *message = json_string_value(json_object_get(item, "message"));
            int64_t line = json_integer_value(json_object_get(item, "line"));
            if (message && line > 0)
                fault_add(faults, "file", "invalid_file",
                          "Invalid file format. Line %" PRId64 ": %s", line, message);
            else if (message)
                fault_add(faults, "file", "invalid_file", "Invalid file format. %s", message);
        }
    }
    if (faults->n == 0)
        fault_add(faults, "file", "invalid_file",
                  "Invalid file format. Expected JSONL: one JSON object on every line, in UTF-8");
    json_decref(root);
}

int file_check_run(const struct file_check *check, const char *path, struct fault_list *faults,
                   struct err *err)
{
    double deadline = clock_monotonic() + (double)check->seconds;
    struct buf answer = {0};
    bool killed = false;
    int pipe_fd[2];
    pid_t pid = -1;

    if (pipe2(pipe_fd, O_CLOEXEC) != 0)
        return err_set_errno(err, errno, "cannot create a pipe to check the file");
    int rc = child_start(check, path, pipe_fd[1], &pid, err);
    close(pipe_fd[1]);
    if (rc != 0) {
        close(pipe_fd[0]);
        return rc;
    }
    if (!answer_read(pipe_fd[0], deadline, &answer))
        deadline = 0;
    close(pipe_fd[0]);
    int status = child_wait(pid, deadline, &killed);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (killed)
        fault_add(faults, "file", "unchecked_file",
                  "The file could not be checked within %" PRId64
                  " seconds; split it into smaller files",
                  check->seconds);
    else if (WIFSIGNALED(status))
        fault_add(faults, "file", "unchecked_file",
                  "The file could not be checked: the checker ended with signal %d; look for "
                  "lines of extraordinary size",
                  WTERMSIG(status));
    else if (code == 1)
        faults_read(&answer, faults);
    else if (code != 0)
        log_warn("files",
                 "status=%d %s --check did not run; the file is checked when a job uses it", code,
                 check->worker_path);
    buf_fini(&answer);
    return 0;
}
