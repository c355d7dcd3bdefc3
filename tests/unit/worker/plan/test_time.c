/* What an instruction takes alone, by the bytes that it moves. */
#include <criterion/criterion.h>

#include "tests/unit/worker/plan/rig.h"
#include "worker/plan/build.h"

/* A machine on which nothing but device memory takes time. */
static struct device_profile profile;
static struct rig r;

static void set_up(void)
{
    profile = rig_profile(1e21, 1e9, 1e21);
    rig_init(&r, 2, 2);
    r.in.ops = device_ops(r.device, DT_BF16);
    r.in.profile = &profile;
}

static void tear_down(void)
{
    rig_fini(&r);
}

TestSuite(time, .init = set_up, .fini = tear_down);

/* Bytes of the list's nth instruction of a kind, on a block or chunk (-1 = any). */
static double bytes(const struct plan *p, enum instr_op op, int32_t block, int32_t chunk, int nth)
{
    const struct instr_list *l = &p->lists[LIST_TRAIN];
    for (int64_t k = 0; k < l->n; k++) {
        const struct instr *i = &l->items[k];
        if (i->op == op && (block < 0 || i->block == block) && (chunk < 0 || i->chunk == chunk) &&
            nth-- == 0)
            return plan_instr_seconds(p, LIST_TRAIN, i, &profile) * profile.memory_rate;
    }
    cr_assert_fail("no such instruction");
    return 0;
}

/* The sum of squares reads; what is to travel is read once more and rounded. */
Test(time, reducing_reads_a_gradient_and_rounds_what_travels)
{
    for (int k = 0; k < 2; k++) {
        r.in.policy = k == 0 ? PLACE_CUDA : PLACE_CPU;
        struct plan *p = rig_plan(&r);
        for (int32_t c = 0; c < p->chunks.n_chunks; c++) {
            const struct chunk *chunk = &p->chunks.chunks[c];
            double uses = 12 * (double)(chunk->uses - 1), rounding = k == 0 ? 0 : 4 + 2;
            cr_expect_float_eq(bytes(p, INSTR_REDUCE, -1, c, 0),
                               (double)chunk->n * (4 + rounding + uses), 1, "chunk %d", c);
        }
    }
}

/* Of two micro-batches with 32 rows of 97 logits each, and of which the second adds. */
Test(time, the_head_adds_to_its_gradients_slice_by_slice)
{
    r.in.policy = PLACE_CUDA;
    r.in.head_rows = 32;
    struct plan *p = rig_plan(&r);
    int32_t head = (int32_t)p->in.model->n_blocks - 1;
    int64_t chunks[BLOCK_MAX_CHUNKS], n = plan_block_chunks(p, head, chunks), elements = 0;
    for (int64_t k = 0; k < n; k++)
        elements += p->chunks.chunks[chunks[k]].n;
    double loss = 32 * 97 * (2 + 2);
    cr_expect_float_eq(bytes(p, INSTR_BACKWARD, head, -1, 0), loss, 1);
    cr_expect_float_eq(bytes(p, INSTR_BACKWARD, head, -1, 1), loss + 4.0 * (double)elements, 1);
    r.in.head_rows = 12; /* three slices */
    p = rig_plan(&r);
    double further = 2 * 8.0 * (double)elements;
    cr_expect_float_eq(bytes(p, INSTR_BACKWARD, head, -1, 0), loss + further, 1);
    cr_expect_float_eq(bytes(p, INSTR_BACKWARD, head, -1, 1),
                       loss + further + 4.0 * (double)elements, 1);
}
