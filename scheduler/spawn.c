#include "scheduler/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

enum { EXIT_CANNOT_RUN = 127 };

static void limit(int resource, uint64_t value)
{
    struct rlimit r = {.rlim_cur = value, .rlim_max = value};

    if (value > 0)
        setrlimit((__rlimit_resource_t)resource, &r);
}

/* The starter may move this one (spawn.h). */
static void limit_cpu(rlim_t seconds)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_CPU, &r) != 0)
        return;
    r.rlim_cur = seconds < r.rlim_max ? seconds : r.rlim_max;
    setrlimit(RLIMIT_CPU, &r);
}

static void say(const char *text)
{
    if (write(STDERR_FILENO, text, strlen(text)) < 0)
        return;
}

/* Between fork and exec of a program with threads: only functions that are async-signal-safe. */
static _Noreturn void become(const struct spawn *s, int null_fd, pid_t starter)
{
    struct rlimit no_core = {0, 0};
    sigset_t none;
    char byte;
    ssize_t n;

    setsid();
    if (s->die_with_starter) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != starter) /* it died before the line above */
            _exit(EXIT_CANNOT_RUN);
    }
    for (int sig = 1; sig < 32; sig++)
        signal(sig, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    dup2(null_fd, STDIN_FILENO);
    dup2(s->stdout_fd >= 0 ? s->stdout_fd : null_fd, STDOUT_FILENO);
    dup2(s->stderr_fd >= 0 ? s->stderr_fd : null_fd, STDERR_FILENO);
    if (s->gate_fd >= 0) {
        /* Everything else goes first: a child that waits must not hold castord's lock. */
        dup2(s->gate_fd, STDERR_FILENO + 1);
        close_range(STDERR_FILENO + 2, ~0U, 0);
        do
            n = read(STDERR_FILENO + 1, &byte, 1);
        while (n < 0 && errno == EINTR);
        if (n != 1 || rename(s->claim_from, s->claim_to) != 0)
            _exit(EXIT_CANNOT_RUN);
    }
    close_range(STDERR_FILENO + 1, ~0U, 0);
    setrlimit(RLIMIT_CORE, &no_core);
    if (s->max_cpu_seconds > 0)
        limit_cpu((rlim_t)s->max_cpu_seconds);
    limit(RLIMIT_FSIZE, s->max_file);
    limit(RLIMIT_DATA, s->max_memory);
    execve(s->argv[0], (char *const *)s->argv, s->envp ? s->envp : environ);
    const char *why = strerrordesc_np(errno);
    say("cannot run ");
    say(s->argv[0]);
    say(": ");
    say(why ? why : "unknown error");
    say("\n");
    _exit(EXIT_CANNOT_RUN);
}

int spawn_start(const struct spawn *spawn, pid_t *pid, struct err *err)
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct spawn safe = *spawn;
    int out_fd = -1, err_fd = -1, gate_fd = -1;
    int rc = 0;

    if (null_fd < 0)
        return err_set_errno(err, errno, "cannot open /dev/null");
    /* Copies far above 0..3, so that the child's dup2 calls cannot overwrite one another's source,
     * whatever descriptors castord itself was started with. */
    out_fd = spawn->stdout_fd >= 0 ? fcntl(spawn->stdout_fd, F_DUPFD_CLOEXEC, 10) : -1;
    err_fd = spawn->stderr_fd >= 0 ? fcntl(spawn->stderr_fd, F_DUPFD_CLOEXEC, 10) : -1;
    gate_fd = spawn->gate_fd >= 0 ? fcntl(spawn->gate_fd, F_DUPFD_CLOEXEC, 10) : -1;
    int high_null = fcntl(null_fd, F_DUPFD_CLOEXEC, 10);
    safe.stdout_fd = out_fd;
    safe.stderr_fd = err_fd;
    safe.gate_fd = gate_fd;
    pid_t starter = getpid();
    pid_t child = high_null < 0 ? -1 : fork();
    if (child == 0)
        become(&safe, high_null, starter);
    if (child < 0)
        rc = err_set_errno(err, errno, "cannot start %s", spawn->argv[0]);
    else
        *pid = child;
    close(null_fd);
    if (high_null >= 0)
        close(high_null);
    if (out_fd >= 0)
        close(out_fd);
    if (err_fd >= 0)
        close(err_fd);
    if (gate_fd >= 0)
        close(gate_fd);
    return rc;
}
