/* Which elements dropout drops. */
#include <criterion/criterion.h>
#include <math.h>

#include "kernels/dropout.h"

static const struct rng_stream base = {.seed = 42, .step = 7, .site = 3, .use = RNG_USE_DROPOUT};

Test(dropout, eight_elements_share_a_block)
{
    uint32_t threshold = dropout_threshold(0.3f);

    for (uint64_t i = 0; i < 4096; i++) {
        struct rng_block b = rng_draw4(base, i / 8);
        uint32_t number = i % 2 ? b.v[i % 8 / 2] >> 16 : b.v[i % 8 / 2] & 0xffff;

        cr_assert_eq(dropout_number(&b, (int)(i % 8)), number);
        cr_assert_eq(dropout_drops(base, threshold, i) != 0, number < threshold);
    }
}

Test(dropout, threshold_is_the_nearest_of_65536)
{
    cr_assert_eq(dropout_threshold(0.0f), 0);
    cr_assert_eq(dropout_threshold(0.5f), 0x8000);
    cr_assert_eq(dropout_threshold(0.1f), 6554);
    cr_assert_eq(dropout_threshold(0x1p-17f), 1);
    cr_assert_eq(dropout_threshold(0x1p-18f), 0);
    cr_assert_eq(dropout_threshold(1 - 0x1p-24f), 65536);
}

Test(dropout, the_asked_share_is_dropped)
{
    int64_t n = 1 << 20, dropped = 0, pairs = 0;
    uint32_t threshold = dropout_threshold(0.1f);
    int before = 0;

    for (int64_t i = 0; i < n; i++) {
        int drops = dropout_drops(base, threshold, (uint64_t)i);
        dropped += drops;
        pairs += drops && before;
        before = drops;
    }
    /* Standard deviations: 2.9e-4 of the share, 1e-4 of that of neighbours, which know nothing of
     * each other. */
    cr_assert_lt(fabs((double)dropped / (double)n - 0.1), 1.5e-3);
    cr_assert_lt(fabs((double)pairs / (double)n - 0.01), 5e-4);
}
