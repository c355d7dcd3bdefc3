#include "api/control.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "api/record.h"
#include "core/clock.h"
#include "core/hash.h"
#include "core/jsonl.h"

enum { CONTROL_MAX_LINE = 4096 };

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

void control_init(struct control *c, enum control_type type)
{
    char random[17];

    hash_random_hex(random, 8);
    *c = (struct control){.t = clock_wall(), .type = type};
    snprintf(c->id, sizeof(c->id), "ctl-%s", random);
}

struct search {
    const char *id;
    bool found;
};

static int compare_id(void *ud, json_t *value, int64_t offset_after, struct err *err)
{
    struct search *search = ud;
    const char *id = json_string_value(json_object_get(value, "id"));

    (void)offset_after, (void)err;
    search->found |= id && strcmp(id, search->id) == 0;
    return 0;
}

int control_append(const char *jobdir, const struct control *c, struct err *err)
{
    struct jsonl_writer writer = {.fd = -1};
    struct search search = {.id = c->id};
    char *path = job_dir_control(jobdir);
    json_t *line = NULL;
    int64_t offset = 0;
    int rc = 0;

    TRY(jsonl_read_from(path, &offset, CONTROL_MAX_LINE, compare_id, &search, err));
    if (search.found)
        goto out;
    line = control_to_json(c);
    TRY(jsonl_writer_init(&writer, path, err));
    TRY(jsonl_writer_append(&writer, line, err));
out:
    jsonl_writer_fini(&writer);
    json_decref(line);
    free(path);
    return rc;
}
