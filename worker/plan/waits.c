/*
 * What each instruction waits for, from the places that instructions touch: a reader waits for the
 * place's last writers, a writer for its last readers too, and the first to touch a place for
 * whatever was done to those that had its addresses before.
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

/* A tier's addresses, cut at the ends of all places: each range has one owner at a time, the place
 * that was touched there last. A place that comes into use waits for all that its ranges' owners
 * did; those waited for the owners before them. */
struct ranges {
    size_t *cut;    /* addresses, ascending */
    int32_t *owner; /* by range [cut[k], cut[k + 1]) */
    int64_t n;
};

struct waits {
    struct plan *p;
    enum plan_list list;
    int64_t n;
    struct clock *read, *write; /* by place: the last that touched it      */
    struct clock *known;        /* by instruction: done before it is done  */
    struct clock queue[QUEUE_COUNT];
    bool *used; /* by place: by this list */
    struct ranges ranges[TIER_COUNT];
};

static const struct clock never = {{-1, -1, -1, -1, -1, -1, -1}};

static void clock_join(struct clock *a, const struct clock *b)
{
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (a->at[q] < b->at[q])
            a->at[q] = b->at[q];
}

/* --- addresses --- */

static int by_offset(const void *a, const void *b)
{
    const size_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void cut_addresses(struct waits *w)
{
    const struct plan *p = w->p;
    for (int t = 0; t < TIER_COUNT; t++) {
        struct ranges *r = &w->ranges[t];
        r->cut = xcalloc((size_t)p->n_places * 2 + 1, sizeof *r->cut);
        for (int64_t k = 0; k < p->n_places; k++) {
            if (p->places[k].tier != (enum plan_tier)t || !w->used[k])
                continue;
            r->cut[r->n++] = p->places[k].offset;
            r->cut[r->n++] = p->places[k].offset + p->places[k].bytes;
        }
        qsort(r->cut, (size_t)r->n, sizeof *r->cut, by_offset);
        r->owner = xcalloc((size_t)r->n + 1, sizeof *r->owner);
        for (int64_t k = 0; k < r->n; k++)
            r->owner[k] = NO_PLACE;
    }
}

/* The list's places; those of other lists have other times. */
static void find_used(struct waits *w)
{
    const struct instr_list *l = &w->p->lists[w->list];
    for (int64_t n = 0; n < w->n; n++) {
        struct touch t[INSTR_MAX_TOUCHES];
        int n_touches = instr_touches(w->p, w->list, &l->items[n], t);
        for (int k = 0; k < n_touches; k++)
            w->used[t[k].place] = true;
    }
}

/* The first range of a place. */
static int64_t first_range(const struct ranges *r, size_t offset)
{
    int64_t low = 0, high = r->n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (r->cut[middle] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The place takes over its addresses; *c also waits for whatever was done to what lay there. */
static void take_over(struct waits *w, int32_t place, struct clock *c)
{
    const struct place *at = &w->p->places[place];
    struct ranges *r = &w->ranges[at->tier];
    int32_t before = place;
    for (int64_t k = first_range(r, at->offset); r->cut[k] < at->offset + at->bytes; k++) {
        int32_t owner = r->owner[k];
        r->owner[k] = place;
        if (owner == NO_PLACE || owner == place || owner == before)
            continue;
        clock_join(c, &w->write[owner]);
        clock_join(c, &w->read[owner]);
        before = owner;
    }
}

/* What must be done before instruction i begins. */
static struct clock needs(struct waits *w, const struct instr *i)
{
    struct touch t[INSTR_MAX_TOUCHES];
    int n = instr_touches(w->p, w->list, i, t);
    struct clock c = never;
    for (int k = 0; k < n; k++) {
        clock_join(&c, &w->write[t[k].place]);
        if (t[k].writes)
            clock_join(&c, &w->read[t[k].place]);
        take_over(w, t[k].place, &c);
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
    w.used = xcalloc((size_t)p->n_places, sizeof *w.used);
    for (int64_t k = 0; k < p->n_places; k++)
        w.read[k] = w.write[k] = never;
    for (int q = 0; q < QUEUE_COUNT; q++)
        w.queue[q] = never;
    find_used(&w);
    cut_addresses(&w);
    for (int64_t pass = 0; pass < passes; pass++)
        walk(&w, pass);
    for (int t = 0; t < TIER_COUNT; t++) {
        free(w.ranges[t].cut);
        free(w.ranges[t].owner);
    }
    free(w.used);
    free(w.read);
    free(w.write);
    free(w.known);
}
