#include "worker/plan/plan.h"

#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"

const char *plan_list_name(enum plan_list l)
{
    static const char *const names[LIST_COUNT] = {"train", "eval", "sample", "load", "save"};
    assert(l < LIST_COUNT);
    return names[l];
}

size_t plan_slice_bytes(const struct plan *p, const struct plan_slice *s)
{
    return chunk_state_bytes(p->types, s->n);
}

size_t plan_piece_at(const struct plan *p, int64_t piece)
{
    return (size_t)(piece * p->chosen.slice) * dtype_size(p->types.compute);
}

size_t plan_piece_bytes(const struct plan *p, int64_t chunk, int64_t piece)
{
    size_t first = plan_piece_at(p, piece), end = plan_piece_at(p, piece + 1);
    size_t all = chunk_payload_bytes(&p->chunks.chunks[chunk], PAYLOAD_PARAM, p->types);
    return (end < all ? end : all) - first;
}

bool plan_moves_piece(const struct instr *i)
{
    return i->payload != PAYLOAD_STATE && i->slice >= 0;
}

int64_t plan_step_rows(const struct plan *p)
{
    return p->in.micro_batches * p->in.micro_batch * p->in.seq_length;
}

size_t plan_batch_bytes(const struct plan *p)
{
    return (size_t)plan_step_rows(p) * STEP_BATCH_ARRAYS * sizeof(int32_t);
}

size_t plan_rows_bytes(const struct plan *p)
{
    return (size_t)plan_step_rows(p) * (dtype_size(p->in.ops->stat) + sizeof(int32_t));
}

void plan_destroy(struct plan *p)
{
    if (!p)
        return;
    for (int l = 0; l < LIST_COUNT; l++)
        instr_list_fini(&p->lists[l]);
    for (int64_t c = 0; p->chunk && c < p->chunks.n_chunks; c++)
        free(p->chunk[c].slices);
    for (int l = 0; l < LIST_COUNT; l++)
        free(p->sizes[l]);
    free(p->chunk);
    chunk_set_fini(&p->chunks);
    free(p->places);
    free(p->operands);
    free(p);
}

bool plan_holds_copies(const struct plan *p, int64_t block)
{
    const struct block_desc *b = &p->in.model->blocks[block];
    return p->in.fp8 && b->kind == BLOCK_LAYER && b->layer < p->chosen.rounded;
}
