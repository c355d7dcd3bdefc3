/*
 * Whole-model gradients in bfloat16 on the CPU, judged by PyTorch's own. Every value between ops is
 * rounded to 8 bits there, some fifty times between a token and the first layer's gradient, and a
 * norm of small variance or a softmax magnifies what that makes: no bound worth testing follows
 * from the depth alone. So tests/golden/bf16_gen.py keeps what transformers computes in bfloat16 of
 * the same models, and ours may lie about as far from the gradients in double as that does. The
 * noise is random, and a golden is one throw of it: over eight throws of the weights of four
 * goldens, ours came to 0.49 to 2.2 times PyTorch's, 0.87 in the mean. Hence three bounds, from the
 * sharpest to the one that a single small tensor needs.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/unit/worker/model/golden.h"
#include "tests/unit/worker/model/rig.h"
#include "worker/model/weights.h"

/* Ours over PyTorch's: the mean over all goldens, the whole gradient of one, one tensor's. */
static const double MEAN_RATIO = 1, MODEL_RATIO = 2, TENSOR_RATIO = 3;

/* Norms: of a gradient in double, and of what PyTorch's bfloat16 and ours are off by. */
struct noise {
    double want, theirs, ours;
};

struct gradients { /* tests/golden/CASE/{grads,bf16} */
    struct weights_reader *exact, *torch;
};

static struct noise tensor_noise(struct rig *r, int64_t tensor, const struct gradients *g)
{
    int64_t n = tensor_elements(&r->m.tensors[tensor]);
    double *want = xcalloc((size_t)n, sizeof(double)), *theirs = xcalloc((size_t)n, sizeof(double));
    struct noise off = {0};
    struct err err = {0};

    cr_assert_eq(weights_read(g->exact, tensor, DT_F64, want, &err), 0, "%s", err.msg);
    cr_assert_eq(weights_read(g->torch, tensor, DT_F64, theirs, &err), 0, "%s", err.msg);
    for (int64_t i = 0; i < n; i++) {
        double ours = rig_grad(r, tensor, i);

        cr_assert(isfinite(ours), "tensor %lld, element %lld is %g", (long long)tensor,
                  (long long)i, ours);
        off.want = hypot(off.want, want[i]);
        off.theirs = hypot(off.theirs, theirs[i] - want[i]);
        off.ours = hypot(off.ours, ours - want[i]);
    }
    free(theirs);
    free(want);
    return off;
}

static struct noise model_noise(struct rig *r, const char *name, const struct gradients *g)
{
    struct noise each[256], whole = {0};

    cr_assert_leq((size_t)r->m.n_tensors, sizeof(each) / sizeof(*each));
    for (int64_t t = 0; t < r->m.n_tensors; t++) {
        each[t] = tensor_noise(r, t, g);
        whole.want = hypot(whole.want, each[t].want);
        whole.theirs = hypot(whole.theirs, each[t].theirs);
        whole.ours = hypot(whole.ours, each[t].ours);
    }
    for (int64_t t = 0; t < r->m.n_tensors; t++) {
        /* what a lucky throw leaves of the noise of a tensor of a few elements is no measure */
        double share = whole.theirs / whole.want * each[t].want;
        double allowed = TENSOR_RATIO * fmax(each[t].theirs, share);
        cr_expect_leq(each[t].ours, allowed, "%s: the gradient of %s, layer %d, is off by %g of %g",
                      name, tensor_role_name(r->m.tensors[t].role), (int)r->m.tensors[t].layer,
                      each[t].ours, each[t].want);
    }
    return whole;
}

static struct noise case_noise(const char *name)
{
    struct gradients g = {0};
    struct err err = {0};
    struct rig r;
    char path[GOLDEN_PATH];

    golden_open(&r, name, DT_BF16, false);
    rig_train(&r, r.B, ACCUM_ASSIGN);
    golden_path(path, name, "grads");
    cr_assert_eq(weights_open(path, &r.m, &g.exact, &err), 0, "%s", err.msg);
    golden_path(path, name, "bf16");
    cr_assert_eq(weights_open(path, &r.m, &g.torch, &err), 0, "%s", err.msg);
    struct noise off = model_noise(&r, name, &g);
    weights_close(g.torch);
    weights_close(g.exact);
    rig_close(&r);
    return off;
}

Test(bf16, whole_gradients_are_as_exact_as_those_of_pytorch)
{
    char(*names)[GOLDEN_NAME];
    size_t n = golden_names("bf16", &names);
    double sum_log = 0;

    for (size_t i = 0; i < n; i++) {
        struct noise off = case_noise(names[i]);
        double ratio = off.ours / off.theirs;

        cr_expect_leq(ratio, MODEL_RATIO, "%s", names[i]);
        sum_log += log(ratio);
        fprintf(stderr, "%s: PyTorch's bfloat16 off by %.2f %%, ours by %.2f %%\n", names[i],
                100 * off.theirs / off.want, 100 * off.ours / off.want);
    }
    double mean = exp(sum_log / (double)n);
    fprintf(stderr, "bfloat16: ours %.2f times PyTorch's distance in the mean\n", mean);
    cr_expect_leq(mean, MEAN_RATIO);
    free(names);
}
