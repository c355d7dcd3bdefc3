/* The loading and saving lists: every payload between where it lives and the staging place. */
#include "worker/plan/build.h"

/* What of a list's moves passes through host memory, one at a time. */
struct passing {
    struct plan *p;
    enum plan_list list;
    int32_t state, piece; /* places, NO_PLACE before the first */
};

/* A move between the staging place (or, in host memory, the payload's home itself) and `at`. */
static void add_move(struct passing *m, int64_t chunk, int64_t slice, enum payload payload,
                     int32_t at)
{
    struct plan *p = m->p;
    bool load = m->list == LIST_LOAD;
    int32_t staging = p->io.staging;
    struct instr i = load ? instr_make(INSTR_FETCH, QUEUE_H2D) : instr_make(INSTR_EVICT, QUEUE_D2H);
    i.chunk = (int32_t)chunk;
    i.slice = (int32_t)slice;
    i.payload = payload;
    if (p->places[at].tier == TIER_HOST && p->places[at].persistent)
        staging = at;
    i.src = load ? staging : at;
    i.dst = load ? at : staging;
    instr_list_add(&p->lists[m->list], i);
}

/* A slice or a piece whose home is any place. */
static void add_part(struct passing *m, int64_t chunk, int64_t slice, enum payload payload,
                     int32_t home)
{
    int32_t *stage = payload == PAYLOAD_STATE ? &m->state : &m->piece;
    if (m->p->places[home].tier != TIER_NVME) {
        add_move(m, chunk, slice, payload, home);
        return;
    }
    if (*stage == NO_PLACE) {
        struct stages one = {.payload = payload};
        *stage = plan_next_stage(m->p, &one);
    }
    if (m->list == LIST_SAVE)
        plan_add_disk_move(m->p, m->list, INSTR_STAGE, chunk, slice, payload, home, *stage);
    add_move(m, chunk, slice, payload, *stage);
    if (m->list == LIST_LOAD)
        plan_add_disk_move(m->p, m->list, INSTR_UNSTAGE, chunk, slice, payload, *stage, home);
}

void plan_emit_moves(struct plan *p, enum plan_list list)
{
    struct passing m = {.p = p, .list = list, .state = NO_PLACE, .piece = NO_PLACE};
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        const struct plan_chunk *pc = &p->chunk[c];
        if (list == LIST_SAVE && !p->chunks.chunks[c].trainable)
            continue;
        if (!plan_pages(p, c))
            add_move(&m, c, -1, PAYLOAD_PARAM, pc->param);
        for (int64_t k = 0; k < pc->n_pieces; k++)
            add_part(&m, c, k, PAYLOAD_PARAM, pc->param + (int32_t)k);
        for (int64_t k = 0; k < pc->n_slices; k++)
            add_part(&m, c, k, PAYLOAD_STATE, pc->slices[k].home);
    }
}
