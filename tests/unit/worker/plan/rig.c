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
}

void rig_fini(struct rig *r)
{
    model_fini(&r->model);
    device_close(r->device);
}
