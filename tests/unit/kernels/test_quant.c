/* Quantising and decoding, against the meaning: levels from the paper's formula, the nearest level
 * by a search in double. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/rng.h"
#include "kernels/quant.h"

enum { MOST = 64 * 40 + 23 };

static const float nf4[16] = QUANT_NF4_LEVELS;

/* The point below which a standard normal variable lies with probability p. */
static double normal_quantile(double p)
{
    double low = -10, high = 10;

    for (int i = 0; i < 200; i++) {
        double mid = (low + high) / 2;
        *(0.5 * erfc(-mid / sqrt(2.0)) < p ? &low : &high) = mid;
    }
    return low;
}

/* QLoRA, equation 4 and appendix E: quantiles of the normal distribution, seven steps below zero
 * and eight above from a common tail, scaled to end at -1 and 1. */
Test(quant, levels_of_nf4_are_those_of_the_paper)
{
    const double tail = 0.5 * (1.0 / 32 + 1.0 / 30), end = normal_quantile(1 - tail);

    for (int k = 0; k < 8; k++) {
        double below = normal_quantile(1 - tail - (0.5 - tail) * k / 7) / end;
        cr_expect_float_eq((double)nf4[k], -below, 2e-7, "level %d", k);
    }
    for (int k = 0; k < 9; k++) {
        double above = normal_quantile(1 - tail - (0.5 - tail) * k / 8) / end;
        cr_expect_float_eq((double)nf4[15 - k], above, 2e-7, "level %d", 15 - k);
    }
}

static void random_values(float *x, int64_t n, uint32_t site, float scale)
{
    struct rng_stream s = {.seed = 3, .site = site, .use = RNG_USE_INIT};

    for (int64_t i = 0; i < n; i++) {
        float a = rng_to_unit(rng_draw(s, (uint64_t)(2 * i))) + 1e-7f,
              b = rng_to_unit(rng_draw(s, (uint64_t)(2 * i + 1)));
        x[i] = scale * sqrtf(-2 * logf(a)) * cosf(6.2831853f * b);
    }
}

static double level_of(enum quant_format format, int code)
{
    return format == QUANT_NF4 ? (double)nf4[code] : code - 127;
}

/* Which level of the block a value goes to, by distance in double. */
static int nearest(enum quant_format format, double x, double scale)
{
    int best = 0, codes = format == QUANT_NF4 ? 16 : 255;

    for (int c = 1; c < codes; c++)
        if (fabs(level_of(format, c) * scale - x) < fabs(level_of(format, best) * scale - x))
            best = c;
    return best;
}

static int code_at(enum quant_format format, const uint8_t *codes, int64_t i)
{
    if (format == QUANT_INT8)
        return (int8_t)codes[i] + 127;
    return i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
}

static void check_blocks(enum quant_format format, int64_t n, float spread)
{
    float *x = xcalloc((size_t)n, sizeof *x), *back = xcalloc((size_t)n, sizeof *back);
    uint8_t *codes = xcalloc(1, quant_bytes(format, n));
    float *scales = (float *)(void *)(codes + quant_scales_at(format, n));
    /* half of the widest gap between levels; quotient and product, of up to 127, are rounded */
    double most = format == QUANT_NF4 ? 0.5 * (1 - 0.6961928009986877) : 0.5 + 127 * 0x1p-23;

    random_values(x, n, (uint32_t)n, spread);
    quant_encode(format, n, x, codes, scales);
    quant_decode(format, codes, scales, 0, n, DT_F32, back);
    for (int64_t i = 0; i < n; i++) {
        int64_t first = i / 64 * 64, end = first + 64 < n ? first + 64 : n;
        double top = 0;
        for (int64_t k = first; k < end; k++)
            top = fmax(top, fabs((double)x[k]));
        double scale = format == QUANT_NF4 ? top : (double)((float)top / 127.0f);
        int code = code_at(format, codes, i), want = nearest(format, (double)x[i], scale);

        cr_assert_eq((double)scales[i / 64], scale);
        cr_assert_eq(back[i], (float)level_of(format, code) * scales[i / 64]);
        cr_assert_leq(fabs((double)back[i] - (double)x[i]), most * scale * (1 + 0x1p-22));
        if (code != want)
            cr_assert_float_eq(fabs(level_of(format, code) * scale - (double)x[i]),
                               fabs(level_of(format, want) * scale - (double)x[i]),
                               127 * 0x1p-23 * scale);
    }
    free(x);
    free(back);
    free(codes);
}

Test(quant, every_value_goes_to_the_nearest_level_of_its_block)
{
    static const int64_t lengths[] = {1, 2, 63, 64, 65, 127, 128, 1000, MOST, 64 * 300};

    for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++)
        for (int format = QUANT_NF4; format <= QUANT_INT8; format++) {
            check_blocks((enum quant_format)format, lengths[k], 0.02f);
            check_blocks((enum quant_format)format, lengths[k], 1e30f);
            check_blocks((enum quant_format)format, lengths[k], 1e-30f);
        }
}

/* Of normal values nf4 keeps all but about a tenth, int8 all but a hundredth. */
Test(quant, error_of_normal_values_is_as_small_as_it_should_be)
{
    enum { N = 64 * 1000 };
    static const double most[] = {[QUANT_NF4] = 0.1, [QUANT_INT8] = 0.008};
    float *x = xcalloc(N, sizeof *x), *back = xcalloc(N, sizeof *back);

    for (int format = QUANT_NF4; format <= QUANT_INT8; format++) {
        uint8_t *codes = xcalloc(1, quant_bytes((enum quant_format)format, N));
        float *scales = (float *)(void *)(codes + quant_scales_at((enum quant_format)format, N));
        double error = 0, all = 0;

        random_values(x, N, 5, 1);
        quant_encode((enum quant_format)format, N, x, codes, scales);
        quant_decode((enum quant_format)format, codes, scales, 0, N, DT_F32, back);
        for (int64_t i = 0; i < N; i++) {
            error += pow((double)back[i] - (double)x[i], 2);
            all += pow((double)x[i], 2);
        }
        cr_expect_lt(sqrt(error / all), most[format]);
        cr_expect_gt(sqrt(error / all), most[format] / 2);
        free(codes);
    }
    free(x);
    free(back);
}

Test(quant, blocks_of_zeros_and_of_what_is_not_finite)
{
    for (int format = QUANT_NF4; format <= QUANT_INT8; format++) {
        float x[4 * 64] = {0}, back[4 * 64], scales[4];
        uint8_t codes[4 * 64];

        x[64 + 7] = NAN;
        x[128 + 63] = -INFINITY;
        x[192] = -2;
        quant_encode((enum quant_format)format, 4 * 64, x, codes, scales);
        quant_decode((enum quant_format)format, codes, scales, 0, 4 * 64, DT_F32, back);
        for (int i = 0; i < 4 * 64; i++) {
            if (i >= 64 && i < 192)
                cr_expect(isnan(back[i]));
            else
                cr_expect_eq(back[i], x[i]);
        }
    }
}

/* Subnormal magnitudes, whose scale is but rough, stay within a step of it. */
Test(quant, smallest_magnitudes)
{
    for (int format = QUANT_NF4; format <= QUANT_INT8; format++)
        for (int units = 1; units < 400; units++) {
            float x[64] = {0}, back[64], scale;
            uint8_t codes[64];

            x[0] = (float)units * 0x1p-149f;
            x[1] = -x[0];
            quant_encode((enum quant_format)format, 64, x, codes, &scale);
            quant_decode((enum quant_format)format, codes, &scale, 0, 64, DT_F32, back);
            cr_expect_leq(fabs((double)back[0]) * 0x1p149, 2 * units);
            cr_expect_eq(back[0], -back[1]);
            for (int i = 2; i < 64; i++)
                cr_expect_eq(back[i], 0);
        }
}

Test(quant, any_part_decodes_as_the_whole_does)
{
    enum { N = 64 * 9 + 5 };
    float x[N], whole[N];
    uint16_t narrow[N], part[N];

    random_values(x, N, 8, 1);
    for (int format = QUANT_NF4; format <= QUANT_INT8; format++) {
        uint8_t codes[N];
        float scales[10];

        quant_encode((enum quant_format)format, N, x, codes, scales);
        quant_decode((enum quant_format)format, codes, scales, 0, N, DT_F32, whole);
        dtype_convert(DT_BF16, narrow, DT_F32, whole, N);
        for (int first = 0; first < N; first += 37) {
            quant_decode((enum quant_format)format, codes, scales, first, N - first, DT_BF16, part);
            cr_expect_eq(memcmp(part, narrow + first, (size_t)(N - first) * 2), 0);
        }
    }
}

Test(quant, sizes)
{
    cr_expect_eq(quant_bytes(QUANT_NF4, 64), 32 + 4);
    cr_expect_eq(quant_bytes(QUANT_INT8, 64), 64 + 4);
    cr_expect_eq(quant_bytes(QUANT_NF4, 65), 36 + 8);
    cr_expect_eq(quant_bytes(QUANT_NF4, 4096 * 4096), 4096u * 4096u / 2 + 4096u * 4096u / 16);
}
