#include "worker/hub/fetch.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/log.h"
#include "worker/hub/download.h"
#include "worker/hub/reference.h"
#include "worker/hub/select.h"

enum { DISK_BLOCK = 4096 };

/* --- which commit, and what it holds --- */

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

    for (int i = 0; !reference_is_dataset(f->repo) && (name = select_known_name(i)) != NULL; i++)
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

int fetch_resolve(struct fetch *f, struct err *err)
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

/* --- downloading what is missing --- */

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

int fetch_ensure(struct fetch *f, const struct listing_file *const *files, int64_t n,
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

/* --- from beginning to end --- */

int fetch_begin(struct fetch *f, struct hub *hub, const char *repo, const char *revision,
                struct err *err)
{
    int rc = 0;

    *f = (struct fetch){.hub = hub, .repo = repo, .revision = revision, .offline = hub->offline};
    TRY(reference_check_repo(repo, err));
    TRY(reference_check_revision(revision, err));
    cache_init(&f->cache, hub->cache_root, repo);
    hub->all_done = hub->all_total = 0;
out:
    return rc;
}

void fetch_end(struct fetch *f)
{
    f->hub->file = NULL;
    f->hub->file_done = 0;
    listing_fini(&f->listing);
    cache_fini(&f->cache);
}

int fetch_take(struct fetch *f, const struct listing_file *const *files, int64_t n,
               struct hub_snapshot *out, struct err *err)
{
    int rc = 0;

    f->hub->all_done = f->hub->all_total = 0;
    for (int64_t i = 0; i < n; i++)
        f->hub->all_total += files[i]->size;
    TRY(fetch_ensure(f, files, n, err));
    if (hub_poll(f->hub) != 0) {
        rc = err_set(err, ERR_CANCELLED, "the download was cancelled");
        goto out;
    }
    /* Last, so that the revision always stands for a commit that is complete. */
    if (!f->offline && !reference_is_sha1(f->revision))
        cache_write_ref(&f->cache, f->revision, f->info.commit);
    *out = (struct hub_snapshot){
        .commit = xstrdup(f->info.commit),
        .directory = cache_snapshot_path(&f->cache, f->info.commit),
        .files = xcalloc((size_t)n + 1, sizeof(*out->files)),
        .n_files = n,
        .gated = f->info.gated,
        .is_private = f->info.is_private,
    };
    for (int64_t i = 0; i < n; i++)
        out->files[i] = xstrdup(files[i]->path);
out:
    return rc;
}

char *fetch_path(const struct fetch *f, const struct listing_file *file)
{
    return xasprintf("%s/snapshots/%s/%s", f->cache.folder, f->info.commit, file->path);
}
