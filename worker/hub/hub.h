/*
 * The hub client: a reference to a model or a data set becomes a local directory with verified
 * files, laid out as huggingface_hub's cache does, so that Python tools on the same machine share
 * it.
 *
 * One struct hub holds the settings of one process; calls are blocking and made from one thread at
 * a time. Nothing is executed, no path leaves the cache directory, every downloaded byte is checked
 * against the size and hash the hub announced, and a token is sent to the endpoint's own host only.
 *
 * Settings come from HF_ENDPOINT, HF_TOKEN (HF_TOKEN_PATH), HF_HOME, HF_HUB_CACHE and
 * HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_DISABLE_SYMLINKS, with the meaning they have
 * for huggingface_hub.
 *
 * A cache may be shared by people of whom not all may read everything. So what it holds is used
 * without asking the hub only if the hub has said that the repository is public; a gated or private
 * one, and one whose standing is not known, takes a request with this client's token each time.
 * Offline (as configured) there is nobody to ask, and the cache is used as it is.
 *
 * How it is done, a file each: reference.h (names and paths from outside), http.h (requests,
 * redirects, retries), status.h (what a refusal means), listing.h (what a repository holds),
 * select.h (which files of a model are wanted), splits.h and card.h (and of a data set), cache.h
 * (the directory), download.h (one file, and many).
 */
#ifndef CASTOR_WORKER_HUB_HUB_H
#define CASTOR_WORKER_HUB_HUB_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"

struct hub;

/* Progress, called at most a few times a second from the calling thread, also while waiting for a
 * silent hub, with bytes; all_total is 0 while it is not yet known which files are needed. Files
 * already in the cache count as done. Non-zero cancels: ERR_CANCELLED, and what was downloaded is
 * kept for the next time. */
typedef int (*hub_progress_fn)(void *ud, const char *file, int64_t file_done, int64_t file_total,
                               int64_t all_done, int64_t all_total);

struct hub_config {
    const char *endpoint;     /* NULL = HF_ENDPOINT or the public hub */
    const char *token;        /* NULL = from the environment; "" = none */
    const char *cache_dir;    /* NULL = HF_HUB_CACHE and its defaults */
    bool offline;             /* or'ed with HF_HUB_OFFLINE */
    hub_progress_fn progress; /* may be NULL */
    void *progress_ud;
    double stall_timeout; /* seconds without a byte before a request is given up; 0 = as the
                             environment says, or 10 */
    double wait_scale;    /* stretches the waits between tries (1, 2, 4, 8 s); 0 = 1 */
};

/* The strings are copied. ERR_INVALID for an endpoint or a token that cannot be one. */
int hub_create(const struct hub_config *config, struct hub **out, struct err *err);
void hub_destroy(struct hub *hub);

/* A checked repository reference "name" or "org/name", optionally "@revision", optionally behind
 * "hf://". Strings are fresh; the revision is "main" where none is named. ERR_INVALID for what the
 * hub's grammar does not allow. */
int hub_parse_reference(const char *text, char **repo, char **revision, struct err *err);

/* Which files of a model are wanted. */
enum hub_want {
    HUB_WANT_METADATA, /* config, tokenizer, index files: enough to plan                */
    HUB_WANT_WEIGHTS,  /* those and the weights, safetensors before .bin, never both   */
};

struct hub_snapshot {
    char *commit;    /* 40 hex digits                     */
    char *directory; /* .../snapshots/<commit>             */
    char **files;    /* names relative to directory, sorted; all of them are there */
    int64_t n_files;
    int64_t weight_bytes;   /* of the weight files, known before they are downloaded */
    bool gated, is_private; /* false when the answer came from the cache alone */
};
void hub_snapshot_fini(struct hub_snapshot *s);

/* Resolve revision to a commit, list, and download what is missing. Files already in the cache are
 * not asked for again; a revision that is a commit hash whose files are all there needs no request
 * if the repository is public. When such a hub cannot be reached, or offline, the commit that the
 * revision last stood for is taken from the cache if it is complete. Disk space is checked before
 * the first byte, and several files are downloaded at a time.
 *
 * Errors carry reasons:
 *   ERR_NOT_FOUND    model_not_found (or private: the hub does not tell), revision_not_found,
 *                    hub_offline (not in the cache, and no request allowed)
 *   ERR_PERMISSION   gated_model, model_disabled, hub_unauthorized (bad token)
 *   ERR_NET          hub_unavailable (also after retries)
 *   ERR_NOSPACE      disk_full
 *   ERR_CORRUPT      hub_corrupt (what the hub says or sends does not hold together)
 *   ERR_UNSUPPORTED  no_weights (neither safetensors nor .bin)
 *   ERR_INVALID, ERR_CANCELLED, ERR_IO and ERR_PERMISSION of the cache directory: no reason */
int hub_fetch_model(struct hub *hub, const char *repo, const char *revision, enum hub_want want,
                    struct hub_snapshot *out, struct err *err);

/* A part of a data set. */
struct hub_data_query {
    const char *repo;     /* "name" or "org/name" */
    const char *revision; /* as for models */
    const char *path;     /* a file of the repository, or a folder; NULL = all of it */
    const char *config;   /* NULL = the default one, or the only one */
    const char *split;    /* NULL = usual_split, or the path if that is a file */
    const char *usual_split;
    bool converted; /* the commit is one of the converter's branch, refs/convert/parquet; without
                       this it is looked at only where main has no file that Castor reads, as those
                       data sets have that are a script */
};

/* The files of a split, as a snapshot of those alone: by the data set's card if that says, else by
 * their names (splits.h, card.h). A path that is a file is that file, and has no splits.
 * *converted: they are of the branch refs/convert/parquet, and so is the commit.
 *
 * Errors as above, with dataset_not_found, gated_dataset and dataset_disabled for those of models,
 * and
 *   ERR_NOT_FOUND    data_file_not_found, config_not_found, split_not_found, which list what there
 *                    is
 *   ERR_UNSUPPORTED  no_data_files (of a format that Castor reads)
 *   ERR_CORRUPT      dataset_card (its configs cannot be read) */
int hub_fetch_dataset(struct hub *hub, const struct hub_data_query *query, struct hub_snapshot *out,
                      bool *converted, struct err *err);

#endif
