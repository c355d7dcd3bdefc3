#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

#include "core/clock.h"

Test(clock, wall_is_unix_time)
{
    double before = (double)time(NULL), t = clock_wall();

    cr_assert(before - 1 <= t && t <= (double)time(NULL) + 1);
}

Test(clock, sleep_lasts_at_least_as_long_as_asked)
{
    double start = clock_monotonic();
    clock_sleep(0.05);
    double t = clock_monotonic() - start;

    cr_assert(t >= 0.05, "slept %g", t);
}

Test(clock, sleep_of_nothing_returns_at_once)
{
    double start = clock_monotonic();

    clock_sleep(0);
    clock_sleep(-5);
    clock_sleep(NAN);
    cr_assert(clock_monotonic() - start < 1);
}

static void on_alarm(int signal_number)
{
}

Test(clock, sleep_goes_on_after_signals)
{
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval often = {{0, 5000}, {0, 5000}};

    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    double start = clock_monotonic();
    clock_sleep(0.1);
    double t = clock_monotonic() - start;
    cr_assert(t >= 0.1, "slept %g", t);
}

Test(clock, format)
{
    static const struct {
        double t;
        const char *text;
    } rows[] = {{0, "1970-01-01T00:00:00.000Z"},
                {1763848337.123, "2025-11-22T21:52:17.123Z"},
                {1763848337.999, "2025-11-22T21:52:17.999Z"},
                {1763848337.9999, "2025-11-22T21:52:17.999Z"},
                {951782400, "2000-02-29T00:00:00.000Z"},
                {4102444799.5, "2099-12-31T23:59:59.500Z"},
                {-0.25, "1969-12-31T23:59:59.750Z"},
                {NAN, "1970-01-01T00:00:00.000Z"},
                {INFINITY, "9999-12-31T23:59:59.000Z"},
                {-INFINITY, "0000-01-01T00:00:00.000Z"}};
    char out[32];

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        clock_format(rows[i].t, out);
        cr_assert_str_eq(out, rows[i].text);
    }
}
