#include "scheduler/silence.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "api/attempt_exit.h"
#include "api/job_dir.h"
#include "core/clock.h"

enum { CRUMB_BYTES = 256 };
static const double look_seconds = 1;

/* FNV-1a over all ranks' breadcrumbs. */
static uint64_t digest_crumbs(const char *jobdir, int64_t attempt)
{
    uint64_t digest = UINT64_C(14695981039346656037);

    for (int64_t rank = 0; rank < ATTEMPT_MAX_RANKS; rank++) {
        unsigned char bytes[CRUMB_BYTES];
        char *path = job_dir_crumb(jobdir, attempt, rank);
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        free(path);
        if (fd < 0)
            break;
        ssize_t n = read(fd, bytes, sizeof(bytes));
        close(fd);
        for (ssize_t i = 0; i < n; i++)
            digest = (digest ^ bytes[i]) * UINT64_C(1099511628211);
    }
    return digest;
}

static bool runs_instructions(const struct job *job)
{
    return job->has_phase && (job->phase == PHASE_TRAINING || job->phase == PHASE_EVALUATING);
}

bool silence_is_over_limit(struct silence *q, const char *jobdir, const struct job *job,
                           double seconds, bool heard, struct buf *why)
{
    double now = clock_monotonic(), limit = seconds;

    if (heard || q->heard_at == 0)
        q->heard_at = now;
    if (now - q->looked_at < look_seconds)
        return false;
    q->looked_at = now;
    uint64_t crumbs = digest_crumbs(jobdir, job->attempt);
    if (crumbs != q->crumbs)
        q->heard_at = now;
    q->crumbs = crumbs;
    if (!runs_instructions(job))
        limit *= SILENCE_PATIENCE;
    if (now - q->heard_at <= limit)
        return false;
    buf_printf(why,
               "the worker gave no sign of life for %.0f s (phase: %s, last step: %" PRId64
               " of %" PRId64 ") and was ended; look at its logs, or raise the server's "
               "silence_seconds if its steps may take so long",
               now - q->heard_at, job->has_phase ? event_phase_name(job->phase) : "starting",
               job->step, job->total_steps);
    return true;
}
