/*
 * Tables of positions: rope's cosines and sines under the scalings in use, ALiBi's slopes.
 *
 * The scalings change rope's frequencies so that a model sees longer texts than it was trained on.
 * Definitions as in transformers' modeling_rope_utils, computed in double and rounded once:
 *   linear    every frequency divided by the factor (Chen et al., "Extending context window of
 *             large language models via positional interpolation", 2023)
 *   dynamic   changes nothing up to max_position_embeddings, beyond which Castor does not train
 *   llama3    long wavelengths divided by the factor, short ones kept, a blend between
 *   yarn      the same by dimension, along a ramp (Peng et al., "YaRN", 2023)
 *   longrope  a divisor for each dimension from the config: one list for sequences within the
 *             original length, one beyond (Ding et al., "LongRoPE", 2024). Castor decides once for
 *             the job, by the length of its sequences.
 * yarn and longrope also scale the attention scores; as in transformers, cos and sin carry that.
 */
#include <math.h>

#include "kernels/alibi.h"
#include "worker/model/block.h"

static const double two_pi = 6.283185307179586;

static double llama3_frequency(const struct rope_config *rope, double inv)
{
    double wavelength = two_pi / inv, original = (double)rope->original_max_positions, blend;

    if (wavelength < original / rope->high_freq_factor)
        return inv;
    if (wavelength > original / rope->low_freq_factor)
        return inv / rope->factor;
    blend = (original / wavelength - rope->low_freq_factor) /
            (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - blend) * inv / rope->factor + blend * inv;
}

/* The dimension that turns `rotations` times over the original length. */
static double yarn_dimension(const struct rope_config *rope, double rotations)
{
    return (double)rope->dim * log((double)rope->original_max_positions / (rotations * two_pi)) /
           (2 * log(rope->base));
}

static double yarn_frequency(const struct rope_config *rope, int64_t i, double inv)
{
    double low = yarn_dimension(rope, rope->beta_fast);
    double high = yarn_dimension(rope, rope->beta_slow), ramp;

    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)(rope->dim - 1));
    if (low == high)
        high += 0.001;
    ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
    return inv / rope->factor * ramp + inv * (1 - ramp);
}

/* Of pair i, for sequences of `positions` tokens. */
static double frequency(const struct rope_config *rope, double base, int64_t i, int64_t positions)
{
    double inv = pow(base, -2.0 * (double)i / (double)rope->dim);

    switch (rope->scaling) {
    case ROPE_SCALING_NONE:
    case ROPE_SCALING_DYNAMIC:
        break;
    case ROPE_SCALING_LINEAR:
        return inv / rope->factor;
    case ROPE_SCALING_LLAMA3:
        return llama3_frequency(rope, inv);
    case ROPE_SCALING_YARN:
        return yarn_frequency(rope, i, inv);
    case ROPE_SCALING_LONG:
        return inv / (positions > rope->original_max_positions ? rope->long_factors
                                                               : rope->short_factors)[i];
    }
    return inv;
}

int64_t model_rope_floats(const struct decoder_config *c, int64_t positions)
{
    return positions * c->rope.dim * (c->rope.local_base != 0 ? 2 : 1);
}

static void fill_column(int64_t positions, int64_t half, double inv, double factor, float *cosine,
                        float *sine)
{
    for (int64_t p = 0; p < positions; p++) {
        cosine[p * half] = (float)(cos((double)p * inv) * factor);
        sine[p * half] = (float)(sin((double)p * inv) * factor);
    }
}

void model_rope_tables(const struct decoder_config *c, int64_t positions, float *tables)
{
    const struct rope_config *rope = &c->rope;
    struct rope_config local = {.dim = rope->dim};
    double factor = rope->attention_factor != 0 ? rope->attention_factor : 1;
    int64_t half = rope->dim / 2, table = positions * half;

    for (int64_t i = 0; i < half; i++) {
        fill_column(positions, half, frequency(rope, rope->base, i, positions), factor, tables + i,
                    tables + table + i);
        if (rope->local_base != 0)
            fill_column(positions, half, frequency(&local, rope->local_base, i, positions), 1,
                        tables + 2 * table + i, tables + 3 * table + i);
    }
}

/* A geometric series from 2^(-8/n) for n heads, a power of two; the heads beyond that take every
 * other value of the series for 2 n. */
void model_alibi_slopes(const struct decoder_config *c, float *slopes)
{
    int64_t n = 1;

    while (2 * n <= c->heads)
        n *= 2;
    for (int64_t h = 0; h < c->heads; h++) {
        double power =
            h < n ? 8.0 * (double)(h + 1) / (double)n : 4.0 * (double)(2 * (h - n) + 1) / (double)n;

        slopes[h] = (float)exp2(-power);
        if (c->alibi_rounded)
            slopes[h] = alibi_round(slopes[h]);
    }
}
