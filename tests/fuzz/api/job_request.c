/* The body of a request for a job: what is accepted must be stored, and read back the same. */
#include <jansson.h>
#include <stdlib.h>

#include "api/fault.h"
#include "api/job_spec.h"
#include "core/json.h"
#include "tests/fuzz/fuzz.h"

static void use(const struct job_spec *spec)
{
    struct job_spec copy, again = {0};
    json_t *stored, *twice;

    job_spec_copy(&copy, spec);
    stored = job_spec_to_json(&copy);
    if (job_spec_from_json(stored, &again, NULL) != 0)
        abort();
    twice = job_spec_to_json(&again);
    if (!json_equal(stored, twice))
        abort();
    json_decref(stored);
    json_decref(twice);
    job_spec_fini(&again);
    job_spec_fini(&copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};
    json_t *body = NULL;
    bool dry_run = false;

    if (json_parse_limited((const char *)data, n, n, JSON_MAX_DEPTH_REQUEST, &body, NULL) != 0)
        return 0;
    if (json_is_object(body)) {
        int rc = job_spec_from_request(body, &spec, &dry_run, &faults);
        if ((rc == 0) != (faults.n_found == 0))
            abort();
        if (rc == 0) {
            use(&spec);
            job_spec_fini(&spec);
        }
        fault_list_fini(&faults);
    }
    json_decref(body);
    return 0;
}
