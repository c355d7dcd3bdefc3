/* Cancel, pause, crashes and limits: how an attempt ends before its time. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "tests/unit/scheduler/harness.h"

TestSuite(steering, .init = test_setup, .fini = test_teardown, .timeout = 600);

Test(steering, cancel_of_queued_running_and_stubborn_jobs)
{
    test_start(test_config());
    char *running = test_create("{\"steps\":\"1000\",\"delay\":\"0.05\"}", "");
    wait_for_step(running, 2);
    char *queued = test_create("{}", "");
    struct job job = wait_for(queued, JOB_QUEUED);
    cr_assert(job.queue_position == 1);
    job_fini(&job);
    steer_to(queued, sched_post_cancel, 0);
    job = test_get(queued);
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
        char *id = test_create(meta, "");
        wait_for_step(id, 1);
        struct supervisor_record r = supervisor_of(id, 1);
        double t = clock_monotonic();
        steer_to(id, sched_post_cancel, 0);
        job = wait_for(id, JOB_CANCELLED);
        cr_assert(clock_monotonic() - t > 0.8 + i, "%s: no grace was given", modes[i]);
        cr_assert(count_group(r.pid) == 0);
        job_fini(&job);
        free(id);
        free(meta);
    }
}

Test(steering, pause_and_resume_go_on_from_the_checkpoint)
{
    test_start(test_config());
    char *id = test_create("{\"run\":\"gate\",\"steps\":\"12\"}", "");
    wait_for_step(id, 2);
    steer_to(id, sched_post_pause, 0);
    steer_to(id, sched_post_pause, 0);
    test_open_gate(id);
    struct job job = wait_for(id, JOB_PAUSED);
    cr_assert(job.step == 2);
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

Test(steering, a_crash_is_followed_by_another_attempt_when_allowed)
{
    test_start(test_config());
    char *id = test_create("{\"run\":\"crash_once\"}", ",\"scheduling\":{\"max_restarts\":1}");
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

Test(steering, the_time_limit_fails_the_job)
{
    test_start(test_config());
    char *id = test_create("{\"steps\":\"1000\",\"delay\":\"0.05\"}",
                           ",\"scheduling\":{\"max_runtime_seconds\":1}");
    struct job job = wait_for(id, JOB_FAILED);

    cr_assert_str_eq(job.error_code, "timeout");
    job_fini(&job);
    free(id);
}

Test(steering, nothing_of_an_ended_attempt_is_left_running)
{
    static const char *const modes[] = {"linger", "orphan"};

    test_start(test_config());
    for (int i = 0; i < 2; i++) {
        char *meta = xasprintf("{\"run\":\"%s\"}", modes[i]);
        char *id = test_create(meta, "");
        struct job job = wait_for(id, i == 0 ? JOB_SUCCEEDED : JOB_FAILED);
        struct supervisor_record r = supervisor_of(id, 1);
        double until = clock_monotonic() + 300;
        while (count_group(r.pid) > 0 && clock_monotonic() < until)
            clock_sleep(0.05);
        cr_assert(count_group(r.pid) == 0, "%s", modes[i]);
        job_fini(&job);
        free(id);
        free(meta);
    }
    char *id = test_create("{}", ""); /* the slot is free again */
    struct job job = wait_for(id, JOB_SUCCEEDED);
    job_fini(&job);
    free(id);
}

Test(steering, a_worker_without_a_sign_of_life_is_ended)
{
    struct scheduler_config c = test_config();

    c.cpu_slots = 3;
    c.silence_seconds = 5;
    test_start(c);
    char *step = test_create("{\"run\":\"slow_step\"}", "");
    char *download = test_create("{\"run\":\"slow_download\"}", "");
    expect_failure("{\"run\":\"silent\"}", "worker_silent", "phase: training, last step: 2 of 3");
    struct job job = wait_for(step, JOB_SUCCEEDED);
    cr_assert(job.restarts == 0);
    job_fini(&job);
    job = wait_for(download, JOB_SUCCEEDED);
    job_fini(&job);
    free(step);
    free(download);
}
