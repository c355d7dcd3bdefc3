/* What the planner does so that queues run side by side: places that linger, gradients in the
 * parameters' places, updates in the middle. */
#include <criterion/criterion.h>
#include <math.h>

#include "tests/unit/worker/plan/rig.h"
#include "worker/plan/build.h"
#include "worker/plan/touch.h"

/* How often the backward behind a SPILL takes the memory that is still being copied. */
static int count_reuses(const struct plan *p)
{
    const struct instr_list *l = &p->lists[LIST_TRAIN];
    int n = 0;
    for (int64_t k = 0; k < l->n; k++) {
        if (l->items[k].op != INSTR_SPILL)
            continue;
        int64_t next = k;
        while (next < l->n && l->items[next].op != INSTR_BACKWARD)
            next++;
        if (next == l->n)
            continue;
        struct touch t[INSTR_MAX_TOUCHES];
        int touches = instr_touches(p, LIST_TRAIN, &l->items[next], t);
        for (int m = 0; m < touches; m++)
            n += t[m].place != l->items[k].src && rig_overlap(p, t[m].place, l->items[k].src);
    }
    return n;
}

Test(overlap, what_leaves_the_gpu_lingers)
{
    struct rig r;
    rig_init(&r, 6, 1);
    r.in.policy = PLACE_CPU;
    r.in.force.keep = r.in.force.turn = 0;
    for (int64_t linger = 0; linger <= 1; linger++) {
        r.in.force.linger = linger;
        struct plan *p = rig_plan(&r);
        cr_expect_eq(count_reuses(p) == 0, linger == 1, "%d places reused, linger %d",
                     count_reuses(p), (int)linger);
    }
    rig_fini(&r);
}

/* Places whose copies take longer than a layer are held while several run: for as long as that is
 * faster, which is not the same on any two machines. */
Test(overlap, saved_tensors_linger_for_as_long_as_their_copies_take)
{
    static const double layers[3] = {0.4, 1.4, 2.5}; /* that a copy takes */
    struct device_profile profile = rig_profile(1e9, 1e12, 1e12);
    struct rig r;
    rig_init(&r, 12, 1);
    r.in.policy = PLACE_CUDA;
    r.in.profile = &profile;
    struct plan *p = rig_plan(&r);
    double saved = (double)p->sizes[LIST_TRAIN][1].saved;
    double layer = rig_simulate(p).seconds / (3 * 12);
    r.in.force.offload_saved = 3;
    for (int k = 0; k < 3; k++) {
        profile.d2h_rate = profile.d2h_both_rate = saved / (layer * layers[k]);
        r.in.force.linger = PLAN_AUTO;
        cr_expect_eq(rig_plan(&r)->chosen.linger, k + 1);
        double seconds = rig_simulate(r.plan).seconds;
        for (r.in.force.linger = 0; r.in.force.linger <= 5; r.in.force.linger++)
            cr_expect_leq(seconds, (1 + 1e-9) * rig_simulate(rig_plan(&r)).seconds,
                          "copies of %g layers, linger %lld", layers[k],
                          (long long)r.in.force.linger);
    }
    rig_fini(&r);
}

Test(overlap, a_gradient_waits_in_the_place_of_its_parameters_beside_a_master)
{
    struct rig r;
    rig_init(&r, 2, 2);
    r.in.policy = PLACE_CPU;
    r.in.force.early = 0;         /* one that may be done again needs its gradient for longer */
    for (int k = 0; k < 2; k++) { /* in float the parameter is the master */
        r.in.ops = device_ops(r.device, k == 0 ? DT_BF16 : DT_F32);
        r.in.force.split_masters = 0; /* nor where it is half of it */
        struct plan *p = rig_plan(&r);
        for (int64_t n = 0; n < p->lists[LIST_TRAIN].n; n++) {
            const struct instr *i = &p->lists[LIST_TRAIN].items[n];
            if (i->op == INSTR_SPILL)
                cr_expect_eq(i->dst == p->chunk[i->chunk].param, k == 0);
            if (i->op == INSTR_UPDATE && i->queue == QUEUE_CPU)
                cr_expect_eq(i->src == i->dst, k == 0);
        }
    }
    rig_fini(&r);
}

/* The CPU takes three times as long as backward: with all updates behind it, or all in the order of
 * gradients, it idles while the other half of the step runs. */
Test(overlap, updates_run_in_backward_and_in_the_next_forward)
{
    struct device_profile profile = rig_profile(1e9, 1e12, 4e6);
    double seconds[3];
    struct rig r;
    rig_init(&r, 8, 1);
    r.in.policy = PLACE_CPU;
    r.in.profile = &profile;
    r.in.clip = false;
    for (int k = 0; k < 3; k++) {
        r.in.force.early = k == 0 ? 0 : k == 1 ? 1000 : PLAN_AUTO;
        seconds[k] = rig_simulate(rig_plan(&r)).seconds;
    }
    cr_expect_lt(seconds[2], 0.95 * seconds[0], "%g, %g", seconds[2], seconds[0]);
    cr_expect_lt(seconds[2], seconds[1], "%g, %g", seconds[2], seconds[1]);
    rig_fini(&r);
}

/* The last updates of the next forward are those of its last blocks, between every two of which
 * there is one that has run in backward. */
Test(overlap, updates_in_backward_are_spread_over_the_chunks)
{
    struct rig r;
    rig_init(&r, 8, 1);
    r.in.policy = PLACE_CPU;
    r.in.clip = false;
    for (int64_t early = 0; early <= 11; early++) { /* embedding, layers, norm, head's */
        r.in.force.early = early;
        struct plan *p = rig_plan(&r);
        int64_t n = p->chunks.n_chunks, found = 0, neighbours = 0;
        for (int64_t c = 0; c < n; c++) {
            found += p->chunk[c].early;
            neighbours += c > 0 && p->chunk[c].early && p->chunk[c - 1].early;
        }
        cr_expect_eq(found, early < n ? early : n);
        if (early <= n / 2)
            cr_expect_leq(neighbours, 1); /* chunks of one block are in order, blocks are not */
    }
    rig_fini(&r);
}

/* A parameter that is the master cannot lend its place. Gradients that share one wait for the
 * updates before them, and backward waits for the gradients. */
Test(overlap, gradients_have_places_of_their_own_where_that_is_faster)
{
    struct device_profile profile = rig_profile(1e9, 1e12, 6e6);
    double seconds[2];
    struct rig r;
    rig_init(&r, 8, 1);
    r.in.policy = PLACE_CPU;
    r.in.profile = &profile;
    r.in.clip = false;
    r.in.force.early = 8;
    r.in.force.linger = 0;
    for (int k = 0; k < 2; k++) {
        r.in.force.grad_homes = k == 0 ? 0 : PLAN_AUTO;
        struct plan *p = rig_plan(&r);
        seconds[k] = rig_simulate(p).seconds;
        for (int64_t c = 0; c < p->chunks.n_chunks; c++)
            cr_expect_eq(p->chunk[c].grad_home != NO_PLACE, k == 1);
        for (int64_t n = 0; n < p->lists[LIST_TRAIN].n; n++) {
            const struct instr *i = &p->lists[LIST_TRAIN].items[n];
            if (i->op == INSTR_SPILL && k == 1)
                cr_expect_eq(i->dst, p->chunk[i->chunk].grad_home);
        }
    }
    cr_expect_lt(seconds[1], 0.95 * seconds[0], "%g, %g", seconds[1], seconds[0]);
    /* where there is no room for all, some */
    r.in.limit[TIER_HOST] = r.plan->claim[TIER_HOST] - 1;
    cr_expect_lt(rig_plan(&r)->chosen.grad_homes, r.plan->chunks.n_chunks);
    cr_expect_lt(rig_simulate(r.plan).seconds, seconds[0]);
    rig_fini(&r);
}

/* Updates that run beside the next pass's copies take longer than those behind which nothing runs:
 * such a step is not what others take. */
Test(overlap, a_step_takes_as_long_as_its_busiest_queue)
{
    struct device_profile profile = rig_profile(1e9, 1e8, 3.2e7);
    struct rig r;
    profile.cpu_update_copy_rate = 8e6;
    profile.host_memory_rate = 1e15;
    rig_init(&r, 8, 1);
    r.in.policy = PLACE_CPU;
    r.in.profile = &profile;
    r.in.clip = false;
    r.in.force.early = 0;
    double bound = plan_time_bound(rig_plan(&r), LIST_TRAIN, &profile, SPECULATION_HOLDS, false);
    double seconds = rig_simulate(r.plan).seconds;
    cr_expect_geq(seconds, bound * (1 - 1e-9), "%g, %g", seconds, bound);
    rig_fini(&r);
}

/* Copies that are half as fast while the processor updates, and these go on as long as they do:
 * what is copied meanwhile takes twice as long, and less where only one direction is busy. */
Test(overlap, updates_slow_copies_down)
{
    struct device_profile profile = rig_profile(1e12, 1e8, 2e7);
    double seconds[2];
    struct rig r;
    profile.memory_rate = profile.host_memory_rate = 1e15;
    rig_init(&r, 8, 1);
    r.in.policy = PLACE_CPU;
    r.in.profile = &profile;
    r.in.clip = false;
    struct plan_simulation sim = rig_simulate(rig_plan(&r));
    r.in.force = r.plan->chosen;
    double copies = (double)(sim.link_bytes[LINK_H2D] + sim.link_bytes[LINK_D2H]) / 1e8;
    for (int k = 0; k < 2; k++) {
        profile.copy_update_rate = profile.copy_update_fp8_rate = k == 0 ? 1e8 : 0.5e8;
        seconds[k] = rig_simulate(rig_plan(&r)).seconds;
    }
    cr_expect_gt(seconds[1], 1.1 * seconds[0], "%g, %g", seconds[1], seconds[0]);
    cr_expect_leq(seconds[1], seconds[0] + copies, "%g, %g, %g", seconds[1], seconds[0], copies);
    rig_fini(&r);
}

/* States on a disk that is slower than all else: it is busy throughout, and the bound knows whether
 * reads and writes at a time gain anything. */
Test(overlap, a_slow_disk_is_never_idle)
{
    struct device_profile profile = rig_profile(1e12, 1e12, 1e9);
    profile.disk_read_rate = 3e6;
    profile.disk_write_rate = 2e6;
    struct rig r;
    rig_init(&r, 8, 1);
    r.in.policy = PLACE_CPU;
    r.in.profile = &profile;
    r.in.limit[TIER_NVME] = 1 << 30;
    r.in.force.nvme = 1000;
    for (int duplex = 0; duplex < 2; duplex++) {
        profile.disk_read_both_rate = duplex ? 3e6 : 1.15e6;
        profile.disk_write_both_rate = duplex ? 2e6 : 1.15e6;
        struct plan_simulation sim = rig_simulate(rig_plan(&r));
        double read = (double)sim.link_bytes[LINK_DISK_READ] / profile.disk_read_rate;
        double write = (double)sim.link_bytes[LINK_DISK_WRITE] / profile.disk_write_rate;
        cr_assert_gt(read, 0);
        cr_expect_float_eq(sim.bound, duplex ? write : read + write, 1e-9 * write, "%g %g %g %g",
                           read, write, sim.bound, sim.seconds);
        cr_expect_lt(sim.seconds, 1.1 * sim.bound, "%g, %g", sim.seconds, sim.bound);
        profile.disk_best = 1.25; /* which others leave it at times: no plan counts on it */
        struct plan_simulation at_best = rig_simulate(rig_plan(&r));
        cr_expect_float_eq(at_best.bound, sim.bound / 1.25, 1e-9 * write);
        cr_expect_eq(at_best.seconds, sim.seconds);
        profile.disk_best = 1;
    }
    rig_fini(&r);
}

/* Clipping takes backward from the processor; updates ahead of the norm give it back, where writing
 * a second state costs less than that. */
Test(overlap, speculative_updates_run_in_backward_where_that_is_faster)
{
    struct device_profile profile = rig_profile(1e9, 1e12, 4e6);
    struct plan_simulation sim[4];
    int64_t early[4];
    struct rig r;
    rig_init(&r, 8, 1);
    r.in.ops = device_ops(r.device, DT_BF16);
    r.in.policy = PLACE_CPU;
    r.in.profile = &profile;
    for (int k = 0; k < 4; k++) { /* without clip; with clip as ever, ahead, ahead but slowly */
        r.in.clip = k > 0;
        r.in.force.early = k == 1 ? 0 : PLAN_AUTO;
        profile.cpu_update_aside_rate = k == 3 ? 4e5 : 4e6;
        sim[k] = rig_simulate(rig_plan(&r));
        early[k] = r.plan->chosen.early;
    }
    cr_expect_lt(sim[2].seconds, 0.95 * sim[1].seconds, "%g, %g", sim[2].seconds, sim[1].seconds);
    cr_expect_lt(sim[2].seconds, 1.05 * sim[0].seconds, "%g, %g", sim[2].seconds, sim[0].seconds);
    cr_expect_gt(sim[2].break_even, 0.1);
    cr_expect_leq(sim[2].break_even, 1);
    cr_expect(early[2] > 0 && early[3] == 0 && sim[1].break_even == 0 && sim[3].break_even == 0);
    rig_fini(&r);
}

/* As long as no step speculates, a plan that could costs nothing: updates are made in place, so
 * that a slow second place does not show, and a step is backward and all updates behind it. */
Test(overlap, a_step_that_clips_is_planned_apart)
{
    struct device_profile profile = rig_profile(1e9, 1e12, 4e6);
    struct plan_simulation without, with;
    double backward = 0, updates = 0;
    struct rig r;
    profile.cpu_update_aside_rate = 2e6;
    rig_init(&r, 8, 1);
    r.in.ops = device_ops(r.device, DT_BF16);
    r.in.policy = PLACE_CPU;
    r.in.profile = &profile;
    r.in.force.early = 0;
    without = rig_simulate(rig_plan(&r));
    r.in.force = r.plan->chosen;
    r.in.force.early = 4;
    with = rig_simulate(rig_plan(&r));
    for (int64_t n = 0; n < r.plan->lists[LIST_TRAIN].n; n++) {
        const struct instr *i = &r.plan->lists[LIST_TRAIN].items[n];
        if (i->op == INSTR_BACKWARD)
            backward += plan_instr_seconds(r.plan, LIST_TRAIN, i, &profile);
    }
    for (int64_t c = 0; c < r.plan->chunks.n_chunks; c++)
        updates += (double)r.plan->chunks.chunks[c].n / 4e6;
    cr_expect(without.seconds_clipped == without.seconds && without.bound_clipped == without.bound);
    cr_expect_lt(with.seconds_clipped, 1.001 * without.seconds, "%g, %g", with.seconds_clipped,
                 without.seconds);
    cr_expect_neq(with.seconds, with.seconds_clipped);
    double holds = plan_time_bound(r.plan, LIST_TRAIN, &profile, SPECULATION_HOLDS, false);
    double clipped = plan_time_bound(r.plan, LIST_TRAIN, &profile, SPECULATION_OFF, false);
    cr_expect(holds < clipped && clipped <= with.seconds_clipped);
    cr_expect_geq(clipped, backward + updates);
    cr_expect(with.bound_clipped >= backward && with.bound_clipped <= clipped);
    r.in.clip = false;
    with = rig_simulate(rig_plan(&r));
    cr_expect(isnan(with.seconds_clipped) && isnan(with.bound_clipped));
    rig_fini(&r);
}

static double aside_seconds(const struct plan *p, const struct device_profile *profile)
{
    double sum = 0;
    for (int64_t n = 0; n < p->lists[LIST_TRAIN].n; n++) {
        const struct instr *i = &p->lists[LIST_TRAIN].items[n];
        if (i->op == INSTR_UPDATE && i->shadow != NO_PLACE)
            sum += plan_instr_seconds(p, LIST_TRAIN, i, profile);
    }
    return sum;
}

/* To a second place: float states at the rate that is measured, others at that of memory. */
Test(overlap, updates_aside_take_as_long_as_they_are_made)
{
    for (int copied = 0; copied < 2; copied++) {
        struct device_profile profile = rig_profile(1e9, 1e12, 4e6);
        struct rig r;
        profile.cpu_update_aside_rate = 2e6;
        rig_init(&r, 8, 1);
        r.in.ops = device_ops(r.device, DT_BF16);
        r.in.policy = PLACE_CPU;
        r.in.profile = &profile;
        r.in.moments = copied ? MOMENTS_BF16 : MOMENTS_FP32;
        r.in.force.early = 4;
        const struct plan *p = rig_plan(&r);
        double before = aside_seconds(p, &profile);
        cr_assert_gt(before, 0);
        profile.cpu_update_aside_rate = 4e6;
        bool faster = aside_seconds(p, &profile) < 0.9 * before;
        cr_expect_eq(faster, !copied);
        profile.cpu_update_aside_rate = 2e6;
        profile.host_memory_rate /= 1000;
        bool slower = aside_seconds(p, &profile) > 1.001 * before;
        cr_expect_eq(slower, copied != 0);
        rig_fini(&r);
    }
}

/* Half of what training takes on the gpu: the plan of the shortest steps that speculate would make
 * those that clip a fifth longer. */
Test(overlap, speculation_makes_no_step_that_clips_longer)
{
    struct device_profile profile = rig_profile(1e9, 9e7, 8e6);
    struct plan_simulation without, with;
    struct rig r;
    profile.host_memory_rate = profile.memory_rate = 1e12;
    profile.cpu_update_aside_rate = 8e6;
    rig_init(&r, 12, 1);
    r.in.ops = device_ops(r.device, DT_BF16);
    r.in.profile = &profile;
    r.in.policy = PLACE_CUDA;
    r.in.limit[TIER_GPU] = rig_plan(&r)->claim[TIER_GPU] / 2;
    r.in.policy = PLACE_AUTO;
    r.in.force.early = r.in.force.split_masters = 0;
    without = rig_simulate(rig_plan(&r));
    r.in.force.early = PLAN_AUTO;
    with = rig_simulate(rig_plan(&r));
    cr_expect_lt(with.seconds, 0.95 * without.seconds, "%g, %g", with.seconds, without.seconds);
    cr_expect_lt(with.seconds_clipped, 1.01 * without.seconds_clipped, "%g, %g",
                 with.seconds_clipped, without.seconds_clipped);
    rig_fini(&r);
}
