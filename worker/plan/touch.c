#include "worker/plan/touch.h"

#include <assert.h>

struct touches {
    struct touch *items;
    int n;
};

static void add(struct touches *t, int32_t place, bool reads, bool writes)
{
    if (place == NO_PLACE)
        return;
    assert(t->n < INSTR_MAX_TOUCHES);
    t->items[t->n++] = (struct touch){.place = place, .reads = reads, .writes = writes};
}

static void touch_block(const struct plan *p, enum plan_list list, const struct instr *i,
                        struct touches *t)
{
    const struct block_operands *o = &p->operands[i->operands];
    const struct block_desc *b = &p->in.model->blocks[i->block];
    bool backward = i->op == INSTR_BACKWARD;
    bool head = b->kind == BLOCK_HEAD;

    for (int32_t c = 0; c < o->n_chunks; c++) {
        add(t, o->param[c], true, false);
        if (backward)
            add(t, o->grad[c], !i->first_grad, true);
    }
    add(t, p->io.batch, true, false);
    add(t, o->x, true, false);
    add(t, o->scratch, false, true);
    add(t, o->held, !i->first_forward, i->first_forward);
    if (backward) {
        add(t, o->dy, true, false);
        add(t, o->saved, !head, head);
        add(t, o->dx, false, true);
    } else {
        add(t, o->saved, false, true);
        add(t, o->y, false, true);
    }
    if (head)
        add(t, list == LIST_SAMPLE ? p->io.logits : p->io.rows, false, true);
}

int instr_touches(const struct plan *p, enum plan_list list, const struct instr *i,
                  struct touch out[INSTR_MAX_TOUCHES])
{
    struct touches t = {.items = out};
    switch (i->op) {
    case INSTR_FORWARD:
    case INSTR_BACKWARD:
        touch_block(p, list, i, &t);
        break;
    case INSTR_REDUCE:
        add(&t, i->src, true, true);
        for (int64_t u = 1; u < p->chunks.chunks[i->chunk].uses; u++)
            add(&t, p->chunk[i->chunk].grad[u], true, false);
        if (i->dst != i->src)
            add(&t, i->dst, false, true);
        add(&t, p->io.partials, false, true);
        break;
    case INSTR_NORM:
        add(&t, p->io.partials, true, false);
        add(&t, p->io.scalars, true, true);
        break;
    case INSTR_UPDATE:
    case INSTR_CONFIRM:
        add(&t, i->src, true, false);
        add(&t, i->state, true, true);
        add(&t, i->shadow, true, true);
        add(&t, i->dst, true, true);
        if (i->op == INSTR_UPDATE && i->shadow != NO_PLACE)
            break; /* before the norm is known */
        add(&t, i->queue == QUEUE_CPU ? p->io.clip : p->io.scalars, true, false);
        break;
    case INSTR_DROP:
        break;
    default: /* moves */
        add(&t, i->src, true, false);
        add(&t, i->dst, false, true);
        break;
    }
    return t.n;
}
