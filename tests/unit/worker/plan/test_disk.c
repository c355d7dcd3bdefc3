/* Parameters and gradients on the disk: what crosses it, how long that takes, and when they go. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/unit/worker/plan/rig.h"
#include "worker/plan/alternatives.h"

/* Moves between disk and host memory of one piece of a chunk. */
struct moves {
    int64_t params_in, params_out, grads_in, grads_out;
};

static struct moves count_moves(const struct plan *p, enum plan_list list, int64_t chunk,
                                int64_t piece)
{
    struct moves m = {0};
    for (int64_t n = 0; n < p->lists[list].n; n++) {
        const struct instr *i = &p->lists[list].items[n];
        if (i->chunk != chunk || i->slice != piece || i->payload == PAYLOAD_STATE)
            continue;
        bool grad = i->payload == PAYLOAD_GRAD;
        if (i->op == INSTR_STAGE)
            *(grad ? &m.grads_in : &m.params_in) += 1;
        else if (i->op == INSTR_UNSTAGE)
            *(grad ? &m.grads_out : &m.params_out) += 1;
    }
    return m;
}

static int64_t size_of_parameters(const struct plan *p)
{
    size_t bytes = 0;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        bytes += chunk_payload_bytes(&p->chunks.chunks[c], PAYLOAD_PARAM, p->types);
    return (int64_t)bytes;
}

static void expect_moves(const struct plan *p, int64_t c)
{
    bool trains = p->chunks.chunks[c].trainable, whole = chunk_has_whole_master(p->types);
    for (int64_t k = 0; k < p->chunk[c].n_pieces; k++) {
        struct moves train = count_moves(p, LIST_TRAIN, c, k);
        struct moves eval = count_moves(p, LIST_EVAL, c, k);
        struct moves load = count_moves(p, LIST_LOAD, c, k);
        struct moves save = count_moves(p, LIST_SAVE, c, k);
        cr_expect_eq(train.grads_in, trains);
        cr_expect_eq(train.grads_out, trains);
        cr_expect_eq(train.params_out, trains, "frozen ones are only read");
        /* for forward or backward, and beside half a master for the update */
        cr_expect_geq(train.params_in, 1 + (trains && !whole));
        cr_expect_leq(train.params_in, 2 + (trains && !whole));
        cr_expect_eq(eval.params_in, 1);
        cr_expect_eq(eval.params_out + eval.grads_in + eval.grads_out, 0);
        cr_expect_eq(load.params_out, 1);
        cr_expect_eq(save.params_in, trains);
        cr_expect_eq(save.params_out, 0);
    }
}

Test(disk, each_piece_crosses_as_often_as_it_must)
{
    static const struct {
        enum dtype compute;
        enum master_kind master;
        bool frozen;
    } cases[] = {{DT_F32, MASTER_FP32, false},
                 {DT_BF16, MASTER_FP32, false},
                 {DT_BF16, MASTER_SPLIT, false},
                 {DT_BF16, MASTER_FP32, true}};
    for (size_t t = 0; t < sizeof cases / sizeof cases[0]; t++) {
        struct rig r;
        rig_init(&r, 4, 2);
        r.in.ops = device_ops(r.device, cases[t].compute);
        r.in.master = cases[t].master;
        r.in.policy = PLACE_CPU;
        r.in.limit[TIER_NVME] = 1 << 30;
        r.in.force.group = 2;
        r.in.force.nvme = r.in.force.nvme_params = 1000;
        if (cases[t].frozen)
            rig_freeze(&r);
        struct plan *p = rig_plan(&r);
        for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
            cr_expect_gt(p->chunk[c].n_pieces, 0);
            expect_moves(p, c);
        }
        cr_expect_eq(rig_simulate(p).memory[TIER_HOST].by_purpose[PURPOSE_GRADIENTS], 0);
        rig_fini(&r);
    }
}

Test(disk, a_slow_disk_is_busy_with_parameters_throughout)
{
    struct device_profile profile = rig_profile(1e12, 1e12, 1e9);
    struct rig r;
    profile.disk_read_rate = 3e6;
    profile.disk_write_rate = 2e6;
    profile.disk_read_both_rate = profile.disk_write_both_rate = 1.15e6;
    rig_init(&r, 12, 1);
    r.in.policy = PLACE_CPU;
    r.in.profile = &profile;
    r.in.limit[TIER_NVME] = 1 << 30;
    r.in.force.nvme = r.in.force.nvme_params = 1000;
    struct plan_simulation sim = rig_simulate(rig_plan(&r));
    cr_expect_lt(sim.seconds, 1.1 * sim.bound, "%g, %g", sim.seconds, sim.bound);
    rig_fini(&r);
}

/* Is there a way out of a refusal that changes the disk's limit? Of at most `most` bytes. */
static bool offers_more_disk(const struct plan_input *in, size_t most)
{
    const size_t room[TIER_COUNT] = {[TIER_NVME] = most};
    json_t *ways = plan_alternatives(in, room, NULL);
    bool named = false;
    for (size_t k = 0; k < json_array_size(ways); k++) {
        const json_t *way = json_array_get(ways, k);
        const char *change = json_string_value(json_object_get(way, "change"));
        const json_t *memory = json_object_get(way, "memory");
        if (!strstr(change, "placement.nvme_limit"))
            continue;
        named = true;
        cr_expect_leq((size_t)json_integer_value(json_object_get(memory, "nvme")), most);
    }
    json_decref(ways);
    return named;
}

/* States go first; the refusal of less memory than parameters take names more of a disk as a way
 * out where the job has a limit there, up to what the disk has. */
Test(disk, parameters_go_where_states_alone_do_not_make_a_job_fit)
{
    struct rig r;
    struct err err = {0};
    struct plan *refused = NULL;
    rig_init(&r, 16, 1);
    r.in.policy = PLACE_CPU;
    size_t whole = rig_plan(&r)->claim[TIER_HOST], params = (size_t)size_of_parameters(r.plan);

    r.in.limit[TIER_NVME] = 1 << 30;
    r.in.limit[TIER_HOST] = whole - whole / 4;
    rig_plan(&r);
    cr_expect_gt(r.plan->chosen.nvme, 0);
    cr_expect_eq(r.plan->chosen.nvme_params, 0);
    r.in.limit[TIER_HOST] = params * 9 / 10;
    rig_plan(&r);
    cr_expect_gt(r.plan->chosen.nvme_params, 0);
    cr_expect_leq(r.plan->claim[TIER_HOST], params * 9 / 10);

    r.in.limit[TIER_NVME] = 0;
    cr_assert_eq(plan_build(&r.in, &refused, &err), ERR_DEVICE_OOM);
    cr_expect_not_null(strstr(err.msg, "host memory"), "%s", err.msg);
    cr_expect(!offers_more_disk(&r.in, 0));
    r.in.limit[TIER_NVME] = 4096;
    cr_expect(offers_more_disk(&r.in, 1 << 30));
    cr_expect(!offers_more_disk(&r.in, 8192));
    rig_fini(&r);
}
