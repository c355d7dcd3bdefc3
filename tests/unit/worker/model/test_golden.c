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
    struct safetensors_file results;
    struct rig r;
    char path[GOLDEN_PATH];

    golden_open(&r, name, compute, reference);
    golden_open_file(&results, name, "batch.safetensors");
    check_outputs(&c, &r, &results);
    golden_path(path, name, "grads");
    if (compute != DT_BF16)
        check_grads(&c, &r, path);
    fprintf(stderr, "golden %s %s: %.2g %% of the tolerance %g used\n", name, r.ops->name,
            100 * c.worst, rtol);
    safetensors_close(&results);
    rig_close(&r);
}

/* Every value between ops is rounded to 8 bits, by 2^-9 of itself at most. A logit lies some 25
 * such roundings deep: of random sign they make sqrt(25) * 2^-9 = 1 % of a tensor's norm; four
 * times that is allowed, for what norms of small variance magnify. Gradients are judged by
 * PyTorch's (test_bf16.c). */
static const double BF16_RTOL = 0.04;

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
    char dir[] = "/tmp/castor-export-XXXXXX", model[GOLDEN_PATH], from[GOLDEN_PATH], to[64];

    cr_assert_not_null(mkdtemp(dir));
    golden_path(model, name, "model");
    cr_assert_eq(decoder_config_load(model, &config, &err), 0, "%s", err.msg);
    model_init(&m, &config);
    cr_assert_eq(weights_open(model, &m, &s.reader, &err), 0, "%s", err.msg);
    cr_assert_eq(weights_write(dir, &m, DT_F32, supply, &s, &err), 0, "%s", err.msg);
    golden_path(from, name, "model/model.safetensors");
    snprintf(to, sizeof(to), "%s/model.safetensors", dir);
    golden_same_file(from, to);
    weights_close(s.reader);
    free(s.data);
    model_fini(&m);
    cr_assert_eq(fs_remove_tree(dir, &err), 0);
}

ParameterizedTestParameters(golden, every_model)
{
    return golden_params("model");
}

ParameterizedTest(const char *name, golden, every_model)
{
    check_case(name, DT_F64, true, 1e-12);
    check_case(name, DT_F32, true, 1e-5);
    check_case(name, DT_F32, false, 1e-5); /* the fast ops, where the build has them */
    check_case(name, DT_BF16, false, BF16_RTOL);
    if (strcmp(name, "gemma3/images") != 0) /* of which the text model is exported */
        check_export(name);
}

Test(golden, ten_adamw_steps)
{
    struct safetensors_file results;
    struct rig r;

    golden_open(&r, "opt/pre", DT_F64, true);
    golden_open_file(&results, "opt/pre", "batch.safetensors");
    golden_adamw(&r, &results, 10);
    safetensors_close(&results);
    rig_close(&r);
}
