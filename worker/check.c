/* castor-worker --check: look into a data file on behalf of a server that parses nothing itself, or
 * into the files of a data set on the hub. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "worker/text/dataset.h"
#include "worker/train/sources.h"
#include "worker/worker.h"

struct check {
    json_t *faults;
    int64_t bad_lines;
    const char *file; /* NULL where there is one only */
    struct dataset_summary sum;
};

/* Line 0: the whole file. */
static int note_fault(void *ud, int64_t line, const char *message)
{
    struct check *c = ud;
    json_t *fault;

    if (line > 0 && c->bad_lines++ >= CHECK_MAX_LINES)
        return 0;
    fault = json_pack("{s:I}", "line", (json_int_t)line);
    if (line == 0 || c->bad_lines <= CHECK_MAX_FAULTS)
        json_object_set_new(fault, "message", json_string(message));
    if (c->file)
        json_object_set_new(fault, "file", json_string(c->file));
    json_array_append_new(c->faults, fault);
    return 0;
}

static void check_file(struct check *c, const char *path)
{
    struct dataset_summary one = {.format = "empty", .shape = "none"};
    struct err err = {0};
    int rc = dataset_check(path, DATA_AUTO, note_fault, c, &one, &err);

    if (rc)
        note_fault(c, 0, err.msg);
    if (c->sum.examples == 0)
        c->sum.shape = one.shape;
    else if (one.examples > 0 && strcmp(c->sum.shape, one.shape) != 0)
        c->sum.shape = "mixed";
    c->sum.format = one.format;
    c->sum.examples += one.examples;
    c->sum.bytes += one.bytes;
}

static void check_dataset(struct check *c, const char *reference)
{
    struct sources_data data = {0};
    struct err err = {0};

    if (sources_fetch_dataset(reference, &data, &err) != 0)
        note_fault(c, 0, err.msg);
    for (int64_t i = 0; i < data.n; i++) {
        c->file = strrchr(data.paths[i], '/') + 1;
        check_file(c, data.paths[i]);
    }
    sources_data_fini(&data);
}

int worker_check(const char *path)
{
    struct check c = {.faults = json_array(), .sum = {.format = "empty", .shape = "none"}};

    if (strncmp(path, "hf://", 5) == 0)
        check_dataset(&c, path);
    else
        check_file(&c, path);
    bool ok = json_array_size(c.faults) == 0;
    json_t *j = json_pack("{s:b, s:s, s:s, s:I, s:I, s:I, s:o}", "ok", ok, "format", c.sum.format,
                          "shape", c.sum.shape, "bytes", (json_int_t)c.sum.bytes, "examples",
                          (json_int_t)c.sum.examples, "bad_lines", (json_int_t)c.bad_lines,
                          "faults", c.faults);
    char *line = json_to_line(j);
    puts(line);
    free(line);
    json_decref(j);
    return ok && fflush(stdout) == 0 ? 0 : 1;
}
