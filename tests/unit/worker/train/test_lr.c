#include <criterion/criterion.h>
#include <math.h>

#include "worker/train/lr.h"

static struct spec_optimization make(enum lr_schedule schedule, double warmup)
{
    return (struct spec_optimization){
        .learning_rate = {.value = 2.0}, .schedule = schedule, .warmup_ratio = warmup};
}

Test(lr, schedules_have_these_values)
{
    struct spec_optimization constant = make(LR_CONSTANT, 0), linear = make(LR_LINEAR, 0),
                             cosine = make(LR_COSINE, 0);
    static const double want_linear[] = {2.0, 1.5, 1.0, 0.5};
    for (int64_t step = 1; step <= 4; step++) {
        cr_expect_eq(lr_at(&constant, step, 4), 2.0);
        cr_expect_float_eq(lr_at(&linear, step, 4), want_linear[step - 1], 1e-15);
        cr_expect_float_eq(lr_at(&cosine, step, 4), 1 + cos(M_PI * (double)(step - 1) / 4), 1e-15);
    }
}

Test(lr, warm_up_rises_to_the_peak_and_the_schedule_follows)
{
    struct spec_optimization linear = make(LR_LINEAR, 0.3), constant = make(LR_CONSTANT, 0.3);
    static const double want[] = {0.5, 1.0, 1.5, 2.0}; /* 3 of 10 steps, then the peak */
    for (int64_t step = 1; step <= 4; step++) {
        cr_expect_float_eq(lr_at(&linear, step, 10), want[step - 1], 1e-15);
        cr_expect_float_eq(lr_at(&constant, step, 10), want[step - 1], 1e-15);
    }
    cr_expect_float_eq(lr_at(&linear, 5, 10), 2.0 * 6 / 7, 1e-15);
    cr_expect_float_eq(lr_at(&linear, 10, 10), 2.0 / 7, 1e-15); /* zero lies behind the last step */
}

Test(lr, every_step_has_a_positive_rate_below_the_peak)
{
    for (int schedule = LR_CONSTANT; schedule <= LR_COSINE; schedule++)
        for (int64_t total = 1; total <= 7; total++)
            for (int k = 0; k <= 4; k++) {
                struct spec_optimization o = make((enum lr_schedule)schedule, k / 4.0);
                for (int64_t step = 1; step <= total; step++) {
                    double rate = lr_at(&o, step, total);
                    cr_expect(rate > 0 && rate <= 2.0, "schedule %d, step %d of %d, warm-up %g: %g",
                              schedule, (int)step, (int)total, k / 4.0, rate);
                }
            }
}
