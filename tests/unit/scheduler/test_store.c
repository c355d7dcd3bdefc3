#include <criterion/criterion.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "scheduler/store_write.h"

static char state[64];
static struct store *store;

static void setup(void)
{
    struct err err = {0};

    snprintf(state, sizeof(state), "%s", "/tmp/castor-store-XXXXXX");
    cr_assert(mkdtemp(state));
    cr_assert(store_open(state, &store, &err) == 0, "%s", err.msg);
}

static void teardown(void)
{
    store_close(store);
    fs_remove_tree(state, NULL);
}

TestSuite(store, .init = setup, .fini = teardown);

static void add_job(const char *id, int64_t priority, enum job_status status, const char *meta)
{
    struct fault_list faults = {0};
    struct err err = {0};
    struct job job;
    json_t *body = json_pack("{s:s,s:s,s:o*}", "model", "org/name", "training_file", "file-a",
                             "metadata", meta ? json_loads(meta, 0, NULL) : NULL);

    job_init(&job);
    cr_assert(job_spec_from_request(body, &job.spec, NULL, &faults) == 0);
    json_decref(body);
    snprintf(job.id, sizeof(job.id), "%s", id);
    job.spec.scheduling.priority = priority;
    job.status = status;
    job.created_at = 1000;
    cr_assert(store_insert_job(store, &job, NULL, &err) == 0, "%s", err.msg);
    job_fini(&job);
}

static void add_event(const char *job_id, int i)
{
    char text[32];
    json_t *data = json_pack("{s:i}", "step", i);
    struct err err = {0};

    snprintf(text, sizeof(text), "event %d", i);
    cr_assert(store_insert_event(store, job_id, 1000 + i, "info", i % 2 ? "metrics" : "message",
                                 text, data, &err) == 0,
              "%s", err.msg);
    json_decref(data);
}

/* Page through the events of a job and return their texts' numbers in order. */
static int64_t page_through(const char *job_id, int64_t limit, bool ascending, int *numbers)
{
    char *after = NULL;
    int64_t total = 0;
    bool more = true;

    while (more) {
        struct store_page page = {.after = after, .limit = limit, .ascending = ascending};
        struct store_event *rows = NULL;
        int64_t n = 0;
        struct err err = {0};
        cr_assert(store_list_events(store, job_id, page, &rows, &n, &more, &err) == 0, "%s",
                  err.msg);
        cr_assert(n <= limit && (n == limit || !more));
        free(after);
        after = n ? xstrdup(rows[n - 1].id) : NULL;
        for (int64_t i = 0; i < n; i++) {
            numbers[total++] = (int)strtol(rows[i].message + 6, NULL, 10);
            store_event_fini(&rows[i]);
        }
        free(rows);
    }
    free(after);
    return total;
}

Test(store, events_are_paged_in_both_directions)
{
    int numbers[64];

    add_job("ftjob-1", 0, JOB_RUNNING, NULL);
    for (int i = 0; i < 20; i++) {
        add_event("ftjob-1", i);
        add_event("ftjob-2", 100 + i);
    }
    for (int64_t limit = 1; limit <= 21; limit++) {
        cr_assert(page_through("ftjob-1", limit, false, numbers) == 20);
        for (int i = 0; i < 20; i++)
            cr_assert(numbers[i] == 19 - i, "limit %ld", (long)limit);
        cr_assert(page_through("ftjob-1", limit, true, numbers) == 20);
        for (int i = 0; i < 20; i++)
            cr_assert(numbers[i] == i, "limit %ld", (long)limit);
    }
}

Test(store, an_unknown_after_is_not_found)
{
    static const char *const ids[] = {
        "ftevent-000000000000000000000099",
        "ftevent-0",
        "x",
        "",
        "ftevent-ffffffffffffffffffffffff",
        "ftevent-000000000000000000000000",
        "ftevent-000000000000000000000002", /* another job's */
    };
    struct store_event *rows = NULL;
    struct job *jobs = NULL;
    struct store_file *files = NULL;
    int64_t n = 0;
    bool more;

    add_event("ftjob-1", 1);
    add_event("ftjob-2", 2);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        struct err err = {0};
        struct store_page page = {.after = ids[i], .limit = 5};
        cr_assert(store_list_events(store, "ftjob-1", page, &rows, &n, &more, &err) ==
                      ERR_NOT_FOUND,
                  "%s", ids[i]);
        cr_assert_str_eq(err.param, "after");
    }
    struct store_page page = {.after = "no", .limit = 5};
    cr_assert(store_list_jobs(store, NULL, NULL, page, &jobs, &n, &more, NULL) == ERR_NOT_FOUND);
    cr_assert(store_list_files(store, NULL, page, &files, &n, &more, NULL) == ERR_NOT_FOUND);
}

static int64_t count_jobs(const char *meta, const char *status)
{
    json_t *filter = meta ? json_loads(meta, JSON_DECODE_ANY, NULL) : NULL;
    struct job *rows = NULL;
    int64_t n = -1;
    bool more;
    struct err err = {0};

    cr_assert(store_list_jobs(store, filter, status, (struct store_page){.limit = 50}, &rows, &n,
                              &more, &err) == 0,
              "%s", err.msg);
    for (int64_t i = 0; i < n; i++)
        job_fini(&rows[i]);
    free(rows);
    json_decref(filter);
    return n;
}

Test(store, jobs_are_filtered_by_metadata_and_status)
{
    add_job("ftjob-1", 0, JOB_QUEUED, NULL);
    add_job("ftjob-2", 0, JOB_FAILED, "{\"a\":\"1\",\"b\":\"2\"}");
    add_job("ftjob-3", 0, JOB_QUEUED, "{\"a\":\"1\",\"we\\\"ird $.key\":\"x\"}");
    add_job("ftjob-4", 0, JOB_QUEUED, "{}");
    cr_assert(count_jobs(NULL, NULL) == 4);
    cr_assert(count_jobs("{\"a\":\"1\"}", NULL) == 2);
    cr_assert(count_jobs("{\"a\":\"1\",\"b\":\"2\"}", NULL) == 1);
    cr_assert(count_jobs("{\"a\":\"1\",\"b\":\"3\"}", NULL) == 0);
    cr_assert(count_jobs("{\"we\\\"ird $.key\":\"x\"}", NULL) == 1);
    cr_assert(count_jobs("null", NULL) == 2);
    cr_assert(count_jobs(NULL, "queued") == 3);
    cr_assert(count_jobs("{\"a\":\"1\"}", "queued") == 1);
    cr_assert(count_jobs(NULL, "' OR 1=1 --") == 0);
}

Test(store, jobs_come_newest_first_and_queue_positions_follow_priority)
{
    struct job *rows = NULL;
    int64_t n = 0;
    bool more = false;
    char after[JOB_ID_MAX];

    add_job("ftjob-1", 0, JOB_QUEUED, NULL);
    add_job("ftjob-2", 5, JOB_QUEUED, NULL);
    add_job("ftjob-3", 9, JOB_RUNNING, NULL);
    add_job("ftjob-4", 0, JOB_QUEUED, NULL);
    struct store_page page = {.limit = 3};
    cr_assert(store_list_jobs(store, NULL, NULL, page, &rows, &n, &more, NULL) == 0);
    cr_assert(n == 3 && more);
    cr_assert_str_eq(rows[0].id, "ftjob-4");
    cr_assert(rows[0].queue_position == 3 && rows[1].queue_position == 0 &&
              rows[2].queue_position == 1);
    snprintf(after, sizeof(after), "%s", rows[2].id);
    for (int i = 0; i < 3; i++)
        job_fini(&rows[i]);
    free(rows);
    page.after = after;
    cr_assert(store_list_jobs(store, NULL, NULL, page, &rows, &n, &more, NULL) == 0);
    cr_assert(n == 1 && !more && rows[0].queue_position == 2);
    job_fini(&rows[0]);
    free(rows);
}

Test(store, a_rolled_back_transaction_leaves_nothing)
{
    struct job job = {0};
    struct err err = {0};

    cr_assert(store_begin(store, &err) == 0);
    add_job("ftjob-1", 0, JOB_QUEUED, NULL);
    add_event("ftjob-1", 1);
    store_rollback(store);
    store_rollback(store);
    cr_assert(store_get_job(store, "ftjob-1", &job, &err) == ERR_NOT_FOUND);
    cr_assert_str_eq(err.reason, "fine_tune_not_found");
    add_job("ftjob-1", 0, JOB_QUEUED, NULL);
    cr_assert(store_get_job(store, "ftjob-1", &job, NULL) == 0);
    err_clear(&err);
    cr_assert(store_insert_job(store, &job, NULL, &err) == ERR_CONFLICT, "the same id twice");
    job_fini(&job);
}

Test(store, a_repeated_checkpoint_replaces_the_row)
{
    struct store_checkpoint c = {.id = "ftckpt_1",
                                 .job_id = "ftjob-1",
                                 .model = "m",
                                 .path = "/a",
                                 .created_at = 5,
                                 .step = 7,
                                 .metrics = json_object()};
    struct store_checkpoint *rows = NULL;
    int64_t n = 0;
    bool more;

    cr_assert(store_put_checkpoint(store, &c, NULL) == 0);
    c.id = "ftckpt_2";
    c.path = "/b";
    cr_assert(store_put_checkpoint(store, &c, NULL) == 0);
    struct store_page page = {.limit = 5};
    cr_assert(store_list_checkpoints(store, "ftjob-1", page, &rows, &n, &more, NULL) == 0);
    cr_assert(n == 1);
    cr_assert_str_eq(rows[0].path, "/b");
    cr_assert_str_eq(rows[0].id, "ftckpt_1");
    store_checkpoint_fini(&rows[0]);
    free(rows);
    json_decref(c.metrics);
}

struct reading {
    atomic_bool stop;
    int64_t rounds;
};

/* Transactions write pairs; a reader must never see half of one. */
static void *read_pairs(void *arg)
{
    struct reading *r = arg;
    struct store *s = NULL;

    cr_assert(store_open_reader(state, &s, NULL) == 0);
    while (!atomic_load(&r->stop)) {
        struct store_event *rows = NULL;
        int64_t n = 0;
        bool more;
        struct err err = {0};
        struct store_page page = {.limit = 1000};
        cr_assert(store_list_events(s, "ftjob-1", page, &rows, &n, &more, &err) == 0, "%s",
                  err.msg);
        cr_assert(n % 2 == 0, "%ld rows", (long)n);
        for (int64_t i = 0; i < n; i++)
            store_event_fini(&rows[i]);
        free(rows);
        r->rounds++;
    }
    store_close(s);
    return NULL;
}

Test(store, readers_see_whole_transactions_while_one_writes)
{
    struct reading readings[3] = {0};
    pthread_t threads[3];

    for (int i = 0; i < 3; i++)
        cr_assert(pthread_create(&threads[i], NULL, read_pairs, &readings[i]) == 0);
    for (int i = 0; i < 200; i++) {
        cr_assert(store_begin(store, NULL) == 0);
        add_event("ftjob-1", i);
        add_event("ftjob-1", i);
        cr_assert(store_commit(store, NULL) == 0);
    }
    for (int i = 0; i < 3; i++) {
        atomic_store(&readings[i].stop, true);
        pthread_join(threads[i], NULL);
        cr_assert(readings[i].rounds > 0);
    }
}

Test(store, other_files_and_versions_are_refused)
{
    char *path = fs_join(state, "castor.db");
    struct store *other = NULL;
    struct err err = {0};
    sqlite3 *db;

    cr_assert(store_open_reader("/nonexistent", &other, &err) != 0);
    err_clear(&err);
    store_close(store);
    store = NULL;
    cr_assert(sqlite3_open(path, &db) == SQLITE_OK);
    cr_assert(sqlite3_exec(db, "PRAGMA user_version = 99", NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(db);
    cr_assert(store_open(state, &other, &err) == ERR_UNSUPPORTED, "%s", err.msg);
    err_clear(&err);
    cr_assert(fs_write_file_atomic(path, "this is no database, it is a text of some length", 48,
                                   NULL) == 0);
    cr_assert(store_open(state, &other, &err) == ERR_CORRUPT, "%s", err.msg);
    err_clear(&err);
    remove(path);
    cr_assert(sqlite3_open(path, &db) == SQLITE_OK);
    cr_assert(sqlite3_exec(db, "CREATE TABLE t (x)", NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(db);
    cr_assert(store_open(state, &other, &err) == ERR_CORRUPT, "%s", err.msg);
    free(path);
}

Test(store, files_are_listed_by_purpose_and_expire)
{
    struct store_file f = {.id = "file-1",
                           .filename = "a",
                           .purpose = "fine-tune",
                           .status = "processed",
                           .path = "/p",
                           .bytes = 5,
                           .created_at = 1,
                           .expires_at = 50};
    struct store_file *rows = NULL, got = {0};
    int64_t n = 0;
    bool more;

    cr_assert(store_put_file(store, &f, NULL) == 0);
    f.id = "file-2";
    f.purpose = "fine-tune-results";
    f.job_id = "ftjob-1";
    f.expires_at = 0;
    cr_assert(store_put_file(store, &f, NULL) == 0);
    struct store_page page = {.limit = 5, .ascending = true};
    cr_assert(store_list_files(store, NULL, page, &rows, &n, &more, NULL) == 0 && n == 2);
    cr_assert_str_eq(rows[0].id, "file-1");
    store_file_fini(&rows[0]);
    store_file_fini(&rows[1]);
    free(rows);
    cr_assert(store_list_files(store, "fine-tune", page, &rows, &n, &more, NULL) == 0 && n == 1);
    store_file_fini(&rows[0]);
    free(rows);
    cr_assert(store_list_expired_files(store, 49, &rows, &n, NULL) == 0 && n == 0);
    free(rows);
    cr_assert(store_list_expired_files(store, 50, &rows, &n, NULL) == 0 && n == 1);
    store_file_fini(&rows[0]);
    free(rows);
    cr_assert(store_get_file(store, "file-2", &got, NULL) == 0);
    cr_assert_str_eq(got.job_id, "ftjob-1");
    store_file_fini(&got);
    cr_assert(store_delete_file(store, "file-2", NULL) == 0);
    cr_assert(store_get_file(store, "file-2", &got, NULL) == ERR_NOT_FOUND);
}
