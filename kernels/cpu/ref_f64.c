/* The reference table in double throughout: what gradients are checked in. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fp8.h"
#include "kernels/cpu/quant.h"
#include "kernels/cpu/ref_math.h"

#define real        double
#define TABLE       cpu_ref_f64
#define TABLE_NAME  "cpu-ref-f64"
#define TABLE_DTYPE DT_F64

struct adamw_real_consts {
    double beta1, beta2, eps, decay, step_size, inv_sqrt_bias2, grad_coef;
};

static struct adamw_real_consts adamw_real_consts(const struct adamw_args *a, bool decay)
{
    double lr = (double)a->step->lr;
    struct adamw_real_consts c = {
        .beta1 = (double)a->beta1,
        .beta2 = (double)a->beta2,
        .eps = (double)a->eps,
        .decay = decay ? 1 - lr * (double)a->weight_decay : 1,
        .step_size = lr / (double)a->step->bias1,
        .inv_sqrt_bias2 = 1 / sqrt((double)a->step->bias2),
        .grad_coef = (double)a->clip->coef,
    };
    return c;
}

/* The formula of kernels/adamw_math.h; the flush of tiny moments is at double's own limit. */
static void adamw_real(const struct adamw_real_consts *c, double grad, double *master, double *m,
                       double *v)
{
    double g = grad * c->grad_coef;
    double mm = c->beta1 * *m + (1 - c->beta1) * g;
    double vv = c->beta2 * *v + (1 - c->beta2) * g * g;
    *m = fabs(mm) < DBL_MIN ? 0 : mm;
    *v = vv < DBL_MIN ? 0 : vv;
    *master = *master * c->decay - c->step_size * *m / (sqrt(*v) * c->inv_sqrt_bias2 + c->eps);
}

static int adamw_mixed(const struct adamw_args *a)
{
    return ERR_UNSUPPORTED; /* everything is double here */
}

#include "kernels/cpu/ref_attn.inc.h"
#include "kernels/cpu/ref_embed.inc.h"
#include "kernels/cpu/ref_linear.inc.h"
#include "kernels/cpu/ref_loss.inc.h"
#include "kernels/cpu/ref_norm.inc.h"
#include "kernels/cpu/ref_optim.inc.h"
