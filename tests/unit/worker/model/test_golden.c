/* Logits, losses and every gradient of small models against PyTorch (tests/golden/gen.py and
 * families_gen.py). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "tests/unit/worker/model/rig.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"

#define ROOT "tests/golden/"

/* The worst |a - b| seen, as a share of its allowance: rtol times the largest |b| of the tensor,
 * since elements near 0 come from sums of larger terms. */
struct check {
    double rtol, worst;
};

static void compare(struct check *c, const char *what, const double *got, const double *want,
                    int64_t n)
{
    double largest = 0, difference = 0;

    for (int64_t i = 0; i < n; i++) {
        cr_assert(isfinite(got[i]), "%s[%lld] is %g", what, (long long)i, got[i]);
        largest = fmax(largest, fabs(want[i]));
        difference = fmax(difference, fabs(got[i] - want[i]));
    }
    cr_assert_leq(difference, c->rtol * largest, "%s differs by %g, allowed %g", what, difference,
                  c->rtol * largest);
    c->worst = fmax(c->worst, largest > 0 ? difference / (c->rtol * largest) : 0);
}

static void *load(const struct safetensors_file *f, const char *name, int64_t *n)
{
    const struct safetensor *t = safetensors_find(f, name);
    struct err err = {0};
    void *data;

    cr_assert_not_null(t, "%s holds no %s", f->path, name);
    data = xmalloc(t->bytes);
    cr_assert_eq(safetensors_read(f, t, 0, t->bytes, data, &err), 0, "%s", err.msg);
    *n = (int64_t)(t->bytes / dtype_size(t->dtype));
    return data;
}

static void load_batch(struct rig *r, const struct safetensors_file *f)
{
    int32_t *const into[] = {r->tokens, r->targets, r->positions};
    const char *const names[] = {"tokens", "targets", "positions"};

    for (int i = 0; i < 3; i++) {
        int64_t n;
        int32_t *data = load(f, names[i], &n);

        cr_assert_eq(n, r->B * r->T);
        memcpy(into[i], data, (size_t)n * sizeof(int32_t));
        free(data);
    }
}

static void check_outputs(struct check *c, struct rig *r, const struct safetensors_file *f)
{
    int64_t n, rows = r->B * r->T;
    double cap = r->m.config.final_softcap;
    double *logits = xcalloc((size_t)(rows * r->m.config.vocab), sizeof(double));
    double *want = load(f, "logits", &n);

    rig_logits(r, 0, rows, logits);
    for (int64_t i = 0; i < n && cap > 0; i++) /* the block gives them before the cap */
        logits[i] = cap * tanh(logits[i] / cap);
    compare(c, "logits", logits, want, n);
    free(want);
    want = load(f, "row_loss", &n);
    rig_evaluate(r, r->B);
    compare(c, "row_loss", r->row_loss, want, n);
    rig_train(r, r->B, ACCUM_ASSIGN);
    compare(c, "row_loss in training", r->row_loss, want, n);
    free(want);
    free(logits);
}

static void check_grads(struct check *c, struct rig *r, const char *dir)
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
        compare(c, what, got, want, n);
        free(want);
        free(got);
    }
    weights_close(reader);
}

static void check_case(const char *name, enum dtype compute, bool reference, double rtol)
{
    struct check c = {.rtol = rtol};
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
    load_batch(&r, &batch);
    check_outputs(&c, &r, &batch);
    snprintf(path, sizeof(path), ROOT "%s/grads", name);
    check_grads(&c, &r, path);
    fprintf(stderr, "golden %s %s: %.2g %% of the tolerance %g used\n", name, r.ops->name,
            100 * c.worst, rtol);
    safetensors_close(&batch);
    rig_close(&r);
}

Test(golden, pre_norm_double)
{
    check_case("opt/pre", DT_F64, true, 1e-12);
}

Test(golden, pre_norm_float)
{
    check_case("opt/pre", DT_F32, true, 1e-5);
    check_case("opt/pre", DT_F32, false, 1e-5); /* the fast ops, where the build has them */
}

Test(golden, post_norm_narrow_embedding_double)
{
    check_case("opt/post", DT_F64, true, 1e-12);
}

Test(golden, post_norm_narrow_embedding_float)
{
    check_case("opt/post", DT_F32, true, 1e-5);
    check_case("opt/post", DT_F32, false, 1e-5); /* the fast ops, where the build has them */
}

Test(golden, gelu_without_biases_untied_double)
{
    check_case("opt/plain", DT_F64, true, 1e-12);
}

Test(golden, gelu_without_biases_untied_float)
{
    check_case("opt/plain", DT_F32, true, 1e-5);
    check_case("opt/plain", DT_F32, false, 1e-5); /* the fast ops, where the build has them */
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

static void expect_same_file(const char *a_path, const char *b_path)
{
    struct safetensors_file a, b;
    struct err err = {0};

    cr_assert_eq(safetensors_open(a_path, &a, &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_open(b_path, &b, &err), 0, "%s", err.msg);
    cr_assert_eq(a.n_tensors, b.n_tensors);
    for (int64_t i = 0; i < a.n_tensors; i++) {
        int64_t n, m;
        void *x = load(&a, a.tensors[i].name, &n), *y = load(&b, a.tensors[i].name, &m);

        cr_assert_eq(n, m);
        cr_assert_arr_eq(a.tensors[i].shape, b.tensors[i].shape, sizeof(a.tensors[i].shape));
        cr_assert_arr_eq(x, y, a.tensors[i].bytes, "%s differs", a.tensors[i].name);
        free(x);
        free(y);
    }
    safetensors_close(&a);
    safetensors_close(&b);
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
    expect_same_file(from, to);
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
    check_export(name);
}

Test(golden, gpt2)
{
    check_family("gpt2/plain");
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

Test(golden, qwen3_norms_on_q_and_k)
{
    check_family("qwen3/normed");
}

Test(golden, phi3_fused)
{
    check_family("phi3/fused");
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
}

Test(golden, falcon_one_key_value_head)
{
    check_family("falcon/single");
}

Test(golden, falcon_grouped)
{
    check_family("falcon/grouped");
}

Test(golden, gemma)
{
    check_family("gemma/plain");
}

Test(golden, gemma2)
{
    check_family("gemma2/plain");
}

/* One update of every tensor, as the executor makes it: norm over all, then AdamW on each. */
static double adamw_step(struct rig *r, double *const *moments, const double *params,
                         struct adamw_step step)
{
    double *partial = xcalloc((size_t)r->m.n_tensors, sizeof(double));
    struct clip_result result;
    struct clip_args clip = {.n = r->m.n_tensors,
                             .partial = partial,
                             .max_norm = (float)params[4],
                             .inv_scale = 1,
                             .result = &result};

    for (int64_t t = 0; t < r->m.n_tensors; t++) {
        struct sumsq_args a = {
            .n = tensor_elements(&r->m.tensors[t]), .x = r->grads[t], .partial = &partial[t]};

        cr_assert_leq(a.n, SUMSQ_BLOCK);
        cr_assert_eq(r->ops->sumsq(r->stream, &a), 0);
    }
    cr_assert_eq(r->ops->clip(r->stream, &clip), 0);
    for (int64_t t = 0; t < r->m.n_tensors; t++) {
        int64_t n = tensor_elements(&r->m.tensors[t]);
        struct adamw_args a = {
            .n = n,
            .n_decay = r->m.tensors[t].decay ? n : 0,
            .beta1 = (float)params[0],
            .beta2 = (float)params[1],
            .eps = (float)params[2],
            .weight_decay = (float)params[3],
            .step = &step,
            .clip = &result,
            .grad = r->grads[t],
            .master = r->weights[t],
            .m = moments[t],
            .v = moments[t] + n,
        };

        cr_assert_eq(r->ops->adamw(r->stream, &a), 0);
    }
    free(partial);
    return result.norm;
}

static void near(const char *what, int step, double got, double want, double *worst)
{
    const double rtol = 1e-6; /* rates and the scale of losses are floats */

    cr_assert_leq(fabs(got - want), rtol * fabs(want), "%s of step %d is %.12g, not %.12g", what,
                  step, got, want);
    *worst = fmax(*worst, fabs(got - want) / (rtol * fabs(want)));
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
    load_batch(&r, &batch);
    losses = load(&batch, "adamw.losses", &n);
    norms = load(&batch, "adamw.norms", &n);
    rates = load(&batch, "adamw.lr", &n);
    params = load(&batch, "adamw.params", &n);
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
        near("loss", step, loss, losses[step], &worst);
        near("norm", step, adamw_step(&r, moments, params, s), norms[step], &worst);
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
