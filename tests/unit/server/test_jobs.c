/* /v1/fine_tuning/jobs and what hangs below it: shapes, every status code, paging, repeats. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "tests/unit/server/harness.h"

static struct harness h;
static const char *const jobs_uri = "/v1/fine_tuning/jobs";
static const char *const good_body = "{\"model\":\"org/name\",\"training_file\":\"file-1\"}";

static void setup(void)
{
    harness_init(&h);
    fake_add_file("file-1", "fine-tune", "/data/one", 11);
    fake_add_file("file-batch", "batch", "/data/two", 12);
}

static void teardown(void)
{
    harness_fini(&h);
}

TestSuite(jobs, .init = setup, .fini = teardown);

static void expect_null(const json_t *job, const char *key)
{
    cr_expect(json_is_null(json_object_get(job, key)), "%s is not null", key);
}

Test(jobs, a_new_job_has_openais_shape)
{
    struct answer a =
        ask(&h, "POST", jobs_uri, NULL,
            "{\"model\":\"org/name@v1\",\"training_file\":\"file-1\",\"suffix\":\"abc\","
            "\"seed\":7,\"metadata\":{\"k\":\"v\"},"
            "\"hyperparameters\":{\"n_epochs\":2},\"dataset\":{\"format\":\"text\"}}");
    static const char *const nulls[] = {"finished_at",
                                        "fine_tuned_model",
                                        "validation_file",
                                        "trained_tokens",
                                        "error",
                                        "estimated_finish",
                                        "usage_metrics",
                                        "started_at",
                                        "phase",
                                        "queue",
                                        "plan",
                                        "lora"};
    json_t *hyper = json_object_get(a.json, "hyperparameters");

    cr_assert_eq(a.status, 200, "%s", buf_str(&a.rep.body));
    cr_expect_eq(strncmp(text_at(a.json, "id"), "ftjob-", 6), 0);
    cr_expect_str_eq(text_at(a.json, "object"), "fine_tuning.job");
    cr_expect_str_eq(text_at(a.json, "status"), "validating_files");
    cr_expect_str_eq(text_at(a.json, "model"), "org/name@v1");
    cr_expect_str_eq(text_at(a.json, "training_file"), "file-1");
    cr_expect_str_eq(text_at(a.json, "organization_id"), "org-castor");
    cr_expect_str_eq(text_at(a.json, "user_provided_suffix"), "abc");
    cr_expect_eq(json_integer_value(json_object_get(a.json, "seed")), 7);
    cr_expect(json_is_integer(json_object_get(a.json, "created_at")));
    cr_expect_str_eq(text_at(json_object_get(a.json, "metadata"), "k"), "v");
    cr_expect_eq(json_integer_value(json_object_get(hyper, "n_epochs")), 2);
    cr_expect_str_eq(text_at(hyper, "batch_size"), "auto");
    cr_expect_str_eq(text_at(hyper, "learning_rate_multiplier"), "auto");
    cr_expect_str_eq(text_at(json_object_get(a.json, "method"), "type"), "supervised");
    cr_expect(json_is_array(json_object_get(a.json, "result_files")));
    cr_expect_str_eq(text_at(json_object_get(a.json, "dataset"), "format"), "text");
    cr_expect_str_eq(text_at(json_object_get(a.json, "base_model"), "revision"), "v1");
    for (size_t i = 0; i < sizeof(nulls) / sizeof(nulls[0]); i++)
        expect_null(a.json, nulls[i]);
    /* the worker reads the file by the path that the store knows */
    cr_expect_str_eq(fake.jobs[0].spec.training_file.path, "/data/one");
    cr_expect_str_eq(fake.jobs[0].spec.training_file.filename, "data.jsonl");
    cr_expect_eq(fake.jobs[0].spec.training_file.bytes, 11);
    answer_fini(&a);
}

Test(jobs, all_faults_come_in_one_answer)
{
    struct answer a = ask(&h, "POST", jobs_uri, NULL,
                          "{\"model\":\"org/name\",\"training_file\":\"file-nope\","
                          "\"validation_file\":\"file-batch\",\"seed\":-1,\"colour\":\"red\"}");
    json_t *details = json_object_get(json_object_get(a.json, "error"), "details");
    bool training = false, validation = false, seed = false, colour = false;
    json_t *fault;
    size_t i;

    cr_expect_eq(a.status, 400);
    json_array_foreach(details, i, fault)
    {
        const char *param = text_at(fault, "param"), *code = text_at(fault, "code");
        training |= !strcmp(param, "training_file") && !strcmp(code, "file_not_found");
        validation |= !strcmp(param, "validation_file") && !strcmp(code, "invalid_file_purpose");
        seed |= !strcmp(param, "seed");
        colour |= !strcmp(param, "colour") && !strcmp(code, "unknown_parameter");
    }
    cr_expect(training && validation && seed && colour, "%s", buf_str(&a.rep.body));
    cr_expect_eq(fake.calls, 0);
    answer_fini(&a);
}

Test(jobs, bodies_that_are_no_object_are_400)
{
    static const char *const bodies[] = {NULL,
                                         "",
                                         "null",
                                         "[]",
                                         "7",
                                         "\"x\"",
                                         "{",
                                         "{} {}",
                                         "{\"model\":NaN}",
                                         "{\"model\":1e999}",
                                         "{\"model\":\"a\",\"model\":\"b\"}",
                                         "{\"model\":\"\\u0000\"}",
                                         "{\"model\":\"\xff\"}"};
    struct buf deep = {0};

    for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
        struct answer a = ask(&h, "POST", jobs_uri, NULL, bodies[i]);
        cr_expect_eq(a.status, 400, "%s: %s", bodies[i], buf_str(&a.rep.body));
        cr_expect_not_null(a.json);
        answer_fini(&a);
    }
    buf_add_str(&deep, "{\"model\":");
    for (int i = 0; i < 100000; i++)
        buf_add_char(&deep, '[');
    struct answer a = ask(&h, "POST", jobs_uri, NULL, buf_str(&deep));
    assert_error(a, 400, "invalid_json", "");
    answer_fini(&a);
    buf_fini(&deep);
}

Test(jobs, a_file_with_status_error_cannot_be_used)
{
    free(fake.files[0].status);
    fake.files[0].status = xstrdup("error");
    fake.files[0].status_details = xstrdup("line 3 is no JSON");
    struct answer a = ask(&h, "POST", jobs_uri, NULL, good_body);
    assert_error(a, 400, "invalid_file", "training_file");
    answer_fini(&a);
}

static void expect_model(const char *model, unsigned status)
{
    char body[512];

    snprintf(body, sizeof(body), "{\"model\":\"%s\",\"training_file\":\"file-1\"}", model);
    struct answer a = ask(&h, "POST", jobs_uri, NULL, body);
    cr_expect_eq(a.status, status, "%s: %s", model, buf_str(&a.rep.body));
    if (status == 400)
        cr_expect_str_eq(error_member(&a, "code"), "local_model_not_allowed");
    answer_fini(&a);
}

Test(jobs, local_models_need_an_allowed_directory)
{
    char model[128], beside[128], link[128];

    snprintf(model, sizeof(model), "%s/models/m", h.dir);
    snprintf(beside, sizeof(beside), "%s/models-secret", h.dir);
    snprintf(link, sizeof(link), "%s/models/link", h.dir);
    cr_assert_eq(fs_mkdir_p(model, false, NULL), 0);
    cr_assert_eq(fs_mkdir_p(beside, false, NULL), 0);
    cr_assert_eq(symlink(beside, link), 0);
    expect_model(model, 400);
    h.config.local_model_dirs[h.config.n_local_model_dirs++] = xasprintf("%s/models", h.dir);
    expect_model(model, 200);
    cr_expect_str_eq(fake.jobs[0].spec.model.path, model);
    expect_model(beside, 400);
    expect_model(link, 400);
    expect_model("/etc/passwd", 400);
    expect_model("/nowhere", 400);
}

Test(jobs, dry_run_plans_and_creates_nothing)
{
    static const char *const uris[] = {
        "/v1/fine_tuning/jobs?dry_run=true", "/v1/fine_tuning/jobs", "/v1/fine_tuning/estimate",
        "/v1/fine_tuning/jobs?dry_run=true", "/v1/fine_tuning/estimate"};
    static const char *const bodies[] = {
        "{\"model\":\"org/name\",\"training_file\":\"file-1\"}",
        "{\"model\":\"org/name\",\"training_file\":\"file-1\",\"dry_run\":true}",
        "{\"model\":\"org/name\",\"training_file\":\"file-1\"}",
        "{\"model\":\"org/name\",\"training_file\":\"file-1\",\"dry_run\":false}",
        "{\"model\":\"org/name\",\"training_file\":\"file-1\",\"dry_run\":false}"};

    for (int i = 0; i < 5; i++) {
        struct answer a = ask(&h, "POST", uris[i], NULL, bodies[i]);
        cr_assert_eq(a.status, 200, "%s", buf_str(&a.rep.body));
        cr_expect_str_eq(text_at(a.json, "object"), "fine_tuning.plan");
        cr_expect(json_is_true(json_object_get(a.json, "fits")));
        answer_fini(&a);
    }
    cr_expect_eq(fake.n_jobs, 0);
    fake.plan_fits = false;
    struct answer a = ask(&h, "POST", uris[0], NULL, good_body);
    cr_expect_eq(a.status, 200);
    cr_expect(json_is_false(json_object_get(a.json, "fits")));
    cr_expect_str_eq(text_at(json_object_get(a.json, "error"), "message"), "7 GiB are missing");
    answer_fini(&a);
    a = ask(&h, "POST", "/v1/fine_tuning/jobs?dry_run=yes", NULL, good_body);
    assert_error(a, 400, "", "dry_run");
    answer_fini(&a);
    a = ask(&h, "POST", "/v1/fine_tuning/jobs?dryrun=true", NULL, good_body);
    assert_error(a, 400, "unknown_parameter", "dryrun");
    answer_fini(&a);
    a = ask(&h, "POST", "/v1/fine_tuning/estimate?dry_run=false", NULL, good_body);
    assert_error(a, 400, "unknown_parameter", "dry_run");
    answer_fini(&a);
    cr_expect_eq(fake.n_jobs, 0);
    atomic_store(&h.slow_left, 0);
    a = ask(&h, "POST", uris[0], NULL, good_body);
    assert_error(a, 503, "server_busy", "");
    answer_fini(&a);
    fake.fail = ERR_TIMEOUT;
    atomic_store(&h.slow_left, 1);
    a = ask(&h, "POST", uris[0], NULL, good_body);
    cr_expect_eq(a.status, 503);
    answer_fini(&a);
    cr_expect_eq(atomic_load(&h.slow_left), 1);
}

static void expect_create(const char *const *headers, const char *body, unsigned status, int jobs)
{
    struct answer a = ask(&h, "POST", jobs_uri, headers, body);

    cr_expect_eq(a.status, status, "%s", buf_str(&a.rep.body));
    cr_expect_eq(fake.n_jobs, jobs, "%d jobs rather than %d", fake.n_jobs, jobs);
    answer_fini(&a);
}

Test(jobs, a_retried_create_gives_the_first_job)
{
    const char *first[] = {"x-stainless-retry-count", "0", NULL};
    const char *again[] = {"x-stainless-retry-count", "1", NULL};
    const char *other = "{\"model\":\"org/other\",\"training_file\":\"file-1\"}";

    expect_create(first, good_body, 200, 1);
    expect_create(again, good_body, 200, 1);
    expect_create(again, good_body, 200, 1);
    expect_create(again, other, 200, 2);     /* its first try was lost */
    expect_create(first, good_body, 200, 3); /* a new one on purpose */
    expect_create(NULL, good_body, 200, 4);
    fake.fail = ERR_TIMEOUT;
    expect_create(first, "{\"model\":\"org/third\",\"training_file\":\"file-1\"}", 503, 4);
    expect_create(again, "{\"model\":\"org/third\",\"training_file\":\"file-1\"}", 200, 5);
}

Test(jobs, idempotency_keys_hold_for_body_and_caller)
{
    const char *key[] = {"Idempotency-Key", "abc", NULL};
    const char *key2[] = {"Idempotency-Key", "abd", NULL};

    expect_create(key, good_body, 200, 1);
    expect_create(key, good_body, 200, 1);
    expect_create(key2, good_body, 200, 2);
    struct answer a =
        ask(&h, "POST", jobs_uri, key, "{\"model\":\"org/other\",\"training_file\":\"file-1\"}");
    assert_error(a, 422, "idempotency_key_reused", "");
    answer_fini(&a);
    cr_expect_eq(fake.n_jobs, 2);
    /* the scheduler was given the key, so it holds across a restart of castord */
    cr_expect_not_null(fake.dedupe[0]);
    dedupe_destroy(h.ctx.dedupe);
    h.ctx.dedupe = dedupe_create();
    expect_create(key, good_body, 200, 2);
}

Test(jobs, errors_of_the_scheduler_become_statuses)
{
    static const struct {
        enum err_code code;
        unsigned status;
    } rows[] = {{ERR_INVALID, 400},  {ERR_NOT_FOUND, 404}, {ERR_CONFLICT, 409},
                {ERR_NOSPACE, 507},  {ERR_TIMEOUT, 503},   {ERR_IO, 500},
                {ERR_INTERNAL, 500}, {ERR_PERMISSION, 500}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        fake.fail = rows[i].code;
        struct answer a = ask(&h, "POST", jobs_uri, NULL, good_body);
        const char *retry = reply_find_header(&a.rep, "x-should-retry");
        cr_expect_eq(a.status, rows[i].status, "%s: %s", err_code_name(rows[i].code),
                     buf_str(&a.rep.body));
        cr_expect_eq(retry != NULL, rows[i].status == 409);
        if (rows[i].status == 500)
            cr_expect_null(strstr(buf_str(&a.rep.body), "/secret"));
        answer_fini(&a);
    }
}

Test(jobs, a_job_that_is_not_there_is_404)
{
    static const char *const rows[][2] = {{"GET", ""},        {"POST", "/cancel"},
                                          {"POST", "/pause"}, {"POST", "/resume"},
                                          {"GET", "/events"}, {"GET", "/checkpoints"}};
    char uri[128];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        snprintf(uri, sizeof(uri), "%s/ftjob-none%s", jobs_uri, rows[i][1]);
        struct answer a = ask(&h, rows[i][0], uri, NULL, NULL);
        assert_error(a, 404, "fine_tune_not_found", "fine_tune_id");
        cr_expect_str_eq(error_member(&a, "message"), "Could not find fine tune: ftjob-none");
        answer_fini(&a);
    }
}

Test(jobs, steering_is_idempotent_and_conflicts_are_409)
{
    fake_add_job("ftjob-r", JOB_RUNNING);
    fake_add_job("ftjob-s", JOB_SUCCEEDED);
    for (int i = 0; i < 2; i++) {
        struct answer a =
            ask(&h, "POST", "/v1/fine_tuning/jobs/ftjob-r/cancel", NULL, i ? "{}" : NULL);
        cr_expect_eq(a.status, 200);
        cr_expect_str_eq(text_at(a.json, "status"), "cancelled");
        answer_fini(&a);
    }
    static const char *const actions[] = {"cancel", "pause", "resume"};
    for (int i = 0; i < 3; i++) {
        char uri[128];
        snprintf(uri, sizeof(uri), "%s/ftjob-s/%s", jobs_uri, actions[i]);
        struct answer a = ask(&h, "POST", uri, NULL, NULL);
        assert_error(a, 409, "invalid_state", "");
        cr_expect_str_eq(reply_find_header(&a.rep, "x-should-retry"), "false");
        answer_fini(&a);
    }
    struct answer a = ask(&h, "POST", "/v1/fine_tuning/jobs/ftjob-r/cancel", NULL, "{\"x\":1}");
    assert_error(a, 400, "unknown_parameter", "x");
    answer_fini(&a);
    a = ask(&h, "POST", "/v1/fine_tuning/jobs/ftjob-r/cancel", NULL, "x");
    assert_error(a, 400, "invalid_json", "");
    answer_fini(&a);
}

Test(jobs, states_are_told_in_full)
{
    struct job *job = fake_add_job("ftjob-1", JOB_RUNNING);

    job->has_phase = true;
    job->phase = PHASE_TRAINING;
    job->step = 3;
    job->total_steps = 12;
    job->train_loss = 2.5;
    job->seconds_remaining = 90;
    job->started_at = 1700000009;
    job->plan = json_pack("{s:i}", "steps", 12);
    struct answer a = ask(&h, "GET", "/v1/fine_tuning/jobs/ftjob-1", NULL, NULL);
    json_t *progress = json_object_get(a.json, "progress");
    cr_expect_str_eq(text_at(a.json, "phase"), "training");
    cr_expect_eq(json_real_value(json_object_get(progress, "percent")), 25.0);
    cr_expect_eq(json_real_value(json_object_get(progress, "train_loss")), 2.5);
    expect_null(progress, "valid_loss");
    cr_expect_gt(json_integer_value(json_object_get(a.json, "estimated_finish")), 1700000000);
    cr_expect_eq(json_integer_value(json_object_get(json_object_get(a.json, "plan"), "steps")), 12);
    answer_fini(&a);

    job->status = JOB_FAILED;
    job->error_code = xstrdup("nan_loss");
    job->error_message = xstrdup("the loss is not a number");
    a = ask(&h, "GET", "/v1/fine_tuning/jobs/ftjob-1", NULL, NULL);
    json_t *error = json_object_get(a.json, "error");
    cr_expect_str_eq(text_at(error, "code"), "nan_loss");
    expect_null(error, "param");
    expect_null(a.json, "estimated_finish");
    expect_null(a.json, "phase");
    answer_fini(&a);

    job->status = JOB_SUCCEEDED;
    job->result_file = xstrdup("file-csv");
    job->fine_tuned_model = xstrdup("ft:org/name:o::12345678");
    job->trained_tokens = 1234;
    a = ask(&h, "GET", "/v1/fine_tuning/jobs/ftjob-1", NULL, NULL);
    cr_expect_str_eq(json_string_value(json_array_get(json_object_get(a.json, "result_files"), 0)),
                     "file-csv");
    cr_expect_str_eq(text_at(a.json, "fine_tuned_model"), "ft:org/name:o::12345678");
    cr_expect_eq(json_integer_value(json_object_get(a.json, "trained_tokens")), 1234);
    expect_null(a.json, "error");
    answer_fini(&a);

    job->status = JOB_QUEUED;
    job->queue_position = 2;
    a = ask(&h, "GET", "/v1/fine_tuning/jobs/ftjob-1", NULL, NULL);
    cr_expect_eq(json_integer_value(json_object_get(json_object_get(a.json, "queue"), "position")),
                 2);
    answer_fini(&a);

    job->status = JOB_PAUSED;
    for (int strict = 0; strict < 2; strict++) {
        h.config.strict_openai_status = strict;
        a = ask(&h, "GET", "/v1/fine_tuning/jobs/ftjob-1", NULL, NULL);
        cr_expect_str_eq(text_at(a.json, "status"), strict ? "queued" : "paused");
        answer_fini(&a);
    }
}

/* Follow has_more as the SDKs do, by the last id of each page. */
static int page_through(const char *list, int limit, int *pages)
{
    char uri[256], after[64] = "";
    int rows = 0;

    for (*pages = 0; *pages < 100;) {
        snprintf(uri, sizeof(uri), "%s?limit=%d%s%s", list, limit, after[0] ? "&after=" : "",
                 after);
        struct answer a = ask(&h, "GET", uri, NULL, NULL);
        json_t *data = json_object_get(a.json, "data");
        size_t n = json_array_size(data);
        bool more = json_is_true(json_object_get(a.json, "has_more"));
        cr_assert_eq(a.status, 200, "%s", buf_str(&a.rep.body));
        cr_expect_str_eq(text_at(a.json, "object"), "list");
        (*pages)++;
        rows += (int)n;
        if (n > 0)
            snprintf(after, sizeof(after), "%s", text_at(json_array_get(data, n - 1), "id"));
        answer_fini(&a);
        if (!more || n == 0)
            return rows;
    }
    return -1;
}

Test(jobs, lists_are_paged_to_their_end)
{
    char id[32];
    int pages;

    for (int i = 0; i < 7; i++) {
        snprintf(id, sizeof(id), "ftjob-%d", i);
        fake_add_job(id, JOB_QUEUED);
        snprintf(id, sizeof(id), "ftevent-%d", i);
        fake_add_event("ftjob-0", id);
        snprintf(id, sizeof(id), "ftckpt_%d", i);
        fake_add_checkpoint("ftjob-0", id, i);
    }
    cr_expect_eq(page_through(jobs_uri, 3, &pages), 7);
    cr_expect_eq(pages, 3);
    cr_expect_eq(page_through(jobs_uri, 7, &pages), 7);
    cr_expect_eq(pages, 1);
    cr_expect_eq(page_through("/v1/fine_tuning/jobs/ftjob-0/events", 2, &pages), 7);
    cr_expect_eq(page_through("/v1/fine_tuning/jobs/ftjob-0/checkpoints", 2, &pages), 7);
    cr_expect_eq(page_through("/v1/fine_tuning/jobs/ftjob-1/events", 2, &pages), 0);
    cr_expect_eq(page_through("/v1/files", 1, &pages), 2);

    struct answer a =
        ask(&h, "GET", "/v1/fine_tuning/jobs/ftjob-0/checkpoints?limit=2", NULL, NULL);
    json_t *first = json_array_get(json_object_get(a.json, "data"), 0);
    cr_expect_str_eq(text_at(a.json, "first_id"), "ftckpt_6");
    cr_expect_str_eq(text_at(a.json, "last_id"), "ftckpt_5");
    cr_expect_str_eq(text_at(first, "object"), "fine_tuning.job.checkpoint");
    cr_expect_eq(json_integer_value(json_object_get(first, "step_number")), 6);
    answer_fini(&a);
    a = ask(&h, "GET", "/v1/fine_tuning/jobs/ftjob-1/checkpoints", NULL, NULL);
    expect_null(a.json, "first_id");
    expect_null(a.json, "last_id");
    answer_fini(&a);
    a = ask(&h, "GET", "/v1/files?order=asc", NULL, NULL);
    cr_expect_str_eq(text_at(json_array_get(json_object_get(a.json, "data"), 0), "id"), "file-1");
    answer_fini(&a);
}

Test(jobs, wrong_list_parameters_are_400)
{
    static const char *const rows[][2] = {
        {"limit=0", "limit"},       {"limit=1001", "limit"},
        {"limit=x", "limit"},       {"after=ftjob-none", "after"},
        {"order=up", "order"},      {"status=sleeping", "status"},
        {"metadata=x", "metadata"}, {"metadata=&metadata[a]=b", "metadata"},
        {"page=2", "page"}};
    char uri[128];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        snprintf(uri, sizeof(uri), "%s?%s", jobs_uri, rows[i][0]);
        struct answer a = ask(&h, "GET", uri, NULL, NULL);
        cr_expect_eq(a.status, 400, "%s", uri);
        cr_expect_str_eq(error_member(&a, "param"), rows[i][1]);
        answer_fini(&a);
    }
    struct answer a = ask(&h, "GET", "/v1/files?limit=10001", NULL, NULL);
    assert_error(a, 400, "", "limit");
    answer_fini(&a);
}

Test(jobs, metadata_filters_reach_the_store)
{
    struct answer a =
        ask(&h, "GET", "/v1/fine_tuning/jobs?metadata%5Bteam%5D=a%26b&metadata[x]=&status=queued",
            NULL, NULL);
    cr_expect_eq(a.status, 200);
    cr_expect_str_eq(text_at(fake.seen_metadata, "team"), "a&b");
    cr_expect_eq(json_object_size(fake.seen_metadata), 2);
    cr_expect_str_eq(fake.seen_status, "queued");
    answer_fini(&a);
    static const char *const nulls[] = {"metadata=null", "metadata=", "metadata"};
    for (int i = 0; i < 3; i++) {
        char uri[64];
        snprintf(uri, sizeof(uri), "%s?%s", jobs_uri, nulls[i]);
        a = ask(&h, "GET", uri, NULL, NULL);
        cr_expect(json_is_null(fake.seen_metadata), "%s", nulls[i]);
        answer_fini(&a);
    }
    a = ask(&h, "GET", jobs_uri, NULL, NULL);
    cr_expect_null(fake.seen_metadata);
    answer_fini(&a);
}

static const char on_volume[] = "{\"model\":\"org/name\",\"training_file\":\"file-1\","
                                "\"placement\":{\"policy\":\"cpu\",\"nvme_path\":\"fast\"}}";

Test(jobs, a_volume_must_be_one_of_the_servers)
{
    struct answer a = ask(&h, "POST", jobs_uri, NULL, on_volume);
    assert_error(a, 400, "unknown_volume", "placement.nvme_path");
    cr_expect_not_null(strstr(error_member(&a, "message"), "no volumes"));
    answer_fini(&a);
    h.config.volumes[h.config.n_volumes++] =
        (struct volume){.name = "slow", .path = xstrdup("/tmp")};
    a = ask(&h, "POST", jobs_uri, NULL, on_volume);
    assert_error(a, 400, "unknown_volume", "placement.nvme_path");
    cr_expect_not_null(strstr(error_member(&a, "message"), "it has: slow"));
    answer_fini(&a);
    h.config.volumes[h.config.n_volumes++] =
        (struct volume){.name = "fast", .path = xstrdup("/usr")};
    a = ask(&h, "POST", jobs_uri, NULL, on_volume);
    cr_expect_eq(a.rep.status, 200);
    cr_expect_null(strstr(buf_str(&a.rep.body), "/usr"), "where it lies is not the client's");
    answer_fini(&a);
}

Test(jobs, a_hub_must_be_one_of_the_servers)
{
    struct answer a;

    setenv("HF_ENDPOINT", "https://Own.example/", 1);
    a = ask(&h, "POST", jobs_uri, NULL, good_body);
    cr_expect_str_eq(text_at(json_object_get(a.json, "hub"), "endpoint"), "https://own.example");
    answer_fini(&a);
    a = ask(&h, "POST", jobs_uri, NULL,
            "{\"model\":\"org/name\",\"training_file\":\"file-1\","
            "\"hub\":{\"endpoint\":\"https://evil.example\",\"token\":\"hf_secret\"}}");
    assert_error(a, 400, "hub_not_allowed", "hub.endpoint");
    cr_expect_not_null(strstr(error_member(&a, "message"), "It uses: https://own.example."));
    cr_expect_null(strstr(buf_str(&a.rep.body), "hf_secret"));
    answer_fini(&a);
    h.config.hubs[h.config.n_hubs++].url = xstrdup("https://evil.example");
    a = ask(&h, "POST", jobs_uri, NULL,
            "{\"model\":\"org/name\",\"training_file\":\"file-1\","
            "\"hub\":{\"endpoint\":\"https://evil.example/\",\"token\":\"hf_secret\"}}");
    cr_assert_eq(a.status, 200, "%s", buf_str(&a.rep.body));
    cr_expect_str_eq(text_at(json_object_get(a.json, "hub"), "endpoint"), "https://evil.example");
    cr_expect(json_is_true(json_object_get(json_object_get(a.json, "hub"), "has_token")));
    cr_expect_null(strstr(buf_str(&a.rep.body), "hf_secret"));
    answer_fini(&a);
}
