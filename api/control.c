#include "api/control.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "api/job_dir.h"
#include "api/record.h"
#include "core/clock.h"
#include "core/hash.h"
#include "core/jsonl.h"

static const char *const type_words[] = {
    [CONTROL_CANCEL] = "cancel",
    [CONTROL_PAUSE] = "pause",
    [CONTROL_CHECKPOINT] = "checkpoint",
    NULL,
};

static const struct record_field fields[] = {
    {"id", RECORD_CHARS, offsetof(struct control, id), .cap = 32, .flags = RECORD_REQUIRED},
    {"t", RECORD_REAL, offsetof(struct control, t)},
    {"type", RECORD_WORD, offsetof(struct control, type), .words = type_words,
     .flags = RECORD_REQUIRED},
};
enum { N_FIELDS = sizeof(fields) / sizeof(fields[0]) };

json_t *control_to_json(const struct control *c)
{
    json_t *line = json_object();

    json_object_set_new(line, "v", json_integer(1));
    record_write(fields, N_FIELDS, c, line);
    return line;
}

int control_from_json(const json_t *line, struct control *out, struct err *err)
{
    struct control c;
    int rc = record_read(fields, N_FIELDS, line, &c, err);

    if (rc == 0)
        *out = c;
    return rc;
}

int control_post(const char *jobdir, enum control_type type, struct control *out, struct err *err)
{
    struct jsonl_writer writer = {.fd = -1};
    struct control c = {.t = clock_wall(), .type = type};
    char *path = job_dir_control(jobdir);
    json_t *line = NULL;
    char random[17];
    int rc = 0;

    hash_random_hex(random, 8);
    snprintf(c.id, sizeof(c.id), "ctl-%s", random);
    line = control_to_json(&c);
    TRY(jsonl_writer_init(&writer, path, err));
    TRY(jsonl_writer_append(&writer, line, err));
    if (out)
        *out = c;
out:
    jsonl_writer_fini(&writer);
    json_decref(line);
    free(path);
    return rc;
}
