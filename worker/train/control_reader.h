/*
 * Reading control.jsonl at step boundaries. Requests that an earlier attempt answered (its events
 * carry their ids) are passed over, so a job that was paused does not pause again when it goes on.
 */
#ifndef CASTOR_WORKER_TRAIN_CONTROL_READER_H
#define CASTOR_WORKER_TRAIN_CONTROL_READER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/control.h"
#include "core/err.h"

struct control_reader {
    char *path;
    int64_t offset;
    json_t *answered; /* object used as a set of ids */
};

int control_reader_init(struct control_reader *r, const char *jobdir, int64_t attempt,
                        struct err *err);
void control_reader_fini(struct control_reader *r);
/* The next request, *found = false when there is none. */
int control_reader_next(struct control_reader *r, struct control *out, bool *found,
                        struct err *err);
/* The first unread request to stop, which stays unread: for work between step boundaries that can
 * be broken off. */
int control_reader_peek_stop(const struct control_reader *r, struct control *out, bool *found,
                             struct err *err);

#endif
