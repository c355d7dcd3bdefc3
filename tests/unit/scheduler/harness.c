#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/json.h"
#include "tests/unit/scheduler/harness.h"

char state[64];
struct scheduler *sched;
struct store *reader;
static char *worker;

struct scheduler_config test_config(void)
{
    return (struct scheduler_config){.state_dir = state,
                                     .worker_path = worker,
                                     .cpu_slots = 1,
                                     .gpu_slots = -1,
                                     .plan_seconds = 300,
                                     .plan_memory = (size_t)512 << 20,
                                     .grace_seconds = 1};
}

void test_start(struct scheduler_config c)
{
    struct err err = {0};

    cr_assert(scheduler_create(&c, &sched, &err) == 0, "%s", err.msg);
    if (!reader)
        cr_assert(store_open_reader(state, &reader, &err) == 0, "%s", err.msg);
}

void test_setup(void)
{
    snprintf(state, sizeof(state), "%s", "/tmp/castor-sched-XXXXXX");
    cr_assert(mkdtemp(state));
    worker = realpath("tests/unit/scheduler/fake_worker.py", NULL);
    cr_assert(worker, "run the tests from the top of the source tree");
    setenv("CASTOR_LOG", "error", 1);
}

void test_teardown(void)
{
    store_close(reader);
    scheduler_destroy(sched);
    fs_remove_tree(state, NULL);
    free(worker);
}

struct store_file test_upload(void)
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
void test_spec(struct job_spec *spec, const char *file_id, const char *meta, const char *more)
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

char *test_create(const char *meta, const char *more)
{
    struct store_file file = test_upload();
    struct job_spec spec;
    struct job job = {0};
    struct err err = {0};

    test_spec(&spec, file.id, meta, more);
    cr_assert(sched_post_create(sched, &spec, NULL, &job, &err) == 0, "%s", err.msg);
    cr_assert(job.status == JOB_VALIDATING);
    char *id = xstrdup(job.id);
    job_fini(&job);
    job_spec_fini(&spec);
    store_file_fini(&file);
    return id;
}

struct job test_get(const char *id)
{
    struct job job = {0};
    struct err err = {0};

    cr_assert(store_get_job(reader, id, &job, &err) == 0, "%s", err.msg);
    return job;
}

/* Wait for a status (or, for -1, any final one); the job is the caller's. */
struct job wait_for(const char *id, int status)
{
    double until = clock_monotonic() + 300;

    for (;;) {
        struct job job = test_get(id);
        if ((int)job.status == status || (status < 0 && job_status_is_final(job.status)))
            return job;
        cr_assert(clock_monotonic() < until && !job_status_is_final(job.status),
                  "the job is %s at step %ld: %s", job_status_name(job.status), (long)job.step,
                  job.error_message ? job.error_message : "");
        job_fini(&job);
        clock_sleep(0.02);
    }
}

void wait_for_step(const char *id, int64_t step)
{
    for (;;) {
        struct job job = test_get(id);
        bool there = job.step >= step;
        cr_assert(!job_status_is_final(job.status));
        job_fini(&job);
        if (there)
            return;
        clock_sleep(0.02);
    }
}

void test_open_gate(const char *id)
{
    char *path = xasprintf("%s/jobs/%s/open", state, id);

    cr_assert(fs_write_file_atomic(path, "", 0, NULL) == 0);
    free(path);
}

/* The metrics rows that are steps must be exactly `steps`, in order. */
void expect_steps(const char *id, const int64_t *steps, int64_t n)
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

bool has_event(const char *id, const char *level, const char *text)
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

int count_group(int64_t pgid)
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

struct supervisor_record supervisor_of(const char *id, int64_t attempt)
{
    struct supervisor_record r = {0};
    char *dir = xasprintf("%s/jobs/%s", state, id);
    char *path = job_dir_supervisor(dir, attempt);

    cr_assert(supervisor_record_load(path, &r, NULL) == 0);
    free(path);
    free(dir);
    return r;
}

void expect_failure(const char *meta, const char *code, const char *text)
{
    char *id = test_create(meta, "");
    struct job job = wait_for(id, -1);

    cr_assert(job.status == JOB_FAILED, "%s: %s", meta, job_status_name(job.status));
    cr_assert_str_eq(job.error_code, code, "%s: %s: %s", meta, job.error_code, job.error_message);
    cr_assert(strstr(job.error_message, text), "%s: %s", meta, job.error_message);
    cr_assert(has_event(id, "error", text));
    job_fini(&job);
    free(id);
}

void steer_to(const char *id,
              int (*post)(struct scheduler *, const char *, struct job *, struct err *), int want)
{
    struct job job = {0};
    struct err err = {0};

    cr_assert(post(sched, id, &job, &err) == want, "%s", err.msg);
    if (want == 0)
        job_fini(&job);
}
