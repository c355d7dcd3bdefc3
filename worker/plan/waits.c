/*
 * What each instruction waits for, from the places that instructions touch: a reader waits for the
 * last writers of every place that shares memory with its own, a writer for the last readers too.
 * The training list is cyclic, so it is walked twice; what the second walk still finds in the first
 * one are the waits for the pass before. A wait that others imply is left out.
 */
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/plan/build.h"
#include "worker/plan/touch.h"

/* Instructions are counted through both walks; -1 = none. By queue. */
struct clock {
    int64_t at[QUEUE_COUNT];
};

struct waits {
    struct plan *p;
    enum plan_list list;
    int64_t n;
    struct clock *read, *write; /* by place: the last that touched it      */
    struct clock *known;        /* by instruction: done before it is done  */
    struct clock queue[QUEUE_COUNT];
    int32_t **shares; /* by place: those that share addresses, itself first; ends with -1 */
};

static const struct clock never = {{-1, -1, -1, -1, -1, -1}};

static void clock_join(struct clock *a, const struct clock *b)
{
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (a->at[q] < b->at[q])
            a->at[q] = b->at[q];
}

static bool share(const struct place *a, const struct place *b)
{
    return a->tier == b->tier && a->offset < b->offset + b->bytes &&
           b->offset < a->offset + a->bytes;
}

/* Places that the list touches; those of other lists have other times. */
static void find_shares(struct waits *w)
{
    struct plan *p = w->p;
    int32_t *used = xcalloc((size_t)p->n_places, sizeof *used), *row;
    bool *seen = xcalloc((size_t)p->n_places, sizeof *seen);
    int64_t n_used = 0;

    for (int64_t n = 0; n < w->n; n++) {
        struct touch t[INSTR_MAX_TOUCHES];
        int n_touches = instr_touches(p, w->list, &p->lists[w->list].items[n], t);
        for (int k = 0; k < n_touches; k++) {
            if (!seen[t[k].place])
                used[n_used++] = t[k].place;
            seen[t[k].place] = true;
        }
    }
    row = xcalloc((size_t)n_used + 1, sizeof *row);
    for (int64_t a = 0; a < n_used; a++) {
        const struct place *place = &p->places[used[a]];
        int64_t n = 1;
        row[0] = used[a];
        for (int64_t b = 0; b < n_used && !place->persistent; b++)
            if (b != a && share(place, &p->places[used[b]]))
                row[n++] = used[b];
        w->shares[used[a]] = xcalloc((size_t)n + 1, sizeof *row);
        memcpy(w->shares[used[a]], row, (size_t)n * sizeof *row);
        w->shares[used[a]][n] = -1;
    }
    free(row);
    free(used);
    free(seen);
}

/* What must be done before instruction i begins. */
static struct clock needs(const struct waits *w, const struct instr *i)
{
    struct touch t[INSTR_MAX_TOUCHES];
    int n = instr_touches(w->p, w->list, i, t);
    struct clock c = never;
    for (int k = 0; k < n; k++) {
        for (const int32_t *s = w->shares[t[k].place]; *s >= 0; s++) {
            clock_join(&c, &w->write[*s]);
            if (t[k].writes)
                clock_join(&c, &w->read[*s]);
        }
    }
    return c;
}

static void touch_places(struct waits *w, const struct instr *i, int64_t now)
{
    struct touch t[INSTR_MAX_TOUCHES];
    int n = instr_touches(w->p, w->list, i, t);
    for (int k = 0; k < n; k++) {
        if (t[k].reads)
            w->read[t[k].place].at[i->queue] = now;
        if (t[k].writes)
            w->write[t[k].place].at[i->queue] = now;
    }
}

static void walk(struct waits *w, int64_t pass)
{
    for (int64_t k = 0; k < w->n; k++) {
        struct instr *i = &w->p->lists[w->list].items[k];
        int64_t now = pass * w->n + k;
        struct clock need = needs(w, i), *queue = &w->queue[i->queue];
        /* The latest first: it may imply the others. */
        for (;;) {
            int q = -1;
            for (int c = 0; c < QUEUE_COUNT; c++)
                if (c != (int)i->queue && need.at[c] > queue->at[c] &&
                    (q < 0 || need.at[c] > need.at[q]))
                    q = c;
            if (q < 0)
                break;
            if (need.at[q] >= pass * w->n)
                i->wait[q] = (int32_t)(need.at[q] - pass * w->n);
            else
                i->wait_prev[q] = (int32_t)need.at[q];
            clock_join(queue, &w->known[need.at[q]]);
        }
        queue->at[i->queue] = now;
        w->known[now] = *queue;
        touch_places(w, i, now);
    }
}

void plan_insert_waits(struct plan *p, enum plan_list list)
{
    struct waits w = {.p = p, .list = list, .n = p->lists[list].n};
    int64_t passes = list == LIST_TRAIN ? 2 : 1;

    w.read = xcalloc((size_t)p->n_places, sizeof *w.read);
    w.write = xcalloc((size_t)p->n_places, sizeof *w.write);
    w.known = xcalloc((size_t)(w.n * passes) + 1, sizeof *w.known);
    w.shares = xcalloc((size_t)p->n_places, sizeof *w.shares);
    for (int64_t k = 0; k < p->n_places; k++)
        w.read[k] = w.write[k] = never;
    for (int q = 0; q < QUEUE_COUNT; q++)
        w.queue[q] = never;
    find_shares(&w);
    for (int64_t pass = 0; pass < passes; pass++)
        walk(&w, pass);
    for (int64_t k = 0; k < p->n_places; k++)
        free(w.shares[k]);
    free(w.shares);
    free(w.read);
    free(w.write);
    free(w.known);
}
