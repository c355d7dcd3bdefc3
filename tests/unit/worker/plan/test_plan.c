#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/worker/plan/rig.h"
#include "worker/plan/touch.h"

static struct plan *build(struct rig *r)
{
    struct plan *p = NULL;
    struct err err = {0};
    cr_assert_eq(plan_build(&r->in, &p, &err), 0, "%s", err.msg);
    return p;
}

static int64_t count(const struct plan *p, enum instr_op op)
{
    int64_t n = 0;
    for (int64_t i = 0; i < p->lists[LIST_TRAIN].n; i++)
        n += p->lists[LIST_TRAIN].items[i].op == op;
    return n;
}

Test(plan, the_training_list_has_every_block_and_chunk)
{
    struct rig r;
    rig_init(&r, 3, 4);
    struct plan *p = build(&r);
    cr_expect_eq(count(p, INSTR_FORWARD),
                 4 * 4); /* embedding and layers; the head's is in its backward */
    cr_expect_eq(count(p, INSTR_BACKWARD), 5 * 4);
    cr_expect_eq(count(p, INSTR_REDUCE), p->chunks.n_chunks);
    cr_expect_eq(count(p, INSTR_UPDATE), p->chunks.n_chunks);
    cr_expect_eq(count(p, INSTR_NORM), 1);
    plan_destroy(p);
    rig_fini(&r);
}

Test(plan, the_simulated_peak_of_a_resident_step_is_the_claim)
{
    struct rig r;
    for (int64_t micro = 1; micro <= 3; micro++) {
        rig_init(&r, 2, micro);
        struct plan *p = build(&r);
        struct plan_simulation sim;
        cr_assert_eq(plan_simulate(p, LIST_TRAIN, &sim, NULL), 0);
        cr_expect_eq((size_t)sim.memory[TIER_GPU].total, p->claim[TIER_GPU], "%lld, claim %zu",
                     (long long)sim.memory[TIER_GPU].total, p->claim[TIER_GPU]);
        /* Beside what the step needs, only the place through which weights are loaded. */
        cr_expect_eq((size_t)sim.memory[TIER_HOST].total + p->places[p->io.staging].bytes,
                     p->claim[TIER_HOST]);
        cr_expect_eq(sim.link_bytes[LINK_H2D],
                     (int64_t)(plan_batch_bytes(p) + offsetof(struct step_scalars, clip)));
        cr_expect(isnan(sim.seconds));
        plan_destroy(p);
        rig_fini(&r);
    }
}

Test(plan, a_tied_table_has_two_gradient_slots_and_one_update)
{
    struct rig r;
    rig_init(&r, 1, 1);
    struct plan *p = build(&r);
    int64_t c = p->chunks.tensors[r.model.blocks[0].tensors[0]].chunk;
    cr_expect_eq(p->chunks.chunks[c].uses, 2);
    cr_expect_neq(p->chunk[c].grad[1], NO_PLACE);
    const struct block_operands *embed = NULL, *head = NULL;
    for (int64_t i = 0; i < p->lists[LIST_TRAIN].n; i++) {
        const struct instr *n = &p->lists[LIST_TRAIN].items[i];
        if (n->op == INSTR_BACKWARD && n->block == 0)
            embed = &p->operands[n->operands];
        if (n->op == INSTR_BACKWARD && n->block == 2)
            head = &p->operands[n->operands];
    }
    cr_assert(embed && head);
    bool found[2] = {false, false};
    for (int32_t k = 0; k < embed->n_chunks; k++)
        found[0] |= embed->chunk[k] == c && embed->grad[k] == p->chunk[c].grad[0];
    for (int32_t k = 0; k < head->n_chunks; k++)
        found[1] |= head->chunk[k] == c && head->grad[k] == p->chunk[c].grad[1];
    cr_expect(found[0] && found[1]);
    plan_destroy(p);
    rig_fini(&r);
}

/* All but the matrices of the last layer. */
static void freeze(struct model *m)
{
    for (int64_t t = 0; t < m->n_tensors; t++)
        m->tensors[t].trainable =
            m->tensors[t].cols > 1 && m->tensors[t].layer == m->config.layers - 1;
}

Test(plan, frozen_chunks_are_only_read)
{
    struct rig r;
    rig_init(&r, 3, 2);
    freeze(&r.model);
    cr_expect_eq(model_first_trained(&r.model), 3);
    struct plan *p = build(&r);
    int64_t trained = p->chunks.tensors[r.model.blocks[3].tensors[2]].chunk;
    cr_expect_eq(count(p, INSTR_FORWARD), 4 * 2);
    cr_expect_eq(count(p, INSTR_BACKWARD), 2 * 2); /* nothing trains below the last layer */
    cr_expect_eq(count(p, INSTR_REDUCE), 1);
    cr_expect_eq(count(p, INSTR_UPDATE), 1);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        cr_expect_eq(p->chunks.chunks[c].trainable, c == trained);
        cr_expect_eq(p->chunk[c].n_slices, c == trained ? 1 : 0);
        cr_expect_eq(p->chunk[c].grad[0] != NO_PLACE, c == trained);
    }
    for (int64_t i = 0; i < p->lists[LIST_SAVE].n; i++)
        cr_expect_eq(p->lists[LIST_SAVE].items[i].chunk, trained);
    cr_expect_gt(p->lists[LIST_LOAD].n, p->lists[LIST_SAVE].n);
    plan_destroy(p);
    rig_fini(&r);
}

Test(plan, refuses_what_does_not_fit_and_accepts_what_just_does)
{
    struct rig r;
    struct err err = {0};
    rig_init(&r, 2, 2);
    r.in.policy = PLACE_CUDA;
    struct plan *p = build(&r);
    size_t most = p->claim[TIER_GPU];
    cr_expect_eq(p->chosen.cheap, 1);
    plan_destroy(p);
    r.in.limit[TIER_GPU] = most - 1; /* then less is kept for backward */
    p = build(&r);
    cr_expect_eq(p->chosen.cheap, 0);
    cr_expect_lt(p->claim[TIER_GPU], most);
    plan_destroy(p);
    /* With nothing kept for backward, and gradients of a layer gone before the next one's, the
     * smallest there is. */
    r.in.force.keep = r.in.force.cheap = 0;
    r.in.force.group = 2;
    r.in.force.offload_boundaries = 1;
    p = build(&r);
    size_t need = p->claim[TIER_GPU];
    plan_destroy(p);
    r.in.force = PLAN_CHOICES_AUTO;
    r.in.limit[TIER_GPU] = need - 1;
    p = NULL;
    cr_expect_eq(plan_build(&r.in, &p, &err), ERR_DEVICE_OOM);
    cr_expect_null(p);
    cr_expect_str_eq(err.reason, "insufficient_memory");
    r.in.limit[TIER_GPU] = need;
    plan_destroy(build(&r));
    rig_fini(&r);
}

Test(plan, holds_as_many_rounded_layers_as_fit)
{
    struct rig r;
    rig_init(&r, 6, 2);
    r.in.policy = PLACE_CUDA;
    struct plan *p = build(&r);
    cr_expect_eq(p->chosen.rounded, 0);
    plan_destroy(p);
    r.in.fp8 = true;
    p = build(&r);
    cr_expect_eq(p->chosen.rounded, 6);
    size_t most = p->claim[TIER_GPU];
    plan_destroy(p);
    r.in.limit[TIER_GPU] = most - 1; /* something is held less before less is kept for backward */
    p = build(&r);
    cr_expect_eq(p->chosen.cheap, 1);
    cr_expect_lt(p->chosen.rounded, 6);
    cr_expect_gt(p->chosen.rounded, 0);
    cr_expect_lt(p->claim[TIER_GPU], most);
    plan_destroy(p);
    rig_fini(&r);
}

Test(plan, time_is_that_of_the_busiest_queue_at_least)
{
    struct device_profile profile = {.flops_f32 = 1e9,
                                     .flops_bf16 = 1e9,
                                     .flops_layer = 1e9,
                                     .layer_passes = 1,
                                     .memory_rate = 1e9,
                                     .h2d_rate = 1e9,
                                     .d2h_rate = 1e9,
                                     .h2d_both_rate = 1e9,
                                     .d2h_both_rate = 1e9,
                                     .host_memory_rate = 1e11,
                                     .cpu_update_rate = 1e9,
                                     .cpu_update_copy_rate = 1e9,
                                     .cpu_update_fp8_rate = 1e9,
                                     .cpu_update_fp8_copy_rate = 1e9};
    struct plan_simulation one, four;
    struct rig r;
    rig_init(&r, 2, 1);
    r.in.profile = &profile;
    struct plan *p = build(&r);
    cr_assert_eq(plan_simulate(p, LIST_TRAIN, &one, NULL), 0);
    plan_destroy(p);
    r.in.micro_batches = 4;
    p = build(&r);
    cr_assert_eq(plan_simulate(p, LIST_TRAIN, &four, NULL), 0);
    plan_destroy(p);
    cr_expect_gt(one.seconds, 0);
    cr_expect_geq(one.seconds, one.bound);
    cr_expect_gt(four.seconds, 2 * one.seconds);
    cr_expect_lt(four.seconds, 4 * one.seconds); /* one update for all */
    rig_fini(&r);
}

/* ---- the simulator finds broken lists
 * ------------------------------------------------------------ */

static int simulate_broken(struct plan *p, struct err *err)
{
    struct plan_simulation sim;
    return plan_simulate(p, LIST_TRAIN, &sim, err);
}

static int64_t find(const struct plan *p, enum instr_op op)
{
    int64_t i = 0;
    while (p->lists[LIST_TRAIN].items[i].op != op)
        i++;
    return i;
}

Test(simulate, finds_overlapping_places)
{
    struct rig r;
    struct err err = {0};
    rig_init(&r, 2, 1);
    struct plan *p = build(&r);
    const struct block_operands *o = &p->operands[p->lists[LIST_TRAIN].items[1].operands];
    p->places[o->y].offset = p->places[o->saved].offset;
    cr_expect_eq(simulate_broken(p, &err), ERR_INTERNAL);
    cr_expect(strstr(err.msg, "overlap") != NULL, "%s", err.msg);
    plan_destroy(p);
    rig_fini(&r);
}

Test(simulate, finds_a_read_of_what_nothing_wrote)
{
    struct rig r;
    struct err err = {0};
    rig_init(&r, 2, 1);
    struct plan *p = build(&r);
    struct instr_list *l = &p->lists[LIST_TRAIN];
    memmove(l->items, l->items + 1, (size_t)(--l->n) * sizeof *l->items); /* no embedding */
    cr_expect_eq(simulate_broken(p, &err), ERR_INTERNAL);
    cr_expect(strstr(err.msg, "nothing wrote") != NULL, "%s", err.msg);
    plan_destroy(p);
    rig_fini(&r);
}

Test(simulate, finds_an_update_before_its_reduce)
{
    struct rig r;
    struct err err = {0};
    rig_init(&r, 1, 1);
    struct plan *p = build(&r);
    struct instr_list *l = &p->lists[LIST_TRAIN];
    int64_t reduce = find(p, INSTR_REDUCE);
    memmove(l->items + reduce, l->items + reduce + 1, (size_t)(--l->n - reduce) * sizeof *l->items);
    cr_expect_eq(simulate_broken(p, &err), ERR_INTERNAL);
    plan_destroy(p);
    rig_fini(&r);
}

Test(simulate, finds_a_write_to_a_frozen_chunk)
{
    struct rig r;
    struct err err = {0};
    rig_init(&r, 2, 1);
    freeze(&r.model);
    struct plan *p = build(&r);
    struct instr_list *l = &p->lists[LIST_TRAIN];
    int64_t update = find(p, INSTR_UPDATE);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        if (!p->chunks.chunks[c].trainable)
            l->items[update].chunk = (int32_t)c;
    cr_expect_eq(simulate_broken(p, &err), ERR_INTERNAL);
    cr_expect(strstr(err.msg, "frozen") != NULL, "%s", err.msg);
    plan_destroy(p);
    rig_fini(&r);
}

Test(simulate, finds_a_wait_for_the_future_and_memory_outside_the_claim)
{
    struct rig r;
    struct err err = {0};
    rig_init(&r, 1, 1);
    struct plan *p = build(&r);
    p->lists[LIST_TRAIN].items[0].wait[0] = 3;
    cr_expect_eq(simulate_broken(p, &err), ERR_INTERNAL);
    cr_expect(strstr(err.msg, "later") != NULL, "%s", err.msg);
    p->lists[LIST_TRAIN].items[0].wait[0] = -1;
    err_clear(&err);
    p->claim[TIER_GPU] -= 1;
    cr_expect_eq(simulate_broken(p, &err), ERR_INTERNAL);
    cr_expect(strstr(err.msg, "outside") != NULL, "%s", err.msg);
    plan_destroy(p);
    rig_fini(&r);
}

Test(plan, prints_one_line_an_instruction)
{
    struct rig r;
    struct buf text = {0};
    rig_init(&r, 1, 2);
    struct plan *p = build(&r);
    plan_print(p, LIST_TRAIN, &text);
    int64_t lines = 0;
    for (size_t i = 0; i < text.len; i++)
        lines += text.data[i] == '\n';
    cr_expect_eq(lines, p->lists[LIST_TRAIN].n + 1 + TIER_COUNT);
    cr_expect(strstr(text.data, "BACKWARD block 2 micro-batch 1") != NULL, "%s", text.data);
    buf_fini(&text);
    plan_destroy(p);
    rig_fini(&r);
}

Test(profile, survives_a_round_trip_and_refuses_nonsense)
{
    char path[] = "/tmp/profile-XXXXXX";
    struct device_profile in = {.device = "CPU",
                                .kind = "cpu",
                                .memory = 5,
                                .host_memory = 6,
                                .flops_f32 = 1e11,
                                .flops_bf16 = 2e11,
                                .flops_layer = 1.5e11,
                                .layer_passes = 90,
                                .memory_rate = 3e10,
                                .h2d_rate = 4e10,
                                .d2h_rate = 5e10,
                                .h2d_both_rate = 2e10,
                                .d2h_both_rate = 3e10,
                                .host_memory_rate = 9e10,
                                .cpu_update_rate = 6e8,
                                .cpu_update_copy_rate = 5e8,
                                .cpu_update_aside_rate = 4e8,
                                .cpu_update_fp8_rate = 11e8,
                                .cpu_update_fp8_copy_rate = 9e8,
                                .disk_read_rate = 7e8,
                                .disk_write_rate = 8e8,
                                .disk_read_both_rate = 5e8,
                                .disk_write_both_rate = 6e8};
    struct device_profile out;
    struct err err = {0};
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(device_profile_save(path, &in, &err), 0, "%s", err.msg);
    cr_assert_eq(device_profile_load(path, &out, &err), 0, "%s", err.msg);
    cr_expect_str_eq(out.device, "CPU");
    cr_expect_eq(out.host_memory, 6);
    cr_expect_eq(out.disk_write_rate, 8e8);
    cr_expect_eq(out.disk_write_both_rate, 6e8);
    cr_expect_eq(out.cpu_update_aside_rate, 4e8);
    cr_expect(out.cpu_update_fp8_rate == 11e8 && out.cpu_update_fp8_copy_rate == 9e8);
    in.memory_rate = 0; /* a rate of nothing would make every plan take forever */
    cr_assert_eq(device_profile_save(path, &in, &err), 0);
    cr_expect_eq(device_profile_load(path, &out, &err), ERR_INVALID);
    remove(path);
}
