#include "worker/train/speculation.h"

static bool with(int64_t step)
{
    return step / SPECULATION_TURN % 2 == 0;
}

bool speculation_next(struct speculation *s)
{
    int64_t step = s->queued++;
    if (s->clip_rate >= s->break_even)
        return false;
    if (step < 2 * SPECULATION_TURN)
        return with(step);
    bool known = s->fastest[0] > 0 && s->fastest[1] > 0;
    return !known || s->fastest[1] < s->fastest[0];
}

void speculation_note(struct speculation *s, bool speculated, bool undone, double seconds)
{
    int64_t step = s->collected++;
    double *fastest = &s->fastest[speculated];

    s->clip_rate = 0.9 * s->clip_rate + 0.1 * undone;
    if (step >= 2 * SPECULATION_TURN || step % SPECULATION_TURN < SPECULATION_SKIP || undone ||
        speculated != with(step))
        return;
    if (*fastest == 0 || seconds < *fastest)
        *fastest = seconds;
}
