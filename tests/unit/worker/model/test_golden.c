/* Logits, losses and every gradient of small OPT models against PyTorch (tests/golden/gen.py). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "rig.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"

#define ROOT "tests/golden/opt/"

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
    double *logits = xcalloc((size_t)(rows * r->m.config.vocab), sizeof(double));
    double *want = load(f, "logits", &n);

    rig_logits(r, 0, rows, logits);
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

static void check_case(const char *name, enum dtype compute, double rtol)
{
    struct check c = {.rtol = rtol};
    struct decoder_config config;
    struct safetensors_file batch;
    struct err err = {0};
    struct rig r;
    char path[256];

    snprintf(path, sizeof(path), ROOT "%s/model", name);
    cr_assert_eq(decoder_config_load(path, &config, &err), 0, "%s", err.msg);
    rig_open(&r, &config, compute, 4, 12);
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
    check_case("pre", DT_F64, 1e-12);
}

Test(golden, pre_norm_float)
{
    check_case("pre", DT_F32, 1e-5);
}

Test(golden, post_norm_narrow_embedding_double)
{
    check_case("post", DT_F64, 1e-12);
}

Test(golden, post_norm_narrow_embedding_float)
{
    check_case("post", DT_F32, 1e-5);
}

Test(golden, gelu_without_biases_untied_double)
{
    check_case("plain", DT_F64, 1e-12);
}

Test(golden, gelu_without_biases_untied_float)
{
    check_case("plain", DT_F32, 1e-5);
}
