/*
 * `castor-worker --plan JOBDIR` as a child that is not trusted: it reads files that strangers made,
 * so its memory, CPU time, file sizes, output and wall time are bounded, and what it prints is
 * parsed with limits. A child is driven without blocking: plan_child_poll whenever its descriptor
 * is readable or time has passed, until that says it ended; then plan_child_result.
 *
 * While it fetches data from a hub it prints download events (api/event.h), before the report. The
 * time of a download may be left out of the wall time's limit, as far as it brings the least rate.
 *
 * One thread at a time a child. Destroying kills what is left of it.
 */
#ifndef CASTOR_SCHEDULER_PLAN_CHILD_H
#define CASTOR_SCHEDULER_PLAN_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/plan_report.h"
#include "core/err.h"

enum {
    PLAN_MAX_OUTPUT = 8 << 20, /* spec.json has at most 4 MiB; the rest is numbers */
    PLAN_LOG_TAIL = 400,       /* last bytes of stderr that are kept for the error */
};

struct plan_limits {
    int64_t seconds;             /* wall, and CPU time too  */
    size_t memory;               /* writable memory of its own */
    int64_t least_download_rate; /* bytes a second; 0 = downloads count like everything else */
};

struct plan_child;

/* envp NULL = castord's own. */
int plan_child_start(const char *worker_path, const char *jobdir, char *const *envp,
                     const struct plan_limits *limits, struct plan_child **out, struct err *err);
int plan_child_fd(const struct plan_child *c); /* to poll for reading; -1 when closed */
bool plan_child_poll(struct plan_child *c);    /* true: it ended, or was ended */
/* The download's bytes; false when it has told nothing new since the last call. */
bool plan_child_download(struct plan_child *c, int64_t *done, int64_t *total);
/* The report (fits or not), or why there is none: ERR_TIMEOUT with reason "timeout", ERR_PEER with
 * reason "worker_crashed", ERR_CORRUPT with reason "invalid_plan". */
int plan_child_result(const struct plan_child *c, struct plan_report *out, struct err *err);
void plan_child_destroy(struct plan_child *c); /* NULL is fine */

/* Start, wait, result: blocking. */
int plan_child_run(const char *worker_path, const char *jobdir, char *const *envp,
                   const struct plan_limits *limits, struct plan_report *out, struct err *err);

#endif
