#include "worker/train/speculation.h"

/* Weight of a step beside that of the one behind it: some ten of them count. */
static const double fades = 0.9;

bool speculation_next(const struct speculation *s)
{
    if (s->timed[0] < SPECULATION_TIMED || s->clipped >= s->break_even * s->steps)
        return false;
    return s->timed[1] < SPECULATION_TIMED || s->fastest[1] < s->fastest[0];
}

void speculation_note(struct speculation *s, bool speculated, bool undone, double seconds)
{
    s->clipped = fades * s->clipped + undone;
    s->steps = fades * s->steps + 1;
    s->run = speculated == s->way ? s->run + 1 : 1;
    s->way = speculated;
    if (s->run <= SPECULATION_SKIP || (speculated && undone))
        return;
    if (s->timed[speculated]++ == 0 || seconds < s->fastest[speculated])
        s->fastest[speculated] = seconds;
}
