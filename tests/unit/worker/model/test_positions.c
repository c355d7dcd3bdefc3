/* Tables of positions: rope's under the scalings in use, and ALiBi's slopes. */
#include <criterion/criterion.h>
#include <math.h>

#include "worker/model/block.h"

Test(positions, rope_tables)
{
    struct decoder_config c = {.rope = {.dim = 4, .base = 100, .factor = 8}};
    float tables[12];
    const float *cosine = tables, *sine = tables + 6;

    cr_assert_eq(model_rope_floats(&c, 3), 12);
    model_rope_tables(&c, 3, tables); /* frequencies 1 and 1 / 10 */
    cr_assert_float_eq(cosine[4], cosf(2), 1e-7);
    cr_assert_float_eq(sine[5], sinf(0.2f), 1e-7);
    c.rope.scaling = ROPE_SCALING_LINEAR;
    model_rope_tables(&c, 3, tables);
    cr_assert_float_eq(sine[4], sinf(0.25f), 1e-7);

    /* wavelengths 6.28 and 62.8 of 64 positions: one is kept, one lies between 64 / 4 and 64 / 1 */
    c.rope.scaling = ROPE_SCALING_LLAMA3;
    c.rope.low_freq_factor = 1;
    c.rope.high_freq_factor = 4;
    c.rope.original_max_positions = 64;
    model_rope_tables(&c, 3, tables);
    cr_assert_float_eq(sine[4], sinf(2), 1e-7);
    double smooth = (64 / (20 * 3.14159265358979) - 1) / 3;
    cr_assert_float_eq(sine[5], sin(2 * (smooth * 0.1 + (1 - smooth) * 0.1 / 8)), 1e-7);
    c.rope.original_max_positions = 32;
    model_rope_tables(&c, 3, tables);
    cr_assert_float_eq(sine[5], sinf(0.2f / 8), 1e-7);
}

/* Two factors a list; which list serves is decided by the length of the sequences. */
Test(positions, rope_tables_of_long_sequences)
{
    double short_factors[] = {1, 2}, long_factors[] = {4, 5};
    struct decoder_config c = {.rope = {.dim = 4,
                                        .base = 100,
                                        .scaling = ROPE_SCALING_LONG,
                                        .attention_factor = 1.5,
                                        .original_max_positions = 3,
                                        .short_factors = short_factors,
                                        .long_factors = long_factors}};
    float tables[16];

    model_rope_tables(&c, 3, tables);
    cr_assert_float_eq(tables[4], 1.5 * cos(2), 1e-6);
    cr_assert_float_eq(tables[6 + 5], 1.5 * sin(0.2 / 2), 1e-6);
    model_rope_tables(&c, 4, tables);
    cr_assert_float_eq(tables[4], 1.5 * cos(2. / 4), 1e-6);
    cr_assert_float_eq(tables[8 + 5], 1.5 * sin(0.2 / 5), 1e-6);
}

/* Layers with a window have tables of their own behind the others', never scaled. */
Test(positions, rope_tables_of_two_bases)
{
    struct decoder_config c = {.rope = {.dim = 4,
                                        .base = 100,
                                        .local_base = 10000,
                                        .scaling = ROPE_SCALING_LINEAR,
                                        .factor = 2}};
    float tables[24];

    cr_assert_eq(model_rope_floats(&c, 3), 24);
    model_rope_tables(&c, 3, tables);
    cr_assert_float_eq(tables[6 + 5], sinf(0.1f), 1e-7);
    cr_assert_float_eq(tables[12 + 4], cosf(2), 1e-7);
    cr_assert_float_eq(tables[18 + 5], sinf(0.02f), 1e-7);
}

/* For 8 heads 1/2 .. 1/256; the paper's repository shows 12 heads as these and four between. */
Test(positions, alibi_slopes)
{
    struct decoder_config c = {.heads = 8, .attn_scale = 0.25};
    float slopes[12];

    model_alibi_slopes(&c, slopes);
    for (int h = 0; h < 8; h++)
        cr_assert_float_eq(slopes[h], exp2(-h - 1), 1e-9);
    c.heads = 12;
    model_alibi_slopes(&c, slopes);
    for (int h = 0; h < 8; h++)
        cr_assert_float_eq(slopes[h], exp2(-h - 1), 1e-9);
    for (int h = 8; h < 12; h++)
        cr_assert_float_eq(slopes[h], exp2(-(h - 8) - 0.5), 1e-7);
    c.alibi_rounded = true; /* to 8 bits */
    model_alibi_slopes(&c, slopes);
    cr_assert(slopes[0] == 0.5f && slopes[8] == 0.70703125f);
}
