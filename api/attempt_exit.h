/*
 * How an attempt ended, written by its supervisor as attempt-N/exit.json when every rank is gone;
 * and the record that the supervisor writes first, attempt-N/supervisor.json, by which a restarted
 * castord finds a live attempt again.
 */
#ifndef CASTOR_API_ATTEMPT_EXIT_H
#define CASTOR_API_ATTEMPT_EXIT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"

struct rank_exit {
    int64_t rank, pid;
    int exit_code;      /* -1 when ended by a signal */
    int signal;         /* 0 when it exited          */
    int64_t step;       /* from its breadcrumb; -1 = none */
    char where[64];     /* instruction and block it was in, or "" */
    char log_tail[512]; /* last lines of its stderr */
};

enum { ATTEMPT_MAX_RANKS = 1024 };

struct attempt_exit {
    double t;
    bool ok;                   /* every rank exited with 0 */
    int64_t first_failed_rank; /* whose death ended the others; -1 = none */
    int64_t n_ranks;
    struct rank_exit *ranks; /* owned */
};

struct supervisor_record {
    int64_t pid;
    int64_t start_ticks; /* field 22 of /proc/PID/stat: with pid, unique until reboot */
    char boot_id[40];    /* /proc/sys/kernel/random/boot_id: a pid of an earlier boot is nobody */
    char host[64];
};

json_t *attempt_exit_to_json(const struct attempt_exit *e);
int attempt_exit_from_json(const json_t *value, struct attempt_exit *out, struct err *err);
void attempt_exit_fini(struct attempt_exit *e);

/* Of a live process; ERR_NOT_FOUND when there is none. */
int supervisor_record_of(int64_t pid, struct supervisor_record *out, struct err *err);
int supervisor_record_self(struct supervisor_record *out,
                           struct err *err); /* of the calling process */
int supervisor_record_save(const char *path, const struct supervisor_record *r, struct err *err);
int supervisor_record_load(const char *path, struct supervisor_record *out, struct err *err);
/* Is that very process still there on this host? A zombie is not. */
bool supervisor_record_alive(const struct supervisor_record *r);

#endif
