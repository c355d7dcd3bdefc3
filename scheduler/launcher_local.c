/* The local launcher: fork and exec on this host. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "scheduler/launcher.h"
#include "scheduler/spawn.h"

/* Record the waiting child, then let it run; it makes the record final itself. */
static int record_and_release(pid_t pid, const char *path, int gate_fd, struct attempt_process *out,
                              struct err *err)
{
    struct attempt_process process = {0};
    int rc = 0;

    TRY(supervisor_record_of(pid, &process.record, err));
    TRY(supervisor_record_save(path, &process.record, err));
    if (write(gate_fd, "", 1) != 1) {
        rc = err_set_errno(err, errno, "cannot release the supervisor");
        goto out;
    }
    *out = process;
out:
    return rc;
}

static int local_start(const struct launch *launch, struct attempt_process *out, struct err *err)
{
    char *dir = job_dir_attempt(launch->jobdir, launch->attempt);
    char *log = job_dir_supervisor_log(launch->jobdir, launch->attempt);
    char *waiting = job_dir_supervisor_wait(launch->jobdir, launch->attempt);
    char *record = job_dir_supervisor(launch->jobdir, launch->attempt);
    char *number = xasprintf("%" PRId64, launch->attempt);
    const char *const argv[] = {launch->worker_path, launch->jobdir, "--attempt", number, NULL};
    struct spawn spawn = {.argv = argv,
                          .envp = launch->envp,
                          .stdout_fd = -1,
                          .stderr_fd = -1,
                          .claim_from = waiting,
                          .claim_to = record};
    int gate[2] = {-1, -1};
    pid_t pid = -1;
    int rc = 0;

    TRY(fs_mkdir_p(dir, false, err));
    spawn.stderr_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (spawn.stderr_fd < 0) {
        rc = err_set_errno(err, errno, "cannot open %s", log);
        goto out;
    }
    spawn.stdout_fd = spawn.stderr_fd;
    if (pipe2(gate, O_CLOEXEC) != 0) {
        rc = err_set_errno(err, errno, "cannot make a pipe");
        goto out;
    }
    spawn.gate_fd = gate[0];
    TRY(spawn_start(&spawn, &pid, err));
    rc = record_and_release(pid, waiting, gate[1], out, err);
out:
    if (gate[0] >= 0)
        close(gate[0]);
    if (gate[1] >= 0)
        close(gate[1]);
    if (spawn.stderr_fd >= 0)
        close(spawn.stderr_fd);
    if (rc != 0 && pid > 0) { /* still behind the gate, which is closed now */
        waitpid(pid, NULL, 0);
        unlink(waiting);
    }
    free(number);
    free(record);
    free(waiting);
    free(log);
    free(dir);
    return rc;
}

/* Is there a sign that it ran, besides its record? A power failure can take back the renaming. */
static bool left_traces(const char *jobdir, int64_t attempt)
{
    char *events = job_dir_events(jobdir, attempt), *end = job_dir_exit(jobdir, attempt);
    bool traces = fs_exists(events) || fs_exists(end);

    free(end);
    free(events);
    return traces;
}

static int local_find(const char *jobdir, int64_t attempt, struct attempt_process *out,
                      struct err *err)
{
    struct attempt_process process = {0};
    char *record = job_dir_supervisor(jobdir, attempt);
    char *waiting = job_dir_supervisor_wait(jobdir, attempt);
    struct err why = {0};
    int waits = supervisor_record_load(waiting, &process.record, &why);
    bool alive = waits == 0 && supervisor_record_alive(&process.record);
    int rc;

    /* In this order: once the child that waited is gone, nobody renames its record any more. */
    if (fs_exists(record)) {
        rc = supervisor_record_load(record, &process.record, err);
    } else if (alive) {
        rc =
            err_set(err, ERR_CONFLICT, "process %" PRId64 " has not begun yet", process.record.pid);
    } else if (waits == 0 && left_traces(jobdir, attempt)) {
        rc = 0;
    } else if (waits == 0 || waits == ERR_NOT_FOUND) {
        rc = err_set(err, ERR_NOT_FOUND, "attempt %" PRId64 " never ran", attempt);
    } else {
        rc = waits;
        if (err)
            *err = why;
    }
    if (rc == 0)
        *out = process;
    free(waiting);
    free(record);
    return rc;
}

/* "pid (name) S ppid pgrp ..." */
static bool is_member(const char *pid_name, int64_t group)
{
    char path[300], text[1024];
    int64_t pgrp = -1;
    char state = 'Z';

    snprintf(path, sizeof(path), "/proc/%s/stat", pid_name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = '\0';
    const char *p = strrchr(text, ')');
    if (!p || sscanf(p, ") %c %*d %" SCNd64, &state, &pgrp) != 2)
        return false;
    return pgrp == group && state != 'Z' && state != 'X';
}

/* Processes of the group besides zombies. The kernel gives no new process the number of a group
 * that still has members, so if a process of that number is there that is not the supervisor, the
 * group is empty and the number was given out again. */
static bool group_has_members(const struct supervisor_record *r)
{
    struct supervisor_record now;
    const struct dirent *entry;
    bool found = false;

    if (supervisor_record_of(r->pid, &now, NULL) == 0 &&
        (now.start_ticks != r->start_ticks || strcmp(now.boot_id, r->boot_id) != 0))
        return false;
    DIR *proc = opendir("/proc");
    while (proc && !found && (entry = readdir(proc)))
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
            found = is_member(entry->d_name, r->pid);
    if (proc)
        closedir(proc);
    return found;
}

static bool is_of_this_boot(const struct supervisor_record *r)
{
    struct supervisor_record self;

    return supervisor_record_self(&self, NULL) == 0 && strcmp(self.boot_id, r->boot_id) == 0;
}

static void local_signal(const struct attempt_process *process, int sig)
{
    if (is_of_this_boot(&process->record) && group_has_members(&process->record))
        kill(-(pid_t)process->record.pid, sig);
}

static bool local_is_alive(struct attempt_process *p)
{
    /* Fails with ECHILD for an attempt that an earlier castord started. */
    if (!p->exited && waitpid((pid_t)p->record.pid, &p->wait_status, WNOHANG) == p->record.pid)
        p->exited = true;
    if (!p->exited && supervisor_record_alive(&p->record))
        return true;
    if (!is_of_this_boot(&p->record) || !group_has_members(&p->record))
        return false;
    kill(-(pid_t)p->record.pid, SIGKILL);
    return true;
}

const struct launcher_ops launcher_local = {
    .name = "local",
    .start = local_start,
    .find = local_find,
    .is_alive = local_is_alive,
    .signal = local_signal,
};
