/*
 * castor-worker: one program, several ways to call it.
 *
 *   castor-worker JOBDIR [--attempt N]   train: supervise the ranks of one attempt on this host
 *   castor-worker --rank K JOBDIR --attempt N [--steps-in-flight 1|2]
 *                                        one rank, started by the supervisor; the last is for tests
 *   castor-worker --plan JOBDIR          resolve, check and plan the job; print a plan report
 *   castor-worker --print JOBDIR         print the planned step, an instruction a line
 *   castor-worker --profile JOBDIR       train some steps; print where a step's time goes, op by op
 *   castor-worker --check FILE           check a data file (or hf://datasets/...) and report
 *   castor-worker --probe [DIRECTORY]    measure this machine, and the disk of the directory;
 *                                        print and keep the device profile
 *   castor-worker --devices              count this machine's devices; print the numbers
 *   castor-worker --help
 *
 * Exit status: 0 = done, 1 = failed (the report or the attempt's last event says why), 2 = wrong
 * usage.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/log.h"
#include "worker/train/trainer.h"
#include "worker/worker.h"

static volatile sig_atomic_t terminate;

static void on_terminate(int signal_number)
{
    terminate = 1;
}

/* On a stack of its own: of CPU jobs that were told to stop, one in thirty ended with a damaged
 * heap, seen within oneDNN's products, which seem not to leave the memory below the stack pointer
 * to signals. The kernel gives a process's signals to its main thread. */
static void catch_terminate(void)
{
    static char stack[64 << 10]; /* the registers of AVX-512 and AMX take 11 KiB of it */
    stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction a = {.sa_handler = on_terminate, .sa_flags = SA_RESTART | SA_ONSTACK};

    sigaltstack(&own, NULL);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* Whoever started this process may ignore it, and then nobody learns how a rank ended. */
    signal(SIGCHLD, SIG_DFL);
}

static void print_usage(FILE *to)
{
    fputs("usage: castor-worker JOBDIR [--attempt N]   run the job whose spec.json is there\n"
          "       castor-worker --plan JOBDIR          print what would run and what it takes\n"
          "       castor-worker --print JOBDIR         print the step's instructions\n"
          "       castor-worker --profile JOBDIR       train some steps, print where time goes\n"
          "       castor-worker --check FILE           print the bad lines of a data file, or of\n"
          "                                            hf://datasets/organization/name\n"
          "       castor-worker --probe [DIRECTORY]    measure this machine, and the directory's\n"
          "                                            disk, for plans to predict times\n"
          "       castor-worker --devices              count the GPUs\n"
          "       castor-worker --help\n",
          to);
}

static int usage(void)
{
    print_usage(stderr);
    return 2;
}

struct arguments {
    const char *mode; /* "--plan", ... or NULL: train */
    const char *path;
    int64_t attempt, rank;   /* -1 = not given */
    int64_t steps_in_flight; /* 0 = not given  */
};

static bool parse_count(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    long long n = text ? strtoll(text, &end, 10) : -1;
    if (!text || errno || *end || end == text || n < 0)
        return false;
    *out = n;
    return true;
}

static bool parse_arguments(int argc, char **argv, struct arguments *a)
{
    *a = (struct arguments){.attempt = -1, .rank = -1};
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        const char *next = i + 1 < argc ? argv[i + 1] : NULL;
        int64_t *count = strcmp(arg, "--attempt") == 0           ? &a->attempt
                         : strcmp(arg, "--rank") == 0            ? &a->rank
                         : strcmp(arg, "--steps-in-flight") == 0 ? &a->steps_in_flight
                                                                 : NULL;
        if (count) {
            if (!parse_count(next, count))
                return false;
            i++;
        } else if (arg[0] == '-') {
            if (a->mode)
                return false;
            a->mode = arg;
        } else if (!a->path) {
            a->path = arg;
        } else {
            return false;
        }
    }
    return true;
}

/* Before anything is written there: it may be any directory, or none. */
static int check_jobdir(const char *jobdir, struct err *err)
{
    char *spec = job_dir_spec(jobdir);
    int rc = fs_exists(spec) ? 0
                             : err_set(err, ERR_NOT_FOUND,
                                       "%s is not a job directory: it has no spec.json", jobdir);
    free(spec);
    return rc;
}

static int run_rank(const struct arguments *a)
{
    char *prefix = xasprintf("rank=%lld", (long long)a->rank);
    struct err err = {0};
    log_set_prefix(prefix);
    free(prefix);
    catch_terminate();
    struct trainer_options o = {.jobdir = a->path,
                                .attempt = a->attempt,
                                .rank = a->rank,
                                .steps_in_flight = a->steps_in_flight,
                                .terminate = &terminate};
    return trainer_run(&o, &err) == 0 ? 0 : 1;
}

/* In this process, as an attempt of its own. */
static int run_profile(const struct arguments *a)
{
    struct err err = {0};
    struct trainer_options o = {.jobdir = a->path, .terminate = &terminate, .profile = true};
    int rc = job_dir_last_attempt(a->path, &o.attempt, &err);

    catch_terminate();
    o.attempt++;
    char *directory = job_dir_attempt(a->path, o.attempt);
    if (rc == 0)
        rc = check_jobdir(a->path, &err);
    if (rc == 0)
        rc = fs_mkdir_p(directory, true, &err);
    free(directory);
    if (rc == 0)
        rc = trainer_run(&o, &err);
    if (rc)
        fprintf(stderr, "castor-worker --profile: %s\n", err.msg);
    return rc == 0 && fflush(stdout) == 0 ? 0 : 1;
}

static int run_supervisor(const struct arguments *a)
{
    struct err err = {0};
    int64_t attempt = a->attempt;
    int rc = 0;

    catch_terminate();
    if (attempt < 0) {
        rc = job_dir_last_attempt(a->path, &attempt, &err);
        attempt++;
    }
    if (rc == 0)
        rc = check_jobdir(a->path, &err);
    if (rc == 0)
        rc = supervise(a->path, attempt, &terminate, &err);
    if (rc)
        log_error("supervisor", "%s", err.msg);
    return rc == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct arguments a;
    if (!parse_arguments(argc, argv, &a))
        return usage();
    if (!a.mode && a.path)
        return a.rank >= 0 ? run_rank(&a) : run_supervisor(&a);
    if (!a.mode)
        return usage();
    if (strcmp(a.mode, "--help") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(a.mode, "--plan") == 0 && a.path)
        return worker_plan(a.path);
    if (strcmp(a.mode, "--print") == 0 && a.path)
        return worker_print(a.path);
    if (strcmp(a.mode, "--profile") == 0 && a.path)
        return run_profile(&a);
    if (strcmp(a.mode, "--check") == 0 && a.path)
        return worker_check(a.path);
    if (strcmp(a.mode, "--probe") == 0)
        return worker_probe(a.path);
    if (strcmp(a.mode, "--devices") == 0 && !a.path)
        return worker_devices();
    return usage();
}
