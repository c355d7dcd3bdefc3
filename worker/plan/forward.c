/* Lists of a forward pass alone, and what every list that runs blocks is made of. */
#include "worker/plan/build.h"

#include <stdlib.h>

#include "core/alloc.h"
#include "kernels/device.h"

struct block_operands plan_operands(const struct plan *p, int64_t block, const int32_t *param_at)
{
    struct block_operands o = {.x = NO_PLACE,
                               .y = NO_PLACE,
                               .dy = NO_PLACE,
                               .dx = NO_PLACE,
                               .saved = NO_PLACE,
                               .scratch = NO_PLACE,
                               .held = NO_PLACE};
    int64_t chunks[BLOCK_MAX_CHUNKS];
    o.n_chunks = (int32_t)plan_block_chunks(p, block, chunks);
    for (int32_t k = 0; k < o.n_chunks; k++) {
        o.chunk[k] = (int32_t)chunks[k];
        o.param[k] =
            plan_is_resident(p, chunks[k]) ? p->chunk[chunks[k]].param : param_at[chunks[k]];
        o.grad[k] = NO_PLACE;
    }
    return o;
}

void plan_add_disk_move(struct plan *p, enum plan_list list, enum instr_op op, int64_t chunk,
                        int64_t slice, enum payload payload, int32_t src, int32_t dst)
{
    struct instr i = instr_make(op, op == INSTR_STAGE ? QUEUE_READ : QUEUE_WRITE);
    i.chunk = (int32_t)chunk;
    i.slice = (int32_t)slice;
    i.payload = payload;
    i.src = src;
    i.dst = dst;
    instr_list_add(&p->lists[list], i);
}

/* From the disk piece by piece, through host memory. */
static void fetch_pieces(struct plan *p, enum plan_list list, struct instr i, struct stages *stages)
{
    const struct plan_chunk *pc = &p->chunk[i.chunk];
    for (int64_t k = 0; k < pc->n_pieces; k++) {
        i.slice = (int32_t)k;
        i.src = plan_next_stage(p, stages);
        plan_add_disk_move(p, list, INSTR_STAGE, i.chunk, k, PAYLOAD_PARAM, pc->param + (int32_t)k,
                           i.src);
        instr_list_add(&p->lists[list], i);
    }
}

void plan_emit_fetches(struct plan *p, enum plan_list list, const struct itinerary *it, int64_t v,
                       struct stages *stages, int32_t *param_at)
{
    for (int64_t k = plan_first_fetch(it, v); k < it->n_stays && it->stays[k].fetch == v; k++) {
        const struct stay *s = &it->stays[k];
        const struct chunk *c = &p->chunks.chunks[s->chunk];
        struct instr i = instr_make(INSTR_FETCH, QUEUE_H2D);
        i.chunk = (int32_t)s->chunk;
        i.payload = PAYLOAD_PARAM;
        i.src = p->chunk[s->chunk].param;
        i.dst = param_at[s->chunk] = plan_add_place(
            p, TIER_GPU, PURPOSE_WEIGHTS, chunk_payload_bytes(c, PAYLOAD_PARAM, p->types), false);
        if (plan_pages(p, s->chunk))
            fetch_pieces(p, list, i, stages);
        else
            instr_list_add(&p->lists[list], i);
    }
}

void plan_emit_drops(struct plan *p, enum plan_list list, const struct itinerary *it, int64_t v,
                     int32_t *param_at)
{
    for (int64_t k = plan_first_end(it, v); k < it->n_stays; k++) {
        const struct stay *s = &it->stays[it->ends[k]];
        if (s->last != v)
            break;
        struct instr i = instr_make(INSTR_DROP, QUEUE_COMPUTE);
        i.chunk = (int32_t)s->chunk;
        i.payload = PAYLOAD_PARAM;
        instr_list_add(&p->lists[list], i);
        param_at[s->chunk] = NO_PLACE;
    }
}

static int32_t add_scratch(struct plan *p, enum plan_list list, int64_t block)
{
    size_t bytes = p->sizes[list][block].forward_scratch;
    return bytes > 0 ? plan_add_place(p, TIER_GPU, PURPOSE_WORKSPACE, bytes, false) : NO_PLACE;
}

size_t plan_boundary_bytes(const struct plan *p, enum plan_list list)
{
    const struct block_shape *s = &p->shapes[list];
    return (size_t)(s->B * s->T * p->in.model->config.hidden) * dtype_size(p->types.compute);
}

void plan_emit_forward(struct plan *p, enum plan_list list)
{
    int64_t n = p->in.model->n_blocks;
    int32_t *param_at = xcalloc((size_t)p->chunks.n_chunks, sizeof *param_at), before = NO_PLACE;
    struct stages stages = {.payload = PAYLOAD_PARAM};
    struct itinerary it;

    plan_forward_itinerary(p, &it);
    if (list == LIST_SAMPLE)
        p->io.logits =
            plan_add_place(p, TIER_GPU, PURPOSE_BUFFERS,
                           (size_t)p->in.model->config.vocab * dtype_size(p->types.compute), false);
    for (int64_t b = 0; b < n; b++) {
        plan_emit_fetches(p, list, &it, b, &stages, param_at);
        struct block_operands o = plan_operands(p, b, param_at);
        o.x = before;
        if (b < n - 1)
            o.y = plan_add_place(p, TIER_GPU, PURPOSE_ACTIVATIONS, plan_boundary_bytes(p, list),
                                 false);
        o.scratch = add_scratch(p, list, b);
        before = o.y;
        struct instr i = instr_make(INSTR_FORWARD, QUEUE_COMPUTE);
        i.block = (int32_t)b;
        i.micro = 0;
        i.operands = plan_add_operands(p, o);
        instr_list_add(&p->lists[list], i);
        plan_emit_drops(p, list, &it, b, param_at);
    }
    plan_itinerary_fini(&it);
    free(param_at);
}
