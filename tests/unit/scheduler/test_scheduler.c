/* The whole scheduler against a fake worker that crashes, hangs and lies on demand. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/buf.h"
#include "core/clock.h"
#include "core/fs.h"
#include "tests/unit/scheduler/harness.h"

TestSuite(scheduler, .init = test_setup, .fini = test_teardown, .timeout = 600);

Test(scheduler, a_job_succeeds_and_leaves_everything)
{
    test_start(test_config());
    char *id = test_create("{\"steps\":\"5\"}", "");
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

Test(scheduler, failures_have_codes_and_causes)
{
    test_start(test_config());
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
    struct scheduler_config c = test_config();

    test_start(c);
    expect_failure("{\"plan\":\"huge\"}", "invalid_plan", "more than 8388608 bytes");
    expect_failure("{\"plan\":\"deep\"}", "invalid_plan", "nested");
    expect_failure("{\"plan\":\"garbage\"}", "invalid_plan", "makes no sense");
    expect_failure("{\"plan\":\"empty\"}", "worker_crashed", "no answer");
    expect_failure("{\"plan\":\"crash\"}", "worker_crashed", "about to crash");
    expect_failure("{\"plan\":\"other_job\"}", "invalid_plan", "another job");
    expect_failure("{\"plan\":\"lie\"}", "invalid_plan", "contradict");
    scheduler_destroy(sched);
    c.plan_seconds = 2;
    test_start(c);
    expect_failure("{\"plan\":\"hang\"}", "timeout", "longer than 2 s");
}

/* Twice as long as the limit; but what comes too slowly counts, and so does all of a dry run. */
Test(scheduler, downloads_do_not_count_as_planning)
{
    struct scheduler_config c = test_config();
    struct plan_report report = {0};
    struct job_spec spec = {0};
    struct err err = {0};

    c.plan_seconds = 3;
    test_start(c);
    char *id = test_create("{\"plan\":\"fetch\"}", "");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    job_fini(&job);
    free(id);
    expect_failure("{\"plan\":\"trickle\"}", "timeout", "longer than 3 s");
    expect_failure("{\"plan\":\"sleep\"}", "timeout", "longer than 3 s");
    struct store_file file = test_upload();
    test_spec(&spec, file.id, "{\"plan\":\"fetch\"}", "");
    cr_assert(sched_dry_run(sched, &spec, &report, &err) == ERR_TIMEOUT);
    job_spec_fini(&spec);
    store_file_fini(&file);
}

Test(scheduler, a_download_while_validating_shows)
{
    double until = clock_monotonic() + 300;
    struct job job = {0};

    test_start(test_config());
    char *id = test_create("{\"plan\":\"fetch\"}", "");
    while (job.bytes_done == 0 && clock_monotonic() < until) {
        job_fini(&job);
        usleep(20 * 1000);
        job = test_get(id);
    }
    cr_assert(job.status == JOB_VALIDATING && job.bytes_total == 21 << 20);
    cr_assert(job.bytes_done % (1 << 20) == 0 && job.bytes_done <= job.bytes_total);
    job_fini(&job);
    free(id);
}

Test(scheduler, children_are_waited_for_whatever_signals_it_was_started_with)
{
    signal(SIGCHLD, SIG_IGN); /* inherited through exec, as under some init scripts */
    test_start(test_config());
    char *id = test_create("{}", "");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    job_fini(&job);
    free(id);
}

Test(scheduler, a_worker_that_is_not_there)
{
    struct scheduler_config c = test_config();

    c.worker_path = "/nonexistent/castor-worker";
    test_start(c);
    expect_failure("{}", "worker_crashed", "cannot run /nonexistent/castor-worker");
}

Test(scheduler, lines_that_are_no_events_are_skipped)
{
    test_start(test_config());
    char *id = test_create("{\"run\":\"bad_lines\"}", "");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    const int64_t steps[] = {1, 2, 3};

    expect_steps(id, steps, 3);
    job_fini(&job);
    free(id);
}

Test(scheduler, higher_priority_goes_first)
{
    test_start(test_config());
    char *first = test_create("{\"run\":\"gate\"}", "");
    wait_for_step(first, 1);
    char *low = test_create("{}", ",\"scheduling\":{\"priority\":-1}");
    char *high = test_create("{}", ",\"scheduling\":{\"priority\":5}");
    struct job job = wait_for(high, JOB_QUEUED);
    job_fini(&job);
    job = wait_for(low, JOB_QUEUED);
    cr_assert(job.queue_position == 2);
    job_fini(&job);
    test_open_gate(first);
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

    test_start(test_config());
    struct store_file file = test_upload();
    test_spec(&spec, file.id, "{\"steps\":\"100\",\"delay\":\"0.1\"}", "");
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

    test_start(test_config());
    struct store_file file = test_upload();
    test_spec(&spec, file.id, "{}", "");
    cr_assert(sched_dry_run(sched, &spec, &report, &err) == 0, "%s", err.msg);
    cr_assert(report.fits && report.steps == 3);
    plan_report_fini(&report);
    job_spec_fini(&spec);
    test_spec(&spec, file.id, "{\"plan\":\"refuse\"}", "");
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
    struct scheduler_config c = test_config();
    struct scheduler *second = NULL;
    struct err err = {0};

    test_start(c);
    cr_assert(scheduler_create(&c, &second, &err) == ERR_CONFLICT, "%d %s", err.code, err.msg);
    cr_assert_null(second);
    err_clear(&err);
    cr_assert(scheduler_healthy(sched, &err) == 0, "%s", err.msg);
}

Test(scheduler, checkpoints_that_the_worker_removed_are_not_listed)
{
    struct store_checkpoint *rows = NULL;
    int64_t n = 0;
    bool more;

    test_start(test_config());
    char *id = test_create("{\"run\":\"prune\",\"steps\":\"6\"}", "");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    struct store_page page = {.limit = 10};
    cr_assert(store_list_checkpoints(reader, id, page, &rows, &n, &more, NULL) == 0);
    cr_assert(n == 2, "%ld are listed", (long)n);
    for (int64_t i = 0; i < n; i++) {
        cr_assert(fs_exists(rows[i].path), "%s is listed and gone", rows[i].path);
        store_checkpoint_fini(&rows[i]);
    }
    free(rows);
    job_fini(&job);
    free(id);
}
