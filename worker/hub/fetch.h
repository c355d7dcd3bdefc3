/*
 * One fetch, of a model or of a data set: which commit a revision stands for and what it holds,
 * from the hub or from the cache, and then the files that are wanted of it. Private to worker/hub.
 */
#ifndef CASTOR_WORKER_HUB_FETCH_H
#define CASTOR_WORKER_HUB_FETCH_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "worker/hub/cache.h"
#include "worker/hub/http.h"
#include "worker/hub/hub.h"
#include "worker/hub/listing.h"

struct hub {
    struct http http;
    char *cache_root;
    bool offline;
    hub_progress_fn progress;
    void *progress_ud;
    /* What the next progress call says. */
    const struct listing_file *file; /* NULL = none */
    int64_t file_done;
    int64_t all_done, under_way, all_total; /* of files complete, of those under way, of all */
};

/* The progress call; non-zero: it wants an end. */
int hub_poll(void *hub);

struct fetch {
    struct hub *hub;
    const char *repo, *revision;
    struct cache cache;
    bool offline;           /* as configured, or because the hub cannot be reached: */
    struct err unreachable; /* then this says why */
    struct listing_info info;
    struct listing listing;
};

/* Checks the names, which are borrowed. fetch_end is due afterwards, also on failure. */
int fetch_begin(struct fetch *f, struct hub *hub, const char *repo, const char *revision,
                struct err *err);
/* Fills info and listing. */
int fetch_resolve(struct fetch *f, struct err *err);
/* Make sure that all these files are in the snapshot. */
int fetch_ensure(struct fetch *f, const struct listing_file *const *files, int64_t n,
                 struct err *err);
/* The same for all that are wanted in the end, in the order of the result. */
int fetch_take(struct fetch *f, const struct listing_file *const *files, int64_t n,
               struct hub_snapshot *out, struct err *err);
/* Where the file of the snapshot is; fresh. */
char *fetch_path(const struct fetch *f, const struct listing_file *file);
void fetch_end(struct fetch *f);

#endif
