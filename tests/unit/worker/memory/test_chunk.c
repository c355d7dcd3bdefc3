#include <criterion/criterion.h>

#include "worker/memory/arena.h"
#include "worker/memory/chunk.h"

/* The whole table, written out a second time by hand: every pair of states. */
Test(chunk_state, every_pair)
{
    static const char *const allowed[CHUNK_STATE_COUNT] = {
        /* to: F H C f b R   (FREE HOLD COMPUTE AFTER_FWD AFTER_BWD READY) */
        [CHUNK_FREE] = ".xx...",           [CHUNK_HOLD] = "x.x...",
        [CHUNK_COMPUTE] = ".x.xx.",        [CHUNK_HOLD_AFTER_FWD] = "x.x...",
        [CHUNK_HOLD_AFTER_BWD] = "xxx..x", [CHUNK_READY_FOR_REDUCE] = ".x....",
    };
    for (int from = 0; from < CHUNK_STATE_COUNT; from++)
        for (int to = 0; to < CHUNK_STATE_COUNT; to++)
            cr_expect_eq(chunk_state_allowed(from, to), allowed[from][to] == 'x', "%s -> %s",
                         chunk_state_name(from), chunk_state_name(to));
}

static struct chunk_input shapes[] = {
    {.elements = 1000,
     .decay = true,
     .trainable = true,
     .first_block = 0,
     .n_blocks = 2}, /* tied */
    {.elements = 130, .decay = false, .trainable = true, .first_block = 0, .n_blocks = 1},
    {.elements = 7, .decay = false, .trainable = true, .first_block = 1, .n_blocks = 1},
    {.elements = 500, .decay = true, .trainable = true, .first_block = 1, .n_blocks = 1},
    {.elements = 64, .decay = true, .trainable = false, .first_block = 1, .n_blocks = 1},
    {.elements = 128, .decay = true, .trainable = true, .first_block = 1, .n_blocks = 1},
};

Test(chunk_set, packs_by_block_trainability_and_sharing)
{
    struct chunk_set set;
    chunk_set_init(&set, shapes, 6);
    cr_assert_eq(set.n_chunks, 4);
    cr_expect_eq(set.chunks[0].uses, 2);
    cr_expect_eq(set.chunks[0].n_members, 1);
    cr_expect_eq(set.tensors[1].chunk, 1);
    cr_expect_eq(set.tensors[2].chunk, 2);
    cr_expect_eq(set.tensors[3].chunk, 2);
    cr_expect_eq(set.tensors[5].chunk, 2);
    cr_expect_eq(set.tensors[4].chunk, 3);
    cr_expect_not(set.chunks[3].trainable);
    chunk_set_fini(&set);
    chunk_set_fini(&set);
}

Test(chunk_set, decaying_members_come_first_and_are_aligned)
{
    struct chunk_set set;
    chunk_set_init(&set, shapes, 6);
    const struct chunk *c = &set.chunks[2];
    cr_assert_eq(c->n_members, 3);
    cr_expect_eq(c->members[0].tensor, 3);
    cr_expect_eq(c->members[1].tensor, 5);
    cr_expect_eq(c->members[2].tensor, 2);
    cr_expect_eq(c->n_decay, 512 + 128);
    cr_expect_eq(c->n, 512 + 128 + 128);
    for (int64_t k = 0; k < c->n_members; k++)
        cr_expect_eq(c->members[k].offset % CHUNK_ALIGN, 0);
    chunk_set_fini(&set);
}

Test(chunk_set, payload_bytes)
{
    struct chunk_types bf16 = {DT_BF16, DT_F32, DT_F32, DT_F32}; /* compute grad master moment */
    struct chunk_types f32 = {DT_F32, DT_F32, DT_F32, DT_F32};
    struct chunk_types small = {DT_BF16, DT_F32, DT_BF16, DT_BF16};
    struct chunk_types mixed = {DT_BF16, DT_F32, DT_F32, DT_BF16};
    struct chunk_types split = {DT_BF16, DT_F32, DT_I16, DT_U8}; /* a byte every 128, twice */
    struct chunk_set set;
    chunk_set_init(&set, shapes, 6);
    cr_expect_eq(chunk_payload_bytes(&set.chunks[0], PAYLOAD_PARAM, bf16), 1024 * 2);
    cr_expect_eq(chunk_payload_bytes(&set.chunks[0], PAYLOAD_GRAD, bf16), 2 * 1024 * 4);
    cr_expect_eq(chunk_payload_bytes(&set.chunks[0], PAYLOAD_STATE, bf16), 3 * 1024 * 4);
    cr_expect_eq(chunk_payload_bytes(&set.chunks[0], PAYLOAD_STATE, f32), 2 * 1024 * 4);
    cr_expect_eq(chunk_payload_bytes(&set.chunks[0], PAYLOAD_STATE, small), 2 * 1024 * 2);
    cr_expect_eq(chunk_payload_bytes(&set.chunks[0], PAYLOAD_STATE, mixed), 1024 * (4 + 2 * 2));
    cr_expect_eq(chunk_payload_bytes(&set.chunks[0], PAYLOAD_STATE, split), 1024 * (2 + 2) + 2 * 8);
    cr_expect(chunk_has_master(split) && !chunk_has_whole_master(split));
    cr_expect(chunk_has_whole_master(mixed) && !chunk_has_whole_master(f32));
    cr_expect_eq(chunk_payload_bytes(&set.chunks[3], PAYLOAD_PARAM, f32), 128 * 4);
    cr_expect_eq(chunk_payload_bytes(&set.chunks[3], PAYLOAD_GRAD, f32), 0);
    cr_expect_eq(chunk_payload_bytes(&set.chunks[3], PAYLOAD_STATE, f32), 0);
    chunk_set_fini(&set);
}

/* Frozen tensors of a block that lie otherwise are a chunk of their own: codes, then scales. */
Test(chunk_set, quantised_tensors)
{
    static const struct chunk_input in[] = {
        {.elements = 300, .decay = true, .quant = QUANT_NF4, .first_block = 0, .n_blocks = 1},
        {.elements = 10, .first_block = 0, .n_blocks = 1},
        {.elements = 129, .decay = true, .quant = QUANT_NF4, .first_block = 0, .n_blocks = 1},
        {.elements = 64, .decay = true, .quant = QUANT_INT8, .first_block = 0, .n_blocks = 1},
        {.elements = 8, .decay = true, .trainable = true, .first_block = 0, .n_blocks = 1},
    };
    static const int64_t chunk_of[] = {2, 1, 2, 3, 0};
    struct chunk_types types = {DT_BF16, DT_F32, DT_F32, DT_F32};
    struct chunk_set set;

    chunk_set_init(&set, in, 5);
    cr_assert_eq(set.n_chunks, 4);
    for (int t = 0; t < 5; t++)
        cr_expect_eq(set.tensors[t].chunk, chunk_of[t]);
    const struct chunk *c = &set.chunks[2];
    cr_expect_eq(c->n, 384 + 256);
    cr_expect_eq(chunk_payload_bytes(c, PAYLOAD_PARAM, types), 640 / 2 + 640 / 64 * 4);
    cr_expect_eq(chunk_payload_bytes(c, PAYLOAD_GRAD, types), 0);
    cr_expect_eq(chunk_param_at(c, 0, types), 0);
    cr_expect_eq(chunk_scales_at(c, 0), 640 / 2);
    cr_expect_eq(chunk_param_at(c, 1, types), 384 / 2);
    cr_expect_eq(chunk_scales_at(c, 1), 640 / 2 + 384 / 64 * 4);
    c = &set.chunks[3];
    cr_expect_eq(chunk_payload_bytes(c, PAYLOAD_PARAM, types), 128 + 2 * 4);
    cr_expect_eq(chunk_scales_at(c, 0), 128);
    cr_expect_eq(chunk_param_at(&set.chunks[0], 0, types), 0);
    chunk_set_fini(&set);
}

Test(arena, is_counted_limited_and_given_back)
{
    struct device_options o = {.memory_limit = 1 << 20};
    struct device *d = NULL;
    struct arena a = {0}, b = {0};
    struct err err = {0};
    cr_assert_eq(device_open(DEVICE_CPU, 0, &o, &d, &err), 0, "%s", err.msg);
    cr_assert_eq(arena_init(&a, d, ARENA_DEVICE, 700 << 10, &err), 0, "%s", err.msg);
    cr_expect_eq(d->counters.device_now, 700 << 10);
    cr_expect_eq(arena_at(&a, 256, 10), a.base + 256);
    cr_expect_eq(arena_init(&b, d, ARENA_DEVICE, 400 << 10, &err), ERR_DEVICE_OOM);
    cr_expect_null(b.base);
    arena_fini(&a);
    arena_fini(&a);
    cr_expect_eq(d->counters.device_now, 0);
    cr_expect_eq(d->counters.device_peak, 700 << 10);
    device_close(d);
}
