#include "worker/hub/download.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "core/hash.h"
#include "core/log.h"
#include "worker/hub/reference.h"
#include "worker/hub/status.h"

struct blob {
    const struct download *d;
    const struct listing_file *file;
    const char *etag;
    char *path; /* of the .incomplete file */
    int fd;
    struct hash hash; /* of the bytes before offset */
    int64_t offset;   /* bytes that are written and hashed */
    int64_t farthest; /* highest offset reached: what counts as progress */
    bool resumed;     /* some of the bytes are not from the present answer */
    bool answered;    /* the present answer's beginning was checked */
};

static void report(const struct blob *b)
{
    if (b->d->on_bytes)
        b->d->on_bytes(b->d->on_bytes_ud, b->file, b->offset, b->offset);
}

static void blob_restart(struct blob *b)
{
    hash_init(&b->hash, b->file->sha256 ? HASH_SHA256 : HASH_GIT_BLOB_SHA1, b->file->size);
    b->offset = 0;
    b->resumed = false;
}

/* Take over what an earlier download left. */
static int blob_open(struct blob *b, struct err *err)
{
    enum { CHUNK = 1 << 20 };
    char *bytes = NULL;
    int rc = 0;

    blob_restart(b);
    b->fd = open(b->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (b->fd < 0)
        return err_set_errno(err, errno, "cannot create %s", b->path);
    int64_t size = lseek(b->fd, 0, SEEK_END);
    if (size > b->file->size) {
        if (ftruncate(b->fd, 0) != 0)
            return err_set_errno(err, errno, "cannot cut %s", b->path);
        size = 0;
    }
    bytes = xmalloc(CHUNK);
    while (b->offset < size) {
        size_t n = size - b->offset < CHUNK ? (size_t)(size - b->offset) : CHUNK;
        TRY(fs_pread_all(b->fd, bytes, n, b->offset, b->path, err));
        hash_update(&b->hash, bytes, n);
        b->offset += (int64_t)n;
    }
    b->resumed = size > 0;
    b->farthest = b->offset;
    if (b->resumed)
        log_info("hub", "file=%s continuing at byte %" PRId64, b->file->path, b->offset);
out:
    free(bytes);
    return rc;
}

/* --- HEAD: does the hub mean the file that it listed? --- */

/* W/"value" or "value", without the decoration. */
static char *plain_etag(const char *etag)
{
    const char *start = etag && strncmp(etag, "W/", 2) == 0 ? etag + 2 : etag;
    size_t n = start ? strlen(start) : 0;

    if (n >= 2 && start[0] == '"' && start[n - 1] == '"')
        return xstrndup(start + 1, n - 2);
    return xstrdup(start ? start : "");
}

static int64_t parse_bytes(const char *text)
{
    size_t digits = text ? strspn(text, "0123456789") : 0;

    return digits > 0 && digits < 18 && text[digits] == '\0' ? strtoll(text, NULL, 10) : -1;
}

static int check_head(const struct blob *b, const struct http_response *r, struct err *err)
{
    char *etag = plain_etag(r->linked_etag ? r->linked_etag : r->etag);
    /* A redirect's own length is that of its body. */
    int64_t size = parse_bytes(r->linked_size ? r->linked_size : r->location ? NULL : r->length);
    int rc = 0;

    if (!r->commit || !*etag || size < 0)
        rc = status_corrupt(err,
                            "%s does not say which version it has (X-Repo-Commit, ETag or size is "
                            "missing); a proxy may have removed the headers",
                            b->d->http->endpoint);
    else if (strcmp(r->commit, b->d->commit) != 0)
        rc = status_corrupt(err, "the hub offers commit %.40s instead of %s", r->commit,
                            b->d->commit);
    else if (strcmp(etag, b->etag) != 0 || size != b->file->size)
        rc = status_corrupt(err,
                            "the hub listed %" PRId64 " bytes with hash %s but offers %" PRId64
                            " bytes with hash %.64s",
                            b->file->size, b->etag, size, etag);
    free(etag);
    return rc;
}

/* --- GET --- */

/* "bytes FIRST-LAST/TOTAL" */
static bool range_fits(const char *content_range, int64_t first, int64_t total)
{
    char *expected = xasprintf("bytes %" PRId64 "-%" PRId64 "/%" PRId64, first, total - 1, total);
    bool fits = content_range && strcmp(content_range, expected) == 0;

    free(expected);
    return fits;
}

static int begin_answer(struct blob *b, const struct http_response *r, struct err *err)
{
    b->answered = true;
    if (r->status == 206) {
        if (b->offset == 0 || !range_fits(r->content_range, b->offset, b->file->size))
            return status_corrupt(err, "the hub answers with another range (%.100s)",
                                  r->content_range ? r->content_range : "not named");
        return 0;
    }
    if (b->offset > 0)
        log_info("hub", "file=%s the server does not resume, starting over", b->file->path);
    blob_restart(b);
    if (lseek(b->fd, 0, SEEK_SET) < 0)
        return err_set_errno(err, errno, "cannot write %s", b->path);
    return 0;
}

static int on_body(void *ud, const struct http_response *r, const void *bytes, size_t n,
                   struct err *err)
{
    struct blob *b = ud;
    int rc = 0;

    if (!b->answered)
        TRY(begin_answer(b, r, err));
    if ((int64_t)n > b->file->size - b->offset) {
        rc = status_corrupt(err, "the hub sends more than the %" PRId64 " bytes it announced",
                            b->file->size);
        goto out;
    }
    TRY(fs_write_all(b->fd, bytes, n, b->path, err));
    hash_update(&b->hash, bytes, n);
    b->offset += (int64_t)n;
    if (b->offset > b->farthest)
        b->farthest = b->offset;
    report(b);
out:
    return rc;
}

static char *resolve_url(const struct blob *b)
{
    struct buf url = {0};

    buf_printf(&url, "%s/", b->d->http->endpoint);
    reference_add_encoded(&url, b->d->repo, true);
    buf_printf(&url, "/resolve/%s/", b->d->commit);
    reference_add_encoded(&url, b->file->path, true);
    return buf_take(&url);
}

/* *r is that of the request that failed or came last. */
static int try_once(struct blob *b, struct http_response *r, struct err *err)
{
    char *url = resolve_url(b);
    struct http_request head = {.url = url, .head = true};
    int rc = 0;

    if (b->offset == b->file->size)
        goto out;
    TRY(http_send(b->d->http, &head, r, err));
    TRY(status_check(b->d->http, r, b->d->repo, b->d->commit, err));
    TRY(check_head(b, r, err));
    free(url);
    url = xstrdup(r->location ? r->location : r->url);
    http_response_fini(r);

    if (lseek(b->fd, b->offset, SEEK_SET) < 0) {
        rc = err_set_errno(err, errno, "cannot write %s", b->path);
        goto out;
    }
    b->answered = false;
    b->resumed = b->offset > 0;
    struct http_request get = {.url = url, .from = b->offset, .sink = on_body, .sink_ud = b};
    TRY(http_send(b->d->http, &get, r, err));
    if (r->status == 416 && b->offset > 0) {
        blob_restart(b);
        r->may_retry = true;
        rc = status_corrupt(err, "the hub cannot continue at the byte where the download stopped");
        goto out;
    }
    TRY(status_check(b->d->http, r, b->d->repo, b->d->commit, err));
    if (b->offset != b->file->size)
        rc = status_corrupt(err, "the hub sends %" PRId64 " of the %" PRId64 " bytes it announced",
                            b->offset, b->file->size);
out:
    free(url);
    return rc;
}

/* A beginning that an earlier process left may be damaged (a power failure leaves holes), so a
 * resumed file gets a second chance. */
static int check_hash(struct blob *b, struct http_response *r, struct err *err)
{
    char hex[65];

    hash_final_hex(&b->hash, hex);
    if (strcmp(hex, b->etag) == 0)
        return 0;
    r->may_retry = b->resumed;
    blob_restart(b);
    return status_corrupt(err, "the content's hash is %s instead of the announced %s", hex,
                          b->etag);
}

static int fill_blob(struct blob *b, struct err *err)
{
    struct http_retry retry = {0};
    struct http_response r = {.retry_after = -1};
    struct err own = {0};
    int rc;

    for (;;) {
        int64_t before = b->farthest;
        rc = try_once(b, &r, &own);
        if (rc == 0)
            rc = check_hash(b, &r, &own);
        if (rc == 0)
            break;
        if (b->farthest > before)
            retry.failures = 0;
        rc = http_retry_wait(b->d->http, &retry, rc, &r, &own);
        if (rc != 0)
            break;
        http_response_fini(&r);
        r.retry_after = -1;
    }
    http_response_fini(&r);
    if (rc != 0 && err)
        *err = own;
    return rc;
}

static int fetch_blob(const struct download *d, const struct listing_file *file, const char *etag,
                      struct err *err)
{
    char *final = cache_blob_path(d->cache, etag);
    struct blob b = {.d = d, .file = file, .etag = etag, .fd = -1};
    int rc = 0;

    b.path = xasprintf("%s.incomplete", final);
    TRY(blob_open(&b, err));
    report(&b);
    TRY(fill_blob(&b, err));
    /* A server that does not resume may have left a longer old end behind. */
    if (ftruncate(b.fd, file->size) != 0 || fsync(b.fd) != 0) {
        rc = err_set_errno(err, errno, "cannot write %s", b.path);
        goto out;
    }
    TRY(fs_rename_sync(b.path, final, err));
out:
    if (b.fd >= 0)
        close(b.fd);
    if (rc == ERR_NOSPACE) {
        err_set_reason(err, rc, "disk_full");
        err_wrap(err, rc, "after %" PRId64 " bytes; free space and try again", b.offset);
    }
    /* Wrong bytes are of no use, and on a full disk everybody else needs the space more. */
    if (rc == ERR_CORRUPT || rc == ERR_NOSPACE)
        unlink(b.path);
    free(b.path);
    free(final);
    return rc;
}

int download_file(const struct download *d, const struct listing_file *file, struct err *err)
{
    const char *etag = listing_etag(file);
    int lock = -1;
    int rc = 0;

    TRY(cache_lock(d->cache, etag, d->http, &lock, err));
    if (!cache_has_blob(d->cache, file))
        TRY(fetch_blob(d, file, etag, err));
    TRY(cache_link(d->cache, d->commit, file->path, etag, err));
out:
    if (lock >= 0)
        close(lock);
    if (rc != 0)
        rc = err_wrap(err, rc, "downloading %s of %s", file->path, d->repo);
    return rc;
}
