#include "server/dedupe.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/hash.h"
#include "server/config.h"

enum { ENTRIES_MAX = 4096, KEEP_SECONDS = 600, WAIT_SECONDS = 35 };

struct entry {
    char key[65], body[65];
    char job_id[JOB_ID_MAX];
    bool pending;
    double t; /* monotonic; 0 = free */
};

struct dedupe {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    struct entry entries[ENTRIES_MAX];
};

struct dedupe *dedupe_create(void)
{
    struct dedupe *d = xcalloc(1, sizeof(*d));
    pthread_condattr_t attr;

    pthread_mutex_init(&d->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->ended, &attr);
    pthread_condattr_destroy(&attr);
    return d;
}

void dedupe_destroy(struct dedupe *d)
{
    if (!d)
        return;
    pthread_cond_destroy(&d->ended);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static void hash_parts(const char *kind, const char *caller, const void *bytes, size_t n,
                       char out[65])
{
    struct hash h;

    hash_init(&h, HASH_SHA256, 0);
    hash_update(&h, kind, strlen(kind) + 1);
    hash_update(&h, caller, strlen(caller) + 1);
    hash_update(&h, bytes, n);
    hash_final_hex(&h, out);
}

static struct entry *find(struct dedupe *d, const char *key)
{
    double now = clock_monotonic();

    for (int i = 0; i < ENTRIES_MAX; i++) {
        struct entry *e = &d->entries[i];
        if (e->t > 0 && (e->pending || now - e->t < KEEP_SECONDS) && strcmp(e->key, key) == 0)
            return e;
    }
    return NULL;
}

/* A free place, an outdated one, or the oldest; never one that is still pending. */
static struct entry *find_place(struct dedupe *d)
{
    struct entry *oldest = NULL;

    for (int i = 0; i < ENTRIES_MAX; i++) {
        struct entry *e = &d->entries[i];
        if (!e->pending && (!oldest || e->t < oldest->t))
            oldest = e;
    }
    return oldest;
}

static enum dedupe_verdict wait_for_first(struct dedupe *d, struct dedupe_ticket *ticket)
{
    struct timespec until;
    struct entry *e;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += WAIT_SECONDS;
    while ((e = find(d, ticket->key))) {
        if (strcmp(e->body, ticket->body) != 0)
            return DEDUPE_MISMATCH;
        if (!e->pending) {
            memcpy(ticket->job_id, e->job_id, sizeof(ticket->job_id));
            return DEDUPE_REPEAT;
        }
        if (pthread_cond_timedwait(&d->ended, &d->lock, &until) == ETIMEDOUT)
            return DEDUPE_BUSY;
    }
    return DEDUPE_FIRST;
}

enum dedupe_verdict dedupe_begin(struct dedupe *d, const struct request *req,
                                 struct dedupe_ticket *ticket)
{
    const char *client_key = request_header(req, "Idempotency-Key");
    const char *retries = request_header(req, "x-stainless-retry-count");
    const char *caller = req->key ? req->key->name : "";
    enum dedupe_verdict verdict = DEDUPE_FIRST;

    *ticket = (struct dedupe_ticket){.has_client_key = client_key && *client_key};
    if (!ticket->has_client_key && !retries)
        return DEDUPE_UNTRACKED;
    hash_parts("body", "", req->body.data, req->body.len, ticket->body);
    if (ticket->has_client_key)
        hash_parts("key", caller, client_key, strlen(client_key), ticket->key);
    else
        hash_parts("retry", caller, req->body.data, req->body.len, ticket->key);

    pthread_mutex_lock(&d->lock);
    if (ticket->has_client_key || strcmp(retries, "0") != 0)
        verdict = wait_for_first(d, ticket);
    if (verdict == DEDUPE_FIRST) {
        struct entry *e = find(d, ticket->key);
        if (!e)
            e = find_place(d);
        if (e) {
            *e = (struct entry){.pending = true, .t = clock_monotonic()};
            memcpy(e->key, ticket->key, sizeof(e->key));
            memcpy(e->body, ticket->body, sizeof(e->body));
        }
    }
    pthread_mutex_unlock(&d->lock);
    return verdict;
}

void dedupe_end(struct dedupe *d, const struct dedupe_ticket *ticket, const char *job_id)
{
    struct entry *e;

    if (!ticket->key[0])
        return;
    pthread_mutex_lock(&d->lock);
    e = find(d, ticket->key);
    if (e && job_id) {
        e->pending = false;
        e->t = clock_monotonic();
        snprintf(e->job_id, sizeof(e->job_id), "%s", job_id);
    } else if (e && e->pending) {
        *e = (struct entry){0};
    }
    pthread_cond_broadcast(&d->ended);
    pthread_mutex_unlock(&d->lock);
}
