#include "tests/ops/harness_fp8.h"

#include <math.h>

struct format {
    double values[256];
    int count;
};

/* All finite values that are not negative, in ascending order of their bits and so of themselves.
 */
static void list_values(struct format *f, int mantissa_bits, int bias, int codes)
{
    int mantissas = 1 << mantissa_bits;

    f->count = codes;
    for (int code = 0; code < codes; code++) {
        int exponent = code / mantissas, fraction = code % mantissas;
        f->values[code] = exponent ? ldexp(1 + (double)fraction / mantissas, exponent - bias)
                                   : ldexp((double)fraction / mantissas, 1 - bias);
    }
}

/* The nearest value; of two as near, the one whose code is even. */
static double nearest(const struct format *f, double x)
{
    int best = 0;

    for (int i = 1; i < f->count; i++) {
        double closer = fabs(f->values[best] - fabs(x)) - fabs(f->values[i] - fabs(x));
        if (closer > 0 || (closer == 0 && i % 2 == 0))
            best = i;
    }
    return copysign(f->values[best], x);
}

void fp8_round_by_hand(enum fp8_format format, double *x, int64_t n)
{
    struct format f;
    double top = 0, scale = 1;

    if (format == FP8_E4M3)
        list_values(&f, 3, 7, 0x7f); /* 0x7f is NaN */
    else
        list_values(&f, 2, 15, 0x7c); /* 0x7c and above: not finite */
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(x[i]));
    while (top * scale > f.values[f.count - 1])
        scale /= 2;
    while (top > 0 && top * scale * 2 <= f.values[f.count - 1])
        scale *= 2;
    for (int64_t i = 0; i < n; i++)
        x[i] = nearest(&f, x[i] * scale) / scale;
}
