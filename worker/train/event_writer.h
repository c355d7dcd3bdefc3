/*
 * Writing events: numbers them, stamps them and appends them to the attempt's events.jsonl. A full
 * disk must not end a training run half-way through a step: events that cannot be written are kept
 * and tried again before the next one, up to EVENT_BACKLOG of them; an event beyond that is refused
 * with the cause. One thread.
 */
#ifndef CASTOR_WORKER_TRAIN_EVENT_WRITER_H
#define CASTOR_WORKER_TRAIN_EVENT_WRITER_H

#include <stdint.h>

#include "api/event.h"
#include "core/err.h"
#include "core/jsonl.h"

enum { EVENT_BACKLOG = 1024 };

struct event_writer {
    struct jsonl_writer file;
    int64_t attempt, seq; /* seq of the last event */
    json_t *waiting[EVENT_BACKLOG];
    int64_t n_waiting;
};

int event_writer_init(struct event_writer *w, const char *path, int64_t attempt, struct err *err);
void event_writer_fini(struct event_writer *w);
/* Fills seq, attempt and t of the event. */
int event_write(struct event_writer *w, struct event *event, struct err *err);
/* Everything out and on disk. */
int event_writer_sync(struct event_writer *w, struct err *err);

#endif
