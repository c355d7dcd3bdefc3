/*
 * The supervisor of one attempt on one host. It leads its own process group; its ranks are children
 * in that group that die with it. Ranks write to attempt-N/rank-K.log; how each ended goes into
 * attempt-N/exit.json, the last file of an attempt.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/attempt_exit.h"
#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/json.h"
#include "core/log.h"
#include "worker/train/crumb.h"
#include "worker/worker.h"

enum { LOG_TAIL_LINES = 8 };

struct attempt {
    const char *jobdir;
    int64_t number;
    int64_t n_ranks;
    pid_t *pids;
    bool killing;      /* ranks are ended by this process */
    int64_t oom_kills; /* when they started               */
    struct attempt_exit exit;
};

/* --- ranks --- */

/* When host memory runs out, the kernel shall end a rank rather than who can tell of it. The unit
 * is a thousandth of the memory (proc(5), oom_score_adj); without this file the kernel chooses by
 * size. */
static void go_before_the_supervisor(void)
{
    enum { AHEAD = 100, MOST = 1000 };
    int own = 0;
    FILE *f = fopen("/proc/self/oom_score_adj", "r+e");
    if (!f)
        return;
    if (fscanf(f, "%d", &own) == 1) {
        rewind(f);
        fprintf(f, "%d", own + AHEAD < MOST ? own + AHEAD : MOST);
    }
    fclose(f);
}

/* In the child: never returns. */
static void become_rank(const struct attempt *a, int64_t rank, int log_fd, pid_t parent)
{
    char attempt_text[24], rank_text[24];
    snprintf(attempt_text, sizeof attempt_text, "%lld", (long long)a->number);
    snprintf(rank_text, sizeof rank_text, "%lld", (long long)rank);
    /* OpenMP threads that spin while they wait cost a rank most of its speed as soon as anything
     * else runs on its cores (measured: 5 to 30 times slower); asleep they cost microseconds. */
    setenv("OMP_WAIT_POLICY", "PASSIVE", 0);
    go_before_the_supervisor();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it died before the line above */
        _exit(1);
    if (dup2(log_fd, STDERR_FILENO) < 0 || dup2(log_fd, STDOUT_FILENO) < 0)
        _exit(1);
    execl("/proc/self/exe", "castor-worker", "--rank", rank_text, a->jobdir, "--attempt",
          attempt_text, (char *)NULL);
    fprintf(stderr, "starting rank %s: %s\n", rank_text, strerror(errno));
    _exit(127);
}

static int start_rank(struct attempt *a, int64_t rank, struct err *err)
{
    char *log = job_dir_rank_log(a->jobdir, a->number, rank);
    int rc = 0;
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) {
        rc = err_set_errno(err, errno, "%s", log);
        goto out;
    }
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0)
        become_rank(a, rank, fd, parent);
    if (pid < 0)
        rc = err_set_errno(err, errno, "starting rank %lld", (long long)rank);
    else
        a->pids[rank] = pid;
    close(fd);
out:
    free(log);
    return rc;
}

static void signal_ranks(struct attempt *a, int signal_number)
{
    a->killing = a->killing || signal_number == SIGKILL;
    for (int64_t r = 0; r < a->n_ranks; r++)
        if (a->pids[r] > 0)
            kill(a->pids[r], signal_number);
}

/* --- how they ended --- */

static void read_log_tail(const struct attempt *a, int64_t rank, char *out, size_t size)
{
    char *path = job_dir_rank_log(a->jobdir, a->number, rank);
    struct buf text = {0};
    fs_read_tail(path, size - 1, &text, NULL);
    free(path);
    const char *from = buf_str(&text), *newline = strchr(from, '\n');
    if (text.len == size - 1 && newline) /* begin at a line's start */
        from = newline + 1;
    int lines = 0;
    for (const char *p = from + strlen(from); p > from; p--)
        if (p[-1] == '\n' && ++lines > LOG_TAIL_LINES) {
            from = p;
            break;
        }
    snprintf(out, size, "%s", from);
    buf_fini(&text);
}

/* Processes that the kernel has ended since the machine started because memory ran out. */
static int64_t count_oom_kills(void)
{
    struct buf text = {0};
    long long n = 0;
    if (fs_read_file("/proc/vmstat", 1 << 16, &text, NULL) == 0) {
        const char *line = strstr(buf_str(&text), "\noom_kill ");
        if (line)
            sscanf(line, " oom_kill %lld", &n);
    }
    buf_fini(&text);
    return n;
}

/* A rank that the kernel has ended can say nothing itself. */
static void explain_kill(const struct attempt *a, struct rank_exit *e)
{
    char before[sizeof e->log_tail];
    if (e->signal != SIGKILL || a->killing || count_oom_kills() <= a->oom_kills)
        return;
    snprintf(before, sizeof before, "%s", e->log_tail);
    snprintf(e->log_tail, sizeof e->log_tail,
             "the kernel ended it because host memory ran out, which others use as well: a smaller "
             "placement.host_memory_limit leaves them more; the job resumes from its last "
             "checkpoint\n%.200s",
             before);
}

static void note_end(struct attempt *a, int64_t rank, int status)
{
    struct rank_exit *e = &a->exit.ranks[rank];
    struct crumb crumb;
    char *path = job_dir_crumb(a->jobdir, a->number, rank);
    crumb_read(path, &crumb);
    free(path);
    e->rank = rank;
    e->pid = a->pids[rank];
    e->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    e->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    e->step = crumb.step;
    snprintf(e->where, sizeof e->where, "%s", crumb.where);
    read_log_tail(a, rank, e->log_tail, sizeof e->log_tail);
    explain_kill(a, e);
    a->pids[rank] = 0;
    if (e->exit_code == 0)
        return;
    a->exit.ok = false;
    if (a->exit.first_failed_rank < 0) {
        a->exit.first_failed_rank = rank;
        log_error("supervisor", "rank %lld ended: exit code %d, signal %d, step %lld, %s",
                  (long long)rank, e->exit_code, e->signal, (long long)e->step, e->where);
        signal_ranks(a, SIGKILL); /* the others wait for it in vain */
    }
}

static void watch(struct attempt *a, const volatile sig_atomic_t *terminate)
{
    int64_t alive = 0;
    bool told = false;
    for (int64_t r = 0; r < a->n_ranks; r++)
        alive += a->pids[r] > 0;
    while (alive > 0) {
        int status;
        if (*terminate && !told) {
            signal_ranks(a, SIGTERM);
            told = true;
        }
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid <= 0) {
            clock_sleep(0.05);
            continue;
        }
        for (int64_t r = 0; r < a->n_ranks; r++)
            if (a->pids[r] == pid) {
                note_end(a, r, status);
                alive--;
            }
    }
}

/* --- the attempt --- */

static int write_record(const struct attempt *a, struct err *err)
{
    struct supervisor_record record;
    char *path = job_dir_supervisor(a->jobdir, a->number);
    int rc = 0;
    TRY(supervisor_record_self(&record, err));
    TRY(supervisor_record_save(path, &record, err));
out:
    free(path);
    return rc;
}

static int write_exit(struct attempt *a, struct err *err)
{
    char *path = job_dir_exit(a->jobdir, a->number);
    a->exit.t = clock_wall();
    json_t *j = attempt_exit_to_json(&a->exit);
    char *line = json_to_line(j);
    int rc = fs_write_file_atomic(path, line, strlen(line), err);
    free(line);
    json_decref(j);
    free(path);
    return rc;
}

int supervise(const char *jobdir, int64_t attempt, const volatile sig_atomic_t *terminate,
              struct err *err)
{
    struct attempt a = {.jobdir = jobdir, .number = attempt, .n_ranks = 1};
    char *dir = job_dir_attempt(jobdir, attempt);
    int rc = 0;

    a.pids = xcalloc((size_t)a.n_ranks, sizeof *a.pids);
    a.exit = (struct attempt_exit){.ok = true, .first_failed_rank = -1, .n_ranks = a.n_ranks};
    a.exit.ranks = xcalloc((size_t)a.n_ranks, sizeof *a.exit.ranks);
    if (getpgrp() != getpid())
        setpgid(0, 0);
    TRY(fs_mkdir_p(dir, false, err));
    TRY(write_record(&a, err));
    a.oom_kills = count_oom_kills();
    for (int64_t r = 0; r < a.n_ranks; r++)
        TRY(start_rank(&a, r, err));
    watch(&a, terminate);
    TRY(write_exit(&a, err));
    if (!a.exit.ok)
        rc = err_set(err, ERR_PEER, "rank %lld failed: %s", (long long)a.exit.first_failed_rank,
                     a.exit.ranks[a.exit.first_failed_rank].log_tail);
out:
    if (rc)
        signal_ranks(&a, SIGKILL);
    attempt_exit_fini(&a.exit);
    free(a.pids);
    free(dir);
    return rc;
}
