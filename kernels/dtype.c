#include "kernels/dtype.h"

#include <assert.h>
#include <math.h>
#include <string.h>

struct dtype_info {
    const char *name;
    size_t size;
    bool is_float;
};

static const struct dtype_info INFO[] = {
    [DT_F64] = {"f64", 8, true},   [DT_F32] = {"f32", 4, true},   [DT_F16] = {"f16", 2, true},
    [DT_BF16] = {"bf16", 2, true}, [DT_E4M3] = {"e4m3", 1, true}, [DT_E5M2] = {"e5m2", 1, true},
    [DT_I64] = {"i64", 8, false},  [DT_I32] = {"i32", 4, false},  [DT_I16] = {"i16", 2, false},
    [DT_I8] = {"i8", 1, false},    [DT_U8] = {"u8", 1, false},    [DT_BOOL] = {"bool", 1, false}};

static const struct dtype_info *info_of(enum dtype t)
{
    assert((size_t)t < sizeof INFO / sizeof INFO[0]);
    return &INFO[t];
}

size_t dtype_size(enum dtype t)
{
    return info_of(t)->size;
}

const char *dtype_name(enum dtype t)
{
    return info_of(t)->name;
}

bool dtype_is_float(enum dtype t)
{
    return info_of(t)->is_float;
}

/* A binary format of at most 16 bits. E4M3 is the "fn" kind of the OCP 8-bit specification: no
 * infinities, and only the all-ones pattern is NaN, so its top binade is used for numbers. */
struct small_format {
    int exp_bits, man_bits;
    bool has_inf;
};
static const struct small_format FORMAT_F16 = {5, 10, true};
static const struct small_format FORMAT_BF16 = {8, 7, true};
static const struct small_format FORMAT_E4M3 = {4, 3, false};
static const struct small_format FORMAT_E5M2 = {5, 2, true};

static const struct small_format *format_of(enum dtype t)
{
    switch (t) {
    case DT_F16:
        return &FORMAT_F16;
    case DT_BF16:
        return &FORMAT_BF16;
    case DT_E4M3:
        return &FORMAT_E4M3;
    case DT_E5M2:
        return &FORMAT_E5M2;
    default:
        return NULL;
    }
}

static double small_decode(const struct small_format *f, uint32_t bits)
{
    int bias = (1 << (f->exp_bits - 1)) - 1;
    uint32_t man_mask = (1u << f->man_bits) - 1, exp_mask = (1u << f->exp_bits) - 1;
    uint32_t man = bits & man_mask, exp = (bits >> f->man_bits) & exp_mask;
    double sign = (bits >> (f->exp_bits + f->man_bits)) & 1 ? -1.0 : 1.0;

    if (exp == exp_mask && f->has_inf)
        return man ? copysign(NAN, sign) : sign * INFINITY;
    if (exp == exp_mask && man == man_mask)
        return copysign(NAN, sign);
    if (exp == 0)
        return sign * ldexp((double)man, 1 - bias - f->man_bits);
    return sign * ldexp((double)(man | (1u << f->man_bits)), (int)exp - bias - f->man_bits);
}

/* Every source format is exact in double, so rounding from double happens once. Overflow becomes
 * infinity, or NaN where the format has none (as PyTorch's casts do). */
static uint32_t small_encode(const struct small_format *f, double x)
{
    int bias = (1 << (f->exp_bits - 1)) - 1, width = f->exp_bits + f->man_bits;
    uint32_t all = (1u << width) - 1, man_mask = (1u << f->man_bits) - 1;
    uint32_t inf = all & ~man_mask, nan = f->has_inf ? inf | (1u << (f->man_bits - 1)) : all;
    uint32_t overflow = f->has_inf ? inf : nan;
    uint32_t sign = signbit(x) ? 1u << width : 0;

    if (isnan(x))
        return sign | nan;
    if (isinf(x))
        return sign | overflow;
    if (x == 0)
        return sign;
    int e;
    double a = fabs(x);
    frexp(a, &e); /* a = fraction in [0.5, 1) * 2^e */
    int exp = e - 1 < 1 - bias ? 1 - bias : e - 1;
    double units = ldexp(a, f->man_bits - exp); /* exact; below 2^(man_bits + 1) */
    double whole = rint(units);                 /* the default mode: to nearest even */
    uint32_t bits = (uint32_t)whole + ((uint32_t)(exp + bias - 1) << f->man_bits);
    /* A normal number carries its hidden bit into the exponent field; so does a rounding carry. */
    if (bits >= overflow)
        return sign | overflow;
    return sign | bits;
}

static double load_one(enum dtype t, const void *p, int64_t i)
{
    switch (t) {
    case DT_F64:
        return ((const double *)p)[i];
    case DT_F32:
        return ((const float *)p)[i];
    case DT_F16:
    case DT_BF16:
        return small_decode(format_of(t), ((const uint16_t *)p)[i]);
    default:
        return small_decode(format_of(t), ((const uint8_t *)p)[i]);
    }
}

static void store_one(enum dtype t, void *p, int64_t i, double x)
{
    switch (t) {
    case DT_F64:
        ((double *)p)[i] = x;
        break;
    case DT_F32:
        ((float *)p)[i] = (float)x;
        break;
    case DT_F16:
    case DT_BF16:
        ((uint16_t *)p)[i] = (uint16_t)small_encode(format_of(t), x);
        break;
    default:
        ((uint8_t *)p)[i] = (uint8_t)small_encode(format_of(t), x);
    }
}

/* The pairs below carry model weights, so they are loops that the compiler vectorises. */
static void bf16_to_f32(float *dst, const uint16_t *src, int64_t n)
{
    uint32_t *bits = (uint32_t *)(void *)dst;
    for (int64_t i = 0; i < n; i++)
        bits[i] = (uint32_t)src[i] << 16;
}

static uint16_t f32_bits_to_bf16(uint32_t b)
{
    uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1)) >> 16;
    uint32_t quiet_nan = (b >> 16 & 0x8000u) | 0x7fc0u;
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

static void f32_to_bf16(uint16_t *dst, const float *src, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t b;
        memcpy(&b, &src[i], sizeof b);
        dst[i] = f32_bits_to_bf16(b);
    }
}

/* Shift the 15 value bits to float's place and rescale by 2^112, which is exact and turns
 * subnormals into normals; infinity and NaN need their exponent set. */
static void f16_to_f32(float *dst, const uint16_t *src, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t value = (uint32_t)(src[i] & 0x7fff) << 13, sign = (uint32_t)(src[i] & 0x8000)
                                                                   << 16;
        float scaled;
        memcpy(&scaled, &value, sizeof scaled);
        scaled *= 0x1p112f;
        uint32_t bits;
        memcpy(&bits, &scaled, sizeof bits);
        bits = (value >= 0x0f800000u ? value | 0x7f800000u : bits) | sign;
        if ((bits & 0x7fffffffu) > 0x7f800000u)
            bits |= 0x00400000u;
        memcpy(&dst[i], &bits, sizeof bits);
    }
}

void dtype_convert(enum dtype to, void *dst, enum dtype from, const void *src, int64_t n)
{
    assert(dtype_is_float(to) && dtype_is_float(from) && n >= 0);
    if (n == 0)
        return;
    if (to == from) {
        memcpy(dst, src, (size_t)n * dtype_size(to));
    } else if (to == DT_F32 && from == DT_BF16) {
        bf16_to_f32(dst, src, n);
    } else if (to == DT_F32 && from == DT_F16) {
        f16_to_f32(dst, src, n);
    } else if (to == DT_BF16 && from == DT_F32) {
        f32_to_bf16(dst, src, n);
    } else {
        for (int64_t i = 0; i < n; i++)
            store_one(to, dst, i, load_one(from, src, i));
    }
}
