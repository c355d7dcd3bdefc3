/*
 * Start a child process cut off from castord: a session and process group of its own, default
 * signals, /dev/null as stdin, no other descriptor than stdout and stderr, resource limits where
 * given. The child's pid is its session and process group id.
 *
 * With a gate the child does not exec before one byte arrives; when the pipe closes without one it
 * exits. So its starter can record it first, and a starter that dies leaves no unrecorded child.
 */
#ifndef CASTOR_SCHEDULER_SPAWN_H
#define CASTOR_SCHEDULER_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/err.h"

struct spawn {
    const char *const *argv;  /* argv[0] is a path */
    char *const *envp;        /* NULL = environ */
    int stdout_fd, stderr_fd; /* -1 = /dev/null */
    int gate_fd;              /* -1 = none */
    size_t max_memory;        /* address space; 0 = no limit, as for the others */
    size_t max_file;          /* of each file it writes */
    int64_t max_cpu_seconds;
};

int spawn_start(const struct spawn *spawn, pid_t *pid, struct err *err);

#endif
