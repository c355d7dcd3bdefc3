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

static void restart(struct scheduler_config c, const char *devices)
{
    scheduler_destroy(sched);
    setenv("FAKE_DEVICES", devices, 1);
    test_start(c);
}

/* Wait until it has an event of such words, and say how many there are. */
static int count_told(const char *id, const char *words)
{
    while (!has_event(id, "warn", words))
        clock_sleep(0.02);
    clock_sleep(0.2); /* for more of them */
    struct store_event *rows = NULL;
    int64_t n = 0;
    bool more;
    int found = 0;
    cr_assert(store_list_events(reader, id, (struct store_page){.limit = 1000}, &rows, &n, &more,
                                NULL) == 0);
    for (int64_t i = 0; i < n; i++) {
        found += strstr(rows[i].message, words) != NULL;
        store_event_fini(&rows[i]);
    }
    free(rows);
    return found;
}

Test(slots, a_queued_job_is_told_once_that_there_is_no_slot_any_more)
{
    static const char *const running[] = {"{\"run\":\"gate\"}",
                                          "{\"run\":\"gate\",\"plan\":\"gpu\"}"};
    static const char *const waiting[] = {"{}", "{\"plan\":\"gpu\"}"};
    static const char *const words[] = {"given no slot for that; start castord with slots.cpu of 1",
                                        "needs a GPU, and this server was given none; set"};
    struct scheduler_config with = test_config(), without = test_config();
    char *first[2], *queued[2];

    without.cpu_slots = 0;
    setenv("FAKE_DEVICES", "{\"cuda\":1}", 1);
    test_start(with);
    for (int k = 0; k < 2; k++) {
        first[k] = test_create(running[k], "");
        wait_for_step(first[k], 1);
        queued[k] = test_create(waiting[k], "");
        struct job job = wait_for(queued[k], JOB_QUEUED);
        job_fini(&job);
    }
    for (int times = 0; times < 2; times++) {
        restart(without, "{\"cuda\":0}");
        for (int k = 0; k < 2; k++) {
            cr_expect(count_told(queued[k], words[k]) == 1);
            cr_expect(!has_event(first[k], "warn", "a slot that this server does not have"),
                      "it runs");
        }
    }
    restart(with, "{\"cuda\":1}");
    for (int k = 0; k < 2; k++) {
        test_open_gate(first[k]);
        struct job job = wait_for(queued[k], JOB_SUCCEEDED);
        cr_assert(job.attempt == 1 && !job.told_no_slot);
        job_fini(&job);
        free(first[k]);
        free(queued[k]);
    }
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
