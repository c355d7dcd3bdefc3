/* Tensors into chunks, and which chunks a block uses. */
#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "worker/plan/build.h"

enum { SLICE_MOST = 4 << 20, SLICES_A_CHUNK = 8 };

void plan_pack_chunks(struct plan *p)
{
    const struct model *m = p->in.model;
    struct chunk_input *in = xcalloc((size_t)m->n_tensors, sizeof *in);
    for (int64_t t = 0; t < m->n_tensors; t++)
        in[t] = (struct chunk_input){.elements = tensor_elements(&m->tensors[t]),
                                     .decay = m->tensors[t].decay,
                                     .trainable = m->tensors[t].trainable,
                                     .quant = m->tensors[t].quant,
                                     .first_block = -1};
    for (int64_t b = 0; b < m->n_blocks; b++) {
        for (int64_t i = 0; i < m->blocks[b].n_tensors; i++) {
            struct chunk_input *t = &in[m->blocks[b].tensors[i]];
            if (t->n_blocks++ == 0)
                t->first_block = b;
            assert(t->n_blocks <= CHUNK_MAX_USES);
        }
    }
    chunk_set_init(&p->chunks, in, m->n_tensors);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        struct chunk *chunk = &p->chunks.chunks[c];
        chunk->narrow_grad =
            plan_narrow_grads(&p->in) && m->blocks[chunk->first_use].kind == BLOCK_LAYER;
    }
    free(in);
}

void plan_measure_chunks(const struct plan_input *in, int64_t *n_chunks, int64_t *slice)
{
    struct plan shape = {.in = *in};
    int64_t largest = 0;

    plan_pack_chunks(&shape);
    for (int64_t c = 0; c < shape.chunks.n_chunks; c++)
        if (shape.chunks.chunks[c].n > largest)
            largest = shape.chunks.chunks[c].n;
    *n_chunks = shape.chunks.n_chunks;
    chunk_set_fini(&shape.chunks);
    largest = (largest / SLICES_A_CHUNK + CHUNK_ALIGN - 1) / CHUNK_ALIGN * CHUNK_ALIGN;
    *slice = largest < CHUNK_ALIGN ? CHUNK_ALIGN : largest > SLICE_MOST ? SLICE_MOST : largest;
}

int64_t plan_block_chunks(const struct plan *p, int64_t block, int64_t out[BLOCK_MAX_CHUNKS])
{
    const struct block_desc *b = &p->in.model->blocks[block];
    int64_t n = 0;
    for (int64_t i = 0; i < b->n_tensors; i++) {
        int64_t c = p->chunks.tensors[b->tensors[i]].chunk, k = 0;
        while (k < n && out[k] != c)
            k++;
        if (k == n) {
            assert(n < BLOCK_MAX_CHUNKS);
            out[n++] = c;
        }
    }
    return n;
}

int64_t plan_use_index(const struct plan *p, int64_t chunk, int64_t block)
{
    const struct model *m = p->in.model;
    int64_t tensor = p->chunks.chunks[chunk].members[0].tensor;
    int64_t use = 0;
    if (p->chunks.chunks[chunk].uses == 1)
        return 0;
    for (int64_t b = 0; b < block; b++)
        for (int64_t i = 0; i < m->blocks[b].n_tensors; i++)
            use += m->blocks[b].tensors[i] == tensor;
    return use;
}

bool plan_needs_params(const struct plan *p, int64_t block, int64_t chunk, bool backward)
{
    const struct block_desc *b = &p->in.model->blocks[block];
    if (!backward || b->kind != BLOCK_EMBED)
        return true;
    for (int64_t i = 0; i < b->n_tensors; i++) {
        enum tensor_role role = p->in.model->tensors[b->tensors[i]].role;
        bool table = role == TENSOR_EMBED || role == TENSOR_POSITIONS;
        if (!table && p->chunks.tensors[b->tensors[i]].chunk == chunk)
            return true;
    }
    return false;
}
