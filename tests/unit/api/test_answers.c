/* What clients read: faults, error objects, plan reports. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/api_error.h"
#include "api/plan_report.h"
#include "api/record.h"
#include "core/alloc.h"
#include "core/json.h"

static void expect_json(json_t *value, const char *text)
{
    char *line = json_to_line(value);

    cr_assert_str_eq(line, text, "%s", line);
    free(line);
    json_decref(value);
}

Test(answers, error_object_has_all_four_keys)
{
    struct err err = {0};

    err_set(&err, ERR_NOT_FOUND, "No such job: x");
    expect_json(api_error_to_json(&err),
                "{\"error\":{\"message\":\"No such job: x\",\"type\":\"invalid_request_error\","
                "\"param\":null,\"code\":null}}");
    err_set_reason(&err, 0, "fine_tune_not_found");
    err_set_param(&err, 0, "fine_tune_id");
    expect_json(api_error_to_json(&err),
                "{\"error\":{\"message\":\"No such job: x\",\"type\":\"invalid_request_error\","
                "\"param\":\"fine_tune_id\",\"code\":\"fine_tune_not_found\"}}");
}

Test(answers, statuses)
{
    cr_assert(api_error_status(ERR_INVALID) == 400 && api_error_status(ERR_UNSUPPORTED) == 400);
    cr_assert(api_error_status(ERR_NOT_FOUND) == 404 && api_error_status(ERR_CONFLICT) == 409);
    cr_assert(api_error_status(ERR_PERMISSION) == 403 && api_error_status(ERR_INTERNAL) == 500);
    cr_assert(api_error_status((enum err_code)999) == 500);
    for (int code = ERR_INVALID; code <= ERR_INTERNAL; code++)
        cr_assert(api_error_status((enum err_code)code) >= 400, "%s",
                  err_code_name((enum err_code)code));
}

Test(answers, several_faults_are_listed_and_bounded)
{
    struct fault_list faults = {0};

    fault_add(&faults, "seed", "invalid_value", "seed must be %d", 1);
    expect_json(api_error_from_faults(&faults),
                "{\"error\":{\"message\":\"seed must be 1\",\"type\":\"invalid_request_error\","
                "\"param\":\"seed\",\"code\":\"invalid_value\"}}");
    fault_add(&faults, "", "invalid_type", "bad \xff text");
    json_t *answer = api_error_from_faults(&faults);
    json_t *details = json_object_get(json_object_get(answer, "error"), "details");
    cr_assert(json_array_size(details) == 2);
    cr_assert(json_is_null(json_object_get(json_array_get(details, 1), "param")));
    cr_assert_str_eq(json_string_value(json_object_get(json_array_get(details, 1), "message")),
                     "bad ? text");
    json_decref(answer);
    for (int i = 0; i < 100; i++)
        fault_add(&faults, "x", "c", "m");
    cr_assert(faults.n == FAULT_MAX && faults.n_found == 102);
    fault_list_fini(&faults);
    fault_list_fini(&faults);
    cr_assert(faults.n == 0);
}

static void fill(struct plan_report *r)
{
    struct fault_list faults = {0};
    json_t *body = json_pack("{s:s,s:s}", "model", "org/name", "training_file", "file-a");

    memset(r, 0, sizeof(*r));
    cr_assert(job_spec_from_request(body, &r->spec, NULL, &faults) == 0);
    json_decref(body);
    r->fits = true;
    snprintf(r->family, sizeof(r->family), "llama");
    r->parameters = 1000;
    r->trainable_parameters = 10;
    r->steps = 30;
    snprintf(r->device_kind, sizeof(r->device_kind), "cpu");
    for (int t = 0; t < TIER_COUNT; t++)
        for (int p = 0; p < PURPOSE_COUNT; p++)
            r->memory[t].by_purpose[p] = 100 * t + p;
    r->memory[TIER_GPU].total = 77;
    r->link_bytes[LINK_DISK_WRITE] = 5;
    r->step_seconds = 0.5;
    r->step_seconds_bound = r->step_seconds_clipped_bound = NAN;
    r->step_seconds_clipped = 0.75;
    r->measured = true;
    r->warnings = json_pack("[{s:s,s:s}]", "code", "c", "message", "m");
}

Test(answers, plan_report_round_trips)
{
    struct plan_report r, back = {0};
    struct err err = {0};

    fill(&r);
    json_t *first = plan_report_to_json(&r);
    cr_assert(plan_report_from_json(first, &back, &err) == 0, "%s", err.msg);
    json_t *second = plan_report_to_json(&back);
    cr_assert(json_equal(first, second));
    cr_assert(back.memory[TIER_NVME].by_purpose[PURPOSE_BUFFERS] == 205);
    cr_assert(back.link_bytes[LINK_DISK_WRITE] == 5 && isnan(back.step_seconds_bound));
    cr_assert(back.step_seconds_clipped == 0.75 && isnan(back.step_seconds_clipped_bound));
    cr_assert(back.measured && json_array_size(back.warnings) == 1);
    plan_report_fini(&back);
    json_object_del(first, "step_seconds_clipped"); /* as reports of old have it */
    cr_assert(plan_report_from_json(first, &back, &err) == 0 && isnan(back.step_seconds_clipped));
    plan_report_fini(&back);
    json_object_set_new(json_object_get(first, "memory"), "gpu", json_pack("{s:i}", "total", -1));
    cr_assert(plan_report_from_json(first, &back, NULL) == ERR_INVALID);
    json_object_set_new(first, "warnings", json_string("x"));
    cr_assert(plan_report_from_json(first, &back, NULL) == ERR_INVALID);
    json_object_del(second, "spec");
    cr_assert(plan_report_from_json(second, &back, NULL) == ERR_INVALID);
    json_decref(first);
    json_decref(second);
    plan_report_fini(&r);
    plan_report_fini(&r);
}

Test(answers, plan_report_of_an_error)
{
    struct plan_report r = {0}, back = {0};

    err_set(&r.error, ERR_NOT_FOUND, "no such model");
    err_set_reason(&r.error, 0, "model_not_found");
    err_set_param(&r.error, 0, "model");
    json_t *value = plan_report_to_json(&r);
    cr_assert(plan_report_from_json(value, &back, NULL) == 0);
    cr_assert(!back.fits && back.error.code == ERR_NOT_FOUND);
    cr_assert_str_eq(back.error.reason, "model_not_found");
    cr_assert_str_eq(back.error.param, "model");
    plan_report_fini(&back);
    json_object_set_new(value, "error", json_object());
    cr_assert(plan_report_from_json(value, &back, NULL) == ERR_INVALID);
    json_decref(value);
    value = json_pack("{s:b}", "fits", 1);
    cr_assert(plan_report_from_json(value, &back, NULL) == ERR_INVALID);
    json_decref(value);
    cr_assert_str_eq(plan_tier_name(TIER_HOST), "host");
}

Test(answers, sizes)
{
    static const struct {
        const char *text;
        int64_t bytes; /* -1 = refused */
    } cases[] = {
        {"0", 0},
        {"1024", 1024},
        {"40GiB", 42949672960},
        {"40 gib", 42949672960},
        {"1.5TB", 1500000000000},
        {"2KB", 2000},
        {"7B", 7},
        {"1024TiB", 1125899906842624},
        {"", -1},
        {"GiB", -1},
        {"-1", -1},
        {" 1", -1},
        {"1e3", -1},
        {"0x10", -1},
        {"nan", -1},
        {"inf", -1},
        {"1GiBs", -1},
        {"99999999999TiB", -1},
        {"1.2.3GB", -1},
        {"1 G B", -1},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int64_t bytes = -1;
        int rc = record_parse_size(cases[i].text, &bytes, NULL);
        cr_assert(bytes == cases[i].bytes && (rc == 0) == (bytes >= 0), "'%s'", cases[i].text);
    }
}
