#include "kernels/quant.h"

#include <assert.h>

int64_t quant_blocks(int64_t n)
{
    return (n + QUANT_BLOCK - 1) / QUANT_BLOCK;
}

size_t quant_scales_at(enum quant_format format, int64_t n)
{
    size_t codes = format == QUANT_NF4 ? (size_t)(n + 1) / 2 : (size_t)n;
    assert(format != QUANT_NONE);
    return (codes + sizeof(float) - 1) / sizeof(float) * sizeof(float);
}

size_t quant_bytes(enum quant_format format, int64_t n)
{
    return quant_scales_at(format, n) + (size_t)quant_blocks(n) * sizeof(float);
}

static float level(enum quant_format format, const void *codes, int64_t i)
{
    static const float nf4[16] = QUANT_NF4_LEVELS;

    if (format == QUANT_INT8)
        return (float)((const int8_t *)codes)[i];
    uint8_t pair = ((const uint8_t *)codes)[i / 2];
    return nf4[i % 2 == 0 ? pair >> 4 : pair & 15];
}

void quant_decode(enum quant_format format, const void *codes, const float *scales, int64_t first,
                  int64_t n, enum dtype to, void *out)
{
    enum { SPAN = 256 };
    float span[SPAN];

    for (int64_t done = 0; done < n; done += SPAN) {
        int64_t some = n - done < SPAN ? n - done : SPAN;
        for (int64_t i = 0; i < some; i++) {
            int64_t at = first + done + i;
            span[i] = level(format, codes, at) * scales[at / QUANT_BLOCK];
        }
        dtype_convert(to, (char *)out + (size_t)done * dtype_size(to), DT_F32, span, some);
    }
}
