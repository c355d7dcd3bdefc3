#include "core/clock.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <time.h>

static double clock_read(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double clock_wall(void)
{
    return clock_read(CLOCK_REALTIME);
}

double clock_monotonic(void)
{
    return clock_read(CLOCK_MONOTONIC);
}

void clock_sleep(double seconds)
{
    struct timespec until;

    if (!(seconds > 0))
        return;
    seconds = fmin(seconds, 1e9);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)((seconds - floor(seconds)) * 1e9);
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    /* An absolute end, so that signals do not prolong the sleep. */
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        continue;
}

void clock_format(double unix_seconds, char out[32])
{
    /* Years 0 to 9999, which is what the format can say; NaN becomes the epoch. */
    double s = isnan(unix_seconds) ? 0.0 : fmin(fmax(unix_seconds, -62167219200.0), 253402300799.0);
    /* Through whole microseconds, since 0.123 is stored as a little less than that. */
    int64_t us = (int64_t)llround(s * 1e6);
    int64_t us_of_second = us % 1000000;
    struct tm tm;

    if (us_of_second < 0)
        us_of_second += 1000000;
    time_t t = (time_t)((us - us_of_second) / 1000000);
    gmtime_r(&t, &tm);
    snprintf(out, 32, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ", (unsigned)(tm.tm_year + 1900) % 10000,
             (unsigned)(tm.tm_mon + 1) % 100, (unsigned)tm.tm_mday % 100,
             (unsigned)tm.tm_hour % 100, (unsigned)tm.tm_min % 100, (unsigned)tm.tm_sec % 100,
             (unsigned)(us_of_second / 1000));
}
