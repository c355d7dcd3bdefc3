#include "worker/train/control_reader.h"

#include <stdlib.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/jsonl.h"

enum { LINE_MAX_BYTES = 1 << 20 };

static int note_answer(void *ud, json_t *value, int64_t offset_after, struct err *err)
{
    struct control_reader *r = ud;
    const char *id = json_string_value(json_object_get(value, "request"));
    if (id)
        json_object_set_new(r->answered, id, json_true());
    return 0;
}

int control_reader_init(struct control_reader *r, const char *jobdir, int64_t attempt,
                        struct err *err)
{
    *r = (struct control_reader){.path = job_dir_control(jobdir), .answered = json_object()};
    for (int64_t a = 1; a < attempt; a++) {
        char *events = job_dir_events(jobdir, a);
        int64_t offset = 0;
        int rc = jsonl_read_from(events, &offset, LINE_MAX_BYTES, note_answer, r, err);
        free(events);
        if (rc) {
            control_reader_fini(r);
            return rc;
        }
    }
    return 0;
}

void control_reader_fini(struct control_reader *r)
{
    free(r->path);
    json_decref(r->answered);
    *r = (struct control_reader){0};
}

struct next {
    const struct control_reader *reader;
    struct control *out;
    bool only_stops, found;
};

enum { STOP_READING = -1 }; /* no err_code */

static int take_one(void *ud, json_t *value, int64_t offset_after, struct err *err)
{
    struct next *n = ud;
    struct control c;
    if (control_from_json(value, &c, NULL) != 0) /* a newer castord's request: not ours to judge */
        return 0;
    if (json_object_get(n->reader->answered, c.id) ||
        (n->only_stops && c.type == CONTROL_CHECKPOINT))
        return 0;
    *n->out = c;
    n->found = true;
    return STOP_READING;
}

int control_reader_next(struct control_reader *r, struct control *out, bool *found, struct err *err)
{
    struct next n = {.reader = r, .out = out};
    int rc = jsonl_read_from(r->path, &r->offset, LINE_MAX_BYTES, take_one, &n, err);
    *found = n.found;
    return rc == STOP_READING ? 0 : rc;
}

int control_reader_peek_stop(const struct control_reader *r, struct control *out, bool *found,
                             struct err *err)
{
    struct next n = {.reader = r, .out = out, .only_stops = true};
    int64_t offset = r->offset;
    int rc = jsonl_read_from(r->path, &offset, LINE_MAX_BYTES, take_one, &n, err);
    *found = n.found;
    return rc == STOP_READING ? 0 : rc;
}
