/* Which job runs on what: GPU slots are counted, CPU jobs stay on the CPU. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "scheduler/devices.h"
#include "tests/unit/scheduler/harness.h"

TestSuite(slots, .init = test_setup, .fini = test_teardown, .timeout = 600);

Test(slots, gpu_jobs_run_on_the_gpus_that_were_counted)
{
    setenv("FAKE_DEVICES", "{\"cuda\":2}", 1);
    unsetenv("CUDA_VISIBLE_DEVICES");
    test_start(test_config());
    char *first = test_create("{\"plan\":\"gpu\",\"run\":\"gate\"}", "");
    wait_for_step(first, 1);
    char *second = test_create("{\"plan\":\"gpu\"}", "");
    struct job job = wait_for(second, JOB_SUCCEEDED); /* beside the first, which goes on */
    cr_assert(has_event(second, "warn", "visible: 1"));
    cr_assert(has_event(first, "warn", "visible: 0"));
    job_fini(&job);
    job = test_get(first);
    cr_assert(job.status == JOB_RUNNING);
    job_fini(&job);
    test_open_gate(first);
    job = wait_for(first, JOB_SUCCEEDED);
    job_fini(&job);
    free(first);
    free(second);
}

Test(slots, a_cpu_job_never_sees_a_gpu)
{
    setenv("FAKE_DEVICES", "{\"cuda\":1}", 1);
    test_start(test_config());
    char *first = test_create("{\"run\":\"gate\"}", ",\"resources\":{\"device\":\"cpu\"}");
    wait_for_step(first, 1);
    char *id = test_create("{}", ",\"resources\":{\"device\":\"cpu\"}");
    char *liar = test_create("{\"plan\":\"gpu\"}", ",\"resources\":{\"device\":\"cpu\"}");
    struct job job = wait_for(id, JOB_QUEUED);
    job_fini(&job);
    job = wait_for(liar, JOB_QUEUED);
    job_fini(&job);
    clock_sleep(0.3);
    job = test_get(id);
    cr_assert(job.status == JOB_QUEUED, "it took a GPU slot");
    job_fini(&job);
    job = test_get(liar);
    cr_assert(job.status == JOB_QUEUED, "the plan gave it a GPU slot");
    job_fini(&job);
    test_open_gate(first);
    job = wait_for(id, JOB_SUCCEEDED);
    job_fini(&job);
    job = wait_for(liar, JOB_SUCCEEDED);
    job_fini(&job);
    cr_assert(has_event(id, "warn", "visible: ") && !has_event(id, "warn", "visible: all"));
    cr_assert(has_event(liar, "warn", "visible: ") && !has_event(liar, "warn", "visible: all"));
    free(first);
    free(id);
    free(liar);
}

Test(slots, a_job_without_a_slot_for_it_is_refused)
{
    struct scheduler_config c = test_config();

    setenv("FAKE_DEVICES", "{\"cuda\":0}", 1);
    c.cpu_slots = 0;
    test_start(c);
    expect_failure("{\"plan\":\"gpu\"}", "no_gpu", "set resources.device to \"cpu\"");
    expect_failure("{}", "no_cpu", "no slot for that; start castord with slots.cpu of 1");
    scheduler_destroy(sched);
    sched = NULL;
    setenv("FAKE_DEVICES", "{\"cuda\":1}", 1);
    test_start(c);
    expect_failure("{}", "no_cpu", "set resources.device to \"gpu\", or start castord");
    char *id = test_create("{\"plan\":\"gpu\"}", "");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    job_fini(&job);
    free(id);
}

Test(slots, a_driver_that_fails_or_hangs_counts_as_none)
{
    static const struct {
        const char *mode;
        int rc;
        const char *text;
    } cases[] = {
        {"{\"cuda\":3}", 0, ""},
        {"hang", ERR_TIMEOUT, "longer than 1 s"},
        {"crash", ERR_PEER, "signal 11"},
        {"", ERR_CORRUPT, "makes no sense"},
        {"{\"cuda\":-1}", ERR_CORRUPT, "makes no sense"},
        {"{\"cuda\":true}", ERR_CORRUPT, "makes no sense"},
    };
    struct scheduler_config c = test_config();

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct err err = {0};
        int64_t n = 0;
        setenv("FAKE_DEVICES", cases[i].mode, 1);
        int rc = devices_count_gpus(c.worker_path, strcmp(cases[i].mode, "hang") == 0 ? 1 : 300, &n,
                                    &err);
        cr_assert((rc == 0) == (cases[i].rc == 0), "%s: %d %s", cases[i].mode, rc, err.msg);
        cr_assert(strstr(err.msg, cases[i].text) && n == (rc == 0 ? 3 : 0), "%s: %s", cases[i].mode,
                  err.msg);
    }
    struct err err = {0};
    int64_t n = 0;
    cr_assert(devices_count_gpus("/nonexistent/worker", 300, &n, &err) == ERR_PEER);
    setenv("FAKE_DEVICES", "hang", 1);
    c.device_seconds = 1;
    test_start(c);
    expect_failure("{\"plan\":\"gpu\"}", "no_gpu", "needs a GPU");
}
