/*
 * The cache directory of one repository, laid out as huggingface_hub does:
 *
 *   <root>/CACHEDIR.TAG
 *   <root>/.locks/models--org--name/<etag>.lock    flock(2) while a blob is written; stays
 *   <root>/models--org--name/         or datasets--org--name/
 *     blobs/<etag>                      content, named by its hash: git sha1 or sha256
 *     blobs/<etag>.incomplete           the beginning of it, continued by the next process
 *     refs/<revision>                   the commit it last stood for, 40 digits, no newline
 *     snapshots/<commit>/<path>         symbolic link ../../blobs/<etag>
 *     trees/<commit>.json               the listing (listing.h)
 *     .no_exist/<commit>/<path>         empty: the commit has no such file
 *     .public                           empty: ours; the hub said that everybody may read this
 *
 * Several processes, Python's among them, may use it at once: everything appears by rename, and
 * a blob is written under its lock. Where flock does not work (some cluster file systems) two
 * writers of one .incomplete file write the same bytes at the same places, and the hash is checked
 * before the rename, so that the worst is a download done twice.
 *
 * Reading never leaves the cache: a link in a snapshot counts only if it ends in this repository's
 * folder or in <root>/blobs, which newer versions of huggingface_hub share between repositories.
 * Where there are no symbolic links, or HF_HUB_DISABLE_SYMLINKS forbids them, the file itself moves
 * into the snapshot. Names given here were checked by reference.h. A cache that cannot be written
 * still serves what it holds.
 */
#ifndef CASTOR_WORKER_HUB_CACHE_H
#define CASTOR_WORKER_HUB_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "worker/hub/http.h"
#include "worker/hub/listing.h"

struct cache {
    char *root;   /* absolute */
    char *folder; /* <root>/models--org--name */
    char *locks;  /* <root>/.locks/models--org--name */
    bool no_links;
};

void cache_init(struct cache *c, const char *root, const char *repo);
void cache_fini(struct cache *c);

char *cache_snapshot_path(const struct cache *c, const char *commit);
char *cache_blob_path(const struct cache *c, const char *etag);

/* The commit of refs/<revision>; false when it is not known. */
bool cache_read_ref(const struct cache *c, const char *revision, char commit[41]);
/* Neither of these two is needed for the files to be usable: failures are logged. */
void cache_write_ref(const struct cache *c, const char *revision, const char *commit);
void cache_write_listing(const struct cache *c, const char *commit, const struct listing *l);

/* Let other programs know that the commit does not have this file. */
void cache_note_absent(const struct cache *c, const char *commit, const char *path);
/* Whether what the cache holds was open to everybody when the hub was last asked. */
bool cache_is_public(const struct cache *c);
void cache_note_access(const struct cache *c, bool is_public);

/* The listing kept for a commit; false when there is none that can be read. */
bool cache_read_listing(const struct cache *c, const char *commit, struct listing *out);
/* Where only single files were fetched there is no listing: what the snapshot's folder holds, with
 * sizes and without hashes. False when it holds nothing. */
bool cache_scan_snapshot(const struct cache *c, const char *commit, struct listing *out);

/* Whether the file is in the snapshot, inside the cache, and has its size. */
bool cache_has_file(const struct cache *c, const char *commit, const struct listing_file *file);
/* Whether its blob is there with its size. */
bool cache_has_blob(const struct cache *c, const struct listing_file *file);
/* Bytes already there of a download that was interrupted. */
int64_t cache_partial_bytes(const struct cache *c, const char *etag);

/* Create what a download needs. */
int cache_prepare(const struct cache *c, struct err *err);
/* Wait for the lock of a blob, polling h for cancellation. *fd is closed to release it. */
int cache_lock(const struct cache *c, const char *etag, struct http *h, int *fd, struct err *err);
/* Make snapshots/<commit>/<path> point to the blob, or be it, replacing what is there. */
int cache_link(const struct cache *c, const char *commit, const char *path, const char *etag,
               struct err *err);

#endif
