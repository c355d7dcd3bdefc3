/* The loading and saving lists: every payload between where it lives and the staging place. */
#include "worker/plan/build.h"

/* A move between the staging place (or, in host memory, the payload's home itself) and `at`. */
static void add_move(struct plan *p, enum plan_list list, int64_t chunk, int64_t slice, int32_t at)
{
    bool load = list == LIST_LOAD;
    int32_t staging = p->io.staging;
    struct instr i = load ? instr_make(INSTR_FETCH, QUEUE_H2D) : instr_make(INSTR_EVICT, QUEUE_D2H);
    i.chunk = (int32_t)chunk;
    i.slice = (int32_t)slice;
    i.payload = slice < 0 ? PAYLOAD_PARAM : PAYLOAD_STATE;
    if (p->places[at].tier == TIER_HOST && p->places[at].persistent)
        staging = at;
    i.src = load ? staging : at;
    i.dst = load ? at : staging;
    instr_list_add(&p->lists[list], i);
}

static void add_disk(struct plan *p, enum plan_list list, int64_t chunk, int64_t slice, int32_t at)
{
    int32_t home = p->chunk[chunk].slices[slice].home;
    bool load = list == LIST_LOAD;
    struct instr i =
        load ? instr_make(INSTR_UNSTAGE, QUEUE_WRITE) : instr_make(INSTR_STAGE, QUEUE_READ);
    i.chunk = (int32_t)chunk;
    i.slice = (int32_t)slice;
    i.payload = PAYLOAD_STATE;
    i.src = load ? at : home;
    i.dst = load ? home : at;
    instr_list_add(&p->lists[list], i);
}

/* *stage: where slices pass through host memory, one at a time; NO_PLACE before the first. */
static void add_slice(struct plan *p, enum plan_list list, int64_t chunk, int64_t slice,
                      int32_t *stage)
{
    const struct plan_slice *s = &p->chunk[chunk].slices[slice];
    if (p->places[s->home].tier != TIER_NVME) {
        add_move(p, list, chunk, slice, s->home);
        return;
    }
    if (*stage == NO_PLACE)
        *stage = plan_add_stage(p);
    if (list == LIST_SAVE)
        add_disk(p, list, chunk, slice, *stage);
    add_move(p, list, chunk, slice, *stage);
    if (list == LIST_LOAD)
        add_disk(p, list, chunk, slice, *stage);
}

void plan_emit_moves(struct plan *p, enum plan_list list)
{
    int32_t stage = NO_PLACE;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        if (list == LIST_SAVE && !p->chunks.chunks[c].trainable)
            continue;
        add_move(p, list, c, -1, p->chunk[c].param);
        for (int64_t k = 0; k < p->chunk[c].n_slices; k++)
            add_slice(p, list, c, k, &stage);
    }
}
