/* Many files at once: threads that take the next file each, while the caller's thread reports. */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "core/alloc.h"
#include "worker/hub/download.h"

/* As many connections as huggingface_hub has. */
enum { CONNECTIONS = 8 };

struct crew {
    const struct download *d;
    const struct listing_file *const *files;
    int64_t n;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t ended; /* a member has left */
    int64_t next, present;
    int64_t *done; /* bytes, by file */
    bool stop;     /* cancelled, or one has failed */
    int rc;
    struct err err; /* of the first that failed */
};

struct member {
    struct crew *crew;
    pthread_t thread;
    struct http http;
    int64_t file;
};

static int on_poll(void *ud)
{
    struct crew *c = ((struct member *)ud)->crew;

    pthread_mutex_lock(&c->lock);
    bool stop = c->stop;
    pthread_mutex_unlock(&c->lock);
    return stop;
}

static void on_bytes(void *ud, const struct listing_file *file, int64_t done, int64_t all)
{
    struct member *m = ud;

    (void)file;
    (void)all;
    pthread_mutex_lock(&m->crew->lock);
    m->crew->done[m->file] = done;
    pthread_mutex_unlock(&m->crew->lock);
}

/* The next file of this member, or -1. */
static int64_t take(struct crew *c)
{
    pthread_mutex_lock(&c->lock);
    int64_t file = c->stop || c->next == c->n ? -1 : c->next++;
    pthread_mutex_unlock(&c->lock);
    return file;
}

static void *work(void *ud)
{
    struct member *m = ud;
    struct crew *c = m->crew;
    struct download d = *c->d;
    struct err err = {0};
    int rc = 0;

    d.http = &m->http;
    d.on_bytes = on_bytes;
    d.on_bytes_ud = m;
    while (rc == 0 && (m->file = take(c)) >= 0) {
        rc = download_file(&d, c->files[m->file], &err);
        if (rc == 0)
            on_bytes(m, NULL, c->files[m->file]->size, 0);
    }
    pthread_mutex_lock(&c->lock);
    if (rc != 0 && !c->stop) {
        c->stop = true;
        c->rc = rc;
        c->err = err;
    }
    c->present--;
    pthread_cond_signal(&c->ended);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static int start(struct crew *c, struct member *m, struct err *err)
{
    int rc = http_clone(c->d->http, &m->http, err);

    if (rc != 0)
        return rc;
    m->crew = c;
    m->http.poll = on_poll;
    m->http.poll_ud = m;
    pthread_mutex_lock(&c->lock);
    c->present++;
    pthread_mutex_unlock(&c->lock);
    int failed = pthread_create(&m->thread, NULL, work, m);
    if (failed == 0)
        return 0;
    pthread_mutex_lock(&c->lock);
    c->present--;
    pthread_mutex_unlock(&c->lock);
    http_fini(&m->http);
    return err_set_errno(err, failed, "cannot start a thread for downloads");
}

/* With the lock held. */
static void report(const struct crew *c)
{
    int64_t all = 0, first = c->n - 1;

    for (int64_t i = c->n - 1; i >= 0; i--) {
        all += c->done[i];
        if (c->done[i] < c->files[i]->size)
            first = i;
    }
    if (c->d->on_bytes)
        c->d->on_bytes(c->d->on_bytes_ud, c->files[first], c->done[first], all);
}

static void stop(struct crew *c)
{
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_mutex_unlock(&c->lock);
}

/* Report a few times a second until all have left. True when the caller wants no more. */
static bool watch(struct crew *c)
{
    bool cancelled = false;

    pthread_mutex_lock(&c->lock);
    while (c->present > 0) {
        struct timespec until;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 250 * 1000 * 1000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&c->ended, &c->lock, &until);
        report(c);
        if (c->present == 0 || cancelled || !c->d->http->poll)
            continue;
        pthread_mutex_unlock(&c->lock);
        cancelled = c->d->http->poll(c->d->http->poll_ud) != 0;
        pthread_mutex_lock(&c->lock);
        c->stop = c->stop || cancelled;
    }
    pthread_mutex_unlock(&c->lock);
    return cancelled;
}

int download_files(const struct download *d, const struct listing_file *const *files, int64_t n,
                   struct err *err)
{
    struct crew c = {.d = d, .files = files, .n = n};
    struct member members[CONNECTIONS] = {0};
    int64_t started = 0, wanted = n < CONNECTIONS ? n : CONNECTIONS;
    int rc = 0;

    if (n == 0)
        return 0;
    c.done = xcalloc((size_t)n, sizeof(*c.done));
    pthread_mutex_init(&c.lock, NULL);
    pthread_cond_init(&c.ended, NULL);
    while (started < wanted && rc == 0) {
        rc = start(&c, &members[started], err);
        started += rc == 0;
    }
    if (rc != 0)
        stop(&c);
    bool cancelled = watch(&c);
    for (int64_t i = 0; i < started; i++) {
        pthread_join(members[i].thread, NULL);
        http_fini(&members[i].http);
    }
    if (rc == 0 && c.rc != 0) {
        rc = c.rc;
        if (err)
            *err = c.err;
    } else if (rc == 0 && cancelled) {
        rc = err_set(err, ERR_CANCELLED, "the download was cancelled");
    }
    pthread_cond_destroy(&c.ended);
    pthread_mutex_destroy(&c.lock);
    free(c.done);
    return rc;
}
