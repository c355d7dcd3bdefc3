/*
 * Is a live attempt still at work? A worker that hangs - in a driver, on a dead file system, in a
 * lock - would keep its slot for ever. Signs of life are its events, and any change in the bytes of
 * a rank's breadcrumb file, which names the step and the instruction: so a step may take hours, as
 * on a CPU it can, as long as it gets from one instruction to the next. (The file's time would not
 * do: stores to a mapped file change it only when they are written back.)
 *
 * Time is counted by the clock that stands still while the host sleeps, and anew when castord
 * starts. Where no instruction runs - before training, and while files are written - the limit is
 * SILENCE_PATIENCE times as long.
 */
#ifndef CASTOR_SCHEDULER_SILENCE_H
#define CASTOR_SCHEDULER_SILENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/buf.h"
#include "scheduler/job.h"

enum { SILENCE_PATIENCE = 4 };

struct silence {
    double heard_at, looked_at; /* monotonic; 0 = not yet */
    uint64_t crumbs;            /* digest of the breadcrumb files */
};

/* Called often; `heard`: there were new events. True when the job's attempt has been silent for
 * longer than `seconds` allow; then *why says it in words. */
bool silence_is_over_limit(struct silence *q, const char *jobdir, const struct job *job,
                           double seconds, bool heard, struct buf *why);

#endif
