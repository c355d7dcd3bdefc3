/*
 * Host memory that a job may claim. It is bounded by what the machine has and by the memory limits
 * of the control groups (version 1 or 2) that this process is in, each of them: a limit binds all
 * that is below it. A part of each is a reserve, for the rest of the machine and for what the
 * process takes besides its arenas.
 *
 * An estimate (HOST_WHOLE) goes by these alone: it answers whether a job fits here, and may be
 * asked while another job runs that will be gone when this one starts. An attempt (HOST_LEFT) also
 * goes by what is left at that moment, of the machine (MemAvailable) and within each group: what
 * others hold, it cannot have. It claims, with every page fetched, before it trains; and so that
 * two attempts that start at a time do not both count on the same memory, each holds a lock from
 * its look to its claim. An attempt that does not fit in what is left, and would in the whole, says
 * so when it fails (event_failed.fits_alone): whoever started it can try again.
 *
 * On a machine where nothing else runs both give the same, unless the system itself takes more than
 * five parts in a hundred: the reserve is mostly what it has taken already.
 */
#ifndef CASTOR_WORKER_TRAIN_HOST_MEMORY_H
#define CASTOR_WORKER_TRAIN_HOST_MEMORY_H

#include <signal.h>
#include <stddef.h>

enum host_moment { HOST_WHOLE, HOST_LEFT };

struct host_memory {
    size_t bytes;   /* that may be claimed */
    char part[256]; /* of what, for a refusal: "the 300.0 MiB that ... is limited to" */
};

/* Below `root` lie proc and sys. Never fails: what the system does not tell does not bound. */
void host_memory_look(const char *root, enum host_moment moment, struct host_memory *out);

/* Wait until no other process of this container holds the lock, and take it; for a minute, or until
 * *terminate: where it is held longer the job goes by what it sees. The descriptor to close, which
 * a process's end closes as well, or -1. */
int host_memory_lock(const volatile sig_atomic_t *terminate);

#endif
