/* Jobs that were refused for memory that others hold: when they are started again. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "core/clock.h"
#include "tests/unit/scheduler/harness.h"

TestSuite(memory, .init = test_setup, .fini = test_teardown, .timeout = 600);

static struct scheduler_config two_slots(void)
{
    struct scheduler_config c = test_config();

    c.cpu_slots = 2;
    return c;
}

static void wait_for_refusal(const char *id, int64_t attempt)
{
    for (;;) {
        struct job job = wait_for(id, JOB_QUEUED);
        bool refused = job.attempt >= attempt && job.waits_for_memory;
        job_fini(&job);
        if (refused)
            return;
        clock_sleep(0.02);
    }
}

/* A running job, and one that was refused beside it. */
static void start_both(char **first, char **second)
{
    *first = test_create("{\"run\":\"gate\"}", "");
    wait_for_step(*first, 1);
    *second = test_create("{\"run\":\"crowded\"}", "");
    wait_for_refusal(*second, 1);
    cr_assert(has_event(*second, "warn", "Waiting for memory"));
    cr_assert(has_event(*second, "warn", "Refused now: 7 MiB short"));
}

static void expect_waiting(const char *id, int64_t attempt)
{
    struct job job = test_get(id);

    cr_assert(job.status == JOB_QUEUED && job.attempt == attempt, "%s in attempt %ld",
              job_status_name(job.status), (long)job.attempt);
    job_fini(&job);
}

Test(memory, a_refused_job_starts_again_when_another_has_ended)
{
    char *first, *second;

    test_start(two_slots());
    start_both(&first, &second);
    clock_sleep(0.5);
    expect_waiting(second, 1);
    test_open_gate(second);
    test_open_gate(first);
    struct job job = wait_for(second, JOB_SUCCEEDED);
    cr_assert(job.attempt == 2 && job.restarts == 0);
    job_fini(&job);
    free(first);
    free(second);
}

Test(memory, it_waits_through_a_restart_of_the_server)
{
    char *first, *second;

    test_start(two_slots());
    start_both(&first, &second);
    scheduler_destroy(sched);
    test_start(two_slots());
    clock_sleep(0.5);
    expect_waiting(second, 1);
    scheduler_destroy(sched);
    sched = NULL;
    test_open_gate(second);
    test_open_gate(first); /* it ends while nobody looks, or later */
    test_start(two_slots());
    struct job job = wait_for(second, JOB_SUCCEEDED);
    cr_assert(job.attempt == 2 && job.restarts == 0);
    job_fini(&job);
    free(first);
    free(second);
}

Test(memory, it_can_be_cancelled)
{
    char *first, *second;

    test_start(two_slots());
    start_both(&first, &second);
    steer_to(second, sched_post_cancel, 0);
    struct job job = test_get(second);
    cr_assert(job.status == JOB_CANCELLED);
    job_fini(&job);
    free(first);
    free(second);
}

/* Nobody tells when a process of others ends, so it waits longer each time; and two that are
 * refused must not start each other. */
Test(memory, with_no_other_job_it_starts_again_after_a_time)
{
    struct scheduler_config c = two_slots();
    char *ids[2];

    c.memory_wait_seconds = 3;
    test_start(c);
    double t = clock_monotonic();
    for (int k = 0; k < 2; k++)
        ids[k] = test_create("{\"run\":\"crowded\"}", "");
    for (int k = 0; k < 2; k++)
        wait_for_refusal(ids[k], 3);
    for (int k = 0; k < 2; k++) {
        struct job job = test_get(ids[k]);
        double least = job.attempt == 3 ? 3 + 6 : 3 + 6 + 12;
        cr_assert(least <= clock_monotonic() - t, "attempt %ld", (long)job.attempt);
        job_fini(&job);
    }
    for (int k = 0; k < 2; k++) {
        test_open_gate(ids[k]);
        struct job job = wait_for(ids[k], JOB_SUCCEEDED);
        cr_assert(job.restarts == 0);
        job_fini(&job);
        free(ids[k]);
    }
}
