/*
 * Whether a step updates ahead of the norm (worker/plan/plan.h). No number depends on it, so it is
 * decided by what steps cost.
 *
 * Whether a step clips shows without it, too, and costs nothing to watch; so a job begins without,
 * and its first steps, which are the likeliest to clip, make no update twice. Once the time of such
 * steps is known, steps run with it as long as so few of the last ones clipped that doing updates
 * again is rarer than the simulation's break-even. Since no simulation knows all of a machine, that
 * is a trial until as many steps that held have been timed; then the faster way is kept. A job that
 * clips in every step never pays, and one that never clips pays for the first turn alone.
 */
#ifndef CASTOR_WORKER_TRAIN_SPECULATION_H
#define CASTOR_WORKER_TRAIN_SPECULATION_H

#include <stdbool.h>
#include <stdint.h>

enum {
    SPECULATION_SKIP =
        3, /* steps that count for nothing behind a change: they overlap, start cold */
    SPECULATION_TIMED = 5 /* then so many of each way are timed, the fastest of which counts */
};

struct speculation {
    double break_even;     /* plan_simulation; 0 = the plan has none */
    double clipped, steps; /* of the last ones, the older the less: their quotient is the share */
    bool way;              /* of the step that was collected last */
    int64_t run;           /* steps collected since that changed */
    int64_t timed[2];      /* steps without, with */
    double fastest[2];     /* seconds, likewise */
};

/* Does the step that is queued next? */
bool speculation_next(const struct speculation *s);
/* Of each step in order, when its result is there. `undone`: it clipped or was skipped. */
void speculation_note(struct speculation *s, bool speculated, bool undone, double seconds);

#endif
