/* Adapters: which modules, finite differences of every kind of layer, and what must not change the
 * numbers. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/unit/worker/model/rig.h"
#include "worker/model/adapter.h"

static const char *const everywhere[] = {"all-linear"};
static const struct adapter_config all_linear = {
    .rank = 3, .alpha = 2, .targets = everywhere, .n_targets = 1};

static void name_family(struct decoder_config *c, const char *family)
{
    snprintf(c->family, sizeof(c->family), "%s", family);
}

static struct decoder_config llama_like(void)
{
    struct decoder_config c = rig_small_config();

    name_family(&c, "llama");
    c.norm = NORM_RMS;
    c.norm_bias = c.qkv_bias = c.out_bias = c.mlp_bias = false;
    c.position = POSITION_ROPE;
    c.rope = (struct rope_config){.style = ROPE_HALF, .dim = 4, .base = 10000};
    c.kv_heads = 2;
    c.act = ACT_SILU;
    c.gated = true;
    c.tied = false;
    return c;
}

static struct decoder_config gpt2_like(void)
{
    struct decoder_config c = rig_small_config();

    name_family(&c, "gpt2");
    c.act = ACT_GELU_TANH;
    return c;
}

static struct decoder_config post_norm(void)
{
    struct decoder_config c = gpt2_like();

    name_family(&c, "opt");
    c.norm_place = NORM_PLACE_POST;
    c.final_norm = false;
    c.embed_dim = 8;
    return c;
}

/* q, k and v in planes of their own: as three modules, and as one across all planes. */
static struct decoder_config planes(void)
{
    struct decoder_config c = llama_like();

    name_family(&c, "qwen3");
    c.qk_norm = QK_NORM_SHARED;
    return c;
}

static struct decoder_config fused_planes(void)
{
    struct decoder_config c = planes();

    name_family(&c, "phi3");
    return c;
}

static struct decoder_config sandwich(void)
{
    struct decoder_config c = llama_like();

    name_family(&c, "gemma2");
    c.norm = NORM_RMS_PLUS_ONE;
    c.norm_place = NORM_PLACE_SANDWICH;
    return c;
}

static struct decoder_config parallel_two_norms(void)
{
    struct decoder_config c = llama_like();

    name_family(&c, "gpt_neox");
    c.residual = RESIDUAL_PARALLEL_2NORM;
    c.gated = false;
    c.act = ACT_GELU_ERF;
    return c;
}

static struct decoder_config parallel_one_norm(void)
{
    struct decoder_config c = llama_like();

    c.residual = RESIDUAL_PARALLEL_1NORM;
    return c;
}

/* ReLU, whose output alone is kept. */
static struct decoder_config relu(void)
{
    return rig_small_config();
}

typedef struct decoder_config (*config_fn)(void);
static const config_fn configs[] = {relu,     gpt2_like,          post_norm,
                                    planes,   fused_planes,       llama_like,
                                    sandwich, parallel_two_norms, parallel_one_norm};
enum { N_CONFIGS = sizeof(configs) / sizeof(configs[0]) };

static void open_rig(struct rig *r, config_fn config, const struct adapter_config *a,
                     enum dtype compute, bool dropout)
{
    struct decoder_config c = config();

    rig_open(r, &c, compute, true, 4, 6);
    rig_adapt(r, a);
    rig_random_weights(r, 0.3);
    rig_random_batch(r);
    if (dropout)
        r->hidden_dropout = r->lora_dropout = 0.25;
}

/* d(sum of losses) of the adapters' elements by central differences in double; the weights' own
 * gradients stay as they were. */
static void check_gradients(config_fn config, const struct adapter_config *a)
{
    const double h = 1e-5;
    double worst = 0;
    struct rig r;

    open_rig(&r, config, a, DT_F64, true);
    rig_train(&r, 2, ACCUM_ASSIGN);
    for (int64_t t = 0; t < r.m.n_weights; t++)
        cr_assert(isnan(rig_grad(&r, t, 0)), "%s was written",
                  tensor_role_name(r.m.tensors[t].role));
    for (int64_t t = r.m.n_weights; t < r.m.n_tensors; t++) {
        int64_t n = tensor_elements(&r.m.tensors[t]), stride = n > 24 ? n / 24 : 1;

        for (int64_t i = 0; i < n; i += stride) {
            double was = rig_weight(&r, t, i), up, down, error;

            rig_set_weight(&r, t, i, was + h);
            up = rig_evaluate(&r, 4);
            rig_set_weight(&r, t, i, was - h);
            down = rig_evaluate(&r, 4);
            rig_set_weight(&r, t, i, was);
            error = fabs((up - down) / (2 * h) - rig_grad(&r, t, i));
            cr_assert_leq(error, 1e-7, "%s %s[%d]: gradient %g is off by %g", r.m.config.family,
                          tensor_role_name(r.m.tensors[t].role), (int)i, rig_grad(&r, t, i), error);
            worst = fmax(worst, error);
        }
    }
    fprintf(stderr, "gradients of adapters, %s: %.2g %% of the tolerance used\n", r.m.config.family,
            100 * worst / 1e-7);
    rig_close(&r);
}

Test(adapter, gradients_everywhere)
{
    for (int i = 0; i < N_CONFIGS; i++)
        check_gradients(configs[i], &all_linear);
}

/* Each module alone: what it needs of its neighbours' computation is there. */
Test(adapter, gradients_of_single_modules)
{
    static const struct {
        config_fn config;
        const char *target;
    } cases[] = {
        {llama_like, "k_proj"},
        {llama_like, "o_proj"},
        {llama_like, "up_proj"},
        {llama_like, "down_proj"},
        {relu, "fc1"},
        {relu, "fc2"},
        {gpt2_like, "mlp.c_proj"},
        {gpt2_like, "attn.c_proj"},
        {gpt2_like, "h.1.mlp.c_fc"},
        {post_norm, "project_in"},
        {post_norm, "project_out"},
        {parallel_two_norms, "dense"},
        {planes, "v_proj"},
        {parallel_one_norm, "gate_proj"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct adapter_config a = {
            .rank = 2, .alpha = 3, .rslora = true, .targets = &cases[i].target, .n_targets = 1};

        check_gradients(cases[i].config, &a);
    }
}

/* What the adapters add is what adding scale B A to the matrices adds. */
static void merge(struct rig *r)
{
    int64_t rank = r->m.adapters.rank;

    for (int64_t b = r->m.n_weights; b < r->m.n_tensors; b += 2) {
        const struct tensor_desc *ta = &r->m.tensors[b], *tb = &r->m.tensors[b + 1];
        const struct adaptable *of = NULL;
        int64_t weight = 0, b_row = 0, part = 0;

        for (int i = 0; i < ADAPTABLE_MATRICES; i++) {
            if (r->m.adapters.matrices[i].a == ta->role)
                of = &r->m.adapters.matrices[i];
        }
        while (r->m.tensors[weight].role != of->matrix || r->m.tensors[weight].layer != ta->layer)
            weight++;
        for (int64_t p = 0; p < of->n_parts; p++) {
            if (!(ta->parts >> p & 1))
                continue;
            for (int64_t row = 0; row < of->parts[p].rows; row++) {
                for (int64_t col = 0; col < ta->cols; col++) {
                    int64_t at = (of->parts[p].first_row + row) * ta->cols + col;
                    double sum = 0;

                    for (int64_t k = 0; k < rank; k++)
                        sum += rig_weight(r, b + 1, (b_row + row) * rank + k) *
                               rig_weight(r, b, (part * rank + k) * ta->cols + col);
                    rig_set_weight(r, weight, at,
                                   rig_weight(r, weight, at) + (double)r->m.adapters.scale * sum);
                }
            }
            b_row += of->parts[p].rows;
            part++;
        }
        cr_assert_eq(b_row, tb->rows);
        for (int64_t i = 0; i < tensor_elements(tb); i++)
            rig_set_weight(r, b + 1, i, 0);
    }
}

Test(adapter, adds_the_product_of_its_matrices)
{
    for (int i = 0; i < N_CONFIGS; i++) {
        double beside, merged, before;
        struct rig r;

        open_rig(&r, configs[i], &all_linear, DT_F64, false);
        beside = rig_evaluate(&r, 4);
        merge(&r);
        merged = rig_evaluate(&r, 4);
        cr_assert_leq(fabs(beside - merged), 1e-11 * merged, "%s: %.17g beside, %.17g merged",
                      r.m.config.family, beside, merged);
        rig_random_weights(&r, 0.3);
        for (int64_t t = r.m.n_weights; t < r.m.n_tensors; t++) {
            for (int64_t k = 0; k < tensor_elements(&r.m.tensors[t]); k++)
                rig_set_weight(&r, t, k, 0);
        }
        before = rig_evaluate(&r, 4);
        cr_assert_gt(fabs(before - merged), 1e-3); /* it did add something */
        rig_close(&r);
    }
}

static double *adapter_grads(const struct rig *r)
{
    double *g = xcalloc((size_t)r->m.adapters.n_params, sizeof(double));
    int64_t at = 0;

    for (int64_t t = r->m.n_weights; t < r->m.n_tensors; t++) {
        for (int64_t i = 0; i < tensor_elements(&r->m.tensors[t]); i++)
            g[at++] = rig_grad(r, t, i);
    }
    cr_assert_eq(at, r->m.adapters.n_params);
    return g;
}

Test(adapter, recomputation_gives_the_same_bits)
{
    for (int i = 0; i < N_CONFIGS; i++) {
        struct rig kept, again;
        double *a, *b;

        open_rig(&kept, configs[i], &all_linear, DT_F32, true);
        open_rig(&again, configs[i], &all_linear, DT_F32, true);
        again.recompute = true;
        rig_train(&kept, 2, ACCUM_ASSIGN);
        rig_train(&again, 2, ACCUM_ASSIGN);
        a = adapter_grads(&kept);
        b = adapter_grads(&again);
        cr_assert_arr_eq(a, b, (size_t)kept.m.adapters.n_params * sizeof(double));
        free(a);
        free(b);
        rig_close(&kept);
        rig_close(&again);
    }
}

/* Neither cuts of the batch nor of the head's rows show, nor what gradients held before. */
Test(adapter, gradients_do_not_depend_on_cuts)
{
    for (int i = 0; i < N_CONFIGS; i++) {
        double *whole, *cut, largest = 0;
        struct rig r;

        open_rig(&r, configs[i], &all_linear, DT_F64, true);
        rig_train(&r, 4, ACCUM_ASSIGN);
        whole = adapter_grads(&r);
        r.head_rows = 4;
        rig_train(&r, 1, ACCUM_ASSIGN);
        cut = adapter_grads(&r);
        for (int64_t k = 0; k < r.m.adapters.n_params; k++)
            largest = fmax(largest, fabs(whole[k]));
        for (int64_t k = 0; k < r.m.adapters.n_params; k++)
            cr_assert_leq(fabs(whole[k] - cut[k]), 1e-12 * largest);
        free(whole);
        free(cut);
        rig_close(&r);
    }
}

/* ---- which modules -----------------------------------------------------------------------------
 */

static int adapt(struct model *m, config_fn config, const struct adapter_config *a, struct err *err)
{
    struct decoder_config c = config();

    model_init(m, &c);
    return model_adapt(m, a, err);
}

static void expect_parts(const struct model *m, enum tensor_role a, int64_t layer, uint32_t parts)
{
    for (int64_t t = m->n_weights; t < m->n_tensors; t++) {
        if (m->tensors[t].role == a && m->tensors[t].layer == layer) {
            cr_assert_eq(m->tensors[t].parts, parts);
            return;
        }
    }
    cr_assert_eq(parts, 0);
}

Test(adapter, modules_are_named_as_peft_names_them)
{
    static const char *const targets[] = {"q_proj", "self_attn.v_proj",
                                          "model.layers.1.mlp.up_proj"};
    struct adapter_config a = {.rank = 2, .alpha = 4, .targets = targets, .n_targets = 3};
    struct err err = {0};
    struct model m;
    json_t *names;

    cr_assert_eq(adapt(&m, llama_like, &a, &err), 0, "%s", err.msg);
    expect_parts(&m, TENSOR_QKV_LORA_A, 0, 1 | 4);
    expect_parts(&m, TENSOR_QKV_LORA_B, 1, 1 | 4);
    expect_parts(&m, TENSOR_UP_LORA_A, 0, 0);
    expect_parts(&m, TENSOR_UP_LORA_A, 1, 2);
    expect_parts(&m, TENSOR_DOWN_LORA_A, 1, 0);
    cr_expect_eq(m.adapters.scale, 2);
    cr_expect_eq(model_first_trained(&m), 1);
    /* q: A 2 x 16, B 16 x 2; v: B 8 x 2; up: A 2 x 16, B 24 x 2 */
    cr_expect_eq(m.adapters.n_params, 2 * (64 + 48) + 80);
    names = adapters_target_modules(&m);
    cr_expect_eq(json_array_size(names), 3);
    cr_expect_str_eq(json_string_value(json_array_get(names, 0)), "q_proj");
    cr_expect_str_eq(json_string_value(json_array_get(names, 1)), "v_proj");
    cr_expect_str_eq(json_string_value(json_array_get(names, 2)), "up_proj");
    json_decref(names);
    model_fini(&m);
}

Test(adapter, the_default_is_that_of_the_family)
{
    struct adapter_config a = {.rank = 4, .alpha = 4, .rslora = true};
    struct err err = {0};
    struct model m;

    cr_assert_eq(adapt(&m, relu, &a, &err), 0, "%s", err.msg);
    expect_parts(&m, TENSOR_QKV_LORA_A, 1, 1 | 4);
    expect_parts(&m, TENSOR_OUT_LORA_A, 1, 0);
    cr_expect_eq(m.adapters.scale, 2); /* 4 / sqrt(4) */
    model_fini(&m);
    cr_assert_eq(adapt(&m, gpt2_like, &a, &err), 0, "%s", err.msg);
    expect_parts(&m, TENSOR_QKV_LORA_A, 0, 1);
    model_fini(&m);
}

Test(adapter, every_family_has_a_default)
{
    char list[512], *rest = list, *name;

    family_list(list, sizeof(list));
    while ((name = strsep(&rest, ", ")) != NULL) {
        if (name[0] != '\0')
            cr_expect_not_null(family_find(name)->lora_targets, "%s", name);
    }
}

Test(adapter, what_is_not_there_is_refused_by_name)
{
    static const char *const targets[] = {"q_proj", "lm_head"};
    struct adapter_config a = {.rank = 2, .alpha = 4, .targets = targets, .n_targets = 2};
    struct err err = {0};
    struct model m;

    cr_assert_eq(adapt(&m, llama_like, &a, &err), ERR_INVALID);
    cr_expect_str_eq(err.param, "lora.target_modules");
    cr_expect(strstr(err.msg, "lm_head"), "%s", err.msg);
    cr_expect(strstr(err.msg, "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
              "%s", err.msg);
    cr_expect_eq(m.n_tensors, m.n_weights);
    cr_expect(m.tensors[0].trainable);
    model_fini(&m);
    a = all_linear;
    a.rank = 9;
    err_clear(&err);
    cr_assert_eq(adapt(&m, llama_like, &a, &err), ERR_INVALID); /* k has 8 rows */
    cr_expect_str_eq(err.param, "lora.rank");
    cr_expect(strstr(err.msg, "at most 8"), "%s", err.msg);
    model_fini(&m);
}

Test(adapter, starts_as_peft_starts)
{
    struct err err = {0};
    float *a, *b, *again, largest = 0;
    struct model m;
    int64_t t, n;

    cr_assert_eq(adapt(&m, llama_like, &all_linear, &err), 0, "%s", err.msg);
    t = m.n_weights;
    n = tensor_elements(&m.tensors[t]);
    a = xcalloc((size_t)n, sizeof(float));
    again = xcalloc((size_t)n, sizeof(float));
    b = xmalloc((size_t)tensor_elements(&m.tensors[t + 1]) * sizeof(float));
    adapter_init(&m, t, 7, DT_F32, a);
    adapter_init(&m, t, 7, DT_F32, again);
    cr_expect_arr_eq(a, again, (size_t)n * sizeof(float));
    adapter_init(&m, t, 8, DT_F32, again);
    cr_expect_neq(a[0], again[0]);
    adapter_init(&m, t + 1, 7, DT_F32, b);
    for (int64_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(a[i]));
    cr_expect(largest <= 0.25f && largest > 0.23f, "%g", (double)largest); /* 1 / sqrt(16) */
    for (int64_t i = 0; i < tensor_elements(&m.tensors[t + 1]); i++)
        cr_expect_eq(b[i], 0);
    free(a);
    free(b);
    free(again);
    model_fini(&m);
}
