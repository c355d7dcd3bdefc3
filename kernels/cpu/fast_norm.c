/* LayerNorm and RMSNorm: rows in parallel; the weights' gradients by strips of columns. */
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_math.h"

static int64_t row_of(const struct norm_args *a, int64_t n)
{
    return n * (a->ld ? a->ld : a->C);
}

FAST_CLONES static void forward_row(const struct norm_args *a, int64_t n)
{
    int64_t C = a->C, at = row_of(a, n);
    const float *x = (const float *)a->x + at, *weight = a->weight, *bias = a->bias;
    float *y = (float *)a->y + at, mean = 0, sum = 0;

    if (a->residual) {
        const float *residual = (const float *)a->residual + at;
        float *out = (float *)a->sum + at;
        for (int64_t c = 0; c < C; c++)
            out[c] = x[c] + residual[c];
        x = out;
    }
    if (a->kind == NORM_LAYER) {
#pragma omp simd reduction(+ : mean)
        for (int64_t c = 0; c < C; c++)
            mean += x[c];
        mean /= (float)C;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < C; c++)
        sum += (x[c] - mean) * (x[c] - mean);
    float rstd = 1.0f / sqrtf(sum / (float)C + a->eps), one = a->kind == NORM_RMS_PLUS_ONE;
    if (weight && bias)
        for (int64_t c = 0; c < C; c++)
            y[c] = (x[c] - mean) * rstd * (one + weight[c]) + bias[c];
    else if (weight)
        for (int64_t c = 0; c < C; c++)
            y[c] = (x[c] - mean) * rstd * (one + weight[c]);
    else
        for (int64_t c = 0; c < C; c++)
            y[c] = (x[c] - mean) * rstd + (bias ? bias[c] : 0.0f);
    if (a->mean)
        ((float *)a->mean)[n] = mean;
    ((float *)a->rstd)[n] = rstd;
}

int fast_norm_fwd(struct stream *s, const struct norm_args *a)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->N * a->C > FAST_SERIAL)
    for (int64_t n = 0; n < a->N; n++)
        forward_row(a, n);
    return 0;
}

FAST_CLONES static void backward_row(const struct norm_args *a, int64_t n)
{
    int64_t C = a->C, at = row_of(a, n);
    const float *x = (const float *)a->x + at, *dy = (const float *)a->dy + at;
    const float *weight = a->weight;
    const float *dresidual = a->dresidual ? (const float *)a->dresidual + at : NULL;
    float *dx = (float *)a->dx + at, g_sum = 0, gx_sum = 0;
    float mean = a->kind == NORM_LAYER ? ((const float *)a->mean)[n] : 0;
    float rstd = ((const float *)a->rstd)[n], one = a->kind == NORM_RMS_PLUS_ONE;

#pragma omp simd reduction(+ : g_sum, gx_sum)
    for (int64_t c = 0; c < C; c++) {
        float g = dy[c] * (weight ? one + weight[c] : 1.0f);
        g_sum += g;
        gx_sum += g * ((x[c] - mean) * rstd);
    }
    float g_mean = a->kind == NORM_LAYER ? g_sum / (float)C : 0.0f, gx_mean = gx_sum / (float)C;
    for (int64_t c = 0; c < C; c++) {
        float g = dy[c] * (weight ? one + weight[c] : 1.0f);
        float d = rstd * (g - g_mean - (x[c] - mean) * rstd * gx_mean);
        dx[c] = dresidual ? dresidual[c] + d : d;
    }
}

/* dweight and dbias of columns [c0, c1), in blocks of rows as fast_column_sums does it. */
FAST_CLONES static void weight_strip(const struct norm_args *a, int64_t c0, int64_t c1)
{
    enum { BLOCK = 64 };
    const float *mean = a->kind == NORM_LAYER ? a->mean : NULL, *rstd = a->rstd;
    float total_w[FAST_COLUMNS] = {0}, total_b[FAST_COLUMNS] = {0};
    float part_w[FAST_COLUMNS], part_b[FAST_COLUMNS];
    int64_t width = c1 - c0;

    for (int64_t n0 = 0; n0 < a->N; n0 += BLOCK) {
        memset(part_w, 0, sizeof part_w);
        memset(part_b, 0, sizeof part_b);
        for (int64_t n = n0; n < a->N && n < n0 + BLOCK; n++) {
            const float *x = (const float *)a->x + row_of(a, n) + c0;
            const float *dy = (const float *)a->dy + row_of(a, n) + c0;
            float m = mean ? mean[n] : 0.0f, r = rstd[n];
            for (int64_t c = 0; c < width; c++) {
                part_w[c] += dy[c] * ((x[c] - m) * r);
                part_b[c] += dy[c];
            }
        }
        for (int64_t c = 0; c < width; c++) {
            total_w[c] += part_w[c];
            total_b[c] += part_b[c];
        }
    }
    for (int64_t c = 0; c < width && a->dweight; c++)
        ((float *)a->dweight)[c0 + c] += total_w[c];
    for (int64_t c = 0; c < width && a->dbias; c++)
        ((float *)a->dbias)[c0 + c] += total_b[c];
}

int fast_norm_bwd(struct stream *s, const struct norm_args *a)
{
    int64_t strips = a->dweight || a->dbias ? (a->C + FAST_COLUMNS - 1) / FAST_COLUMNS : 0;

#pragma omp parallel num_threads(s->threads) if (a->N * a->C > FAST_SERIAL)
    {
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < strips; i++) {
            int64_t c0 = i * FAST_COLUMNS, c1 = c0 + FAST_COLUMNS;
            weight_strip(a, c0, c1 < a->C ? c1 : a->C);
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a->N; n++)
            backward_row(a, n);
    }
    return 0;
}
