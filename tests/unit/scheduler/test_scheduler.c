/* The whole scheduler against a fake worker that crashes, hangs and lies on demand. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/attempt_exit.h"
#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/json.h"
#include "scheduler/scheduler.h"

static char state[64];
static char *worker;
static struct scheduler *sched;
static struct store *reader;

static struct scheduler_config config(void)
{
    return (struct scheduler_config){.state_dir = state,
                                     .worker_path = worker,
                                     .cpu_slots = 1,
                                     .gpu_slots = -1,
                                     .plan_seconds = 10,
                                     .plan_memory = (size_t)512 << 20,
                                     .grace_seconds = 1};
}

static void start(struct scheduler_config c)
{
    struct err err = {0};

    cr_assert(scheduler_create(&c, &sched, &err) == 0, "%s", err.msg);
    if (!reader)
        cr_assert(store_open_reader(state, &reader, &err) == 0, "%s", err.msg);
}

static void setup(void)
{
    snprintf(state, sizeof(state), "%s", "/tmp/castor-sched-XXXXXX");
    cr_assert(mkdtemp(state));
    worker = realpath("tests/unit/scheduler/fake_worker.py", NULL);
    cr_assert(worker, "run the tests from the top of the source tree");
    setenv("CASTOR_LOG", "error", 1);
}

static void teardown(void)
{
    store_close(reader);
    scheduler_destroy(sched);
    fs_remove_tree(state, NULL);
    free(worker);
}

TestSuite(scheduler, .init = setup, .fini = teardown, .timeout = 60);

static struct store_file upload(void)
{
    struct store_file file = {0};
    struct err err = {0};
    char *spooled = fs_join(state, "spooled");

    cr_assert(fs_write_file_atomic(spooled, "{\"text\":\"x\"}\n", 13, &err) == 0);
    cr_assert(sched_post_file(sched, "data.jsonl", "fine-tune", spooled, 13, 0, &file, &err) == 0,
              "%s", err.msg);
    free(spooled);
    return file;
}

/* A job whose metadata are `meta`, a JSON object; `more` has further members or is empty. */
static void make_spec(struct job_spec *spec, const char *file_id, const char *meta,
                      const char *more)
{
    struct fault_list faults = {0};
    char *text = xasprintf("{\"model\":\"org/name\",\"training_file\":\"%s\",\"suffix\":\"mine\","
                           "\"metadata\":%s%s}",
                           file_id, meta, more);
    json_t *body = json_loads(text, 0, NULL);

    cr_assert(job_spec_from_request(body, spec, NULL, &faults) == 0, "%s: %s", text,
              faults.n ? faults.items[0].message : "");
    json_decref(body);
    free(text);
}

static char *create(const char *meta, const char *more)
{
    struct store_file file = upload();
    struct job_spec spec;
    struct job job = {0};
    struct err err = {0};

    make_spec(&spec, file.id, meta, more);
    cr_assert(sched_post_create(sched, &spec, NULL, &job, &err) == 0, "%s", err.msg);
    cr_assert(job.status == JOB_VALIDATING);
    char *id = xstrdup(job.id);
    job_fini(&job);
    job_spec_fini(&spec);
    store_file_fini(&file);
    return id;
}

static struct job get(const char *id)
{
    struct job job = {0};
    struct err err = {0};

    cr_assert(store_get_job(reader, id, &job, &err) == 0, "%s", err.msg);
    return job;
}

/* Wait for a status (or, for -1, any final one); the job is the caller's. */
static struct job wait_for(const char *id, int status)
{
    double until = clock_monotonic() + 20;

    for (;;) {
        struct job job = get(id);
        if ((int)job.status == status || (status < 0 && job_status_is_final(job.status)))
            return job;
        cr_assert(clock_monotonic() < until && !job_status_is_final(job.status),
                  "the job is %s at step %ld: %s", job_status_name(job.status), (long)job.step,
                  job.error_message ? job.error_message : "");
        job_fini(&job);
        clock_sleep(0.02);
    }
}

static void wait_for_step(const char *id, int64_t step)
{
    for (;;) {
        struct job job = get(id);
        bool there = job.step >= step;
        cr_assert(!job_status_is_final(job.status));
        job_fini(&job);
        if (there)
            return;
        clock_sleep(0.02);
    }
}

/* The metrics rows that are steps must be exactly `steps`, in order. */
static void expect_steps(const char *id, const int64_t *steps, int64_t n)
{
    struct store_event *rows = NULL;
    int64_t n_rows = 0, seen = 0;
    bool more = true;
    char *after = NULL;

    while (more) {
        struct store_page page = {.after = after, .limit = 7, .ascending = true};
        cr_assert(store_list_events(reader, id, page, &rows, &n_rows, &more, NULL) == 0);
        free(after);
        after = n_rows ? xstrdup(rows[n_rows - 1].id) : NULL;
        for (int64_t i = 0; i < n_rows; i++) {
            const json_t *loss = json_object_get(rows[i].data, "train_loss");
            if (strcmp(rows[i].type, "metrics") == 0 && loss) {
                int64_t step = json_integer_value(json_object_get(rows[i].data, "step"));
                cr_assert(seen < n && step == steps[seen], "row %ld is step %ld", (long)seen,
                          (long)step);
                seen++;
            }
            store_event_fini(&rows[i]);
        }
        free(rows);
    }
    free(after);
    cr_assert(seen == n, "%ld steps of %ld", (long)seen, (long)n);
}

static bool has_event(const char *id, const char *level, const char *text)
{
    struct store_event *rows = NULL;
    int64_t n = 0;
    bool more, found = false;

    cr_assert(store_list_events(reader, id, (struct store_page){.limit = 1000}, &rows, &n, &more,
                                NULL) == 0);
    for (int64_t i = 0; i < n; i++) {
        found |= strcmp(rows[i].level, level) == 0 && strstr(rows[i].message, text);
        store_event_fini(&rows[i]);
    }
    free(rows);
    return found;
}

static int count_group(int64_t pgid)
{
    int n = 0;
    const struct dirent *entry;
    DIR *proc = opendir("/proc");

    while ((entry = readdir(proc))) {
        char path[300], what = 'Z';
        long group = 0;
        snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
        FILE *f = entry->d_name[0] >= '0' && entry->d_name[0] <= '9' ? fopen(path, "r") : NULL;
        if (f && fscanf(f, "%*d (%*[^)]) %c %*d %ld", &what, &group) == 2)
            n += group == pgid && what != 'Z';
        if (f)
            fclose(f);
    }
    closedir(proc);
    return n;
}

static struct supervisor_record supervisor_of(const char *id, int64_t attempt)
{
    struct supervisor_record r = {0};
    char *dir = xasprintf("%s/jobs/%s", state, id);
    char *path = job_dir_supervisor(dir, attempt);

    cr_assert(supervisor_record_load(path, &r, NULL) == 0);
    free(path);
    free(dir);
    return r;
}

Test(scheduler, a_job_succeeds_and_leaves_everything)
{
    start(config());
    char *id = create("{\"steps\":\"5\"}", "");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    const int64_t steps[] = {1, 2, 3, 4, 5};
    struct store_file file = {0};
    struct store_model model = {0};
    struct store_checkpoint *ckpts = NULL;
    struct buf csv = {0};
    int64_t n = 0;
    bool more;

    cr_assert(job.step == 5 && job.total_steps == 5 && job.trained_tokens == 45);
    cr_assert(job.attempt == 1 && job.finished_at >= job.started_at && job.started_at > 0);
    cr_assert(job.bytes_total == 10 && job.valid_loss == 1.5 && job.checkpoints_total == 1);
    cr_assert(strncmp(job.fine_tuned_model, "ft:org/name:org-castor:mine:", 28) == 0 &&
                  strlen(job.fine_tuned_model) == 36,
              "%s", job.fine_tuned_model);
    cr_assert(job.spec.resolved && job.spec.training_file.path != NULL);
    expect_steps(id, steps, 5);
    cr_assert(has_event(id, "info", "Created fine-tuning job"));
    cr_assert(has_event(id, "info", "Files validated"));
    cr_assert(has_event(id, "info", "Fine-tuning job started"));
    cr_assert(has_event(id, "info", "Step 5/5: training loss=0.2000"));
    cr_assert(has_event(id, "info", "full validation loss=1.5000"));
    cr_assert(has_event(id, "info", "Checkpoint created at step 5"));
    cr_assert(has_event(id, "info", "Sample at step 5"));
    cr_assert(has_event(id, "warn", "slow disk"));
    cr_assert(has_event(id, "info", "successfully completed"));

    cr_assert(store_get_file(reader, job.result_file, &file, NULL) == 0);
    cr_assert_str_eq(file.filename, "step_metrics.csv");
    cr_assert_str_eq(file.purpose, "fine-tune-results");
    cr_assert(fs_read_file(file.path, 1 << 20, &csv, NULL) == 0);
    cr_assert(strncmp(buf_str(&csv),
                      "step,train_loss,train_mean_token_accuracy,valid_loss,"
                      "valid_mean_token_accuracy,full_valid_loss,",
                      94) == 0);
    cr_assert(strstr(buf_str(&csv), "\n5,0.2,0.5,,,1.5,0.25,0.1,1,100,1,"), "%s", buf_str(&csv));
    cr_assert((int64_t)csv.len == file.bytes);
    cr_assert(store_get_model(reader, job.fine_tuned_model, &model, NULL) == 0);
    cr_assert(fs_exists(model.path));
    struct store_page page = {.limit = 10};
    cr_assert(store_list_checkpoints(reader, id, page, &ckpts, &n, &more, NULL) == 0 && n == 1);
    cr_assert(strstr(ckpts[0].path, "/checkpoints/step-5") && fs_exists(ckpts[0].path));
    cr_assert(strstr(ckpts[0].model, ":ckpt-step-5"));
    cr_assert(sched_post_delete_model(sched, job.fine_tuned_model, NULL) == 0);
    cr_assert_not(fs_exists(model.path));
    struct err err = {0};
    cr_assert(sched_post_cancel(sched, id, &job, &err) == ERR_CONFLICT);
    store_checkpoint_fini(&ckpts[0]);
    free(ckpts);
    store_model_fini(&model);
    store_file_fini(&file);
    buf_fini(&csv);
    job_fini(&job);
    free(id);
}

static void expect_failure(const char *meta, const char *code, const char *text)
{
    char *id = create(meta, "");
    struct job job = wait_for(id, -1);

    cr_assert(job.status == JOB_FAILED, "%s: %s", meta, job_status_name(job.status));
    cr_assert_str_eq(job.error_code, code, "%s: %s: %s", meta, job.error_code, job.error_message);
    cr_assert(strstr(job.error_message, text), "%s: %s", meta, job.error_message);
    cr_assert(has_event(id, "error", text));
    job_fini(&job);
    free(id);
}

Test(scheduler, failures_have_codes_and_causes)
{
    start(config());
    expect_failure("{\"run\":\"fail\"}", "nan_loss", "the loss is NaN");
    expect_failure("{\"run\":\"crash\"}", "worker_crashed", "signal 11");
    expect_failure("{\"run\":\"crash\"}", "worker_crashed", "last words");
    expect_failure("{\"run\":\"silent_exit\"}", "worker_crashed", "status 3");
    expect_failure("{\"run\":\"silent_exit\"}", "worker_crashed", "nothing to say");
    expect_failure("{\"run\":\"long_line\"}", "worker_crashed", "cannot be read");
    expect_failure("{\"plan\":\"refuse\"}", "invalid_training_file", "line 3 is bad");
    expect_failure("{\"plan\":\"gpu\"}", "no_gpu", "needs a GPU");
    expect_failure("{\"plan\":\"memory\"}", "worker_crashed", "MemoryError");
}

Test(scheduler, hostile_plans_fail_the_job_only)
{
    struct scheduler_config c = config();

    c.plan_seconds = 2;
    start(c);
    expect_failure("{\"plan\":\"huge\"}", "invalid_plan", "more than 8388608 bytes");
    expect_failure("{\"plan\":\"deep\"}", "invalid_plan", "nested");
    expect_failure("{\"plan\":\"garbage\"}", "invalid_plan", "makes no sense");
    expect_failure("{\"plan\":\"empty\"}", "worker_crashed", "no answer");
    expect_failure("{\"plan\":\"crash\"}", "worker_crashed", "about to crash");
    expect_failure("{\"plan\":\"other_job\"}", "invalid_plan", "another job");
    expect_failure("{\"plan\":\"lie\"}", "invalid_plan", "contradict");
    expect_failure("{\"plan\":\"hang\"}", "timeout", "longer than 2 s");
}

Test(scheduler, a_worker_that_is_not_there)
{
    struct scheduler_config c = config();

    c.worker_path = "/nonexistent/castor-worker";
    start(c);
    expect_failure("{}", "worker_crashed", "cannot run /nonexistent/castor-worker");
}

Test(scheduler, lines_that_are_no_events_are_skipped)
{
    start(config());
    char *id = create("{\"run\":\"bad_lines\"}", "");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    const int64_t steps[] = {1, 2, 3};

    expect_steps(id, steps, 3);
    job_fini(&job);
    free(id);
}

static void steer_to(const char *id,
                     int (*post)(struct scheduler *, const char *, struct job *, struct err *),
                     int want)
{
    struct job job = {0};
    struct err err = {0};

    cr_assert(post(sched, id, &job, &err) == want, "%s", err.msg);
    if (want == 0)
        job_fini(&job);
}

Test(scheduler, cancel_of_queued_running_and_stubborn_jobs)
{
    start(config());
    char *running = create("{\"steps\":\"1000\",\"delay\":\"0.05\"}", "");
    wait_for_step(running, 2);
    char *queued = create("{}", "");
    struct job job = wait_for(queued, JOB_QUEUED);
    cr_assert(job.queue_position == 1);
    job_fini(&job);
    steer_to(queued, sched_post_cancel, 0);
    job = get(queued);
    cr_assert(job.status == JOB_CANCELLED, "cancel of a queued job is not immediate");
    job_fini(&job);
    steer_to(queued, sched_post_cancel, 0);
    steer_to(queued, sched_post_resume, ERR_CONFLICT);
    steer_to(running, sched_post_cancel, 0);
    steer_to(running, sched_post_cancel, 0);
    job = wait_for(running, JOB_CANCELLED);
    job_fini(&job);
    steer_to("ftjob-none", sched_post_cancel, ERR_NOT_FOUND);
    free(running);
    free(queued);

    static const char *const modes[] = {"stubborn", "deaf"}; /* ended by SIGTERM, by SIGKILL */
    for (int i = 0; i < 2; i++) {
        char *meta = xasprintf("{\"run\":\"%s\",\"steps\":\"100000\"}", modes[i]);
        char *id = create(meta, "");
        wait_for_step(id, 1);
        struct supervisor_record r = supervisor_of(id, 1);
        steer_to(id, sched_post_cancel, 0);
        double t = clock_monotonic();
        job = wait_for(id, JOB_CANCELLED);
        cr_assert(clock_monotonic() - t > 0.8 + i, "%s: no grace was given", modes[i]);
        cr_assert(count_group(r.pid) == 0);
        job_fini(&job);
        free(id);
        free(meta);
    }
}

Test(scheduler, pause_and_resume_go_on_from_the_checkpoint)
{
    start(config());
    char *id = create("{\"steps\":\"12\",\"delay\":\"0.1\"}", "");
    wait_for_step(id, 3);
    steer_to(id, sched_post_pause, 0);
    steer_to(id, sched_post_pause, 0);
    struct job job = wait_for(id, JOB_PAUSED);
    cr_assert(job.step >= 3 && job.step < 12);
    job_fini(&job);
    steer_to(id, sched_post_pause, 0);
    steer_to(id, sched_post_resume, 0);
    job = wait_for(id, JOB_SUCCEEDED);
    cr_assert(job.attempt == 2);
    const int64_t steps[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    expect_steps(id, steps, 12);
    job_fini(&job);
    free(id);
}

Test(scheduler, a_crash_is_followed_by_another_attempt_when_allowed)
{
    start(config());
    char *id = create("{\"run\":\"crash_once\"}", ",\"scheduling\":{\"max_restarts\":1}");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    const int64_t steps[] = {1, 2, 2, 3};

    cr_assert(job.attempt == 2 && job.restarts == 1);
    expect_steps(id, steps, 4);
    struct store_file file = {0};
    struct buf csv = {0};
    cr_assert(store_get_file(reader, job.result_file, &file, NULL) == 0);
    cr_assert(fs_read_file(file.path, 1 << 20, &csv, NULL) == 0);
    int lines = 0;
    for (size_t i = 0; i < csv.len; i++)
        lines += csv.data[i] == '\n';
    cr_assert(lines == 4, "a repeated step has two rows:\n%s", buf_str(&csv));
    buf_fini(&csv);
    store_file_fini(&file);
    job_fini(&job);
    free(id);
}

Test(scheduler, the_time_limit_fails_the_job)
{
    start(config());
    char *id = create("{\"steps\":\"1000\",\"delay\":\"0.05\"}",
                      ",\"scheduling\":{\"max_runtime_seconds\":1}");
    struct job job = wait_for(id, JOB_FAILED);

    cr_assert_str_eq(job.error_code, "timeout");
    job_fini(&job);
    free(id);
}

Test(scheduler, nothing_of_an_ended_attempt_is_left_running)
{
    static const char *const modes[] = {"linger", "orphan"};

    start(config());
    for (int i = 0; i < 2; i++) {
        char *meta = xasprintf("{\"run\":\"%s\"}", modes[i]);
        char *id = create(meta, "");
        struct job job = wait_for(id, i == 0 ? JOB_SUCCEEDED : JOB_FAILED);
        struct supervisor_record r = supervisor_of(id, 1);
        double until = clock_monotonic() + 10;
        while (count_group(r.pid) > 0 && clock_monotonic() < until)
            clock_sleep(0.05);
        cr_assert(count_group(r.pid) == 0, "%s", modes[i]);
        job_fini(&job);
        free(id);
        free(meta);
    }
    char *id = create("{}", ""); /* the slot is free again */
    struct job job = wait_for(id, JOB_SUCCEEDED);
    job_fini(&job);
    free(id);
}

Test(scheduler, higher_priority_goes_first)
{
    start(config());
    char *first = create("{\"steps\":\"15\",\"delay\":\"0.1\"}", "");
    wait_for_step(first, 1);
    char *low = create("{}", ",\"scheduling\":{\"priority\":-1}");
    char *high = create("{}", ",\"scheduling\":{\"priority\":5}");
    struct job job = wait_for(high, JOB_QUEUED);
    job_fini(&job);
    job = wait_for(low, JOB_QUEUED);
    cr_assert(job.queue_position == 2);
    job_fini(&job);
    struct job a = wait_for(low, JOB_SUCCEEDED), b = wait_for(high, JOB_SUCCEEDED);
    cr_assert(b.attempt_started_at < a.attempt_started_at);
    job_fini(&a);
    job_fini(&b);
    free(first);
    free(low);
    free(high);
}

Test(scheduler, create_is_deduplicated_and_files_are_checked)
{
    struct job_spec spec;
    struct job a = {0}, b = {0};
    struct err err = {0};

    start(config());
    struct store_file file = upload();
    make_spec(&spec, file.id, "{\"steps\":\"100\",\"delay\":\"0.1\"}", "");
    cr_assert(sched_post_create(sched, &spec, "key", &a, &err) == 0);
    cr_assert(sched_post_create(sched, &spec, "key", &b, &err) == 0);
    cr_assert_str_eq(a.id, b.id);
    job_fini(&b);
    cr_assert(sched_post_create(sched, &spec, "other", &b, &err) == 0);
    cr_assert_str_neq(a.id, b.id);
    cr_assert(sched_post_delete_file(sched, file.id, &err) == ERR_CONFLICT);
    steer_to(a.id, sched_post_cancel, 0);
    steer_to(b.id, sched_post_cancel, 0);
    struct job done = wait_for(a.id, JOB_CANCELLED);
    job_fini(&done);
    done = wait_for(b.id, JOB_CANCELLED);
    job_fini(&done);
    cr_assert(sched_post_delete_file(sched, file.id, NULL) == 0);
    cr_assert_not(fs_exists(file.path));
    err_clear(&err);
    cr_assert(sched_post_create(sched, &spec, NULL, &b, &err) == ERR_INVALID);
    cr_assert_str_eq(err.param, "training_file");
    job_fini(&a);
    job_fini(&b);
    job_spec_fini(&spec);
    store_file_fini(&file);
}

Test(scheduler, dry_run_leaves_nothing)
{
    struct plan_report report = {0};
    struct job_spec spec;
    struct job *jobs = NULL;
    struct err err = {0};
    int64_t n = -1;
    bool more;

    start(config());
    struct store_file file = upload();
    make_spec(&spec, file.id, "{}", "");
    cr_assert(sched_dry_run(sched, &spec, &report, &err) == 0, "%s", err.msg);
    cr_assert(report.fits && report.steps == 3);
    plan_report_fini(&report);
    job_spec_fini(&spec);
    make_spec(&spec, file.id, "{\"plan\":\"refuse\"}", "");
    cr_assert(sched_dry_run(sched, &spec, &report, &err) == 0 && !report.fits);
    struct store_page page = {.limit = 5};
    cr_assert(store_list_jobs(reader, NULL, NULL, page, &jobs, &n, &more, NULL) == 0 && n == 0);
    char *tmp = fs_join(state, "tmp");
    cr_assert(rmdir(tmp) == 0, "something is left in %s", tmp);
    free(tmp);
    free(jobs);
    plan_report_fini(&report);
    job_spec_fini(&spec);
    store_file_fini(&file);
}

Test(scheduler, two_schedulers_cannot_share_a_state_directory)
{
    struct scheduler_config c = config();
    struct scheduler *second = NULL;
    struct err err = {0};

    start(c);
    cr_assert(scheduler_create(&c, &second, &err) == ERR_CONFLICT, "%d %s", err.code, err.msg);
    cr_assert_null(second);
    err_clear(&err);
    cr_assert(scheduler_healthy(sched, &err) == 0, "%s", err.msg);
}

/* A castord that only schedules, in a process of its own. */
static pid_t start_process(void)
{
    int ready[2];
    char byte;

    cr_assert(pipe(ready) == 0);
    pid_t pid = fork();
    cr_assert(pid >= 0);
    if (pid == 0) {
        struct scheduler_config c = config();
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

Test(scheduler, kill_9_loses_and_doubles_nothing)
{
    enum { STEPS = 2000 };
    int64_t steps[STEPS];
    int kills = 0;

    for (int i = 0; i < STEPS; i++)
        steps[i] = i + 1;
    start(config());
    /* So fast that there is always something to store when the kill comes. */
    char *id = create("{\"steps\":\"2000\",\"delay\":\"0.002\"}", "");
    char *second = create("{\"steps\":\"4\"}", "");
    scheduler_destroy(sched); /* in the middle of whatever it is */
    sched = NULL;
    for (;;) {
        pid_t pid = start_process();
        /* Longer and longer: a check of a job has to fit into one life. */
        clock_sleep(0.05 + 0.037 * (kills % 7) + 0.01 * kills);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        kills++;
        struct job a = get(id), b = get(second);
        bool over = job_status_is_final(a.status) && job_status_is_final(b.status);
        job_fini(&a);
        job_fini(&b);
        if (over)
            break;
        cr_assert(kills < 80);
    }
    struct job job = get(id);
    cr_assert(kills > 5, "%d kills", kills);
    cr_assert(job.status == JOB_SUCCEEDED && job.attempt == 1, "%s after %d kills: %s",
              job_status_name(job.status), kills, job.error_message ? job.error_message : "");
    expect_steps(id, steps, STEPS);
    expect_steps(second, steps, 4);
    job_fini(&job);
    free(id);
    free(second);
}

Test(scheduler, a_worker_that_dies_while_nobody_looks_is_noticed_at_restart)
{
    start(config());
    char *id = create("{\"run\":\"deaf\",\"steps\":\"100000\"}", "");
    wait_for_step(id, 2);
    struct supervisor_record r = supervisor_of(id, 1);
    scheduler_destroy(sched);
    sched = NULL;
    cr_assert(supervisor_record_alive(&r), "the worker died with the scheduler");
    kill(-(pid_t)r.pid, SIGKILL);
    start(config());
    struct job job = wait_for(id, JOB_FAILED);
    cr_assert_str_eq(job.error_code, "worker_crashed");
    job_fini(&job);
    free(id);
}

/* The database cannot grow: nothing is lost, and it goes on when there is room. */
Test(scheduler, a_full_disk_delays_events_and_loses_none)
{
    const int64_t steps[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    struct rlimit old, full;

    start(config());
    char *id = create("{\"steps\":\"15\",\"delay\":\"0.1\"}", "");
    wait_for_step(id, 2);
    signal(SIGXFSZ, SIG_IGN); /* then writes fail as on a full disk, for this process alone */
    getrlimit(RLIMIT_FSIZE, &old);
    full = old;
    full.rlim_cur = 4096;
    cr_assert(setrlimit(RLIMIT_FSIZE, &full) == 0);
    struct job job = get(id);
    int64_t step = job.step;
    job_fini(&job);
    clock_sleep(2.5); /* the worker is done by then */
    job = get(id);
    cr_assert(job.status == JOB_RUNNING && job.step <= step + 1, "step %ld", (long)job.step);
    job_fini(&job);
    cr_assert(scheduler_healthy(sched, NULL) != 0, "healthy without a writable database");
    char *path = xasprintf("%s/jobs/%s/output", state, id);
    cr_assert(fs_exists(path), "the worker did not go on");
    free(path);
    setrlimit(RLIMIT_FSIZE, &old);
    job = wait_for(id, JOB_SUCCEEDED);
    expect_steps(id, steps, 15);
    cr_assert(scheduler_healthy(sched, &(struct err){0}) == 0);
    job_fini(&job);
    free(id);
}
