#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "worker/train/sample.h"

Test(sample, draws_follow_the_softmax_of_the_scaled_logits)
{
    static const float logits[] = {1.0f, -20.0f, 2.0f, 0.0f};
    enum { DRAWS = 20000 };
    int64_t count[4] = {0};
    double weight[4], sum = 0;

    for (int v = 0; v < 4; v++)
        sum += weight[v] = exp(logits[v] / 0.8);
    for (int k = 0; k < DRAWS; k++)
        count[sample_token(logits, 4, ((float)k + 0.5f) / DRAWS)]++;
    for (int v = 0; v < 4; v++)
        cr_expect_float_eq((double)count[v] / DRAWS, weight[v] / sum, 2e-4, "token %d", v);
}

Test(sample, only_the_forty_likeliest_are_drawn)
{
    float logits[100];
    for (int v = 0; v < 100; v++)
        logits[v] = (float)(v * 37 % 100) * 1e-3f; /* 60 .. 99 are the largest values */
    for (int k = 0; k < 1000; k++) {
        int32_t id = sample_token(logits, 100, (float)k / 1000);
        cr_expect_geq(logits[id], 0.06f - 1e-6f, "token %d", id);
    }
}

Test(sample, the_ends_of_the_unit_interval_are_tokens)
{
    float logits[3] = {0.5f, 3.0f, 0.5f};
    cr_expect_eq(sample_token(logits, 3, 0), 1);              /* the likeliest comes first */
    cr_expect_eq(sample_token(logits, 3, 0x1.fffffep-1f), 2); /* of equals the higher id is last */
    cr_expect_eq(sample_token(logits, 1, 0.7f), 0);
}

Test(sample, logits_that_are_not_numbers_give_some_token)
{
    float logits[5] = {NAN, NAN, NAN, NAN, NAN};
    int32_t id = sample_token(logits, 5, 0.5f);
    cr_expect(id >= 0 && id < 5);
}
