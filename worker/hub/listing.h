/*
 * What a repository holds at one commit: names, sizes and hashes of its files, from the hub's tree
 * listing or from the copy of it that the cache keeps (trees/<commit>.json, huggingface_hub's
 * format). A listing is sorted by path and holds safe paths only (reference.h): one that names a
 * file outside the repository is refused as a whole.
 */
#ifndef CASTOR_WORKER_HUB_LISTING_H
#define CASTOR_WORKER_HUB_LISTING_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "worker/hub/http.h"

struct listing_file {
    char *path;
    int64_t size;   /* bytes of the content, also where git holds only a pointer to it */
    char *git_sha1; /* of the git blob: of the content, or of the pointer; NULL = unknown */
    char *sha256;   /* of the content where git holds a pointer, else NULL */
    char *xet_hash; /* passed on to huggingface_hub, else unused; may be NULL */
};

struct listing {
    struct listing_file *files;
    int64_t n, cap;
};

/* What the hub says about a repository at a revision. */
struct listing_info {
    char commit[41];
    bool gated, is_private;
};

void listing_fini(struct listing *l);
const struct listing_file *listing_find(const struct listing *l, const char *path);
/* The hash that identifies the content and names its blob in the cache; NULL = unknown. */
const char *listing_etag(const struct listing_file *file);

/* Sorts; ERR_CORRUPT for a path that appears twice. Strings of `file` are copied. */
int listing_add(struct listing *l, const struct listing_file *file, struct err *err);
int listing_finish(struct listing *l, struct err *err);

/* Ask the hub. *out is zeroed before the call. */
int listing_ask_info(struct http *h, const char *repo, const char *revision,
                     struct listing_info *out, struct err *err);
/* Whether the token may read a gated repository: 0, or the refusal. */
int listing_ask_access(struct http *h, const char *repo, struct err *err);
int listing_ask_tree(struct http *h, const char *repo, const char *commit, struct listing *out,
                     struct err *err);

/* What those two make of the hub's answers; the endpoint and the repository are for errors. A page
 * adds its files to *l, which is for listing_finish then. */
int listing_read_info(const json_t *answer, const char *endpoint, const char *repo,
                      const char *revision, struct listing_info *out, struct err *err);
int listing_add_page(struct listing *l, const json_t *page, const char *endpoint, const char *repo,
                     struct err *err);

int listing_from_cached(const json_t *trees_file, struct listing *out, struct err *err);
json_t *listing_to_cached(const struct listing *l);

#endif
