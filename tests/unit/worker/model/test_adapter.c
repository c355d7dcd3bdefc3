/* Adapters: which modules, finite differences of every kind of layer, and what must not change the
 * numbers. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/unit/worker/model/rig.h"
#include "tests/unit/worker/model/small.h"
#include "worker/model/adapter.h"

static const char *const everywhere[] = {"all-linear"};
static const struct adapter_config all_linear = {
    .rank = 3, .alpha = 2, .targets = everywhere, .n_targets = 1};

/* q, k and v in small_qwen3 of their own as one module. */
static struct decoder_config small_phi3(void)
{
    struct decoder_config c = small_qwen3();

    snprintf(c.family, sizeof(c.family), "phi3");
    return c;
}

static void open_rig(struct rig *r, small_config config, const struct adapter_config *a,
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

/* The weights' own gradients stay as they were. */
static void check_gradients(small_config config, const struct adapter_config *a)
{
    struct rig r;

    open_rig(&r, config, a, DT_F64, true);
    rig_train(&r, 2, ACCUM_ASSIGN);
    for (int64_t t = 0; t < r.m.n_weights; t++)
        cr_assert(isnan(rig_grad(&r, t, 0)), "%s was written",
                  tensor_role_name(r.m.tensors[t].role));
    rig_check_gradients(&r, r.m.n_weights);
    rig_close(&r);
}

Test(adapter, gradients_everywhere)
{
    for (int i = 0; i < N_SMALL_CONFIGS; i++)
        check_gradients(small_configs[i], &all_linear);
    check_gradients(small_phi3, &all_linear);
}

/* Each module alone: what it needs of its neighbours' computation is there. */
Test(adapter, gradients_of_single_modules)
{
    static const struct {
        small_config config;
        const char *target;
    } cases[] = {
        {small_llama, "k_proj"},
        {small_llama, "o_proj"},
        {small_llama, "up_proj"},
        {small_llama, "down_proj"},
        {small_opt, "fc1"},
        {small_opt, "fc2"},
        {small_gpt2, "mlp.c_proj"},
        {small_gpt2, "attn.c_proj"},
        {small_gpt2, "h.1.mlp.c_fc"},
        {small_post_norm, "project_in"},
        {small_post_norm, "project_out"},
        {small_parallel_2norm, "dense"},
        {small_qwen3, "v_proj"},
        {small_parallel_1norm, "gate_proj"},
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
    for (int i = 0; i < N_SMALL_CONFIGS; i++) {
        double beside, merged, before;
        struct rig r;

        open_rig(&r, small_configs[i], &all_linear, DT_F64, false);
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

Test(adapter, recomputation_gives_the_same_bits)
{
    for (int i = 0; i < N_SMALL_CONFIGS; i++) {
        struct rig kept, again;
        double *a, *b;

        open_rig(&kept, small_configs[i], &all_linear, DT_F32, true);
        open_rig(&again, small_configs[i], &all_linear, DT_F32, true);
        again.recompute = true;
        rig_train(&kept, 2, ACCUM_ASSIGN);
        rig_train(&again, 2, ACCUM_ASSIGN);
        a = rig_grads(&kept, kept.m.n_weights);
        b = rig_grads(&again, again.m.n_weights);
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
    for (int i = 0; i < N_SMALL_CONFIGS; i++) {
        double *whole, *cut;
        struct rig r;

        open_rig(&r, small_configs[i], &all_linear, DT_F64, true);
        rig_train(&r, 4, ACCUM_ASSIGN);
        whole = rig_grads(&r, r.m.n_weights);
        r.head_rows = 4;
        rig_train(&r, 1, ACCUM_ASSIGN);
        cut = rig_grads(&r, r.m.n_weights);
        rig_expect_near(cut, whole, r.m.adapters.n_params, 1);
        free(whole);
        free(cut);
        rig_close(&r);
    }
}

/* --- which modules --- */

static int adapt(struct model *m, small_config config, const struct adapter_config *a,
                 struct err *err)
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

    cr_assert_eq(adapt(&m, small_llama, &a, &err), 0, "%s", err.msg);
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

    cr_assert_eq(adapt(&m, small_opt, &a, &err), 0, "%s", err.msg);
    expect_parts(&m, TENSOR_QKV_LORA_A, 1, 1 | 4);
    expect_parts(&m, TENSOR_OUT_LORA_A, 1, 0);
    cr_expect_eq(m.adapters.scale, 2); /* 4 / sqrt(4) */
    model_fini(&m);
    cr_assert_eq(adapt(&m, small_gpt2, &a, &err), 0, "%s", err.msg);
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

    cr_assert_eq(adapt(&m, small_llama, &a, &err), ERR_INVALID);
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
    cr_assert_eq(adapt(&m, small_llama, &a, &err), ERR_INVALID); /* k has 8 rows */
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

    cr_assert_eq(adapt(&m, small_llama, &all_linear, &err), 0, "%s", err.msg);
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
