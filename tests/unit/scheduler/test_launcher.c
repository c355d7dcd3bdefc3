/* Starting an attempt, interrupted everywhere. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/fs.h"
#include "scheduler/launcher.h"

static char dir[64];
static char *worker, *ran;

/* A worker that does nothing but say that it ran. */
static void setup(void)
{
    static const char script[] = "#!/bin/sh\necho ran >> \"$1/ran\"\n";

    snprintf(dir, sizeof(dir), "%s", "/tmp/castor-launch-XXXXXX");
    cr_assert(mkdtemp(dir));
    worker = fs_join(dir, "worker");
    ran = fs_join(dir, "ran");
    cr_assert(fs_write_file_atomic(worker, script, sizeof(script) - 1, NULL) == 0);
    cr_assert(chmod(worker, 0755) == 0);
}

static void teardown(void)
{
    fs_remove_tree(dir, NULL);
    free(worker);
    free(ran);
}

TestSuite(launcher, .init = setup, .fini = teardown, .timeout = 600);

static int64_t times_run(void)
{
    struct buf text = {0};
    int64_t n = 0;

    if (fs_exists(ran))
        cr_assert(fs_read_file(ran, 4096, &text, NULL) == 0);
    for (size_t i = 0; i < text.len; i++)
        n += text.data[i] == '\n';
    buf_fini(&text);
    return n;
}

static struct launch launch_of(int64_t attempt)
{
    return (struct launch){.worker_path = worker, .jobdir = dir, .attempt = attempt};
}

/* A process that starts an attempt and is killed when it has made n system calls. False: it was
 * done before that. */
static bool start_and_die(int64_t attempt, int64_t n)
{
    struct launch launch = launch_of(attempt);
    int status;
    pid_t pid = fork();

    cr_assert(pid >= 0);
    if (pid == 0) {
        struct attempt_process process;
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(2);
        raise(SIGSTOP);
        _exit(launcher_local.start(&launch, &process, NULL) == 0 ? 0 : 1);
    }
    cr_assert(waitpid(pid, &status, 0) == pid);
    if (WIFEXITED(status))
        cr_skip_test("processes cannot be traced here");
    for (int64_t calls = 0; calls < 2 * n; calls++) { /* each stops twice: going in, coming out */
        cr_assert(ptrace(PTRACE_SYSCALL, pid, NULL, NULL) == 0);
        cr_assert(waitpid(pid, &status, 0) == pid);
        if (WIFEXITED(status)) {
            cr_assert(WEXITSTATUS(status) == 0);
            return false;
        }
        cr_assert(WIFSTOPPED(status));
        if (WSTOPSIG(status) != SIGTRAP) /* SIGCHLD, of an attempt that is over already */
            calls--;
    }
    kill(pid, SIGKILL);
    cr_assert(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    return true;
}

/* What the next castord finds, waiting while it is open. */
static int find(int64_t attempt, struct attempt_process *out)
{
    double until = clock_monotonic() + 300;
    int rc;

    while ((rc = launcher_local.find(dir, attempt, out, NULL)) == ERR_CONFLICT) {
        cr_assert(clock_monotonic() < until, "a child waits for ever");
        clock_sleep(0.002);
    }
    return rc;
}

static void wait_for_end(struct attempt_process *process)
{
    while (launcher_local.is_alive(process))
        clock_sleep(0.002);
}

Test(launcher, an_attempt_runs_once_whenever_its_starter_is_killed)
{
    struct attempt_process process;
    int64_t n = 0, found = 0, started = 0;
    bool killed = true;

    while (killed) {
        struct err err = {0};
        int64_t attempt = ++n;
        killed = start_and_die(attempt, n);
        int rc = find(attempt, &process);
        cr_assert(rc == 0 || rc == ERR_NOT_FOUND, "after %ld calls: %d", (long)n, rc);
        if (rc == ERR_NOT_FOUND) {
            struct launch launch = launch_of(attempt);
            cr_assert(killed, "it was started and is not found");
            cr_assert(times_run() == 0, "after %ld calls it ran and nobody knows", (long)n);
            cr_assert(launcher_local.start(&launch, &process, &err) == 0, "%s", err.msg);
            started++;
        } else {
            found += killed;
        }
        wait_for_end(&process);
        cr_assert(find(attempt, &process) == 0);
        cr_assert(times_run() == 1, "after %ld calls it ran %ld times", (long)n, (long)times_run());
        cr_assert(unlink(ran) == 0);
    }
    cr_assert(started > 20 && found > 0, "%ld started again, %ld found", (long)started,
              (long)found);
}

Test(launcher, what_left_events_is_not_started_again)
{
    struct launch launch = launch_of(1);
    struct attempt_process process;
    char *record = job_dir_supervisor(dir, 1), *waiting = job_dir_supervisor_wait(dir, 1);
    char *events = job_dir_events(dir, 1);

    cr_assert(launcher_local.find(dir, 1, &process, NULL) == ERR_NOT_FOUND);
    cr_assert(launcher_local.start(&launch, &process, NULL) == 0);
    wait_for_end(&process);
    cr_assert(rename(record, waiting) == 0); /* as a power failure may leave it */
    cr_assert(launcher_local.find(dir, 1, &process, NULL) == ERR_NOT_FOUND);
    cr_assert(fs_write_file_atomic(events, "", 0, NULL) == 0);
    cr_assert(launcher_local.find(dir, 1, &process, NULL) == 0);
    cr_assert_not(launcher_local.is_alive(&process));
    free(events);
    free(waiting);
    free(record);
}
