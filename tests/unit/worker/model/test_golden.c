/* Logits, losses and every gradient of small models against PyTorch (tests/golden/gen.py and
 * families_gen.py). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "tests/unit/worker/model/golden.h"
#include "tests/unit/worker/model/rig.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"

#define ROOT "tests/golden/"

static void check_outputs(struct golden_check *c, struct rig *r, const struct safetensors_file *f)
{
    int64_t n, rows = r->B * r->T;
    double cap = r->m.config.final_softcap;
    double *logits = xcalloc((size_t)(rows * r->m.config.vocab), sizeof(double));
    double *want = golden_load(f, "logits", &n);

    rig_logits(r, 0, rows, logits);
    for (int64_t i = 0; i < n; i++) { /* the block gives them before scale and cap */
        logits[i] *= r->m.config.logit_scale;
        if (cap > 0)
            logits[i] = cap * tanh(logits[i] / cap);
    }
    golden_compare(c, "logits", logits, want, n);
    free(want);
    want = golden_load(f, "row_loss", &n);
    rig_evaluate(r, r->B);
    golden_compare(c, "row_loss", r->row_loss, want, n);
    rig_train(r, r->B, ACCUM_ASSIGN);
    golden_compare(c, "row_loss in training", r->row_loss, want, n);
    free(want);
    free(logits);
}

static void check_grads(struct golden_check *c, struct rig *r, const char *dir)
{
    struct weights_reader *reader = NULL;
    struct err err = {0};

    cr_assert_eq(weights_open(dir, &r->m, &reader, &err), 0, "%s", err.msg);
    for (int64_t t = 0; t < r->m.n_tensors; t++) {
        int64_t n = tensor_elements(&r->m.tensors[t]);
        double *want = xcalloc((size_t)n, sizeof(double)),
               *got = xcalloc((size_t)n, sizeof(double));
        char what[64];

        cr_assert_eq(weights_read(reader, t, DT_F64, want, &err), 0, "%s", err.msg);
        for (int64_t i = 0; i < n; i++)
            got[i] = rig_grad(r, t, i);
        snprintf(what, sizeof(what), "gradient of %s, layer %d",
                 tensor_role_name(r->m.tensors[t].role), (int)r->m.tensors[t].layer);
        golden_compare(c, what, got, want, n);
        free(want);
        free(got);
    }
    weights_close(reader);
}

static void check_case(const char *name, enum dtype compute, bool reference, double rtol)
{
    struct golden_check c = {.rtol = rtol, .by_norm = compute == DT_BF16};
    struct decoder_config config;
    struct safetensors_file batch;
    struct err err = {0};
    struct rig r;
    char path[256];

    snprintf(path, sizeof(path), ROOT "%s/model", name);
    cr_assert_eq(decoder_config_load(path, &config, &err), 0, "%s", err.msg);
    rig_open(&r, &config, compute, reference, 4, 12);
    rig_load(&r, path);
    snprintf(path, sizeof(path), ROOT "%s/batch.safetensors", name);
    cr_assert_eq(safetensors_open(path, &batch, &err), 0, "%s", err.msg);
    golden_load_batch(&r, &batch);
    check_outputs(&c, &r, &batch);
    snprintf(path, sizeof(path), ROOT "%s/grads", name);
    if (compute != DT_BF16)
        check_grads(&c, &r, path);
    fprintf(stderr, "golden %s %s: %.2g %% of the tolerance %g used\n", name, r.ops->name,
            100 * c.worst, rtol);
    safetensors_close(&batch);
    rig_close(&r);
}

/* Every value between ops is rounded to 8 bits, by 2^-9 of itself at most. A logit lies some 25
 * such roundings deep: of random sign they make sqrt(25) * 2^-9 = 1 % of a tensor's norm; four
 * times that is allowed, for what norms of small variance magnify. Gradients are judged by
 * PyTorch's (test_bf16.c). */
static const double BF16_RTOL = 0.04;

Test(golden, pre_norm_double)
{
    check_case("opt/pre", DT_F64, true, 1e-12);
}

Test(golden, pre_norm_float)
{
    check_case("opt/pre", DT_F32, true, 1e-5);
    check_case("opt/pre", DT_F32, false, 1e-5); /* the fast ops, where the build has them */
    check_case("opt/pre", DT_BF16, false, BF16_RTOL);
}

Test(golden, post_norm_narrow_embedding_double)
{
    check_case("opt/post", DT_F64, true, 1e-12);
}

Test(golden, post_norm_narrow_embedding_float)
{
    check_case("opt/post", DT_F32, true, 1e-5);
    check_case("opt/post", DT_F32, false, 1e-5); /* the fast ops, where the build has them */
    check_case("opt/post", DT_BF16, false, BF16_RTOL);
}

Test(golden, gelu_without_biases_untied_double)
{
    check_case("opt/plain", DT_F64, true, 1e-12);
}

Test(golden, gelu_without_biases_untied_float)
{
    check_case("opt/plain", DT_F32, true, 1e-5);
    check_case("opt/plain", DT_F32, false, 1e-5); /* the fast ops, where the build has them */
    check_case("opt/plain", DT_BF16, false, BF16_RTOL);
}

struct supply {
    struct weights_reader *reader;
    const struct model *m;
    void *data;
};

static int supply(void *ud, int64_t tensor, const void **data, enum dtype *from, struct err *err)
{
    struct supply *s = ud;

    s->data = xrealloc(s->data, (size_t)tensor_elements(&s->m->tensors[tensor]) * sizeof(float));
    *data = s->data;
    *from = DT_F32;
    return weights_read(s->reader, tensor, DT_F32, s->data, err);
}

/* What comes out is what transformers wrote: the same names, shapes and bytes. */
static void check_export(const char *name)
{
    struct decoder_config config;
    struct model m;
    struct supply s = {.m = &m};
    struct err err = {0};
    char dir[] = "/tmp/castor-export-XXXXXX", model[256], from[300], to[300];

    cr_assert_not_null(mkdtemp(dir));
    snprintf(model, sizeof(model), ROOT "%s/model", name);
    cr_assert_eq(decoder_config_load(model, &config, &err), 0, "%s", err.msg);
    model_init(&m, &config);
    cr_assert_eq(weights_open(model, &m, &s.reader, &err), 0, "%s", err.msg);
    cr_assert_eq(weights_write(dir, &m, DT_F32, supply, &s, &err), 0, "%s", err.msg);
    snprintf(from, sizeof(from), "%s/model.safetensors", model);
    snprintf(to, sizeof(to), "%s/model.safetensors", dir);
    golden_same_file(from, to);
    weights_close(s.reader);
    free(s.data);
    model_fini(&m);
    cr_assert_eq(fs_remove_tree(dir, &err), 0);
}

/* The fast ops and float are held to the same answers where a family adds a shape of its own. */
static void check_family(const char *name)
{
    check_case(name, DT_F64, true, 1e-12);
    check_case(name, DT_F32, true, 1e-5);
    check_case(name, DT_F32, false, 1e-5);
    check_case(name, DT_BF16, false, BF16_RTOL);
    check_export(name);
}

Test(golden, gpt2)
{
    check_family("gpt2/plain");
}

Test(golden, gpt2_scale_by_layer)
{
    check_family("gpt2/by_layer");
}

Test(golden, llama_grouped_queries_llama3_rope)
{
    check_family("llama/grouped");
}

Test(golden, llama_biased_tied)
{
    check_family("llama/biased");
}

Test(golden, mistral_sliding_window)
{
    check_family("mistral/window");
}

Test(golden, qwen2_window_in_some_layers)
{
    check_family("qwen2/mixed");
}

Test(golden, qwen2_yarn)
{
    check_family("qwen2/yarn");
}

Test(golden, qwen3_norms_on_q_and_k)
{
    check_family("qwen3/normed");
}

Test(golden, phi3_fused)
{
    check_family("phi3/fused");
}

Test(golden, phi3_longrope_beyond_the_original_length)
{
    check_family("phi3/long");
}

Test(golden, phi3_longrope_within_the_original_length)
{
    check_family("phi3/short");
}

Test(golden, neox_parallel)
{
    check_family("gpt_neox/parallel");
}

Test(golden, neox_sequential)
{
    check_family("gpt_neox/sequential");
}

Test(golden, gptj)
{
    check_family("gptj/plain");
}

Test(golden, phi)
{
    check_family("phi/plain");
}

Test(golden, bloom)
{
    check_family("bloom/plain");
    check_family("bloom/stream");
}

Test(golden, falcon_one_key_value_head)
{
    check_family("falcon/single");
}

Test(golden, falcon_grouped)
{
    check_family("falcon/grouped");
}

Test(golden, falcon_two_norms)
{
    check_family("falcon/two_norms");
}

Test(golden, falcon_sequential)
{
    check_family("falcon/sequential");
}

Test(golden, falcon_rounded_alibi)
{
    check_family("falcon/alibi");
}

Test(golden, cohere_as_palm)
{
    check_family("cohere/palm");
}

Test(golden, cohere_with_norms_on_queries_and_keys)
{
    check_family("cohere/normed");
}

Test(golden, gemma)
{
    check_family("gemma/plain");
}

Test(golden, gemma2)
{
    check_family("gemma2/plain");
}

Test(golden, ten_adamw_steps)
{
    struct decoder_config config;
    struct safetensors_file batch;
    struct err err = {0};
    struct rig r;
    int64_t n, targets = 0;
    double *losses, *norms, *rates, *params, **moments, worst = 0;

    cr_assert_eq(decoder_config_load(ROOT "opt/pre/model", &config, &err), 0, "%s", err.msg);
    rig_open(&r, &config, DT_F64, true, 4, 12);
    rig_load(&r, ROOT "opt/pre/model");
    cr_assert_eq(safetensors_open(ROOT "opt/pre/batch.safetensors", &batch, &err), 0);
    golden_load_batch(&r, &batch);
    losses = golden_load(&batch, "adamw.losses", &n);
    norms = golden_load(&batch, "adamw.norms", &n);
    rates = golden_load(&batch, "adamw.lr", &n);
    params = golden_load(&batch, "adamw.params", &n);
    moments = xcalloc((size_t)r.m.n_tensors, sizeof(*moments));
    for (int64_t t = 0; t < r.m.n_tensors; t++)
        moments[t] = xcalloc((size_t)tensor_elements(&r.m.tensors[t]), 2 * sizeof(double));
    for (int64_t i = 0; i < r.B * r.T; i++)
        targets += r.targets[i] >= 0;
    r.grad_scale = 1 / (float)targets;

    for (int step = 0; step < 10; step++) {
        struct adamw_step s = {.lr = (float)rates[step],
                               .bias1 = (float)(1 - pow(params[0], step + 1)),
                               .bias2 = (float)(1 - pow(params[1], step + 1))};
        double loss = 0;

        rig_train(&r, 2, ACCUM_ASSIGN);
        for (int64_t i = 0; i < r.B * r.T; i++)
            loss += r.row_loss[i] / (double)targets;
        golden_near("loss", step, loss, losses[step], &worst);
        golden_near("norm", step, golden_adamw_step(&r, moments, params, s), norms[step], &worst);
    }
    fprintf(stderr, "golden adamw: %.2g %% of the tolerance used\n", 100 * worst);
    for (int64_t t = 0; t < r.m.n_tensors; t++)
        free(moments[t]);
    free(moments);
    free(losses);
    free(norms);
    free(rates);
    free(params);
    safetensors_close(&batch);
    rig_close(&r);
}
