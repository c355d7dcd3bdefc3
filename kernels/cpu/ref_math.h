/* Scalar mathematics of the reference ops, in double whatever the table stores. */
#ifndef CASTOR_KERNELS_CPU_REF_MATH_H
#define CASTOR_KERNELS_CPU_REF_MATH_H

#include <math.h>
#include <stdbool.h>

#include "kernels/alibi.h"
#include "kernels/dropout.h"
#include "kernels/op_table.h"

static inline int64_t ld_or(int64_t ld, int64_t dense)
{
    return ld ? ld : dense;
}

/* The constants of the tanh approximation of GELU (Hendrycks, Gimpel, 2016). */
#define GELU_TANH_SCALE 0.79788456080286535588 /* sqrt(2 / pi) */
#define GELU_TANH_CUBIC 0.044715
#define SQRT_HALF       0.70710678118654752440
#define INV_SQRT_2PI    0.39894228040143267794

static inline double ref_act(enum act_kind act, double x)
{
    switch (act) {
    case ACT_NONE:
        return x;
    case ACT_RELU:
        return x > 0 ? x : 0;
    case ACT_GELU_ERF:
        return 0.5 * x * erfc(-x * SQRT_HALF);
    case ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(GELU_TANH_SCALE * (x + GELU_TANH_CUBIC * x * x * x)));
    case ACT_SILU:
        return x / (1 + exp(-x));
    }
    return x;
}

/* d act / dx at x. ReLU's is 1 above zero only, so its output serves as well as its input. */
static inline double ref_act_slope(enum act_kind act, double x)
{
    switch (act) {
    case ACT_NONE:
        return 1;
    case ACT_RELU:
        return x > 0 ? 1 : 0;
    case ACT_GELU_ERF:
        return 0.5 * erfc(-x * SQRT_HALF) + x * INV_SQRT_2PI * exp(-0.5 * x * x);
    case ACT_GELU_TANH: {
        double t = tanh(GELU_TANH_SCALE * (x + GELU_TANH_CUBIC * x * x * x));
        double inner = GELU_TANH_SCALE * (1 + 3 * GELU_TANH_CUBIC * x * x);
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner;
    }
    case ACT_SILU: {
        double s = 1 / (1 + exp(-x));
        return s * (1 + x * (1 - s));
    }
    }
    return 1;
}

static inline double ref_softcap(double x, double cap)
{
    return cap != 0 ? cap * tanh(x / cap) : x;
}

/* d softcap / dx, from softcap's result. */
static inline double ref_softcap_slope(double capped, double cap)
{
    return cap != 0 ? 1 - (capped / cap) * (capped / cap) : 1;
}

/* What element `index` (counted from d->first) is multiplied by. */
static inline double ref_dropout(const struct op_dropout *d, int64_t index)
{
    if (d->p == 0)
        return 1;
    bool keep = !dropout_drops(d->stream, dropout_threshold(d->p), (uint64_t)(d->first + index));
    return keep ? 1 / (1 - (double)d->p) : 0;
}

#endif
