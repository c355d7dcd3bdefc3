/*
 * What offloaded weights cost on the link: with one group of micro-batches a step a chunk's
 * parameters come for forward and for backward and its gradient goes back once, each in the two
 * bytes that the model computes in; masters and moments never cross it.
 */
#include <criterion/criterion.h>
#include <glob.h>

#include "tests/unit/worker/plan/rig.h"

/* Bytes of weights and gradients on the link in a step, both ways. */
static int64_t chunk_traffic(const struct plan *p, const char *of)
{
    int64_t bytes = 0;
    for (int64_t k = 0; k < p->lists[LIST_TRAIN].n; k++) {
        const struct instr *i = &p->lists[LIST_TRAIN].items[k];
        if (i->chunk < 0 || (i->queue != QUEUE_H2D && i->queue != QUEUE_D2H))
            continue;
        cr_expect_neq(i->payload, PAYLOAD_STATE, "%s: a state crosses the link", of);
        size_t want = 2 * (size_t)p->chunks.chunks[i->chunk].n;
        cr_expect(plan_move_bytes(p, i) == want && p->places[i->src].bytes == want &&
                      p->places[i->dst].bytes == want,
                  "%s: %s of chunk %d is not of 16 bits a parameter", of, instr_op_name(i->op),
                  i->chunk);
        bytes += (int64_t)plan_move_bytes(p, i);
    }
    return bytes;
}

static void check_model(struct rig *r, const char *of)
{
    const struct plan *p = rig_plan(r);
    int64_t n = 0;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        cr_expect_eq(p->places[p->chunk[c].param].tier, TIER_HOST,
                     "%s: chunk %lld is not offloaded", of, (long long)c);
        n += p->chunks.chunks[c].n;
    }
    int64_t bytes = chunk_traffic(p, of);
    cr_expect_leq(bytes, 6 * n, "%s: %g bytes a parameter", of, (double)bytes / (double)n);
    cr_expect_geq(bytes, 4 * n, "%s: %g bytes a parameter", of, (double)bytes / (double)n);
}

/* Gradients of one micro-batch are kept in the compute type, sums over several in float or in it;
 * both are rounded before they travel. */
Test(traffic, six_bytes_an_offloaded_parameter_in_every_family)
{
    static const enum master_kind masters[] = {MASTER_FP32, MASTER_BF16, MASTER_SPLIT};
    glob_t models;
    cr_assert_eq(glob("tests/golden/*/*/model", 0, NULL, &models), 0);
    for (size_t m = 0; m < models.gl_pathc; m++) {
        struct decoder_config config = {0};
        struct err err = {0};
        struct rig r;
        rig_init(&r, 1, 4);
        cr_assert_eq(decoder_config_load(models.gl_pathv[m], &config, &err), 0, "%s", err.msg);
        model_fini(&r.model);
        model_init(&r.model, &config);
        r.in.ops = device_ops(r.device, DT_BF16);
        r.in.policy = PLACE_CPU;
        r.in.seq_length = 12;
        r.in.force.group = r.in.micro_batches;
        r.in.force.turn = 0; /* nothing stays on the gpu from one use to the next */
        for (size_t k = 0; k < 2 * sizeof masters / sizeof masters[0]; k++) {
            r.in.bf16_grads = k % 2;
            r.in.master = masters[k / 2];
            check_model(&r, models.gl_pathv[m]);
        }
        rig_fini(&r);
    }
    globfree(&models);
}
