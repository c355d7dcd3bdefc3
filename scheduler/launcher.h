/*
 * Launchers start attempts and tell whether they still run. An attempt is one supervisor process
 * (`castor-worker JOBDIR --attempt N`) and what it starts. It is not a part of castord: it goes on
 * when castord dies, and a new castord finds it again by attempt-N/supervisor.json.
 *
 * start creates attempt-N/ and writes supervisor.wait, the record of a child that waits; then it
 * lets the child go on, which renames that file to supervisor.json and becomes the supervisor's
 * program. So whatever dies when: an attempt without supervisor.json never ran and, once the
 * recorded child is gone, never will; one with it is never started again.
 *
 * Called from the scheduler thread alone.
 */
#ifndef CASTOR_SCHEDULER_LAUNCHER_H
#define CASTOR_SCHEDULER_LAUNCHER_H

#include <stdbool.h>
#include <stdint.h>

#include "api/attempt_exit.h"
#include "core/err.h"

struct attempt_process {
    struct supervisor_record record;
    bool exited;     /* and was reaped, which only its own starter can do */
    int wait_status; /* of waitpid(2), when exited */
};

struct launch {
    const char *worker_path, *jobdir;
    int64_t attempt;
    char *const *envp; /* NULL = castord's own */
};

struct launcher_ops {
    const char *name;
    int (*start)(const struct launch *launch, struct attempt_process *out, struct err *err);
    /* An attempt that was started, perhaps by an earlier castord. ERR_NOT_FOUND: it never was, and
     * start is allowed. ERR_CONFLICT: not decided, for a child waits still; ask again soon. */
    int (*find)(const char *jobdir, int64_t attempt, struct attempt_process *out, struct err *err);
    /* Is anything of it left? When the supervisor is gone but processes of its group are not, they
     * are killed, and the answer is yes until they are gone too. */
    bool (*is_alive)(struct attempt_process *process);
    /* To the whole process group. */
    void (*signal)(const struct attempt_process *process, int sig);
};

extern const struct launcher_ops launcher_local;

#endif
