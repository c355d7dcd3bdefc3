#include "tests/unit/worker/plan/rig.h"

#include <criterion/criterion.h>
#include <jansson.h>

void rig_init(struct rig *r, int64_t layers, int64_t micro_batches)
{
    struct device_options o = {0};
    struct decoder_config c = {0};
    struct err err = {0};
    json_t *j = json_pack("{s:s, s:i, s:i, s:I, s:i, s:i, s:i, s:s, s:b, s:f, s:f, s:i, s:b}",
                          "model_type", "opt", "vocab_size", 97, "hidden_size", 32,
                          "num_hidden_layers", (json_int_t)layers, "num_attention_heads", 4,
                          "ffn_dim", 64, "max_position_embeddings", 40, "activation_function",
                          "relu", "do_layer_norm_before", 1, "dropout", 0.1, "attention_dropout",
                          0.1, "word_embed_proj_dim", 32, "tie_word_embeddings", 1);
    cr_assert_not_null(j);
    cr_assert_eq(decoder_config_parse(j, &c, &err), 0, "%s", err.msg);
    json_decref(j);
    model_init(&r->model, &c);
    cr_assert_eq(device_open(DEVICE_CPU, 0, &o, &r->device, &err), 0, "%s", err.msg);
    r->in = (struct plan_input){.model = &r->model,
                                .ops = device_ops(r->device, DT_F32),
                                .policy = PLACE_AUTO,
                                .micro_batch = 2,
                                .micro_batches = micro_batches,
                                .seq_length = 16,
                                .head_rows = 16,
                                .clip = true,
                                .force = PLAN_CHOICES_AUTO};
    for (int a = 0; a < AXIS_COUNT; a++)
        r->in.mesh.size[a] = 1;
    r->plan = NULL;
}

void rig_fini(struct rig *r)
{
    plan_destroy(r->plan);
    model_fini(&r->model);
    device_close(r->device);
}

void rig_freeze(struct rig *r)
{
    struct model *m = &r->model;
    for (int64_t t = 0; t < m->n_tensors; t++)
        m->tensors[t].trainable =
            m->tensors[t].cols > 1 && m->tensors[t].layer == m->config.layers - 1;
}

struct plan *rig_plan(struct rig *r)
{
    struct err err = {0};
    plan_destroy(r->plan);
    r->plan = NULL;
    cr_assert_eq(plan_build(&r->in, &r->plan, &err), 0, "%s", err.msg);
    return r->plan;
}

bool rig_overlap(const struct plan *p, int64_t a, int64_t b)
{
    const struct place *x = &p->places[a], *y = &p->places[b];
    return x->tier == y->tier && x->offset < y->offset + y->bytes &&
           y->offset < x->offset + x->bytes;
}

struct plan_simulation rig_simulate(const struct plan *p)
{
    struct plan_simulation sim;
    struct err err = {0};
    cr_assert_eq(plan_simulate(p, LIST_TRAIN, &sim, &err), 0, "%s", err.msg);
    return sim;
}

struct device_profile rig_profile(double flops, double bytes, double updates)
{
    return (struct device_profile){.flops_f32 = flops,
                                   .flops_bf16 = flops,
                                   .flops_layer = flops,
                                   .flops_fp8 = flops,
                                   .layer_passes = 1,
                                   .attn64_fwd = 64 * flops, /* as fast as products at any size */
                                   .attn64_bwd = 64 * flops,
                                   .attn128_fwd = 128 * flops,
                                   .attn128_bwd = 128 * flops,
                                   .memory_rate = bytes,
                                   .disk_best = 1,
                                   .h2d_rate = bytes,
                                   .d2h_rate = bytes,
                                   .h2d_both_rate = bytes,
                                   .d2h_both_rate = bytes,
                                   .host_memory_rate = bytes,
                                   .cpu_update_rate = updates,
                                   .cpu_update_copy_rate = updates,
                                   .cpu_update_fp8_rate = updates,
                                   .cpu_update_fp8_copy_rate = updates,
                                   .copy_update_rate = bytes,
                                   .copy_update_fp8_rate = bytes};
}
