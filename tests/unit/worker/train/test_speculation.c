/* Which steps update ahead of the norm, given what steps take. */
#include <criterion/criterion.h>

#include "worker/train/speculation.h"

/* Steps of so many seconds without and with, two in flight; how many of the last 50 of 100
 * speculated. Each step from `clips` on is undone. */
static int run(double break_even, double without, double with, int64_t clips)
{
    struct speculation s = {.break_even = break_even};
    bool given[100];
    int last = 0;
    for (int64_t step = 0; step < 102; step++) {
        if (step >= 2)
            speculation_note(&s, given[step - 2], step - 2 >= clips,
                             given[step - 2] ? with : without);
        if (step < 100)
            given[step] = speculation_next(&s);
    }
    for (int64_t step = 50; step < 100; step++)
        last += given[step];
    return last;
}

Test(speculation, the_faster_way_is_kept)
{
    cr_expect_eq(run(1, 1.0, 0.9, 100), 50);
    cr_expect_eq(run(1, 0.9, 1.0, 100), 0);
}

Test(speculation, clipping_ends_it_at_the_break_even)
{
    cr_expect_eq(run(0.3, 1.0, 0.9, 0), 0);
    cr_expect_eq(run(0.3, 1.0, 0.9, 60), 15); /* 1 - 0.9 ** 4 > 0.3: known before step 65 */
    cr_expect_eq(run(1, 1.0, 0.9, 0), 50);    /* where doing again costs nothing */
}

Test(speculation, a_plan_without_any_has_none)
{
    cr_expect_eq(run(0, 1.0, 0.9, 100), 0);
}
