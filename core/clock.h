/* Clocks. Wall time is for people and files, monotonic time for durations and deadlines. */
#ifndef CASTOR_CORE_CLOCK_H
#define CASTOR_CORE_CLOCK_H

#include <stdint.h>

double clock_wall(void);      /* Unix time in seconds, microsecond resolution */
double clock_monotonic(void); /* seconds since an arbitrary point             */
void clock_sleep(double seconds);
/* "2026-11-22T21:52:17.123Z" of a Unix time. */
void clock_format(double unix_seconds, char out[32]);

#endif
