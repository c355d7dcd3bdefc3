#include "worker/train/event_writer.h"

#include <string.h>

#include "core/clock.h"
#include "core/log.h"

int event_writer_init(struct event_writer *w, const char *path, int64_t attempt, struct err *err)
{
    *w = (struct event_writer){.attempt = attempt, .file.fd = -1};
    return jsonl_writer_init(&w->file, path, err);
}

void event_writer_fini(struct event_writer *w)
{
    for (int64_t i = 0; i < w->n_waiting; i++)
        json_decref(w->waiting[i]);
    jsonl_writer_fini(&w->file);
    *w = (struct event_writer){.file.fd = -1};
}

static int flush_waiting(struct event_writer *w, struct err *err)
{
    int64_t out = 0;
    int rc = 0;
    while (out < w->n_waiting && rc == 0) {
        rc = jsonl_writer_append(&w->file, w->waiting[out], err);
        if (rc == 0)
            json_decref(w->waiting[out++]);
    }
    w->n_waiting -= out;
    memmove(w->waiting, w->waiting + out, (size_t)w->n_waiting * sizeof *w->waiting);
    return rc;
}

int event_write(struct event_writer *w, struct event *event, struct err *err)
{
    struct err cause = {0};
    int rc = w->n_waiting == EVENT_BACKLOG ? flush_waiting(w, &cause) : 0;

    if (w->n_waiting == EVENT_BACKLOG)
        return err_set(err, rc, "%lld events could not be written: %s", (long long)w->n_waiting,
                       cause.msg);
    event->seq = ++w->seq;
    event->attempt = w->attempt;
    event->t = clock_wall();
    w->waiting[w->n_waiting++] = event_to_json(event);
    /* said when the backlog doubles: the log may lie on the same disk */
    if (flush_waiting(w, &cause) != 0 && (w->n_waiting & (w->n_waiting - 1)) == 0)
        log_warn("events", "waiting=%lld %s", (long long)w->n_waiting, cause.msg);
    return 0;
}

int event_writer_sync(struct event_writer *w, struct err *err)
{
    int rc = 0;
    TRY(flush_waiting(w, err));
    TRY(jsonl_writer_sync(&w->file, err));
out:
    return rc;
}
