#include "tests/unit/worker/model/golden.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

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

void golden_load_batch(struct rig *r, const struct safetensors_file *f)
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

double golden_adamw_step(struct rig *r, double *const *moments, const double *params,
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

void golden_near(const char *what, int step, double got, double want, double *worst)
{
    const double rtol = 1e-6; /* rates and the scale of losses are floats */

    cr_assert_leq(fabs(got - want), rtol * fabs(want), "%s of step %d is %.12g, not %.12g", what,
                  step, got, want);
    *worst = fmax(*worst, fabs(got - want) / (rtol * fabs(want)));
}
