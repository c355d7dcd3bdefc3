/* How long streams stood still for other queues: a mark in front of every wait and one behind it,
 * read when the step's results are. */
#include <stdlib.h>

#include "core/alloc.h"
#include "worker/train/executor_impl.h"

static bool is_watched(enum queue q)
{
    return q == QUEUE_COMPUTE || q == QUEUE_H2D;
}

static int64_t count_waits(const struct instr_list *l)
{
    int64_t n = 0;
    for (int64_t k = 0; k < l->n; k++)
        for (int q = 0; q < QUEUE_COUNT && is_watched(l->items[k].queue); q++)
            n += (l->items[k].wait[q] >= 0) + (l->items[k].wait_prev[q] >= 0);
    return n;
}

int executor_stalls_init(struct executor *e, struct err *err)
{
    int64_t most = count_waits(&e->plan->lists[LIST_TRAIN]);
    int rc = 0;
    for (int k = 0; k < 2; k++) {
        struct stalls *s = &e->stalls[k];
        s->items = xcalloc((size_t)most + 1, sizeof *s->items);
        for (; s->cap < most; s->cap++) {
            TRY(device_mark_create(e->device, &s->items[s->cap].before, err));
            TRY(device_mark_create(e->device, &s->items[s->cap].behind, err));
        }
    }
out:
    return rc;
}

void executor_stalls_fini(struct executor *e)
{
    for (int k = 0; k < 2; k++) {
        for (int64_t n = 0; e->stalls[k].items && n <= e->stalls[k].cap; n++) {
            device_mark_destroy(e->device, e->stalls[k].items[n].before);
            device_mark_destroy(e->device, e->stalls[k].items[n].behind);
        }
        free(e->stalls[k].items);
        e->stalls[k] = (struct stalls){0};
    }
}

int executor_watched_wait(struct executor *e, enum plan_list list, enum queue queue,
                          const struct host_wait *w, struct stream *s, struct err *err)
{
    struct stalls *all = &e->stalls[e->edges[list].pass & 1];
    struct stall *at = list == LIST_TRAIN && is_watched(queue) ? &all->items[all->used++] : NULL;
    int rc = 0;

    if (at) {
        at->queue = queue;
        at->cause = w->from;
        TRY(device_mark_record(e->device, at->before, s, err));
    }
    if (w->mark)
        TRY(device_mark_stream_wait(e->device, w->mark, s, err));
    else
        TRY(device_word_stream_wait(e->device, w->word, w->value, s, err));
    if (at)
        TRY(device_mark_record(e->device, at->behind, s, err));
out:
    return rc;
}

int executor_sum_stalls(struct executor *e, int parity, struct step_result *out, struct err *err)
{
    const struct stalls *all = &e->stalls[parity];
    int rc = 0;
    for (int64_t n = 0; n < all->used; n++) {
        const struct stall *s = &all->items[n];
        double seconds = 0;
        TRY(device_mark_elapsed(e->device, s->before, s->behind, &seconds, err));
        if (s->queue == QUEUE_COMPUTE)
            out->stall[s->cause] += seconds;
        else
            out->fetch_stall[s->cause] += seconds;
    }
out:
    return rc;
}

/* Fetches wait for an update, which may itself be waiting for the disk: that is the disk's then. */
void executor_sum_updates(struct executor *e, struct step_result *out)
{
    static const enum queue disk[] = {QUEUE_READ, QUEUE_WRITE};
    double waited[QUEUE_COUNT];

    host_queue_times(e->host[QUEUE_CPU], &out->updating, waited);
    for (int k = 0; k < 2; k++) {
        double left = out->fetch_stall[QUEUE_CPU];
        double moved = waited[disk[k]] < left ? waited[disk[k]] : left;
        out->fetch_stall[QUEUE_CPU] -= moved;
        out->fetch_stall[disk[k]] += moved;
    }
}
