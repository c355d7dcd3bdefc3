/* What castord and the disk do in the meantime must cost a job nothing. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/attempt_exit.h"
#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "scheduler/store_write.h"
#include "tests/unit/scheduler/harness.h"

TestSuite(restart, .init = test_setup, .fini = test_teardown, .timeout = 600);

/* A castord that only schedules, in a process of its own. */
static pid_t start_process(void)
{
    int ready[2];
    char byte;

    cr_assert(pipe(ready) == 0);
    pid_t pid = fork();
    cr_assert(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* should the test fail */
        struct scheduler_config c = test_config();
        struct scheduler *s = NULL;
        struct err err = {0};
        if (scheduler_create(&c, &s, &err) != 0) {
            fprintf(stderr, "%s\n", err.msg);
            _exit(1);
        }
        if (write(ready[1], "", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ready[1]);
    cr_assert(read(ready[0], &byte, 1) == 1, "the scheduler did not start");
    close(ready[0]);
    return pid;
}

Test(restart, kill_9_loses_and_doubles_nothing)
{
    enum { STEPS = 2000 };
    int64_t steps[STEPS], before = -1;
    double life = 0;
    int kills = 0;

    for (int i = 0; i < STEPS; i++)
        steps[i] = i + 1;
    test_start(test_config());
    /* So fast that there is always something to store when the kill comes. */
    char *id = test_create("{\"steps\":\"2000\",\"delay\":\"0.002\"}", "");
    char *second = test_create("{\"steps\":\"4\"}", "");
    scheduler_destroy(sched); /* in the middle of whatever it is */
    sched = NULL;
    for (;;) {
        pid_t pid = start_process();
        clock_sleep(life);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        kills++;
        struct job a = test_get(id), b = test_get(second);
        bool over = job_status_is_final(a.status) && job_status_is_final(b.status);
        int64_t now = a.step + b.step + a.status * 100 * STEPS + b.status * 10 * STEPS;
        job_fini(&a);
        job_fini(&b);
        if (over)
            break;
        /* A check of a job has to fit into one life: where nothing came of one the next is longer.
         */
        life = now == before ? 2 * life : 0.05 + 0.037 * (kills % 7);
        before = now;
    }
    struct job job = test_get(id);
    cr_assert(kills > 5, "%d kills", kills);
    cr_assert(job.status == JOB_SUCCEEDED && job.attempt == 1, "%s after %d kills: %s",
              job_status_name(job.status), kills, job.error_message ? job.error_message : "");
    expect_steps(id, steps, STEPS);
    expect_steps(second, steps, 4);
    job_fini(&job);
    free(id);
    free(second);
}

Test(restart, a_worker_that_dies_while_nobody_looks_is_noticed_at_restart)
{
    test_start(test_config());
    char *id = test_create("{\"run\":\"deaf\",\"steps\":\"100000\"}", "");
    wait_for_step(id, 2);
    struct supervisor_record r = supervisor_of(id, 1);
    scheduler_destroy(sched);
    sched = NULL;
    cr_assert(supervisor_record_alive(&r), "the worker died with the scheduler");
    kill(-(pid_t)r.pid, SIGKILL);
    test_start(test_config());
    struct job job = wait_for(id, JOB_FAILED);
    cr_assert_str_eq(job.error_code, "worker_crashed");
    job_fini(&job);
    free(id);
}

/* The database cannot grow: nothing is lost, and it goes on when there is room. */
Test(restart, a_full_disk_delays_events_and_loses_none)
{
    const int64_t steps[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    struct rlimit old, full;

    test_start(test_config());
    char *id = test_create("{\"run\":\"gate\",\"steps\":\"15\"}", "");
    wait_for_step(id, 2);
    signal(SIGXFSZ, SIG_IGN); /* then writes fail as on a full disk, for this process alone */
    getrlimit(RLIMIT_FSIZE, &old);
    full = old;
    full.rlim_cur = 4096;
    cr_assert(setrlimit(RLIMIT_FSIZE, &full) == 0);
    test_open_gate(id);
    char *path = xasprintf("%s/jobs/%s/output", state, id);
    while (!fs_exists(path) || scheduler_healthy(sched, NULL) == 0)
        clock_sleep(0.02); /* the worker goes on to its end, and the scheduler cannot store it */
    struct job job = test_get(id);
    cr_assert(job.status == JOB_RUNNING && job.step <= 3, "step %ld", (long)job.step);
    job_fini(&job);
    free(path);
    setrlimit(RLIMIT_FSIZE, &old);
    job = wait_for(id, JOB_SUCCEEDED);
    expect_steps(id, steps, 15);
    cr_assert(scheduler_healthy(sched, &(struct err){0}) == 0);
    job_fini(&job);
    free(id);
}

static void stop(void)
{
    scheduler_destroy(sched);
    sched = NULL;
}

/* Note in the store that attempt 1 of a queued job started, as castord does before it starts it. */
static void store_started(const char *id)
{
    struct job_input in = {.kind = JOB_OCC_STARTED, .t = clock_wall(), .attempt = 1};
    struct store *store = NULL;
    struct job job = {0};

    cr_assert(store_open(state, &store, NULL) == 0 && store_get_job(store, id, &job, NULL) == 0);
    cr_assert(job_apply(&job, &in, NULL) == 0);
    cr_assert(store_begin(store, NULL) == 0 && store_update_job(store, &job, NULL) == 0);
    cr_assert(store_commit(store, NULL) == 0);
    store_close(store);
    job_fini(&job);
}

/* The record of a process that waits and then ends without having run anything. */
static void record_waiting(const char *id, pid_t pid)
{
    char *dir = xasprintf("%s/jobs/%s", state, id);
    char *attempt = job_dir_attempt(dir, 1), *path = job_dir_supervisor_wait(dir, 1);
    struct supervisor_record r;

    cr_assert(supervisor_record_of(pid, &r, NULL) == 0);
    cr_assert(fs_mkdir_p(attempt, false, NULL) == 0);
    cr_assert(supervisor_record_save(path, &r, NULL) == 0);
    free(path);
    free(attempt);
    free(dir);
}

Test(restart, an_attempt_that_never_ran_is_started_by_the_next_castord)
{
    const int64_t steps[] = {1, 2, 3};

    test_start(test_config());
    char *other = test_create("{\"run\":\"gate\"}", ""); /* has the slot */
    wait_for_step(other, 1);
    char *id = test_create("{}", "");
    struct job job = wait_for(id, JOB_QUEUED);
    job_fini(&job);
    stop();
    test_open_gate(other);
    store_started(id);
    pid_t waiting = fork();
    if (waiting == 0) {
        pause();
        _exit(1);
    }
    record_waiting(id, waiting);
    test_start(test_config());
    clock_sleep(0.5);
    char *log = xasprintf("%s/jobs/%s/attempt-1/supervisor.log", state, id);
    cr_assert_not(fs_exists(log), "it is started again while the first may still begin");
    kill(waiting, SIGKILL);
    waitpid(waiting, NULL, 0);
    job = wait_for(id, JOB_SUCCEEDED);
    cr_assert(job.attempt == 1 && job.restarts == 0);
    expect_steps(id, steps, 3);
    job_fini(&job);
    free(log);
    free(other);
    free(id);
}

Test(restart, directories_of_jobs_that_were_never_stored_go)
{
    char *orphan = xasprintf("%s/jobs/ftjob-0123456789abcdef01234567", state);
    char *model = xasprintf("%s/jobs/ftjob-1123456789abcdef01234567", state);
    char *output = job_dir_output(model), *other = xasprintf("%s/jobs/notes", state);

    test_start(test_config());
    char *id = test_create("{}", "");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    char *kept = xasprintf("%s/jobs/%s/output", state, id);
    stop();
    cr_assert(fs_mkdir_p(orphan, false, NULL) == 0 && fs_mkdir_p(output, false, NULL) == 0);
    cr_assert(fs_mkdir_p(other, false, NULL) == 0);
    char *spec = job_dir_spec(orphan);
    cr_assert(fs_write_file_atomic(spec, "{}", 2, NULL) == 0);
    test_start(test_config());
    cr_assert_not(fs_exists(orphan));
    cr_assert(fs_exists(kept), "a job's own directory is gone");
    cr_assert(fs_exists(output), "a model is lost with the database");
    cr_assert(fs_exists(other), "a foreign directory is gone");
    job_fini(&job);
    free(kept);
    free(spec);
    free(id);
    free(other);
    free(output);
    free(model);
    free(orphan);
}

/* Processes whose command line has both words. */
static int count_processes(const char *a, const char *b)
{
    const struct dirent *entry;
    DIR *proc = opendir("/proc");
    int n = 0;

    while ((entry = readdir(proc))) {
        char path[300], text[4096];
        snprintf(path, sizeof(path), "/proc/%s/cmdline", entry->d_name);
        int fd = open(path, O_RDONLY);
        ssize_t len = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
        if (fd >= 0)
            close(fd);
        for (ssize_t i = 0; i < len; i++)
            text[i] = text[i] ? text[i] : ' ';
        text[len < 0 ? 0 : len] = 0;
        n += strstr(text, a) && strstr(text, b);
    }
    closedir(proc);
    return n;
}

Test(restart, files_that_were_never_stored_go)
{
    char *orphan = xasprintf("%s/files/file-0123456789abcdef01234567", state);
    char *half = xasprintf("%s.tmp-77", orphan), *other = xasprintf("%s/files/notes", state);
    char *database = xasprintf("%s/castor.db", state);
    const char *const made[] = {orphan, half, other};

    test_start(test_config());
    struct store_file kept = test_upload();
    stop();
    for (int i = 0; i < 3; i++) {
        struct timespec later[2] = {{.tv_sec = kept.created_at + 1},
                                    {.tv_sec = kept.created_at + 1}};
        cr_assert(fs_write_file_atomic(made[i], "x", 1, NULL) == 0);
        cr_assert(utimensat(AT_FDCWD, made[i], later, 0) == 0);
    }
    test_start(test_config());
    cr_assert(!fs_exists(orphan) && !fs_exists(half));
    cr_assert(fs_exists(kept.path), "an uploaded file is gone");
    cr_assert(fs_exists(other), "a foreign file is gone");
    stop();
    cr_assert(unlink(database) == 0);
    test_start(test_config());
    struct store_file of_another_life = test_upload();
    stop();
    test_start(test_config());
    cr_assert(fs_exists(kept.path), "the files are lost with the database");
    store_file_fini(&of_another_life);
    store_file_fini(&kept);
    free(database);
    free(other);
    free(half);
    free(orphan);
}

Test(restart, a_check_dies_with_its_castord)
{
    struct scheduler_config c = test_config();

    c.plan_seconds = 1000;
    test_start(c);
    char *id = test_create("{\"plan\":\"sleep\"}", "");
    stop();
    pid_t pid = start_process();
    double until = clock_monotonic() + 300;
    int found = 0, in_turn = 0;
    /* It has no command line for a moment while it becomes another program. */
    while (in_turn < 25 && clock_monotonic() < until) {
        found = count_processes("--plan", state);
        in_turn = found == 1 ? in_turn + 1 : 0;
        clock_sleep(0.02);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    cr_assert(in_turn == 25, "%d checks run", found);
    until = clock_monotonic() + 300;
    while (count_processes("--plan", state) > 0 && clock_monotonic() < until)
        clock_sleep(0.02);
    cr_assert(count_processes("--plan", state) == 0, "it goes on without castord");
    free(id);
}
