/* The JSON of a job directory, each reader on any value: spec, event, control, ends, plan. */
#include <jansson.h>
#include <stdlib.h>

#include "api/attempt_exit.h"
#include "api/control.h"
#include "api/event.h"
#include "api/job_spec.h"
#include "api/plan_report.h"
#include "core/json.h"
#include "tests/fuzz/fuzz.h"

static void as_spec(const json_t *value)
{
    struct job_spec spec = {0};

    if (job_spec_from_json(value, &spec, NULL) == 0) {
        json_decref(job_spec_to_json(&spec));
        job_spec_fini(&spec);
    }
}

static void as_event(const json_t *value)
{
    struct event event, again;
    json_t *line;

    if (event_from_json(value, &event, NULL) != 0)
        return;
    line = event_to_json(&event);
    if (event_from_json(line, &again, NULL) != 0 || again.type != event.type)
        abort();
    json_decref(line);
}

static void as_exit(const json_t *value)
{
    struct attempt_exit ended = {0};

    if (attempt_exit_from_json(value, &ended, NULL) == 0) {
        json_decref(attempt_exit_to_json(&ended));
        attempt_exit_fini(&ended);
    }
}

static void as_plan(const json_t *value)
{
    struct plan_report report = {0};

    if (plan_report_from_json(value, &report, NULL) == 0) {
        json_decref(plan_report_to_json(&report));
        plan_report_fini(&report);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct supervisor_record record;
    struct control control;
    json_t *value = NULL;

    if (json_parse_limited((const char *)data, n, n, JSON_MAX_DEPTH_FILE, &value, NULL) != 0)
        return 0;
    as_spec(value);
    as_event(value);
    as_exit(value);
    as_plan(value);
    if (control_from_json(value, &control, NULL) == 0)
        json_decref(control_to_json(&control));
    (void)supervisor_record_load(fuzz_file("supervisor.json", data, n), &record, NULL);
    json_decref(value);
    return 0;
}
