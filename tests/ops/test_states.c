/* The formats in which states lie: 8-bit moments, masters split in a parameter and a remainder. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/adamw_math.h"
#include "kernels/moment_math.h"
#include "tests/ops/harness.h"

/* Every code of a block reads back as itself, whatever the random bits. */
static void codes_stay(uint32_t exponent)
{
    uint32_t m_low = moment_low(exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(exponent, MOMENT_V_BINADES);
    int64_t wrong = 0;
    for (uint32_t code = 0; code < 256; code++)
        for (uint32_t k = 0; k < 65536; k += k < 8 || k > 65520 ? 1 : 997) {
            uint32_t r = k << 16 | (k & 1 ? 0xffff : 0);
            float m = moment_m(code, m_low), v = moment_v(code, v_low);
            wrong += moment_m_code(m, m_low, r) != code || moment_v_code(v, v_low, r) != code;
        }
    expect(wrong == 0, "exponent %u: %ld codes do not read back", exponent, (long)wrong);
}

/* What a code is worth: eighths of the smallest normal value, then three bits of mantissa a binade.
 */
static void codes_have_their_values(uint32_t exponent)
{
    uint32_t m_low = moment_low(exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(exponent, MOMENT_V_BINADES);
    int64_t wrong = 0;
    for (uint32_t code = 0; code < 256; code++) {
        double eighths = code < 8 ? code : ldexp(8 + code % 8, (int)(code / 8) - 1);
        wrong += (double)moment_v(code, v_low) != eighths / 8 * (double)moment_float(v_low);
        if (code < 128)
            wrong += (double)moment_m(code, m_low) != eighths / 8 * (double)moment_float(m_low) ||
                     moment_m(code | 128, m_low) != -moment_m(code, m_low);
    }
    expect(wrong == 0, "exponent %u: %ld codes have another value", exponent, (long)wrong);
}

/* Over all random bits the values that x is rounded to have x as their mean, to a step of the bits
 * in front of the rounding; there are two of them at most. */
static void codes_are_unbiased(float x, uint32_t exponent, bool second)
{
    uint32_t low = moment_low(exponent, second ? MOMENT_V_BINADES : MOMENT_M_BINADES);
    double sum = 0, least = INFINITY, most = -INFINITY;
    for (uint32_t k = 0; k < 1 << 20; k++) {
        uint32_t r = k << 12;
        double y = second ? (double)moment_v(moment_v_code(x, low, r), low)
                          : (double)moment_m(moment_m_code(x, low, r), low);
        sum += y;
        least = fmin(least, y);
        most = fmax(most, y);
    }
    double step = most - least;
    expect(least <= (double)x && (double)x <= most &&
               step <= fmax(fabs((double)x), 0x1p-3 * (double)moment_float(low)) &&
               fabs(sum / (1 << 20) - (double)x) <= step * 0x1p-20,
           "%a becomes %a between %a and %a", (double)x, sum / (1 << 20), least, most);
}

static void codes(void)
{
    codes_stay(MOMENT_LEAST);
    codes_stay(127);
    codes_stay(254);
    codes_have_their_values(MOMENT_LEAST);
    codes_have_their_values(127);
    codes_have_their_values(254);
    random_start("codes");
    for (int k = 0; k < 40; k++) { /* from the block's largest binade to far below its least */
        float x = ldexpf((float)(1 + 0.874 * fabs(random_unit())), -k / 2);
        codes_are_unbiased(k % 2 ? x : -x, 127, false);
        if (k / 2 < 31)
            codes_are_unbiased(x, 127, true);
    }
    for (uint32_t bits = 0x3f800000u; bits < 0x40000000u; bits += 0x1fff) { /* none is too large */
        uint32_t e = moment_exponent(bits), low = moment_low(e, MOMENT_V_BINADES);
        float x = moment_float(bits), y = moment_v(moment_v_code(x, low, 0xffffffff), low);
        if (!expect(y >= x && y <= x * 1.125f, "%a rounds up to %a", (double)x, (double)y))
            break;
    }
    uint32_t low = moment_low(127, MOMENT_V_BINADES);
    expect(moment_v_code(FLT_MIN, low, 0) == 1 && moment_v_code(0, low, 0xffffffff) == 0,
           "a second moment is 0 where it is 0");
    expect(moment_m_code(FLT_MIN, low, 0) == 0, "a tiny first moment is mostly 0");
    expect(moment_exponent(0x7f800000u) == 255 && moment_exponent(0xffffffffu >> 1) == 255 &&
               !isfinite(moment_v(moment_v_code(INFINITY, moment_low(255, MOMENT_V_BINADES), 0),
                                  moment_low(255, MOMENT_V_BINADES))),
           "what is not finite stays so");
}

/* Every float but a NaN is the sum of its parameter and its remainder, and no other parameter is
 * nearer. */
static void splitting_is_exact(void)
{
    static const uint32_t LOW[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    int64_t wrong = 0, far = 0;
    for (uint32_t high = 0; high < 65536; high++)
        for (size_t k = 0; k < sizeof LOW / sizeof LOW[0]; k++) {
            uint32_t bits = high << 16 | LOW[k];
            float x, back;
            memcpy(&x, &bits, sizeof x);
            uint16_t param = adamw_param_bf16(x);
            int16_t remainder = adamw_remainder(x);
            back = adamw_join(param, remainder);
            wrong += isnan(x) ? !isnan(back) || !isnan(adamw_join(param, 0))
                              : memcmp(&x, &back, sizeof x) != 0;
            float p = adamw_join(param, 0), other = adamw_join(param + (remainder < 0 ? -1 : 1), 0);
            far += isfinite(p) && isfinite(other) && fabsf(x - p) > fabsf(x - other);
        }
    expect(wrong == 0 && far == 0, "%ld of 393,216 floats are not their halves, %ld not nearest",
           (long)wrong, (long)far);
}

int main(int argc, char **argv)
{
    harness_open(argc, argv);
    codes();
    splitting_is_exact();
    return harness_close();
}
