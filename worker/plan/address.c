/*
 * Places and their addresses. What is there for good is laid out first, one behind the other. Of a
 * list's other places the order of instructions says when each is in use; they are laid out behind
 * that, the largest first, each at the lowest address that is free while it is used (the greedy by
 * size strategy of Pisarchyk and Lee, "Efficient memory management for deep neural net inference",
 * 2020).
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "kernels/device.h"
#include "worker/memory/nvme.h"
#include "worker/plan/build.h"
#include "worker/plan/touch.h"

static size_t round_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

/* What travels between host memory and the disk lies at multiples of the disk's block. */
static size_t alignment(const struct place *p)
{
    bool stage = p->tier == TIER_HOST && !p->persistent &&
                 (p->purpose == PURPOSE_OPTIMIZER || p->purpose == PURPOSE_WEIGHTS);
    bool disk = p->tier == TIER_NVME || stage;
    return disk ? NVME_ALIGN : DEVICE_ALIGN;
}

int32_t plan_add_place(struct plan *p, enum plan_tier tier, enum plan_purpose purpose, size_t bytes,
                       bool persistent)
{
    assert(bytes > 0);
    if (p->n_places == p->cap_places) {
        p->cap_places = p->cap_places ? 2 * p->cap_places : 64;
        p->places = xrealloc(p->places, (size_t)p->cap_places * sizeof *p->places);
    }
    struct place *place = &p->places[p->n_places];
    *place = (struct place){.tier = tier, .purpose = purpose, .persistent = persistent};
    place->bytes = round_up(bytes, alignment(place));
    return (int32_t)p->n_places++;
}

int32_t plan_place_for_good(struct plan *p, enum plan_tier tier, enum plan_purpose purpose,
                            size_t bytes)
{
    int32_t n = plan_add_place(p, tier, purpose, bytes, true);
    struct place *place = &p->places[n];
    place->offset = p->for_good[tier];
    p->for_good[tier] += place->bytes;
    p->claim[tier] = p->for_good[tier];
    return n;
}

/* A chunk's first slice, or piece, is its largest. */
static size_t stage_bytes(const struct plan *p, int64_t c, enum payload payload)
{
    const struct plan_chunk *pc = &p->chunk[c];
    if (payload != PAYLOAD_STATE)
        return pc->n_pieces > 0 ? plan_piece_bytes(p, c, 0) : 0;
    bool disk = pc->n_slices > 0 && p->places[pc->slices[0].home].tier == TIER_NVME;
    return disk ? plan_slice_bytes(p, &pc->slices[0]) : 0;
}

int32_t plan_next_stage(struct plan *p, struct stages *s)
{
    int64_t turn = s->turns++ % PLAN_STAGES;
    size_t largest = 0;

    if (s->turns > PLAN_STAGES)
        return s->at[turn];
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        if (stage_bytes(p, c, s->payload) > largest)
            largest = stage_bytes(p, c, s->payload);
    return s->at[turn] = plan_add_place(
               p, TIER_HOST, s->payload == PAYLOAD_STATE ? PURPOSE_OPTIMIZER : PURPOSE_WEIGHTS,
               largest, false);
}

int32_t plan_add_operands(struct plan *p, struct block_operands o)
{
    if (p->n_operands == p->cap_operands) {
        p->cap_operands = p->cap_operands ? 2 * p->cap_operands : 64;
        p->operands = xrealloc(p->operands, (size_t)p->cap_operands * sizeof *p->operands);
    }
    p->operands[p->n_operands] = o;
    return (int32_t)p->n_operands++;
}

/* --- laying out a list --- */

struct span {
    int32_t place;
    int64_t first, last; /* instructions */
    size_t bytes, offset;
};

static int larger(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

static void touch_span(struct span *spans, const struct place *place, int32_t n, int64_t at)
{
    if (spans[n].bytes == 0)
        spans[n] = (struct span){.place = n, .first = at, .bytes = place->bytes};
    if (spans[n].last < at)
        spans[n].last = at;
}

/* The last instruction of the block that runs next to instruction n, whose queue goes on meanwhile.
 */
static int64_t end_of_next_block(const struct instr_list *l, int64_t n)
{
    while (n < l->n - 1 && l->items[n].op != INSTR_FORWARD && l->items[n].op != INSTR_BACKWARD)
        n++;
    if (n < l->n - 1 && l->items[n].op == INSTR_FORWARD && l->items[n + 1].op == INSTR_BACKWARD)
        n++; /* its tensors have been made again */
    return n;
}

/* How long after instruction n a place is in use that n touches. */
static int64_t in_use_until(const struct plan *p, const struct instr_list *l, int64_t n,
                            const struct touch *t)
{
    const struct instr *i = &l->items[n];
    if (i->queue != QUEUE_D2H || !t->reads || p->places[t->place].tier != TIER_GPU)
        return n;
    for (int64_t k = p->chosen.linger; k > 0; k--)
        n = end_of_next_block(l, n < l->n - 1 ? n + 1 : n);
    return n;
}

/* Spans of the list's places that are not persistent, by place; the others have no bytes. */
static void find_spans(const struct plan *p, enum plan_list list, struct span *spans)
{
    const struct instr_list *l = &p->lists[list];
    for (int64_t n = 0; n < l->n; n++) {
        struct touch t[INSTR_MAX_TOUCHES];
        int n_touches = instr_touches(p, list, &l->items[n], t);
        for (int k = 0; k < n_touches; k++)
            if (!p->places[t[k].place].persistent)
                touch_span(spans, &p->places[t[k].place], t[k].place, in_use_until(p, l, n, &t[k]));
    }
    /* The staging place and the logits are used before and behind the list as well. */
    int32_t whole[2] = {p->io.staging, list == LIST_SAMPLE ? p->io.logits : NO_PLACE};
    for (int k = 0; k < 2; k++) {
        if (whole[k] == NO_PLACE || list == LIST_TRAIN || list == LIST_EVAL)
            continue;
        touch_span(spans, &p->places[whole[k]], whole[k], 0);
        touch_span(spans, &p->places[whole[k]], whole[k], l->n);
        spans[whole[k]].first = 0;
    }
}

/* What is in use at the same time. */
void plan_claim_floor(struct plan *p, enum plan_list list)
{
    struct span *spans = xcalloc((size_t)p->n_places, sizeof *spans);
    int64_t n = p->lists[list].n + 2;
    int64_t *change[TIER_COUNT], now[TIER_COUNT] = {0};

    find_spans(p, list, spans);
    for (int t = 0; t < TIER_COUNT; t++)
        change[t] = xcalloc((size_t)n, sizeof *change[t]);
    for (int64_t k = 0; k < p->n_places; k++) {
        if (!p->places[k].persistent && spans[k].bytes > 0) {
            change[p->places[k].tier][spans[k].first] += (int64_t)spans[k].bytes;
            change[p->places[k].tier][spans[k].last + 1] -= (int64_t)spans[k].bytes;
        }
    }
    for (int t = 0; t < TIER_COUNT; t++) {
        for (int64_t at = 0; at < n; at++) {
            now[t] += change[t][at];
            if (p->claim[t] < p->for_good[t] + (size_t)now[t])
                p->claim[t] = p->for_good[t] + (size_t)now[t];
        }
        free(change[t]);
    }
    free(spans);
}

/* `done`: spans of one tier laid out already, by ascending address. The lowest gap that holds s;
 * returns where in `done` it goes. */
static int64_t find_gap(const struct plan *p, const struct span *done, int64_t n,
                        const struct span *s, size_t *offset)
{
    const struct place *place = &p->places[s->place];
    size_t at = round_up(p->for_good[place->tier], alignment(place));
    int64_t where = 0;
    for (int64_t k = 0; k < n; k++) {
        if (done[k].last < s->first || s->last < done[k].first)
            continue;
        if (at + s->bytes <= done[k].offset)
            break;
        if (at < done[k].offset + done[k].bytes)
            at = round_up(done[k].offset + done[k].bytes, alignment(place));
    }
    while (where < n && done[where].offset <= at)
        where++;
    *offset = at;
    return where;
}

static void put(struct plan *p, struct span *done, int64_t *n, const struct span *s)
{
    struct place *place = &p->places[s->place];
    int64_t where = find_gap(p, done, *n, s, &place->offset);
    memmove(&done[where + 1], &done[where], (size_t)(*n - where) * sizeof *done);
    done[where] = *s;
    done[where].offset = place->offset;
    (*n)++;
    if (p->claim[place->tier] < place->offset + place->bytes)
        p->claim[place->tier] = place->offset + place->bytes;
}

size_t plan_over(const struct plan *p, enum plan_tier tier)
{
    size_t limit = p->in.limit[tier], both = p->claim[TIER_GPU] + p->claim[TIER_HOST];
    bool unlimited = limit == 0 && tier != TIER_NVME;
    size_t over = unlimited || p->claim[tier] <= limit ? 0 : p->claim[tier] - limit;
    if (tier != TIER_HOST || p->in.together == 0 || both <= p->in.together + over)
        return over;
    return both - p->in.together;
}

/* Of all lists; most places are there for good. */
static int64_t count_others(const struct plan *p, enum plan_tier tier)
{
    int64_t n = 0;
    for (int64_t k = 0; k < p->n_places; k++)
        n += !p->places[k].persistent && p->places[k].tier == tier;
    return n;
}

void plan_lay_out(struct plan *p, enum plan_list list, enum plan_tier tier)
{
    int64_t n = 0, n_done = 0, most = count_others(p, tier);
    if (most == 0)
        return;
    struct span *spans = xcalloc((size_t)p->n_places, sizeof *spans);
    struct span *todo = xcalloc((size_t)most, sizeof *todo);
    struct span *done = xcalloc((size_t)most, sizeof *done);

    find_spans(p, list, spans);
    for (int64_t k = 0; k < p->n_places; k++)
        if (!p->places[k].persistent && p->places[k].tier == tier && spans[k].bytes > 0 &&
            k != p->io.staging)
            todo[n++] = spans[k];
    qsort(todo, (size_t)n, sizeof *todo, larger);
    /* The staging place serves several lists, so it has one address: the lowest. */
    if (spans[p->io.staging].bytes > 0 && tier == p->places[p->io.staging].tier)
        put(p, done, &n_done, &spans[p->io.staging]);
    for (int64_t k = 0; k < n && plan_over(p, tier) == 0; k++)
        put(p, done, &n_done, &todo[k]);
    free(spans);
    free(todo);
    free(done);
}
