/*
 * Start a child process cut off from castord: a session and process group of its own, default
 * signals, /dev/null as stdin, no other descriptor than stdout and stderr, resource limits where
 * given. The child's pid is its session and process group id.
 *
 * With a gate the child does not exec before one byte arrives; when the pipe closes without one it
 * exits. So its starter can record it first, and a starter that dies leaves no unrecorded child.
 * When the byte came the child renames claim_from to claim_to, and exits if it cannot: the one
 * moment from which on it runs, the same for all who look at the files.
 */
#ifndef CASTOR_SCHEDULER_SPAWN_H
#define CASTOR_SCHEDULER_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/err.h"

struct spawn {
    const char *const *argv;           /* argv[0] is a path */
    char *const *envp;                 /* NULL = environ */
    int stdout_fd, stderr_fd;          /* -1 = /dev/null */
    int gate_fd;                       /* -1 = none */
    const char *claim_from, *claim_to; /* with a gate only */
    bool die_with_starter; /* SIGKILL when the thread that starts it ends, however that ends */
    size_t
        max_memory;  /* its own writable memory, as RLIMIT_DATA counts it; 0 = no limit, as for the
                        others. Not the address space: a GPU driver reserves terabytes of that */
    size_t max_file; /* of each file it writes */
    int64_t max_cpu_seconds; /* the starter may raise it while the child runs */
};

int spawn_start(const struct spawn *spawn, pid_t *pid, struct err *err);

#endif
