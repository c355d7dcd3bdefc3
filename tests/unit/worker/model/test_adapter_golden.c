/* Adapters against PEFT (tests/golden/lora_gen.py): losses, the gradients of A and B, training
 * steps, and the file that is written; beside quantised weights (tests/golden/quant_gen.py), too.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "tests/unit/worker/model/golden.h"
#include "tests/unit/worker/model/rig.h"
#include "worker/model/adapter.h"
#include "worker/model/weights_names.h"

#define ROOT "tests/golden/"
enum { MAX_TARGETS = 16 };

/* Modules as adapter_config.json names them. */
static json_t *load_config(const char *name, struct adapter_config *out,
                           const char *targets[MAX_TARGETS])
{
    struct err err = {0};
    char path[256];
    json_t *j = NULL, *list;
    int64_t alpha = 0;

    snprintf(path, sizeof(path), ROOT "%s/lora/adapter_config.json", name);
    cr_assert_eq(json_parse_file(path, 1 << 20, JSON_MAX_DEPTH_FILE, &j, &err), 0, "%s", err.msg);
    *out = (struct adapter_config){.targets = targets};
    cr_assert_eq(json_get_int64(j, "", "r", true, 1, 100, &out->rank, &err), 0);
    cr_assert_eq(json_get_int64(j, "", "lora_alpha", true, 1, 100, &alpha, &err), 0);
    cr_assert_eq(json_get_bool(j, "", "use_rslora", true, &out->rslora, &err), 0);
    out->alpha = (double)alpha;
    list = json_object_get(j, "target_modules");
    for (size_t i = 0; i < json_array_size(list); i++) {
        cr_assert_lt(i, MAX_TARGETS);
        targets[out->n_targets++] = json_string_value(json_array_get(list, i));
    }
    return j;
}

/* A file's tensor of doubles or floats, its rows put where ours are: fn(ud, tensor, index, x). */
struct scatter {
    const struct safetensors_file *file;
    struct rig *r;
    double *out; /* all adapters' elements; NULL: into the rig's weights */
    int64_t *first;
    int64_t n_slices;
};

static int scatter_slice(void *ud, const struct adapter_slice *s, struct err *err)
{
    struct scatter *to = ud;
    const struct safetensor *t = safetensors_find(to->file, s->name);
    int64_t n, cols = to->r->m.tensors[s->tensor].cols;
    void *data = golden_load(to->file, s->name, &n);
    double *values = xcalloc((size_t)n, sizeof(double));

    cr_assert_eq(n, s->rows * cols, "%s", s->name);
    dtype_convert(DT_F64, values, t->dtype, data, n);
    for (int64_t i = 0; i < weights_blocks(&to->r->m.config, s->layout); i++) {
        struct row_block b = weights_block(&to->r->m.config, s->layout, s->rows, i);

        for (int64_t k = 0; k < b.rows * cols; k++) {
            int64_t at = (s->first_row + b.our_row) * cols + k;
            double x = values[b.file_row * cols + k];

            if (to->out != NULL)
                to->out[to->first[s->tensor] + at] = x;
            else
                rig_set_weight(to->r, s->tensor, at, x);
        }
    }
    to->n_slices++;
    free(values);
    free(data);
    return 0;
}

/* Whether the file has adapters; `others`: tensors that it has besides. */
static bool read_adapters(struct rig *r, const char *path, int64_t others, double *out)
{
    struct safetensors_file f;
    struct err err = {0};
    struct scatter to = {.file = &f, .r = r, .out = out};
    int64_t at = 0;

    to.first = xcalloc((size_t)r->m.n_tensors, sizeof(int64_t));
    for (int64_t t = r->m.n_weights; t < r->m.n_tensors; t++) {
        to.first[t] = at;
        at += tensor_elements(&r->m.tensors[t]);
    }
    cr_assert_eq(safetensors_open(path, &f, &err), 0, "%s", err.msg);
    bool any = f.n_tensors > others;
    if (any) {
        cr_assert_eq(adapters_each(&r->m, scatter_slice, &to, &err), 0);
        cr_assert_eq(to.n_slices, f.n_tensors - others, "%s holds other modules", path);
    }
    safetensors_close(&f);
    free(to.first);
    return any;
}

static void check_grads(struct golden_check *c, struct rig *r, const char *path, int64_t others)
{
    double *want = xcalloc((size_t)r->m.adapters.n_params, sizeof(double));
    int64_t at = 0;

    bool any = read_adapters(r, path, others, want);
    for (int64_t t = r->m.n_weights; t < r->m.n_tensors && any; t++) {
        const struct tensor_desc *desc = &r->m.tensors[t];
        int64_t n = tensor_elements(desc);
        double *got = xcalloc((size_t)n, sizeof(double));
        char what[64];

        for (int64_t i = 0; i < n; i++)
            got[i] = rig_grad(r, t, i);
        snprintf(what, sizeof(what), "gradient of %s, layer %d", tensor_role_name(desc->role),
                 (int)desc->layer);
        golden_compare(c, what, got, want + at, n);
        at += n;
        free(got);
    }
    free(want);
}

static int supply(void *ud, int64_t tensor, const void **data, enum dtype *from, struct err *err)
{
    struct rig *r = ud;

    *data = r->weights[tensor];
    *from = r->ops->compute;
    return 0;
}

/* What comes out is what PEFT wrote: the same names, shapes and bytes. */
static void check_file(struct rig *r, const char *path)
{
    char dir[] = "/tmp/castor-adapter-XXXXXX", written[300];
    struct err err = {0};

    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(adapters_write(dir, &r->m, DT_F32, supply, r, &err), 0, "%s", err.msg);
    snprintf(written, sizeof(written), "%s/adapter_model.safetensors", dir);
    golden_same_file(path, written);
    cr_assert_eq(fs_remove_tree(dir, &err), 0);
}

static void open_case(struct rig *r, const char *name, enum dtype compute, bool reference)
{
    struct decoder_config config;
    struct adapter_config adapters;
    const char *targets[MAX_TARGETS];
    struct safetensors_file batch;
    struct err err = {0};
    char path[256];
    json_t *j;

    snprintf(path, sizeof(path), ROOT "%s/model", name);
    cr_assert_eq(decoder_config_load(path, &config, &err), 0, "%s", err.msg);
    rig_open(r, &config, compute, reference, 4, 12);
    rig_load(r, path);
    j = load_config(name, &adapters, targets);
    rig_adapt(r, &adapters);
    json_decref(j);
    snprintf(path, sizeof(path), ROOT "%s/lora/adapter_model.safetensors", name);
    cr_assert(read_adapters(r, path, 0, NULL));
    snprintf(path, sizeof(path), ROOT "%s/batch.safetensors", name);
    cr_assert_eq(safetensors_open(path, &batch, &err), 0, "%s", err.msg);
    golden_load_batch(r, &batch);
    safetensors_close(&batch);
}

static void check_case(const char *name, enum dtype compute, bool reference, double rtol)
{
    struct golden_check c = {.rtol = rtol};
    struct safetensors_file results;
    struct err err = {0};
    struct rig r;
    double *want;
    int64_t n;
    char path[256];

    open_case(&r, name, compute, reference);
    snprintf(path, sizeof(path), ROOT "%s/lora/results.safetensors", name);
    cr_assert_eq(safetensors_open(path, &results, &err), 0, "%s", err.msg);
    want = golden_load(&results, "row_loss", &n);
    rig_evaluate(&r, r.B);
    golden_compare(&c, "row_loss", r.row_loss, want, n);
    rig_train(&r, r.B / 2, ACCUM_ASSIGN);
    golden_compare(&c, "row_loss in training", r.row_loss, want, n);
    snprintf(path, sizeof(path), ROOT "%s/lora/grads.safetensors", name);
    check_grads(&c, &r, path, 0);
    snprintf(path, sizeof(path), ROOT "%s/lora/adapter_model.safetensors", name);
    check_file(&r, path);
    fprintf(stderr, "golden adapters %s %s: %.2g %% of the tolerance %g used\n", name, r.ops->name,
            100 * c.worst, rtol);
    free(want);
    safetensors_close(&results);
    rig_close(&r);
}

/* Beside weights in a format: losses, and gradients where the golden file has them. False without
 * such a file. */
static bool check_quantised(const char *name, enum quant_format format, enum dtype compute,
                            bool reference, double rtol)
{
    struct golden_check c = {.rtol = rtol};
    struct safetensors_file golden;
    struct err err = {0};
    struct rig r;
    double *want;
    int64_t n;
    char path[256];

    snprintf(path, sizeof(path), ROOT "%s/lora/%s.safetensors", name,
             format == QUANT_NF4 ? "nf4" : "int8");
    if (!fs_exists(path))
        return false;
    open_case(&r, name, compute, reference);
    rig_quantise(&r, format);
    cr_assert_eq(safetensors_open(path, &golden, &err), 0, "%s", err.msg);
    want = golden_load(&golden, "row_loss", &n);
    rig_evaluate(&r, r.B);
    golden_compare(&c, "row_loss", r.row_loss, want, n);
    rig_train(&r, r.B / 2, ACCUM_ASSIGN);
    golden_compare(&c, "row_loss in training", r.row_loss, want, n);
    check_grads(&c, &r, path, 1);
    fprintf(stderr, "golden adapters beside %s %s %s: %.2g %% of the tolerance %g used\n",
            format == QUANT_NF4 ? "nf4" : "int8", name, r.ops->name, 100 * c.worst, rtol);
    free(want);
    safetensors_close(&golden);
    rig_close(&r);
    return true;
}

static const char *const cases[] = {
    "opt/pre",           "opt/post",      "opt/plain",         "gpt2/plain",
    "llama/grouped",     "llama/biased",  "mistral/window",    "qwen2/mixed",
    "qwen3/normed",      "phi3/fused",    "gpt_neox/parallel", "gpt_neox/sequential",
    "gptj/plain",        "phi/plain",     "bloom/plain",       "falcon/single",
    "falcon/grouped",    "gemma/plain",   "gemma2/plain",      "qwen2/yarn",
    "phi3/long",         "phi3/short",    "gpt2/by_layer",     "falcon/two_norms",
    "falcon/sequential", "gemma3/text",   "cohere/palm",       "bloom/stream",
    "falcon/alibi",      "cohere/normed",
};

Test(adapter_golden, every_family_in_double)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        check_case(cases[i], DT_F64, true, 1e-12);
}

Test(adapter_golden, every_family_in_float)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        check_case(cases[i], DT_F32, true, 1e-5);
        check_case(cases[i], DT_F32, false, 1e-5); /* the fast ops, where the build has them */
    }
}

static void check_all_quantised(enum dtype compute, bool reference, double rtol)
{
    int checked = 0;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (int format = QUANT_NF4; format <= QUANT_INT8; format++)
            checked +=
                check_quantised(cases[i], (enum quant_format)format, compute, reference, rtol);
    cr_expect_geq(checked, 2 * 30, "cases with goldens in both formats");
}

Test(adapter_golden, beside_quantised_weights_in_double)
{
    check_all_quantised(DT_F64, true, 1e-12);
}

Test(adapter_golden, beside_quantised_weights_in_float)
{
    check_all_quantised(DT_F32, false, 1e-5);
}

/* Codes, scales and what they decode to are those of bitsandbytes. */
Test(adapter_golden, nf4_is_that_of_bitsandbytes)
{
    struct safetensors_file f;
    struct err err = {0};
    int64_t n, n_codes, n_scales;

    cr_assert_eq(safetensors_open(ROOT "quant/nf4.safetensors", &f, &err), 0, "%s", err.msg);
    float *x = golden_load(&f, "x", &n), *decoded = golden_load(&f, "decoded", &n),
          *absmax = golden_load(&f, "absmax", &n_scales);
    uint8_t *want = golden_load(&f, "codes", &n_codes), *codes = xcalloc(1, (size_t)n_codes);
    float *scales = xcalloc((size_t)n_scales, sizeof(*scales)),
          *back = xcalloc((size_t)n, sizeof(*back));
    cr_assert(n == 96 * 64 && n_codes == n / 2 && n_scales == n / 64);
    quant_encode(QUANT_NF4, n, x, codes, scales);
    cr_expect_eq(memcmp(codes, want, (size_t)n_codes), 0);
    cr_expect_eq(memcmp(scales, absmax, (size_t)n_scales * sizeof(float)), 0);
    quant_decode(QUANT_NF4, codes, scales, 0, n, DT_F32, back);
    cr_expect_eq(memcmp(back, decoded, (size_t)n * sizeof(float)), 0);
    free(x);
    free(decoded);
    free(absmax);
    free(want);
    free(codes);
    free(scales);
    free(back);
    safetensors_close(&f);
}

Test(adapter_golden, adamw_steps_on_adapters_alone)
{
    struct safetensors_file results;
    struct err err = {0};
    struct rig r;
    int64_t n, steps, targets = 0;
    double *losses, *norms, *rates, *params, **moments, worst = 0;

    open_case(&r, "opt/pre", DT_F64, true);
    cr_assert_eq(safetensors_open(ROOT "opt/pre/lora/results.safetensors", &results, &err), 0);
    losses = golden_load(&results, "adamw.losses", &steps);
    norms = golden_load(&results, "adamw.norms", &n);
    rates = golden_load(&results, "adamw.lr", &n);
    params = golden_load(&results, "adamw.params", &n);
    moments = xcalloc((size_t)r.m.n_tensors, sizeof(*moments));
    for (int64_t t = 0; t < r.m.n_tensors; t++)
        moments[t] = xcalloc((size_t)tensor_elements(&r.m.tensors[t]), 2 * sizeof(double));
    for (int64_t i = 0; i < r.B * r.T; i++)
        targets += r.targets[i] >= 0;
    r.grad_scale = 1 / (float)targets;
    for (int step = 0; step < steps; step++) {
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
    cr_assert_eq(steps, 5);
    fprintf(stderr, "golden adamw of adapters: %.2g %% of the tolerance used\n", 100 * worst);
    for (int64_t t = 0; t < r.m.n_tensors; t++)
        free(moments[t]);
    free(moments);
    free(losses);
    free(norms);
    free(rates);
    free(params);
    safetensors_close(&results);
    rig_close(&r);
}
