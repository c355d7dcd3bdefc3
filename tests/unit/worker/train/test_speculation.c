/* Which steps update ahead of the norm, given what steps take. */
#include <criterion/criterion.h>

#include "worker/train/speculation.h"

enum { STEPS = 100 };

struct job {
    double break_even, without, with; /* seconds */
    int64_t from, to;                 /* steps that clip */
};

/* Which of a job's steps speculate, two in flight; how many do. */
static int run(struct job j, bool given[STEPS])
{
    struct speculation s = {.break_even = j.break_even};
    int n = 0;
    for (int64_t step = 0; step < STEPS; step++) {
        if (step >= 2)
            speculation_note(&s, given[step - 2], step - 2 >= j.from && step - 2 < j.to,
                             given[step - 2] ? j.with : j.without);
        given[step] = speculation_next(&s);
        n += given[step];
    }
    return n;
}

/* Of steps from `first` on. */
static int count(const bool given[STEPS], int first)
{
    int n = 0;
    for (int step = first; step < STEPS; step++)
        n += given[step];
    return n;
}

Test(speculation, the_faster_way_is_kept)
{
    enum { TURN = SPECULATION_SKIP + SPECULATION_TIMED, IN_FLIGHT = 1 };
    bool given[STEPS];
    cr_expect_eq(run((struct job){1, 1.0, 0.9, 0, 0}, given), STEPS - TURN - IN_FLIGHT);
    cr_expect_eq(run((struct job){1, 0.9, 1.0, 0, 0}, given), TURN + IN_FLIGHT);
    cr_expect_eq(count(given, 2 * (TURN + IN_FLIGHT)), 0);
}

Test(speculation, a_job_that_clips_in_every_step_makes_no_update_twice)
{
    static const double break_even[3] = {0.1, 0.5, 1};
    bool given[STEPS];
    for (int k = 0; k < 3; k++)
        cr_expect_eq(run((struct job){break_even[k], 1.0, 0.9, 0, STEPS}, given), 0);
}

Test(speculation, it_begins_when_clipping_has_become_rare)
{
    bool given[STEPS];
    run((struct job){0.3, 1.0, 0.9, 0, 20}, given);
    int first = 0;
    while (first < STEPS && !given[first])
        first++;
    cr_expect_eq(first, 20 + 11 + 1); /* 0.9 ** 11 * (1 - 0.9 ** 20) < 0.3 * (1 - 0.9 ** 31) */
    cr_expect_eq(count(given, first), STEPS - first);
}

Test(speculation, clipping_ends_it_at_the_break_even)
{
    bool given[STEPS];
    run((struct job){0.3, 1.0, 0.9, 60, STEPS}, given);
    cr_expect_eq(count(given, 50), 15); /* 1 - 0.9 ** 4 > 0.3: known before step 65 */
}

/* What is timed of a way is not what the change to it takes, nor what doing updates again does. */
Test(speculation, steps_behind_a_change_and_undone_ones_are_not_timed)
{
    struct speculation s = {.break_even = 1};
    for (int k = 0; k < SPECULATION_SKIP; k++)
        speculation_note(&s, false, false, 0.1);
    for (int k = 0; k < SPECULATION_TIMED; k++)
        speculation_note(&s, false, true, 1.0);
    cr_expect_eq(s.fastest[0], 1.0);
    for (int k = 0; k < SPECULATION_SKIP; k++)
        speculation_note(&s, true, false, 0.1);
    speculation_note(&s, true, true, 0.1);
    cr_expect_eq(s.timed[1], 0);
    for (int k = 0; k < SPECULATION_TIMED; k++) {
        cr_expect(speculation_next(&s));
        speculation_note(&s, true, false, 1.1 + 0.1 * k); /* the fastest one counts */
    }
    cr_expect_float_eq(s.fastest[1], 1.1, 1e-12);
    cr_expect_not(speculation_next(&s));
}

Test(speculation, a_plan_without_any_has_none)
{
    bool given[STEPS];
    cr_expect_eq(run((struct job){0, 1.0, 0.9, 0, 0}, given), 0);
}
