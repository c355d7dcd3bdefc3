#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "core/rng.h"

/* The known answers that the authors publish with the method (Random123, kat_vectors,
 * philox4x32 with 10 rounds). */
Test(rng, philox_known_answers)
{
    static const struct {
        uint32_t c[4], k[2], v[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const uint32_t *c = rows[i].c;
        struct rng_block b = rng_philox(c[0], c[1], c[2], c[3], rows[i].k[0], rows[i].k[1]);
        cr_assert_eq(memcmp(b.v, rows[i].v, sizeof(b.v)), 0, "vector %zu: %08x %08x %08x %08x", i,
                     b.v[0], b.v[1], b.v[2], b.v[3]);
    }
}

static const struct rng_stream base = {.seed = 42, .step = 7, .site = 3, .use = RNG_USE_DROPOUT};

Test(rng, one_number_is_its_place_in_the_group_of_four)
{
    for (uint64_t i = 0; i < 64; i++)
        cr_assert_eq(rng_draw(base, i), rng_draw4(base, i / 4).v[i % 4]);
    uint64_t far = (1ull << 40) + 2; /* the group number needs both counter words */
    cr_assert_eq(rng_draw(base, far), rng_draw4(base, far / 4).v[2]);
    cr_assert_neq(rng_draw(base, far), rng_draw(base, 2));
}

Test(rng, every_part_of_the_stream_matters)
{
    struct rng_stream s[6] = {base, base, base, base, base, base};

    s[0].seed++;
    s[1].seed += 1ull << 32;
    s[2].step++;
    s[3].site++;
    s[4].use = RNG_USE_ROUNDING;
    s[5].site = (1u << 28) - 1;
    for (int i = 0; i < 6; i++) {
        struct rng_block a = rng_draw4(base, 0), b = rng_draw4(s[i], 0);
        cr_assert_neq(memcmp(&a, &b, sizeof(a)), 0, "change %d", i);
    }
}

Test(rng, unit_is_below_one)
{
    cr_assert_eq(rng_to_unit(0), 0.0f);
    cr_assert(rng_to_unit(UINT32_MAX) < 1.0f);
    cr_assert_eq(rng_to_unit(0x80000000u), 0.5f);
}

Test(rng, draws_are_uniform)
{
    int64_t n = 1 << 20;
    int64_t counts[256] = {0};
    double chi2 = 0;

    for (int64_t i = 0; i < n; i++)
        counts[rng_draw(base, (uint64_t)i) >> 24]++;
    for (int i = 0; i < 256; i++) {
        double d = (double)counts[i] - (double)n / 256;
        chi2 += d * d / ((double)n / 256);
    }
    /* 255 degrees of freedom: mean 255, standard deviation 22.6; five of them either side. */
    cr_assert(chi2 > 142 && chi2 < 368, "chi2 %g", chi2);
}

Test(rng, drop_threshold_keeps_the_asked_share)
{
    cr_assert_eq(rng_drop_threshold(0.0f), 0);
    cr_assert_eq(rng_drop_threshold(0.5f), 0x80000000u);
    int64_t n = 1 << 20, dropped = 0;
    uint32_t threshold = rng_drop_threshold(0.1f);

    for (int64_t i = 0; i < n; i++)
        dropped += rng_draw(base, (uint64_t)i) < threshold;
    /* Standard deviation of the share: 2.9e-4. */
    cr_assert(fabs((double)dropped / (double)n - 0.1) < 1.5e-3);
}
