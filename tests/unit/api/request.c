#include "tests/unit/api/request.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/json.h"

json_t *request_parse(const char *text)
{
    struct err err = {0};
    json_t *value = NULL;

    cr_assert(
        json_parse_limited(text, strlen(text), 1 << 20, JSON_MAX_DEPTH_REQUEST, &value, &err) == 0,
        "%s: %s", text, err.msg);
    return value;
}

int request_read(const char *more, struct job_spec *spec, struct fault_list *faults)
{
    char *text = xasprintf("{\"model\":\"org/name\",\"training_file\":\"file-abc\"%s}", more);
    json_t *body = request_parse(text);
    int rc = job_spec_from_request(body, spec, NULL, faults);

    json_decref(body);
    free(text);
    return rc;
}
