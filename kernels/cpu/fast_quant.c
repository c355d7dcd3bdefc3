/* Quantising and decoding block by block, on several threads. */
#include "kernels/quant.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/quant.h"

static const float nf4[16] = QUANT_NF4_LEVELS;

/* --- quantising --- */

/* The largest magnitude; NaN where there is a NaN or an infinity. */
FAST_INLINE float magnitude(const float *x, int64_t n)
{
    uint32_t top = 0;
    float found;

    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffffu;
        top = bits > top ? bits : top;
    }
    memcpy(&found, &top, sizeof found);
    return top < 0x7f800000u ? found : NAN;
}

FAST_INLINE void encode_nf4(int64_t n, const float *x, float top, uint8_t *codes)
{
    uint8_t code[QUANT_BLOCK + 1] = {0};
    float between[15];

    for (int k = 0; k < 15; k++)
        between[k] = (nf4[k] + nf4[k + 1]) * 0.5f;
    for (int64_t i = 0; i < n; i++) {
        float at = x[i] / (top > 0 ? top : 1);
        int32_t above = 0;
        for (int k = 0; k < 15; k++)
            above += at > between[k];
        code[i] = (uint8_t)above;
    }
    for (int64_t i = 0; i < (n + 1) / 2; i++)
        codes[i] = (uint8_t)(code[2 * i] << 4 | code[2 * i + 1]);
}

FAST_INLINE void encode_int8(int64_t n, const float *x, float scale, int8_t *codes)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to the nearest integer */
    float by = scale > 0 ? scale : 1;

    for (int64_t i = 0; i < n; i++) {
        float code = x[i] / by; /* beyond 127 where the scale is subnormal and so but rough */
        code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
        codes[i] = (int8_t)(code + magic - magic);
    }
}

FAST_CLONES static void encode_block(enum quant_format format, int64_t n, const float *x,
                                     uint8_t *codes, float *scale)
{
    float top = magnitude(x, n);

    *scale = format == QUANT_NF4 ? top : top / 127.0f;
    if (isnan(top))
        memset(codes, 0, format == QUANT_NF4 ? (size_t)(n + 1) / 2 : (size_t)n);
    else if (format == QUANT_NF4)
        encode_nf4(n, x, top, codes);
    else
        encode_int8(n, x, *scale, (int8_t *)codes);
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Where the codes of a block begin. */
static size_t block_at(enum quant_format format, int64_t block)
{
    return (size_t)block * (format == QUANT_NF4 ? QUANT_BLOCK / 2 : QUANT_BLOCK);
}

void quant_encode(enum quant_format format, int64_t n, const float *x, void *codes, float *scales)
{
    assert(format != QUANT_NONE);
#pragma omp parallel for schedule(static) if (n > FAST_SERIAL)
    for (int64_t b = 0; b < quant_blocks(n); b++)
        encode_block(format, min64(QUANT_BLOCK, n - b * QUANT_BLOCK), x + b * QUANT_BLOCK,
                     (uint8_t *)codes + block_at(format, b), &scales[b]);
}

/* --- decoding --- */

/* A whole block, or its first elements. */
FAST_CLONES static void decode_block(enum quant_format format, int64_t n, const uint8_t *codes,
                                     float scale, float *restrict out)
{
    if (format == QUANT_INT8) {
        for (int64_t i = 0; i < n; i++)
            out[i] = (float)(int8_t)codes[i] * scale;
        return;
    }
    float level[16];
    for (int k = 0; k < 16; k++)
        level[k] = nf4[k] * scale;
    for (int64_t i = 0; i < n / 2; i++) {
        out[2 * i] = level[codes[i] >> 4];
        out[2 * i + 1] = level[codes[i] & 15];
    }
    if (n % 2 == 1)
        out[n - 1] = level[codes[n / 2] >> 4];
}

/* The elements of a block that belong to out, which begins with the tensor's element `first`. */
static void decode_part(const struct op_quant *q, const uint8_t *codes, int64_t block, int64_t n,
                        enum dtype to, void *out)
{
    int64_t begin = block * QUANT_BLOCK, end = min64(begin + QUANT_BLOCK, q->first + n);
    int64_t skip = begin < q->first ? q->first - begin : 0, at = begin + skip - q->first;
    float whole[QUANT_BLOCK];

    decode_block(q->format, end - begin, codes + block_at(q->format, block), q->scales[block],
                 whole);
    if (to == DT_F32)
        memcpy((float *)out + at, whole + skip, (size_t)(end - begin - skip) * sizeof *whole);
    else
        bf16_store((bf16 *)out + at, whole + skip, end - begin - skip);
}

void fast_quant_decode(struct stream *s, const struct op_quant *q, const void *codes, int64_t n,
                       enum dtype to, void *out)
{
    int64_t first = q->first / QUANT_BLOCK, end = quant_blocks(q->first + n);

    assert(to == DT_F32 || to == DT_BF16);
#pragma omp parallel for num_threads(s->threads) schedule(static) if (n > FAST_SERIAL)
    for (int64_t b = first; b < end; b++)
        decode_part(q, codes, b, n, to, out);
}
