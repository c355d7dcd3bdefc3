#include "worker/hub/listing.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/json.h"
#include "worker/hub/reference.h"
#include "worker/hub/status.h"

enum {
    MAX_FILES = 100000,
    MAX_PAGES = 1000,
    MAX_API_BYTES = 64 << 20,
    TREES_FORMAT_VERSION = 1,
};
#define MAX_FILE_BYTES (INT64_C(1) << 50)
#define PUBLIC_HUB     "https://huggingface.co"

void listing_fini(struct listing *l)
{
    for (int64_t i = 0; i < l->n; i++) {
        free(l->files[i].path);
        free(l->files[i].git_sha1);
        free(l->files[i].sha256);
        free(l->files[i].xet_hash);
    }
    free(l->files);
    *l = (struct listing){0};
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(((const struct listing_file *)a)->path, ((const struct listing_file *)b)->path);
}

const struct listing_file *listing_find(const struct listing *l, const char *path)
{
    struct listing_file key = {.path = (char *)path};

    return l->n == 0 ? NULL
                     : bsearch(&key, l->files, (size_t)l->n, sizeof(*l->files), compare_paths);
}

const char *listing_etag(const struct listing_file *file)
{
    return file->sha256 ? file->sha256 : file->git_sha1;
}

static char *copy_or_null(const char *text)
{
    return text ? xstrdup(text) : NULL;
}

int listing_add(struct listing *l, const struct listing_file *file, struct err *err)
{
    if (l->n == MAX_FILES)
        return status_corrupt(err, "the repository lists more than %d files", MAX_FILES);
    if (!reference_path_is_safe(file->path))
        return status_corrupt(err,
                              "the repository lists '%.200s', a path that leads out of it; nothing "
                              "of it is downloaded",
                              file->path ? file->path : "");
    if (file->size < 0 || file->size > MAX_FILE_BYTES ||
        (file->git_sha1 && !reference_is_sha1(file->git_sha1)) ||
        (file->sha256 && !reference_is_sha256(file->sha256)))
        return status_corrupt(err, "the repository lists '%.200s' with an impossible size or hash",
                              file->path);
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 64;
        l->files = xrealloc(l->files, (size_t)l->cap * sizeof(*l->files));
    }
    l->files[l->n++] = (struct listing_file){
        .path = xstrdup(file->path),
        .size = file->size,
        .git_sha1 = copy_or_null(file->git_sha1),
        .sha256 = copy_or_null(file->sha256),
        .xet_hash = reference_is_sha256(file->xet_hash) ? xstrdup(file->xet_hash) : NULL,
    };
    return 0;
}

int listing_finish(struct listing *l, struct err *err)
{
    if (l->n > 0)
        qsort(l->files, (size_t)l->n, sizeof(*l->files), compare_paths);
    for (int64_t i = 1; i < l->n; i++)
        if (strcmp(l->files[i - 1].path, l->files[i].path) == 0)
            return status_corrupt(err, "the repository lists '%.200s' twice", l->files[i].path);
    return 0;
}

/* --- asking the hub --- */

static int ask_json(struct http *h, const char *url, const char *repo, const char *revision,
                    struct http_response *r, json_t **out, struct err *err)
{
    struct http_request q = {.url = url, .max_body_bytes = MAX_API_BYTES};
    struct err own = {0};
    int rc = 0;

    TRY(status_request(h, &q, repo, revision, r, err));
    if (json_parse_limited(buf_str(&r->body), r->body.len, MAX_API_BYTES, JSON_MAX_DEPTH_FILE, out,
                           &own) != 0)
        rc = status_corrupt(err, "%s does not answer like a hub: %.300s; check HF_ENDPOINT",
                            h->endpoint, own.msg);
out:
    return rc;
}

/* ENDPOINT/api/models/org/name, ENDPOINT/api/datasets/org/name */
static void add_api_address(struct buf *url, const struct http *h, const char *repo)
{
    buf_printf(url, "%s/api/%s", h->endpoint, reference_is_dataset(repo) ? "" : "models/");
    reference_add_encoded(url, repo, true);
}

static char *api_url(const struct http *h, const char *repo, const char *verb, const char *revision,
                     const char *query)
{
    struct buf url = {0};

    add_api_address(&url, h, repo);
    buf_printf(&url, "/%s/", verb);
    reference_add_encoded(&url, revision, false);
    buf_add_str(&url, query);
    return buf_take(&url);
}

int listing_read_info(const json_t *answer, const char *endpoint, const char *repo,
                      const char *revision, struct listing_info *out, struct err *err)
{
    const char *sha = json_string_value(json_object_get(answer, "sha"));
    const json_t *gating = json_object_get(answer, "gated"); /* false, "auto" or "manual" */

    if (!reference_is_sha1(sha) || (reference_is_sha1(revision) && strcmp(sha, revision) != 0))
        return status_corrupt(err, "%s names no commit for revision '%s' of '%s'", endpoint,
                              revision, repo);
    if (json_is_true(json_object_get(answer, "disabled")))
        return status_disabled(repo, err);
    memcpy(out->commit, sha, sizeof(out->commit));
    out->gated = json_is_string(gating) || json_is_true(gating);
    out->is_private = json_is_true(json_object_get(answer, "private"));
    return 0;
}

int listing_ask_info(struct http *h, const char *repo, const char *revision,
                     struct listing_info *out, struct err *err)
{
    char *url = api_url(h, repo, "revision", revision, "");
    struct http_response r = {0};
    json_t *json = NULL;
    int rc = 0;

    TRY(ask_json(h, url, repo, revision, &r, &json, err));
    TRY(listing_read_info(json, h->endpoint, repo, revision, out, err));
out:
    json_decref(json);
    http_response_fini(&r);
    free(url);
    return rc;
}

int listing_ask_access(struct http *h, const char *repo, struct err *err)
{
    struct buf url = {0};
    struct http_response r = {0};
    int rc;

    add_api_address(&url, h, repo);
    buf_add_str(&url, "/auth-check");
    struct http_request q = {.url = buf_str(&url), .max_body_bytes = MAX_API_BYTES};
    rc = status_request(h, &q, repo, "main", &r, err);
    http_response_fini(&r);
    buf_fini(&url);
    return rc;
}

static int add_tree_entry(struct listing *l, const json_t *entry, struct err *err)
{
    const char *type = json_string_value(json_object_get(entry, "type"));
    const json_t *size = json_object_get(entry, "size");
    const json_t *lfs = json_object_get(entry, "lfs");
    struct listing_file file = {
        .path = (char *)json_string_value(json_object_get(entry, "path")),
        .git_sha1 = (char *)json_string_value(json_object_get(entry, "oid")),
        .sha256 = (char *)json_string_value(json_object_get(lfs, "oid")),
        .xet_hash = (char *)json_string_value(json_object_get(entry, "xetHash")),
    };

    if (type && strcmp(type, "file") != 0)
        return 0; /* a directory; its files are listed too */
    if (json_is_integer(json_object_get(lfs, "size")))
        size = json_object_get(lfs, "size");
    file.size = json_is_integer(size) ? json_integer_value(size) : -1;
    if (!type || !listing_etag(&file))
        return status_corrupt(err, "the hub's listing has an entry without type or hash");
    return listing_add(l, &file, err);
}

int listing_add_page(struct listing *l, const json_t *page, const char *endpoint, const char *repo,
                     struct err *err)
{
    size_t i;
    json_t *entry;
    int rc = 0;

    if (!json_is_array(page))
        return status_corrupt(err, "%s does not list the files of '%s'", endpoint, repo);
    json_array_foreach(page, i, entry)
    {
        TRY(add_tree_entry(l, entry, err));
    }
out:
    return rc;
}

/* The URL of `Link: <url>; rel="next"`, or NULL. A mirror may pass on the public hub's address. */
static char *next_page(const struct http *h, const char *link)
{
    const char *end = link ? strstr(link, ">; rel=\"next\"") : NULL;
    const char *start = end;

    while (start && start > link && start[-1] != '<')
        start--;
    if (!start || start == link)
        return NULL;
    size_t n = (size_t)(end - start), base = strlen(PUBLIC_HUB);
    if (n > base && strncmp(start, PUBLIC_HUB "/", base + 1) == 0)
        return xasprintf("%s%.*s", h->endpoint, (int)(n - base), start + base);
    return xstrndup(start, n);
}

int listing_ask_tree(struct http *h, const char *repo, const char *commit, struct listing *out,
                     struct err *err)
{
    char *url = api_url(h, repo, "tree", commit, "?recursive=true&expand=false");
    struct http_response r = {0};
    struct listing l = {0};
    json_t *page = NULL;
    int rc = 0;

    for (int pages = 0; url; pages++) {
        if (pages == MAX_PAGES || !http_is_endpoint(h, url)) {
            rc = status_corrupt(err, "the listing of '%s' %s", repo,
                                pages == MAX_PAGES ? "does not end" : "continues on another host");
            goto out;
        }
        TRY(ask_json(h, url, repo, commit, &r, &page, err));
        TRY(listing_add_page(&l, page, h->endpoint, repo, err));
        free(url);
        url = next_page(h, r.link);
        json_decref(page);
        page = NULL;
        http_response_fini(&r);
    }
    TRY(listing_finish(&l, err));
    *out = l;
    l = (struct listing){0};
out:
    listing_fini(&l);
    json_decref(page);
    http_response_fini(&r);
    free(url);
    return rc;
}

/* --- the copy in the cache --- */

int listing_from_cached(const json_t *trees_file, struct listing *out, struct err *err)
{
    json_t *files = json_object_get(trees_file, "files");
    struct listing l = {0};
    const char *path;
    json_t *entry;
    int rc = 0;

    if (json_integer_value(json_object_get(trees_file, "format_version")) != TREES_FORMAT_VERSION ||
        !json_is_object(files)) {
        rc = status_corrupt(err, "the cached listing has another format");
        goto out;
    }
    json_object_foreach(files, path, entry)
    {
        const json_t *size = json_object_get(entry, "lfs_size");
        const char *blob = json_string_value(json_object_get(entry, "blob_id"));
        const char *sha256 = json_string_value(json_object_get(entry, "lfs_sha256"));
        if (!json_is_integer(size))
            size = json_object_get(entry, "size");
        if (blob && sha256 && strcmp(blob, sha256) == 0)
            blob = NULL; /* stood in for one that the hub did not tell */
        struct listing_file file = {
            .path = (char *)path,
            .size = json_is_integer(size) ? json_integer_value(size) : -1,
            .git_sha1 = (char *)blob,
            .sha256 = (char *)sha256,
            .xet_hash = (char *)json_string_value(json_object_get(entry, "xet_hash")),
        };
        if (!listing_etag(&file)) {
            rc = status_corrupt(err, "the cached listing has an entry without a hash");
            goto out;
        }
        TRY(listing_add(&l, &file, err));
    }
    TRY(listing_finish(&l, err));
    *out = l;
    l = (struct listing){0};
out:
    listing_fini(&l);
    return rc;
}

json_t *listing_to_cached(const struct listing *l)
{
    json_t *files = json_object();

    for (int64_t i = 0; i < l->n; i++) {
        const struct listing_file *f = &l->files[i];
        json_t *entry = json_object();
        json_object_set_new(entry, "size", json_integer(f->size));
        json_object_set_new(entry, "blob_id", json_string(f->git_sha1 ? f->git_sha1 : f->sha256));
        if (f->sha256) {
            json_object_set_new(entry, "lfs_sha256", json_string(f->sha256));
            json_object_set_new(entry, "lfs_size", json_integer(f->size));
        }
        if (f->xet_hash)
            json_object_set_new(entry, "xet_hash", json_string(f->xet_hash));
        json_object_set_new(files, f->path, entry);
    }
    return json_pack("{s:i, s:o}", "format_version", TREES_FORMAT_VERSION, "files", files);
}
