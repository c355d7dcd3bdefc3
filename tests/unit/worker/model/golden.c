#include "tests/unit/worker/model/golden.h"

#include <assert.h>
#include <criterion/criterion.h>
#include <criterion/new/memory.h>
#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/model/weights.h"

#define ROOT "tests/golden/"

size_t golden_names(const char *has, char (**out)[GOLDEN_NAME])
{
    char pattern[GOLDEN_PATH];
    glob_t found;

    golden_path(pattern, "*/*", has);
    int rc = glob(pattern, 0, NULL, &found);
    assert(rc == 0 && found.gl_pathc >= 30);
    size_t n = found.gl_pathc;
    *out = xcalloc(n, sizeof(**out));
    for (size_t i = 0; i < n; i++) {
        const char *name = found.gl_pathv[i] + strlen(ROOT);
        size_t length = strlen(name) - strlen(has) - 1;

        assert(length < GOLDEN_NAME);
        memcpy((*out)[i], name, length);
    }
    globfree(&found);
    return n;
}

static void free_params(struct criterion_test_params *p)
{
    cr_free(p->params);
}

struct criterion_test_params golden_params(const char *has)
{
    char(*names)[GOLDEN_NAME];
    size_t n = golden_names(has, &names);
    void *shared = cr_malloc(n * sizeof(*names)); /* tests are processes of their own */

    memcpy(shared, names, n * sizeof(*names));
    free(names);
    return (struct criterion_test_params){
        .size = sizeof(*names), .params = shared, .length = n, .cleanup = free_params};
}

void golden_path(char out[GOLDEN_PATH], const char *name, const char *file)
{
    snprintf(out, GOLDEN_PATH, ROOT "%s/%s", name, file);
}

void golden_open_file(struct safetensors_file *f, const char *name, const char *file)
{
    struct err err = {0};
    char path[GOLDEN_PATH];

    golden_path(path, name, file);
    cr_assert_eq(safetensors_open(path, f, &err), 0, "%s", err.msg);
}

void golden_compare(struct golden_check *c, const char *what, const double *got, const double *want,
                    int64_t n)
{
    double largest = 0, difference = 0;

    for (int64_t i = 0; i < n; i++) {
        cr_assert(isfinite(got[i]), "%s[%lld] is %g", what, (long long)i, got[i]);
        largest = c->by_norm ? hypot(largest, want[i]) : fmax(largest, fabs(want[i]));
        difference = c->by_norm ? hypot(difference, got[i] - want[i])
                                : fmax(difference, fabs(got[i] - want[i]));
    }
    cr_assert_leq(difference, c->rtol * largest, "%s differs by %g, allowed %g", what, difference,
                  c->rtol * largest);
    c->worst = fmax(c->worst, largest > 0 ? difference / (c->rtol * largest) : 0);
}

void *golden_load(const struct safetensors_file *f, const char *name, int64_t *n)
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
        int32_t *data = golden_load(f, names[i], &n);

        cr_assert_eq(n, r->B * r->T);
        memcpy(into[i], data, (size_t)n * sizeof(int32_t));
        free(data);
    }
}

void golden_open(struct rig *r, const char *name, enum dtype compute, bool reference)
{
    struct decoder_config config;
    struct safetensors_file batch;
    struct err err = {0};
    char path[GOLDEN_PATH];

    golden_path(path, name, "model");
    cr_assert_eq(decoder_config_load(path, &config, &err), 0, "%s", err.msg);
    rig_open(r, &config, compute, reference, 4, 12);
    rig_load(r, path);
    golden_open_file(&batch, name, "batch.safetensors");
    load_batch(r, &batch);
    safetensors_close(&batch);
}

void golden_same_file(const char *a_path, const char *b_path)
{
    struct safetensors_file a, b;
    struct err err = {0};

    cr_assert_eq(safetensors_open(a_path, &a, &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_open(b_path, &b, &err), 0, "%s", err.msg);
    cr_assert_eq(a.n_tensors, b.n_tensors);
    for (int64_t i = 0; i < a.n_tensors; i++) {
        int64_t n, m;
        void *x = golden_load(&a, a.tensors[i].name, &n),
             *y = golden_load(&b, a.tensors[i].name, &m);

        cr_assert_eq(n, m);
        cr_assert_arr_eq(a.tensors[i].shape, b.tensors[i].shape, sizeof(a.tensors[i].shape));
        cr_assert_arr_eq(x, y, a.tensors[i].bytes, "%s differs", a.tensors[i].name);
        free(x);
        free(y);
    }
    safetensors_close(&a);
    safetensors_close(&b);
}

/* params: beta1, beta2, epsilon, weight decay, clip norm. Returns the norm of the gradients. */
static double adamw_step(struct rig *r, double *const *moments, const double *params,
                         struct adamw_step step)
{
    double *partial = xcalloc((size_t)r->m.n_tensors, sizeof(double));
    struct clip_result result;
    struct clip_args clip = {
        .n = r->m.n_tensors, .partial = partial, .max_norm = (float)params[4], .result = &result};

    for (int64_t t = 0; t < r->m.n_tensors; t++) {
        struct sumsq_args a = {
            .n = tensor_elements(&r->m.tensors[t]), .x = r->grads[t], .partial = &partial[t]};

        if (!r->m.tensors[t].trainable)
            continue;
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

        if (!r->m.tensors[t].trainable)
            continue;
        cr_assert_eq(r->ops->adamw(r->stream, &a), 0);
    }
    free(partial);
    return result.norm;
}

/* *worst is raised to the share of the tolerance that is used. */
static void near(const char *what, int step, double got, double want, double *worst)
{
    const double rtol = 1e-6; /* rates and the scale of losses are floats */

    cr_assert_leq(fabs(got - want), rtol * fabs(want), "%s of step %d is %.12g, not %.12g", what,
                  step, got, want);
    *worst = fmax(*worst, fabs(got - want) / (rtol * fabs(want)));
}

void golden_adamw(struct rig *r, const struct safetensors_file *f, int64_t steps)
{
    int64_t n_losses, n, targets = 0;
    double *losses = golden_load(f, "adamw.losses", &n_losses),
           *norms = golden_load(f, "adamw.norms", &n), *rates = golden_load(f, "adamw.lr", &n),
           *params = golden_load(f, "adamw.params", &n), worst = 0;
    double **moments = xcalloc((size_t)r->m.n_tensors, sizeof(*moments));

    cr_assert_eq(n_losses, steps);
    for (int64_t t = 0; t < r->m.n_tensors; t++)
        moments[t] = xcalloc((size_t)tensor_elements(&r->m.tensors[t]), 2 * sizeof(double));
    for (int64_t i = 0; i < r->B * r->T; i++)
        targets += r->targets[i] >= 0;
    r->grad_scale = 1 / (float)targets;
    for (int step = 0; step < steps; step++) {
        struct adamw_step s = {.lr = (float)rates[step],
                               .bias1 = (float)(1 - pow(params[0], step + 1)),
                               .bias2 = (float)(1 - pow(params[1], step + 1))};
        double loss = 0;

        rig_train(r, 2, ACCUM_ASSIGN);
        for (int64_t i = 0; i < r->B * r->T; i++)
            loss += r->row_loss[i] / (double)targets;
        near("loss", step, loss, losses[step], &worst);
        near("norm", step, adamw_step(r, moments, params, s), norms[step], &worst);
    }
    fprintf(stderr, "golden adamw: %.2g %% of the tolerance used\n", 100 * worst);
    for (int64_t t = 0; t < r->m.n_tensors; t++)
        free(moments[t]);
    free(moments);
    free(losses);
    free(norms);
    free(rates);
    free(params);
}
