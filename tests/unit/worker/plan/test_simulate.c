/* The simulator finds broken lists. */
#include <criterion/criterion.h>
#include <string.h>

#include "tests/unit/worker/plan/rig.h"

static struct rig r;

static void set_up(void)
{
    rig_init(&r, 2, 1);
}

static void tear_down(void)
{
    rig_fini(&r);
}

TestSuite(simulate, .init = set_up, .fini = tear_down);

/* The plan's training list is refused, and the error says so. */
static void expect_broken(const struct plan *p, const char *said)
{
    struct plan_simulation sim;
    struct err err = {0};
    cr_expect_eq(plan_simulate(p, LIST_TRAIN, &sim, &err), ERR_INTERNAL);
    cr_expect(strstr(err.msg, said) != NULL, "%s", err.msg);
}

static int64_t find(const struct instr_list *l, enum instr_op op)
{
    int64_t i = 0;
    while (l->items[i].op != op)
        i++;
    return i;
}

static void take_out(struct instr_list *l, int64_t k)
{
    memmove(l->items + k, l->items + k + 1, (size_t)(--l->n - k) * sizeof *l->items);
}

Test(simulate, finds_overlapping_places)
{
    struct plan *p = rig_plan(&r);
    const struct block_operands *o = &p->operands[p->lists[LIST_TRAIN].items[1].operands];
    p->places[o->y].offset = p->places[o->saved].offset;
    expect_broken(p, "overlap");
}

Test(simulate, finds_a_read_of_what_nothing_wrote)
{
    struct plan *p = rig_plan(&r);
    take_out(&p->lists[LIST_TRAIN], 0); /* the embedding */
    expect_broken(p, "nothing wrote");
}

Test(simulate, finds_an_update_before_its_reduce)
{
    struct plan *p = rig_plan(&r);
    struct instr_list *l = &p->lists[LIST_TRAIN];
    take_out(l, find(l, INSTR_REDUCE));
    expect_broken(p, "before its gradient is reduced");
}

Test(simulate, finds_a_write_to_a_frozen_chunk)
{
    rig_freeze(&r);
    struct plan *p = rig_plan(&r);
    struct instr_list *l = &p->lists[LIST_TRAIN];
    int64_t update = find(l, INSTR_UPDATE);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        if (!p->chunks.chunks[c].trainable)
            l->items[update].chunk = (int32_t)c;
    expect_broken(p, "frozen");
}

Test(simulate, finds_a_wait_for_the_future)
{
    struct plan *p = rig_plan(&r);
    p->lists[LIST_TRAIN].items[0].wait[0] = 3;
    expect_broken(p, "later");
}

Test(simulate, finds_memory_outside_the_claim)
{
    struct plan *p = rig_plan(&r);
    p->claim[TIER_GPU] -= 1;
    expect_broken(p, "outside");
}
