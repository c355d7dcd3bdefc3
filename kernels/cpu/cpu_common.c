#include "kernels/cpu/cpu_common.h"

#include <math.h>
#include <string.h>

int cpu_clip(struct stream *s, const struct clip_args *a)
{
    struct clip_result r = {0};
    double sum = 0;

    for (int64_t i = 0; i < a->n; i++)
        sum += a->partial[i];
    r.norm = sqrt(sum) * (double)a->inv_scale;
    r.finite = isfinite(r.norm) ? 1 : 0;
    if (r.finite) {
        double ratio = a->max_norm > 0 ? (double)a->max_norm / (r.norm + 1e-6) : 1;
        r.clipped = ratio < 1;
        r.coef = r.clipped ? (float)((double)a->inv_scale * ratio) : a->inv_scale;
    }
    *a->result = r;
    return 0;
}

int cpu_cast(struct stream *s, const struct cast_args *a)
{
    dtype_convert(a->to, a->dst, a->from, a->src, a->n);
    return 0;
}

struct adamw_consts cpu_adamw_consts(const struct adamw_args *a, bool decay)
{
    return adamw_consts_make(a->beta1, a->beta2, a->eps, decay ? a->weight_decay : 0.0f,
                             a->step->lr, a->step->bias1, a->step->bias2, a->clip->coef);
}
