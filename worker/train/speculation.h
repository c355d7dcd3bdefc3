/*
 * Whether a step updates ahead of the norm (worker/plan/plan.h). No number depends on it, so it is
 * decided by what steps cost: as long as so few clip that doing updates again is rarer than the
 * simulation's break-even; and, since no simulation knows all of a machine, by trial. The first
 * steps run in turns with and without, and the faster way is kept.
 */
#ifndef CASTOR_WORKER_TRAIN_SPECULATION_H
#define CASTOR_WORKER_TRAIN_SPECULATION_H

#include <stdbool.h>
#include <stdint.h>

enum {
    SPECULATION_TURN = 8, /* steps of a trial's turn: with, without                    */
    SPECULATION_SKIP = 3  /* its first ones count for nothing: steps overlap, begin cold */
};

struct speculation {
    double break_even; /* plan_simulation; 0 = the plan has none */
    double clip_rate;  /* share of the steps that clipped, smoothed */
    int64_t queued, collected;
    double fastest[2]; /* seconds of a step without, with; 0 = not known */
};

/* Does the step that is queued next? */
bool speculation_next(struct speculation *s);
/* Of each step in order, when its result is there. `undone`: it clipped or was skipped. */
void speculation_note(struct speculation *s, bool speculated, bool undone, double seconds);

#endif
