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

enum { MAX_TARGETS = 16 };

/* Modules as adapter_config.json names them. */
static json_t *load_config(const char *name, struct adapter_config *out,
                           const char *targets[MAX_TARGETS])
{
    struct err err = {0};
    char path[GOLDEN_PATH];
    json_t *j = NULL, *list;
    int64_t alpha = 0;

    golden_path(path, name, "lora/adapter_config.json");
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
    struct adapter_config adapters;
    const char *targets[MAX_TARGETS];
    char path[GOLDEN_PATH];
    json_t *j;

    golden_open(r, name, compute, reference);
    j = load_config(name, &adapters, targets);
    rig_adapt(r, &adapters);
    json_decref(j);
    golden_path(path, name, "lora/adapter_model.safetensors");
    cr_assert(read_adapters(r, path, 0, NULL));
}

/* Losses as in a file of the golden, evaluated and in training. */
static void check_losses(struct golden_check *c, struct rig *r, const char *name, const char *file)
{
    struct safetensors_file results;
    double *want;
    int64_t n;

    golden_open_file(&results, name, file);
    want = golden_load(&results, "row_loss", &n);
    rig_evaluate(r, r->B);
    golden_compare(c, "row_loss", r->row_loss, want, n);
    rig_train(r, r->B / 2, ACCUM_ASSIGN);
    golden_compare(c, "row_loss in training", r->row_loss, want, n);
    free(want);
    safetensors_close(&results);
}

static void check_case(const char *name, enum dtype compute, bool reference, double rtol)
{
    struct golden_check c = {.rtol = rtol};
    struct rig r;
    char path[GOLDEN_PATH];

    open_case(&r, name, compute, reference);
    check_losses(&c, &r, name, "lora/results.safetensors");
    golden_path(path, name, "lora/grads.safetensors");
    check_grads(&c, &r, path, 0);
    golden_path(path, name, "lora/adapter_model.safetensors");
    check_file(&r, path);
    fprintf(stderr, "golden adapters %s %s: %.2g %% of the tolerance %g used\n", name, r.ops->name,
            100 * c.worst, rtol);
    rig_close(&r);
}

/* Beside weights in a format: losses, and gradients where the golden file has them. */
static void check_quantised(const char *name, enum quant_format format, enum dtype compute,
                            bool reference, double rtol)
{
    const char *file = format == QUANT_NF4 ? "lora/nf4.safetensors" : "lora/int8.safetensors";
    struct golden_check c = {.rtol = rtol};
    struct rig r;
    char path[GOLDEN_PATH];

    open_case(&r, name, compute, reference);
    rig_quantise(&r, format);
    check_losses(&c, &r, name, file);
    golden_path(path, name, file);
    check_grads(&c, &r, path, 1);
    fprintf(stderr, "golden adapters beside %s %s %s: %.2g %% of the tolerance %g used\n", name,
            file, r.ops->name, 100 * c.worst, rtol);
    rig_close(&r);
}

ParameterizedTestParameters(adapter_golden, every_model)
{
    return golden_params("lora");
}

ParameterizedTest(const char *name, adapter_golden, every_model)
{
    check_case(name, DT_F64, true, 1e-12);
    check_case(name, DT_F32, true, 1e-5);
    check_case(name, DT_F32, false, 1e-5); /* the fast ops, where the build has them */
}

ParameterizedTestParameters(adapter_golden, every_quantised_model)
{
    return golden_params("lora/nf4.safetensors");
}

ParameterizedTest(const char *name, adapter_golden, every_quantised_model)
{
    for (int format = QUANT_NF4; format <= QUANT_INT8; format++) {
        check_quantised(name, (enum quant_format)format, DT_F64, true, 1e-12);
        check_quantised(name, (enum quant_format)format, DT_F32, false, 1e-5);
    }
}

/* Codes, scales and what they decode to are those of bitsandbytes. */
Test(adapter_golden, nf4_is_that_of_bitsandbytes)
{
    struct safetensors_file f;
    struct err err = {0};
    int64_t n, n_codes, n_scales;

    cr_assert_eq(safetensors_open("tests/golden/quant/nf4.safetensors", &f, &err), 0, "%s",
                 err.msg);
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
    struct rig r;

    open_case(&r, "opt/pre", DT_F64, true);
    golden_open_file(&results, "opt/pre", "lora/results.safetensors");
    golden_adamw(&r, &results, 5);
    safetensors_close(&results);
    rig_close(&r);
}
