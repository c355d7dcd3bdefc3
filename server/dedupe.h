/*
 * Creates that come twice must not start two jobs. Two ways to recognise the second one:
 *   Idempotency-Key   the same key of the same caller; with another body it is 422
 *   x-stainless-retry-count > 0   an SDK repeats a request whose answer it did not get, with the
 *                     same body of the same caller; a count of 0 is always a new job
 * This table remembers answers for ten minutes, in memory; the scheduler keeps the keys it is given
 * across restarts. A repeat that arrives while the first is still being worked on waits for it.
 * Thread-safe.
 */
#ifndef CASTOR_SERVER_DEDUPE_H
#define CASTOR_SERVER_DEDUPE_H

#include "core/err.h"
#include "scheduler/job.h"
#include "server/request.h"

struct dedupe;

struct dedupe *dedupe_create(void);
void dedupe_destroy(struct dedupe *d);

enum dedupe_verdict {
    DEDUPE_UNTRACKED, /* create; there is nothing to recognise a repeat by     */
    DEDUPE_FIRST,     /* create, then call dedupe_end                          */
    DEDUPE_REPEAT,    /* answer with the job in ticket.job_id                   */
    DEDUPE_MISMATCH,  /* the key was used with another body                    */
    DEDUPE_BUSY,      /* the first did not end within half a minute            */
};

struct dedupe_ticket {
    char key[65];        /* hash of caller and key, or caller and body */
    char body[65];       /* hash of the body                           */
    bool has_client_key; /* an Idempotency-Key: the scheduler may keep `key` */
    char job_id[JOB_ID_MAX];
};

enum dedupe_verdict dedupe_begin(struct dedupe *d, const struct request *req,
                                 struct dedupe_ticket *ticket);
/* job_id NULL: the create failed, and a repeat may try again. */
void dedupe_end(struct dedupe *d, const struct dedupe_ticket *ticket, const char *job_id);

#endif
