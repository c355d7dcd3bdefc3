#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "tests/unit/worker/plan/rig.h"

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
    struct plan *p = rig_plan(&r);
    cr_expect_eq(count(p, INSTR_FORWARD),
                 4 * 4); /* embedding and layers; the head's is in its backward */
    cr_expect_eq(count(p, INSTR_BACKWARD), 5 * 4);
    cr_expect_eq(count(p, INSTR_REDUCE), p->chunks.n_chunks);
    cr_expect_eq(count(p, INSTR_UPDATE), p->chunks.n_chunks);
    cr_expect_eq(count(p, INSTR_NORM), 1);
    rig_fini(&r);
}

Test(plan, the_simulated_peak_of_a_resident_step_is_the_claim)
{
    struct rig r;
    for (int64_t micro = 1; micro <= 3; micro++) {
        rig_init(&r, 2, micro);
        struct plan *p = rig_plan(&r);
        struct plan_simulation sim = rig_simulate(p);
        cr_expect_eq((size_t)sim.memory[TIER_GPU].total, p->claim[TIER_GPU], "%lld, claim %zu",
                     (long long)sim.memory[TIER_GPU].total, p->claim[TIER_GPU]);
        /* Beside what the step needs, only the place through which weights are loaded. */
        cr_expect_eq((size_t)sim.memory[TIER_HOST].total + p->places[p->io.staging].bytes,
                     p->claim[TIER_HOST]);
        cr_expect_eq(sim.link_bytes[LINK_H2D],
                     (int64_t)(plan_batch_bytes(p) + offsetof(struct step_scalars, clip)));
        cr_expect(isnan(sim.seconds));
        rig_fini(&r);
    }
}

Test(plan, a_tied_table_has_two_gradient_slots_and_one_update)
{
    struct rig r;
    rig_init(&r, 1, 1);
    struct plan *p = rig_plan(&r);
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
    rig_fini(&r);
}

Test(plan, frozen_chunks_are_only_read)
{
    struct rig r;
    rig_init(&r, 3, 2);
    rig_freeze(&r);
    cr_expect_eq(model_first_trained(&r.model), 3);
    struct plan *p = rig_plan(&r);
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
    rig_fini(&r);
}

Test(plan, refuses_what_does_not_fit_and_accepts_what_just_does)
{
    struct rig r;
    struct err err = {0};
    rig_init(&r, 2, 2);
    r.in.policy = PLACE_CUDA;
    struct plan *p = rig_plan(&r);
    size_t most = p->claim[TIER_GPU];
    cr_expect_eq(p->chosen.cheap, 1);
    r.in.limit[TIER_GPU] = most - 1; /* then less is kept for backward */
    p = rig_plan(&r);
    cr_expect_eq(p->chosen.cheap, 0);
    cr_expect_lt(p->claim[TIER_GPU], most);
    /* With nothing kept for backward, and gradients of a layer gone before the next one's, the
     * smallest there is. */
    r.in.force.keep = r.in.force.cheap = 0;
    r.in.force.group = 2;
    r.in.force.offload_boundaries = 1;
    p = rig_plan(&r);
    size_t need = p->claim[TIER_GPU];
    r.in.force = PLAN_CHOICES_AUTO;
    r.in.limit[TIER_GPU] = need - 1;
    p = NULL;
    cr_expect_eq(plan_build(&r.in, &p, &err), ERR_DEVICE_OOM);
    cr_expect_null(p);
    cr_expect_str_eq(err.reason, "insufficient_memory");
    cr_expect(strstr(err.msg, "gpu memory") && !strstr(err.msg, "host memory"), "%s", err.msg);
    err_clear(&err);
    r.in.policy = PLACE_AUTO; /* too little of both: each is named */
    r.in.limit[TIER_GPU] = r.in.limit[TIER_HOST] = 4096;
    cr_expect_eq(plan_build(&r.in, &p, &err), ERR_DEVICE_OOM);
    cr_expect(strstr(err.msg, "gpu memory") && strstr(err.msg, "host memory"), "%s", err.msg);
    r.in.policy = PLACE_CUDA;
    r.in.limit[TIER_HOST] = 0;
    r.in.limit[TIER_GPU] = need;
    rig_plan(&r);
    rig_fini(&r);
}

/* A CPU's memory is the host's. */
Test(plan, device_and_host_that_are_one_memory_share_it)
{
    struct rig r;
    struct err err = {0};
    rig_init(&r, 2, 2);
    r.in.policy = PLACE_CUDA;
    r.in.force.keep = r.in.force.cheap = 0;
    struct plan *p = rig_plan(&r);
    size_t gpu = p->claim[TIER_GPU], host = p->claim[TIER_HOST];
    cr_assert(gpu > 0 && host > 0);
    r.in.limit[TIER_GPU] = r.in.limit[TIER_HOST] = r.in.together = gpu + host;
    r.in.together_part = "the 7 bytes of an abacus";
    p = rig_plan(&r);
    cr_expect_eq(p->claim[TIER_GPU] + p->claim[TIER_HOST], gpu + host);
    r.in.force = p->chosen;
    r.in.together--;
    p = NULL;
    cr_expect_eq(plan_build(&r.in, &p, &err), ERR_DEVICE_OOM);
    cr_expect(strstr(err.msg, "MiB of the 7 bytes of an abacus"), "%s", err.msg);
    err_clear(&err);
    r.in.limit[TIER_HOST] = host - 1; /* that alone is too little, and told alone */
    r.in.part[TIER_HOST] = "all shelves";
    cr_expect_eq(plan_build(&r.in, &p, &err), ERR_DEVICE_OOM);
    cr_expect(strstr(err.msg, "host memory and may use") && strstr(err.msg, "of all shelves") &&
                  !strstr(err.msg, "abacus"),
              "%s", err.msg);
    rig_fini(&r);
}

Test(plan, saved_tensors_wait_in_host_memory_rather_than_being_made_again)
{
    struct device_profile profile = device_profile_nominal;
    struct rig r;
    rig_init(&r, 6, 2);
    r.in.policy = PLACE_CUDA;
    r.in.profile = &profile;
    profile.flops_f32 = 1e9; /* so that a layer takes longer than its tensors travel */
    r.in.force.cheap = r.in.force.offload_boundaries = 0;
    struct plan *p = rig_plan(&r);
    cr_expect_eq(p->chosen.offload_saved, 0);
    size_t most = p->claim[TIER_GPU], saved = p->sizes[LIST_TRAIN][1].saved;
    r.in.limit[TIER_GPU] = most - 1;
    p = rig_plan(&r);
    cr_expect_eq(p->chosen.keep, 6);
    cr_expect_gt(p->chosen.offload_saved, 0);
    cr_expect_eq(count(p, INSTR_SAVE_ACT), 2 * p->chosen.offload_saved);
    cr_expect_eq(count(p, INSTR_LOAD_ACT), 2 * p->chosen.offload_saved);
    struct plan_simulation sim = rig_simulate(p);
    cr_expect_eq((size_t)sim.link_bytes[LINK_D2H] / saved, (size_t)(2 * p->chosen.offload_saved));
    profile.h2d_rate = profile.d2h_rate = 1e6; /* no link to speak of */
    p = rig_plan(&r);
    cr_expect_eq(p->chosen.offload_saved, 0);
    cr_expect_lt(p->chosen.keep, 6);
    rig_fini(&r);
}

Test(plan, holds_as_many_rounded_layers_as_fit)
{
    struct rig r;
    rig_init(&r, 6, 2);
    r.in.policy = PLACE_CUDA;
    struct plan *p = rig_plan(&r);
    cr_expect_eq(p->chosen.rounded, 0);
    r.in.fp8 = true;
    p = rig_plan(&r);
    cr_expect_eq(p->chosen.rounded, 6);
    size_t most = p->claim[TIER_GPU];
    r.in.limit[TIER_GPU] = most - 1; /* something is held less before less is kept for backward */
    p = rig_plan(&r);
    cr_expect_eq(p->chosen.cheap, 1);
    cr_expect_lt(p->chosen.rounded, 6);
    cr_expect_gt(p->chosen.rounded, 0);
    cr_expect_lt(p->claim[TIER_GPU], most);
    rig_fini(&r);
}

/* Everything resident, so that the step is the sum of what its blocks and updates take. */
Test(plan, time_knows_products_in_8_bits_and_sums_over_micro_batches)
{
    struct device_profile profile = rig_profile(1e9, 1e9, 1e9);
    double seconds[2], products = 0, summed = 0;
    struct rig r;
    rig_init(&r, 3, 1);
    r.in.ops = device_ops(r.device, DT_BF16);
    r.in.policy = PLACE_CUDA;
    r.in.profile = &profile;
    r.in.fp8 = true;
    r.in.head_rows = 32; /* the head adds to its gradients once a micro-batch */
    for (int k = 0; k < 2; k++) {
        profile.flops_fp8 = k ? 2e9 : 1e9;
        seconds[k] = plan_seconds(rig_plan(&r));
    }
    for (int64_t block = 1; block <= 3; block++)
        for (int backward = 0; backward < 2; backward++)
            products +=
                block_flops(&r.model, block, &r.plan->shapes[LIST_TRAIN], backward).products;
    cr_expect_float_eq(seconds[0] - seconds[1], products / 2e9, 1e-9 * seconds[0]);
    r.in.fp8 = false;
    for (int k = 0; k < 2; k++) { /* all rows at a time, and one by one */
        r.in.micro_batch = k ? 1 : 2;
        r.in.micro_batches = k ? 2 : 1;
        seconds[k] = plan_seconds(rig_plan(&r));
    }
    for (int64_t i = 0; i < r.plan->lists[LIST_TRAIN].n; i++) {
        const struct instr *now = &r.plan->lists[LIST_TRAIN].items[i];
        const struct block_operands *o = &r.plan->operands[now->operands];
        for (int32_t c = 0;
             now->op == INSTR_BACKWARD && !now->first_grad && now->block > 0 && c < o->n_chunks;
             c++)
            summed += (double)r.plan->chunks.chunks[o->chunk[c]].n;
    }
    cr_expect_gt(summed, 0);
    cr_expect_float_eq(seconds[1] - seconds[0], 4 * summed / 1e9, 1e-9 * seconds[0], "%g, %g",
                       seconds[1] - seconds[0], 4 * summed / 1e9);
    rig_fini(&r);
}

/* Of layers only: attention at its own rate, and what the last wave of a product leaves idle. */
Test(plan, time_is_that_of_attention_and_of_whole_waves)
{
    struct device_profile profile = rig_profile(1e9, 1e12, 1e12), slower = profile;
    double attention = 0, idle = 0;
    struct rig r;
    rig_init(&r, 3, 1);
    r.in.ops = device_ops(r.device, DT_BF16);
    r.in.policy = PLACE_CUDA;
    r.in.profile = &profile;
    slower.attn64_fwd = 4e9;
    slower.attn64_bwd = 2e9;
    double before = plan_seconds(rig_plan(&r));
    for (int64_t block = 1; block <= 3; block++)
        for (int back = 0; back < 2; back++) {
            const struct block_shape *s = &r.plan->shapes[LIST_TRAIN];
            double flops = block_flops(&r.model, block, s, back).attention;
            double rate = device_profile_attention(&slower, r.model.config.head_dim, back);
            attention += flops / rate - flops / 1e9;
            idle += block_idle_flops(&r.model, block, s, back, 132);
        }
    r.in.profile = &slower;
    cr_expect_float_eq(plan_seconds(rig_plan(&r)) - before, attention, 1e-9 * before);
    r.in.profile = &profile;
    profile.multiprocessors = 132;
    cr_expect_float_eq(plan_seconds(rig_plan(&r)) - before, idle / 1e9, 1e-9 * before);
    cr_expect(attention > 0 && idle > 0);
    rig_fini(&r);
}

/* 26 bytes of a parameter are updated faster than 28, and what is resident may be less. */
Test(plan, masters_are_split_where_that_is_faster_or_fits)
{
    struct device_profile profile = rig_profile(1e12, 1e12, 1e6);
    double seconds[2];
    struct rig r;
    profile.cpu_update_fp8_rate = profile.cpu_update_fp8_copy_rate = 2e6;
    profile.cpu_update_aside_rate = 1e6;
    rig_init(&r, 6, 1);
    r.in.profile = &profile;
    for (int clip = 0; clip < 2; clip++) {
        r.in.ops = device_ops(r.device, DT_BF16);
        r.in.policy = PLACE_CPU;
        r.in.clip = clip;
        for (int k = 0; k < 2; k++) {
            r.in.force.split_masters = k ? PLAN_AUTO : 0;
            seconds[k] = rig_simulate(rig_plan(&r)).seconds;
            cr_expect_eq(r.plan->chosen.split_masters, k);
            cr_expect_eq(r.plan->types.master, k ? DT_I16 : DT_F32);
        }
        cr_expect_lt(seconds[1], 0.95 * seconds[0]);
        r.in.master = MASTER_SPLIT; /* what the job asks for is no choice */
        cr_expect_eq(rig_plan(&r)->chosen.split_masters, 0);
        r.in.master = MASTER_FP32;
        r.in.ops = device_ops(r.device, DT_F32);
        cr_expect_eq(rig_plan(&r)->chosen.split_masters, 0);
    }
    r.in.ops = device_ops(r.device, DT_BF16);
    r.in.policy = PLACE_CUDA;
    size_t low = 0, high = rig_plan(&r)->claim[TIER_GPU];
    while (high - low > 1) { /* the least with whole masters */
        struct plan *p = NULL;
        r.in.limit[TIER_GPU] = low + (high - low) / 2;
        r.in.force.split_masters = 0;
        *(plan_build(&r.in, &p, NULL) == 0 ? &high : &low) = r.in.limit[TIER_GPU];
        plan_destroy(p);
    }
    r.in.limit[TIER_GPU] = low;
    r.in.force.split_masters = PLAN_AUTO;
    cr_expect_eq(rig_plan(&r)->chosen.split_masters, 1);
    rig_fini(&r);
}

Test(plan, time_is_that_of_the_busiest_queue_at_least)
{
    struct device_profile profile = rig_profile(1e9, 1e9, 1e9);
    profile.host_memory_rate = 1e11;
    struct rig r;
    rig_init(&r, 2, 1);
    r.in.profile = &profile;
    struct plan_simulation one = rig_simulate(rig_plan(&r));
    r.in.micro_batches = 4;
    struct plan_simulation four = rig_simulate(rig_plan(&r));
    cr_expect_gt(one.seconds, 0);
    cr_expect_geq(one.seconds, one.bound);
    cr_expect_gt(four.seconds, 2 * one.seconds);
    cr_expect_lt(four.seconds, 4 * one.seconds); /* one update for all */
    rig_fini(&r);
}

Test(plan, prints_one_line_an_instruction)
{
    struct rig r;
    struct buf text = {0};
    rig_init(&r, 1, 2);
    struct plan *p = rig_plan(&r);
    plan_print(p, LIST_TRAIN, &text);
    int64_t lines = 0;
    for (size_t i = 0; i < text.len; i++)
        lines += text.data[i] == '\n';
    cr_expect_eq(lines, p->lists[LIST_TRAIN].n + 1 + TIER_COUNT);
    cr_expect(strstr(text.data, "BACKWARD block 2 micro-batch 1") != NULL, "%s", text.data);
    buf_fini(&text);
    rig_fini(&r);
}
