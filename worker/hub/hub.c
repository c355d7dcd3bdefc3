#include "worker/hub/hub.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/json.h"
#include "core/log.h"
#include "worker/hub/cache.h"
#include "worker/hub/download.h"
#include "worker/hub/http.h"
#include "worker/hub/listing.h"
#include "worker/hub/reference.h"
#include "worker/hub/select.h"
#include "worker/hub/settings.h"
#include "worker/hub/status.h"

enum { MAX_INDEX_BYTES = 64 << 20, DISK_BLOCK = 4096 };

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

/* --- settings --------------------------------------------------------------------------------- */

static int on_poll(void *ud)
{
    struct hub *hub = ud;

    if (!hub->progress)
        return 0;
    return hub->progress(hub->progress_ud, hub->file ? hub->file->path : "", hub->file_done,
                         hub->file ? hub->file->size : 0, hub->all_done + hub->under_way,
                         hub->all_total);
}

static int absolute_path(char **path, struct err *err)
{
    if ((*path)[0] == '/')
        return 0;
    char *here = getcwd(NULL, 0);
    if (!here)
        return err_set_errno(err, errno, "cannot tell the working directory");
    char *whole = fs_join(here, *path);
    free(here);
    free(*path);
    *path = whole;
    return 0;
}

int hub_create(const struct hub_config *config, struct hub **out, struct err *err)
{
    char *endpoint = config->endpoint ? xstrdup(config->endpoint) : settings_endpoint();
    char *token = config->token ? xstrdup(config->token) : settings_token();
    struct hub *hub = xcalloc(1, sizeof(*hub));
    int rc = 0;

    hub->cache_root = config->cache_dir ? xstrdup(config->cache_dir) : settings_cache_root();
    hub->offline = config->offline || settings_offline();
    hub->progress = config->progress;
    hub->progress_ud = config->progress_ud;
    TRY(absolute_path(&hub->cache_root, err));
    TRY(http_init(&hub->http, endpoint, token, err));
    hub->http.stall_timeout =
        config->stall_timeout > 0 ? config->stall_timeout : settings_timeout();
    if (config->wait_scale > 0)
        hub->http.wait_scale = config->wait_scale;
    hub->http.poll = on_poll;
    hub->http.poll_ud = hub;
    *out = hub;
    hub = NULL;
out:
    hub_destroy(hub);
    if (token)
        explicit_bzero(token, strlen(token));
    free(token);
    free(endpoint);
    return rc;
}

void hub_destroy(struct hub *hub)
{
    if (!hub)
        return;
    http_fini(&hub->http);
    free(hub->cache_root);
    free(hub);
}

void hub_snapshot_fini(struct hub_snapshot *s)
{
    for (int64_t i = 0; i < s->n_files; i++)
        free(s->files[i]);
    free(s->files);
    free(s->commit);
    free(s->directory);
    *s = (struct hub_snapshot){0};
}

/* --- which commit, and what it holds ------------------------------------------------------------
 */

/* One call of hub_fetch_model. */
struct fetch {
    struct hub *hub;
    const char *repo, *revision;
    struct cache cache;
    bool offline;           /* as configured, or because the hub cannot be reached: */
    struct err unreachable; /* then this says why */
    struct listing_info info;
    struct listing listing;
    struct selection selection;
};

static int missing_offline(const struct fetch *f, const char *what, struct err *err)
{
    if (f->unreachable.code != ERR_OK) {
        if (err)
            *err = f->unreachable;
        return f->unreachable.code;
    }
    err_set(err, ERR_NOT_FOUND,
            "%s of '%s' at '%s' is not in the cache %s, and the hub may not be asked; unset "
            "HF_HUB_OFFLINE or download the model beforehand",
            what, f->repo, f->revision, f->cache.root);
    return err_set_reason(err, ERR_NOT_FOUND, "hub_offline");
}

static int resolve_in_cache(struct fetch *f, struct err *err)
{
    if (reference_is_sha1(f->revision))
        memcpy(f->info.commit, f->revision, sizeof(f->info.commit));
    else if (!cache_read_ref(&f->cache, f->revision, f->info.commit))
        return missing_offline(f, "the commit", err);
    if (!cache_read_listing(&f->cache, f->info.commit, &f->listing) &&
        !cache_scan_snapshot(&f->cache, f->info.commit, &f->listing))
        return missing_offline(f, "the list of files", err);
    return 0;
}

static void note_absent_files(const struct fetch *f)
{
    const char *name;

    for (int i = 0; (name = select_known_name(i)) != NULL; i++)
        if (!listing_find(&f->listing, name))
            cache_note_absent(&f->cache, f->info.commit, name);
}

static int resolve_at_hub(struct fetch *f, struct err *err)
{
    struct http *http = &f->hub->http;
    int rc = 0;

    TRY(listing_ask_info(http, f->repo, f->revision, &f->info, err));
    if (f->info.gated) /* its description is for everybody, its files are not */
        TRY(listing_ask_access(http, f->repo, err));
    cache_note_access(&f->cache, !f->info.gated && !f->info.is_private);
    if (cache_read_listing(&f->cache, f->info.commit, &f->listing))
        goto out;
    TRY(listing_ask_tree(http, f->repo, f->info.commit, &f->listing, err));
    cache_write_listing(&f->cache, f->info.commit, &f->listing);
    note_absent_files(f);
out:
    return rc;
}

/* The hub is silent: the cache, where it need not be asked. */
static int resolve_without_hub(struct fetch *f, struct err *err)
{
    int rc = 0;

    f->offline = true;
    f->unreachable = *err;
    if (!cache_is_public(&f->cache)) {
        if (fs_exists(f->cache.folder))
            err_wrap(err, ERR_NET,
                     "'%s' is in the cache, but may be gated or private, so that the hub must be "
                     "asked first (or HF_HUB_OFFLINE set, where everybody may use the cache)",
                     f->repo);
        return ERR_NET;
    }
    TRY(resolve_in_cache(f, err));
    log_warn("hub", "repo=%s commit=%s using the cache: %s", f->repo, f->info.commit,
             f->unreachable.msg);
out:
    return rc;
}

static int resolve(struct fetch *f, struct err *err)
{
    struct err own = {0};
    int rc;

    if (f->offline)
        return resolve_in_cache(f, err);
    if (reference_is_sha1(f->revision) && cache_is_public(&f->cache) &&
        cache_read_listing(&f->cache, f->revision, &f->listing)) {
        memcpy(f->info.commit, f->revision, sizeof(f->info.commit));
        return 0;
    }
    rc = resolve_at_hub(f, &own);
    if (rc == ERR_NET)
        rc = resolve_without_hub(f, &own);
    if (rc != 0 && err)
        *err = own;
    return rc;
}

/* --- downloading what is missing ----------------------------------------------------------------
 */

static void on_bytes(void *ud, const struct listing_file *file, int64_t done, int64_t all)
{
    struct hub *hub = ud;

    hub->file = file;
    hub->file_done = done;
    hub->under_way = all;
}

/* Bytes that the disk still has to take for these files, none of which is in the snapshot. */
static int64_t bytes_needed(const struct fetch *f, const struct listing_file *const *files,
                            int64_t n)
{
    int64_t bytes = 0;

    for (int64_t i = 0; i < n; i++) {
        if (cache_has_blob(&f->cache, files[i]))
            continue;
        int64_t there = cache_partial_bytes(&f->cache, listing_etag(files[i]));
        bytes += files[i]->size - (there < files[i]->size ? there : 0) + DISK_BLOCK;
    }
    return bytes;
}

static int admit(const struct fetch *f, int64_t needed, struct err *err)
{
    int64_t free_bytes;
    int rc = fs_free_bytes(f->cache.root, &free_bytes, err);

    if (rc != 0 || needed <= free_bytes)
        return rc;
    err_set(err, ERR_NOSPACE,
            "downloading '%s' takes %.2f GB, but %s has %.2f GB free; free %.2f GB or set "
            "HF_HUB_CACHE to a larger disk",
            f->repo, 1e-9 * (double)needed, f->cache.root, 1e-9 * (double)free_bytes,
            1e-9 * (double)(needed - free_bytes));
    return err_set_reason(err, ERR_NOSPACE, "disk_full");
}

/* Make sure that all these files are in the snapshot. */
static int ensure(struct fetch *f, const struct listing_file *const *files, int64_t n,
                  struct err *err)
{
    struct hub *hub = f->hub;
    struct download d = {&hub->http, &f->cache, f->repo, f->info.commit, on_bytes, hub};
    const struct listing_file **missing = xcalloc((size_t)n + 1, sizeof(*missing));
    int64_t n_missing = 0;
    int rc = 0;

    for (int64_t i = 0; i < n; i++) {
        if (cache_has_file(&f->cache, f->info.commit, files[i]))
            hub->all_done += files[i]->size;
        else
            missing[n_missing++] = files[i];
    }
    if (n_missing == 0)
        goto out;
    if (f->offline) {
        rc = missing_offline(f, missing[0]->path, err);
        goto out;
    }
    TRY(cache_prepare(&f->cache, err));
    TRY(admit(f, bytes_needed(f, missing, n_missing), err));
    TRY(download_files(&d, missing, n_missing, err));
    for (int64_t i = 0; i < n_missing; i++)
        hub->all_done += missing[i]->size;
out:
    hub->file = NULL;
    hub->file_done = hub->under_way = 0;
    free(missing);
    return rc;
}

static int choose(struct fetch *f, struct err *err)
{
    char *path = NULL;
    json_t *json = NULL;
    struct err own = {0};
    int rc = 0;

    TRY(select_files(&f->listing, &f->selection, err));
    if (!f->selection.index)
        goto out;
    TRY(ensure(f, &f->selection.index, 1, err));
    f->hub->all_done = 0;
    path =
        xasprintf("%s/snapshots/%s/%s", f->cache.folder, f->info.commit, f->selection.index->path);
    if (json_parse_file(path, MAX_INDEX_BYTES, JSON_MAX_DEPTH_FILE, &json, &own) != 0) {
        rc =
            status_corrupt(err, "the model's list of weight files cannot be read: %.500s", own.msg);
        goto out;
    }
    TRY(select_shards(&f->listing, json, &f->selection, err));
out:
    json_decref(json);
    free(path);
    return rc;
}

/* --- the result ---------------------------------------------------------------------------------
 */

static int compare_files(const void *a, const void *b)
{
    return strcmp((*(const struct listing_file *const *)a)->path,
                  (*(const struct listing_file *const *)b)->path);
}

/* Metadata and, if wanted, weights, by name. */
static const struct listing_file **wanted_files(const struct selection *s, enum hub_want want,
                                                int64_t *n)
{
    int64_t n_weights = want == HUB_WANT_WEIGHTS ? s->n_weights : 0;
    const struct listing_file **files =
        xcalloc((size_t)(s->n_metadata + n_weights) + 1, sizeof(*files));

    memcpy(files, s->metadata, (size_t)s->n_metadata * sizeof(*files));
    if (n_weights > 0)
        memcpy(files + s->n_metadata, s->weights, (size_t)n_weights * sizeof(*files));
    *n = s->n_metadata + n_weights;
    qsort(files, (size_t)*n, sizeof(*files), compare_files);
    return files;
}

static void fill_snapshot(const struct fetch *f, const struct listing_file *const *files, int64_t n,
                          struct hub_snapshot *out)
{
    struct hub_snapshot s = {
        .commit = xstrdup(f->info.commit),
        .directory = cache_snapshot_path(&f->cache, f->info.commit),
        .files = xcalloc((size_t)n + 1, sizeof(*s.files)),
        .n_files = n,
        .weight_bytes = select_weight_bytes(&f->selection),
        .gated = f->info.gated,
        .is_private = f->info.is_private,
    };

    for (int64_t i = 0; i < n; i++)
        s.files[i] = xstrdup(files[i]->path);
    *out = s;
}

int hub_fetch_model(struct hub *hub, const char *repo, const char *revision, enum hub_want want,
                    struct hub_snapshot *out, struct err *err)
{
    struct fetch f = {.hub = hub, .repo = repo, .revision = revision, .offline = hub->offline};
    const struct listing_file **files = NULL;
    int64_t n = 0;
    int rc = 0;

    TRY(reference_check_repo(repo, err));
    TRY(reference_check_revision(revision, err));
    cache_init(&f.cache, hub->cache_root, repo);
    hub->all_done = hub->all_total = 0;
    TRY(resolve(&f, err));
    TRY(choose(&f, err));
    files = wanted_files(&f.selection, want, &n);
    for (int64_t i = 0; i < n; i++)
        hub->all_total += files[i]->size;
    TRY(ensure(&f, files, n, err));
    if (on_poll(hub) != 0) {
        rc = err_set(err, ERR_CANCELLED, "the download was cancelled");
        goto out;
    }
    /* Last, so that the revision always stands for a commit that is complete. */
    if (!f.offline && !reference_is_sha1(revision))
        cache_write_ref(&f.cache, revision, f.info.commit);
    fill_snapshot(&f, files, n, out);
out:
    hub->file = NULL;
    hub->file_done = 0;
    free(files);
    select_fini(&f.selection);
    listing_fini(&f.listing);
    cache_fini(&f.cache);
    return rc;
}
