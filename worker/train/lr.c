#include "worker/train/lr.h"

#include <math.h>

double lr_at(const struct spec_optimization *o, int64_t step, int64_t total_steps)
{
    double peak = o->learning_rate.value;
    int64_t warmup = (int64_t)ceil(o->warmup_ratio * (double)total_steps);

    if (step <= warmup)
        return peak * (double)step / (double)(warmup + 1);
    double done = (double)(step - 1 - warmup) / (double)(total_steps - warmup);
    switch (o->schedule) {
    case LR_LINEAR:
        return peak * (1.0 - done);
    case LR_COSINE:
        return peak * 0.5 * (1.0 + cos(M_PI * done));
    case LR_CONSTANT:
        break;
    }
    return peak;
}
