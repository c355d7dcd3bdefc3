/*
 * One file of a repository into the cache: a HEAD that must agree with the listing, then a GET that
 * continues where an earlier one stopped, in this process or in a dead one. The content is hashed
 * while it is written, and gets its place in the cache only when size and hash are what the hub
 * announced; what does not fit is thrown away. Each try begins with a new HEAD, because the signed
 * address that it leads to expires.
 */
#ifndef CASTOR_WORKER_HUB_DOWNLOAD_H
#define CASTOR_WORKER_HUB_DOWNLOAD_H

#include <stdint.h>

#include "core/err.h"
#include "worker/hub/cache.h"
#include "worker/hub/http.h"
#include "worker/hub/listing.h"

struct download {
    struct http *http;
    const struct cache *cache;
    const char *repo, *commit;
    /* `file` has `done` bytes, everything that was asked for `all`. May be NULL. */
    void (*on_bytes)(void *ud, const struct listing_file *file, int64_t done, int64_t all);
    void *on_bytes_ud;
};

/* The file must have a hash. After cache_prepare. */
int download_file(const struct download *d, const struct listing_file *file, struct err *err);

/* All of them, some at a time, each on a connection of its own (download_files.c). d->http stays
 * with the calling thread: its poll is called there, and d->on_bytes with the bytes of all files
 * together and the first file that is not complete. The first failure ends the others. */
int download_files(const struct download *d, const struct listing_file *const *files, int64_t n,
                   struct err *err);

#endif
