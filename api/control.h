/*
 * Requests from castord to a running job, one JSON line each in control.jsonl:
 *   {"v":1,"id":"ctl-...","t":1763848337.1,"type":"cancel"}
 * castord appends; rank 0 reads at step boundaries, from the byte offset of its last read. A
 * request is acted on once; the event that answers it ("stopped", "checkpoint") carries its id.
 * Requests written before an attempt's start count for it unless an earlier attempt answered them.
 */
#ifndef CASTOR_API_CONTROL_H
#define CASTOR_API_CONTROL_H

#include <jansson.h>

#include "core/err.h"

enum control_type {
    CONTROL_CANCEL,     /* stop at the next step boundary, keep nothing but what is there */
    CONTROL_PAUSE,      /* checkpoint, then stop                                          */
    CONTROL_CHECKPOINT, /* checkpoint and go on                                            */
};

struct control {
    char id[32]; /* "ctl-" + hex */
    double t;    /* Unix seconds */
    enum control_type type;
};

json_t *control_to_json(const struct control *c);
int control_from_json(const json_t *line, struct control *out, struct err *err);
/* A request of this moment with a fresh id, not written anywhere yet. */
void control_init(struct control *c, enum control_type type);
/* Append it to the job's control.jsonl unless a request of that id is there already, so that it may
 * be repeated after a crash. */
int control_append(const char *jobdir, const struct control *c, struct err *err);

#endif
