#include "worker/memory/chunk.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "kernels/moment_math.h"

/* A block of moments lies in one tensor. */
_Static_assert(CHUNK_ALIGN % MOMENT_BLOCK == 0, "tensors begin with a block");

const char *payload_name(enum payload p)
{
    static const char *const names[PAYLOAD_COUNT] = {"param", "grad", "state"};
    assert(p < PAYLOAD_COUNT);
    return names[p];
}

const char *chunk_state_name(enum chunk_state s)
{
    static const char *const names[CHUNK_STATE_COUNT] = {
        "FREE", "HOLD", "COMPUTE", "HOLD_AFTER_FWD", "HOLD_AFTER_BWD", "READY_FOR_REDUCE"};
    assert(s < CHUNK_STATE_COUNT);
    return names[s];
}

bool chunk_state_allowed(enum chunk_state from, enum chunk_state to)
{
#define TO(s) (1u << (s))
    static const unsigned table[CHUNK_STATE_COUNT] = {
        /* gathered or fetched, or straight into a block */
        [CHUNK_FREE] = TO(CHUNK_HOLD) | TO(CHUNK_COMPUTE),
        [CHUNK_HOLD] = TO(CHUNK_FREE) | TO(CHUNK_COMPUTE),
        /* HOLD: an evaluation, which has no backward */
        [CHUNK_COMPUTE] = TO(CHUNK_HOLD) | TO(CHUNK_HOLD_AFTER_FWD) | TO(CHUNK_HOLD_AFTER_BWD),
        /* dropped until backward, or used again: next micro-batch, backward, recomputation */
        [CHUNK_HOLD_AFTER_FWD] = TO(CHUNK_FREE) | TO(CHUNK_COMPUTE),
        /* FREE: a frozen chunk, or parameters that leave while their gradient stays; HOLD: frozen
           and kept */
        [CHUNK_HOLD_AFTER_BWD] =
            TO(CHUNK_FREE) | TO(CHUNK_HOLD) | TO(CHUNK_COMPUTE) | TO(CHUNK_READY_FOR_REDUCE),
        [CHUNK_READY_FOR_REDUCE] = TO(CHUNK_HOLD),
    };
#undef TO
    assert(from < CHUNK_STATE_COUNT && to < CHUNK_STATE_COUNT);
    return table[from] >> to & 1;
}

static int64_t round_up(int64_t n)
{
    return (n + CHUNK_ALIGN - 1) / CHUNK_ALIGN * CHUNK_ALIGN;
}

static struct chunk *add_chunk(struct chunk_set *set, const struct chunk_input *in)
{
    set->chunks = xrealloc(set->chunks, (size_t)(set->n_chunks + 1) * sizeof *set->chunks);
    struct chunk *c = &set->chunks[set->n_chunks++];
    *c = (struct chunk){.trainable = in->trainable,
                        .quant = in->quant,
                        .uses = in->n_blocks,
                        .first_use = in->first_block};
    assert(c->quant == QUANT_NONE || !c->trainable);
    return c;
}

static void add_member(struct chunk_set *set, int64_t chunk, int64_t tensor,
                       const struct chunk_input *in)
{
    struct chunk *c = &set->chunks[chunk];
    c->members = xrealloc(c->members, (size_t)(c->n_members + 1) * sizeof *c->members);
    c->members[c->n_members] =
        (struct chunk_member){.tensor = tensor, .elements = in->elements, .offset = c->n};
    set->tensors[tensor] = (struct chunk_location){.chunk = chunk, .member = c->n_members};
    c->n_members++;
    c->n += round_up(in->elements);
    if (in->decay)
        c->n_decay = c->n;
}

/* All tensors first used by `block`, and used by it alone, of one trainability and format: those
 * that decay first. */
static void pack_block(struct chunk_set *set, const struct chunk_input *in, int64_t n,
                       int64_t block, bool trainable, enum quant_format quant)
{
    int64_t chunk = -1;
    for (int decay = 1; decay >= 0; decay--) {
        for (int64_t t = 0; t < n; t++) {
            if (in[t].first_block != block || in[t].n_blocks != 1 || in[t].trainable != trainable ||
                in[t].quant != quant || in[t].decay != (bool)decay)
                continue;
            if (chunk < 0) {
                add_chunk(set, &in[t]);
                chunk = set->n_chunks - 1;
            }
            add_member(set, chunk, t, &in[t]);
        }
    }
}

void chunk_set_init(struct chunk_set *set, const struct chunk_input *tensors, int64_t n_tensors)
{
    *set = (struct chunk_set){.n_tensors = n_tensors};
    set->tensors = xcalloc((size_t)n_tensors, sizeof *set->tensors);
    int64_t last_block = -1;
    for (int64_t t = 0; t < n_tensors; t++) {
        assert(tensors[t].elements > 0 && tensors[t].n_blocks > 0);
        if (tensors[t].first_block > last_block)
            last_block = tensors[t].first_block;
    }
    for (int64_t block = 0; block <= last_block; block++) {
        for (int64_t t = 0; t < n_tensors; t++) {
            if (tensors[t].first_block == block && tensors[t].n_blocks > 1) {
                add_chunk(set, &tensors[t]);
                add_member(set, set->n_chunks - 1, t, &tensors[t]);
            }
        }
        pack_block(set, tensors, n_tensors, block, true, QUANT_NONE);
        for (int format = QUANT_NONE; format <= QUANT_INT8; format++)
            pack_block(set, tensors, n_tensors, block, false, (enum quant_format)format);
    }
}

void chunk_set_fini(struct chunk_set *set)
{
    for (int64_t c = 0; c < set->n_chunks; c++)
        free(set->chunks[c].members);
    free(set->chunks);
    free(set->tensors);
    *set = (struct chunk_set){0};
}

bool chunk_has_master(struct chunk_types types)
{
    return types.master != types.compute;
}

bool chunk_has_whole_master(struct chunk_types types)
{
    return chunk_has_master(types) && types.master != DT_I16;
}

int chunk_state_parts(struct chunk_types types, struct chunk_part parts[PART_COUNT])
{
    int n = 0;
    if (chunk_has_master(types))
        parts[n++] = (struct chunk_part){PART_MASTER, types.master, 1};
    parts[n++] = (struct chunk_part){PART_M, types.moment, 1};
    parts[n++] = (struct chunk_part){PART_V, types.moment, 1};
    if (types.moment == DT_U8) {
        parts[n++] = (struct chunk_part){PART_M_EXPONENT, DT_U8, MOMENT_BLOCK};
        parts[n++] = (struct chunk_part){PART_V_EXPONENT, DT_U8, MOMENT_BLOCK};
    }
    return n;
}

int64_t chunk_part_count(const struct chunk_part *p, int64_t n)
{
    return (n + p->every - 1) / p->every;
}

size_t chunk_part_bytes(const struct chunk_part *p, int64_t n)
{
    return (size_t)chunk_part_count(p, n) * dtype_size(p->type);
}

size_t chunk_state_bytes(struct chunk_types types, int64_t n)
{
    struct chunk_part parts[PART_COUNT];
    size_t bytes = 0;
    for (int k = chunk_state_parts(types, parts) - 1; k >= 0; k--)
        bytes += chunk_part_bytes(&parts[k], n);
    return bytes;
}

enum dtype chunk_grad_type(const struct chunk *c, struct chunk_types types)
{
    return c->narrow_grad ? types.compute : types.grad;
}

size_t chunk_payload_bytes(const struct chunk *c, enum payload p, struct chunk_types types)
{
    size_t n = (size_t)c->n;
    switch (p) {
    case PAYLOAD_PARAM:
        return c->quant == QUANT_NONE ? n * dtype_size(types.compute) : quant_bytes(c->quant, c->n);
    case PAYLOAD_GRAD:
        return c->trainable ? n * (size_t)c->uses * dtype_size(chunk_grad_type(c, types)) : 0;
    case PAYLOAD_STATE:
        return c->trainable ? chunk_state_bytes(types, c->n) : 0;
    case PAYLOAD_COUNT:
        break;
    }
    assert(!"payload");
    return 0;
}

size_t chunk_param_at(const struct chunk *c, int64_t member, struct chunk_types types)
{
    int64_t offset = c->members[member].offset;
    if (c->quant == QUANT_NONE)
        return (size_t)offset * dtype_size(types.compute);
    return quant_scales_at(c->quant, offset); /* codes in front of it, which fill whole words */
}

size_t chunk_scales_at(const struct chunk *c, int64_t member)
{
    assert(c->quant != QUANT_NONE);
    return quant_scales_at(c->quant, c->n) +
           (size_t)quant_blocks(c->members[member].offset) * sizeof(float);
}
