#include <criterion/criterion.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/dtype.h"

static uint16_t from_f32(enum dtype to, float x)
{
    uint16_t bits = 0;
    dtype_convert(to, &bits, DT_F32, &x, 1);
    return bits;
}

Test(dtype, sizes_and_names)
{
    cr_assert_eq(dtype_size(DT_F64), 8);
    cr_assert_eq(dtype_size(DT_BF16), 2);
    cr_assert_eq(dtype_size(DT_E4M3), 1);
    cr_assert_eq(dtype_size(DT_I64), 8);
    cr_assert_str_eq(dtype_name(DT_BF16), "bf16");
    cr_assert(dtype_is_float(DT_E5M2));
    cr_assert_not(dtype_is_float(DT_I32));
}

Test(dtype, rounds_to_nearest_even)
{
    cr_assert_eq(from_f32(DT_BF16, 1.0f), 0x3f80);
    cr_assert_eq(from_f32(DT_BF16, 1.0f + 0x1p-8f), 0x3f80);
    cr_assert_eq(from_f32(DT_BF16, 1.0f + 3 * 0x1p-8f), 0x3f82);
    cr_assert_eq(from_f32(DT_BF16, 1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
    cr_assert_eq(from_f32(DT_F16, 1.0f + 0x1p-11f), 0x3c00);
    cr_assert_eq(from_f32(DT_F16, 1.0f + 3 * 0x1p-11f), 0x3c02);
    cr_assert_eq(from_f32(DT_F16, 65519.0f), 0x7bff);
    cr_assert_eq(from_f32(DT_F16, 65520.0f), 0x7c00, "half way to 2^16 overflows");
    cr_assert_eq(from_f32(DT_F16, 0x1p-24f), 0x0001, "the smallest subnormal");
    cr_assert_eq(from_f32(DT_F16, 0x1p-25f), 0x0000, "half of it goes to even");
    cr_assert_eq(from_f32(DT_F16, 3 * 0x1p-25f), 0x0002);
    cr_assert_eq(from_f32(DT_F16, 0x1p-14f - 0x1p-26f), 0x0400, "rounds up into the normals");
    cr_assert_eq(from_f32(DT_BF16, -0.0f), 0x8000);
    cr_assert_eq(from_f32(DT_BF16, 3.4e38f), 0x7f80);
}

/* Rounding 1 + 2^-11 + 2^-40 through float first would lose the last bit and go down. */
Test(dtype, rounds_once_from_double)
{
    double x = 1 + 0x1p-11 + 0x1p-40;
    uint16_t bits;
    dtype_convert(DT_F16, &bits, DT_F64, &x, 1);
    cr_assert_eq(bits, 0x3c01);
}

Test(dtype, keeps_nan_and_infinity)
{
    static const enum dtype FLOATS[] = {DT_F64, DT_F32, DT_F16, DT_BF16, DT_E4M3, DT_E5M2};
    for (size_t from = 0; from < 6; from++)
        for (size_t to = 0; to < 6; to++) {
            double in[3] = {NAN, INFINITY, -INFINITY}, out[3];
            unsigned char a[24], b[24];
            dtype_convert(FLOATS[from], a, DT_F64, in, 3);
            dtype_convert(FLOATS[to], b, FLOATS[from], a, 3);
            dtype_convert(DT_F64, out, FLOATS[to], b, 3);
            cr_assert(isnan(out[0]), "%s to %s", dtype_name(FLOATS[from]), dtype_name(FLOATS[to]));
            cr_assert_not(isfinite(out[1]));
            cr_assert_not(isfinite(out[2]));
        }
    uint32_t low_nan = 0x7f800001u; /* its upper half alone would be infinity */
    uint16_t bits;
    dtype_convert(DT_BF16, &bits, DT_F32, &low_nan, 1);
    cr_assert_eq(bits, 0x7fc0);
}

/* Every pattern of the small types survives the way to double, and to float, and back. */
Test(dtype, small_types_round_trip)
{
    static const enum dtype SMALL[] = {DT_F16, DT_BF16, DT_E4M3, DT_E5M2};
    static const enum dtype WIDE[] = {DT_F64, DT_F32};
    for (size_t t = 0; t < 4; t++)
        for (size_t w = 0; w < 2; w++)
            for (uint32_t i = 0; i < 1u << (8 * dtype_size(SMALL[t])); i++) {
                uint16_t in = (uint16_t)i, back = 0;
                double wide, value;
                dtype_convert(WIDE[w], &wide, SMALL[t], &in, 1);
                dtype_convert(SMALL[t], &back, WIDE[w], &wide, 1);
                dtype_convert(DT_F64, &value, WIDE[w], &wide, 1);
                if (!isnan(value))
                    cr_assert_eq(in, back, "%s %#x came back as %#x", dtype_name(SMALL[t]), in,
                                 back);
            }
}

/* The loop for float16 to float against the general code. */
Test(dtype, f16_to_f32_is_exact)
{
    for (uint32_t i = 0; i < 1u << 16; i++) {
        uint16_t in = (uint16_t)i;
        float single;
        double exact;
        dtype_convert(DT_F32, &single, DT_F16, &in, 1);
        dtype_convert(DT_F64, &exact, DT_F16, &in, 1);
        if (isnan(exact))
            cr_assert(isnan(single));
        else
            cr_assert(exact == (double)single && !signbit(exact) == !signbit(single));
    }
}

Test(dtype, e4m3_limits)
{
    double x[] = {448, 464, 465, 0x1p-9, -0.001953125};
    uint8_t bits[5];
    dtype_convert(DT_E4M3, bits, DT_F64, x, 5);
    cr_assert_eq(bits[0], 0x7e);
    cr_assert_eq(bits[1], 0x7e, "half way to 480, to even");
    cr_assert_eq(bits[2], 0x7f, "beyond the largest number there is only NaN");
    cr_assert_eq(bits[3], 0x01);
    cr_assert_eq(bits[4], 0x81);
}
