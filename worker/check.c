/* castor-worker --check: look into a data file on behalf of a server that parses nothing itself. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/json.h"
#include "worker/text/dataset.h"
#include "worker/worker.h"

static int note_fault(void *ud, int64_t line, const char *message)
{
    json_t *faults = ud;
    json_array_append_new(faults,
                          json_pack("{s:I, s:s}", "line", (json_int_t)line, "message", message));
    return json_array_size(faults) >= CHECK_MAX_FAULTS;
}

int worker_check(const char *path)
{
    json_t *faults = json_array();
    struct err err = {0};
    struct dataset_summary summary = {.format = "empty", .shape = "none"};

    int rc = dataset_check(path, DATA_AUTO, note_fault, faults, &summary, &err);
    if (rc && json_array_size(faults) == 0)
        note_fault(faults, 0, err.msg);
    bool ok = json_array_size(faults) == 0;
    json_t *j = json_pack("{s:b, s:s, s:s, s:I, s:I, s:o}", "ok", ok, "format", summary.format,
                          "shape", summary.shape, "bytes", (json_int_t)summary.bytes, "examples",
                          (json_int_t)summary.examples, "faults", faults);
    char *line = json_to_line(j);
    puts(line);
    free(line);
    json_decref(j);
    return ok && fflush(stdout) == 0 ? 0 : 1;
}
