#include "worker/hub/cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/json.h"
#include "core/log.h"
#include "worker/hub/reference.h"
#include "worker/hub/settings.h"

enum { MAX_LISTING_BYTES = 64 << 20, MAX_SCAN_DEPTH = 16 };

void cache_init(struct cache *c, const char *root, const char *repo)
{
    struct buf folder = {0};

    buf_add_str(&folder, reference_is_dataset(repo) ? "" : "models--");
    for (const char *p = repo; *p; p++)
        if (*p == '/')
            buf_add_str(&folder, "--");
        else
            buf_add_char(&folder, *p);
    char *name = buf_take(&folder);
    char *locks = fs_join(root, ".locks");

    c->root = xstrdup(root);
    c->folder = fs_join(root, name);
    c->locks = fs_join(locks, name);
    c->no_links = settings_no_links();
    free(locks);
    free(name);
}

void cache_fini(struct cache *c)
{
    free(c->root);
    free(c->folder);
    free(c->locks);
    *c = (struct cache){0};
}

char *cache_snapshot_path(const struct cache *c, const char *commit)
{
    return xasprintf("%s/snapshots/%s", c->folder, commit);
}

char *cache_blob_path(const struct cache *c, const char *etag)
{
    return xasprintf("%s/blobs/%s", c->folder, etag);
}

static char *listing_path(const struct cache *c, const char *commit)
{
    return xasprintf("%s/trees/%s.json", c->folder, commit);
}

/* --- refs and listings --- */

bool cache_read_ref(const struct cache *c, const char *revision, char commit[41])
{
    char *path = xasprintf("%s/refs/%s", c->folder, revision);
    struct buf text = {0};
    bool ok = false;

    if (fs_read_file(path, 64, &text, NULL) == 0) {
        while (text.len > 0 && strchr(" \r\n", text.data[text.len - 1]))
            text.data[--text.len] = '\0';
        ok = reference_is_sha1(buf_str(&text));
        if (ok)
            memcpy(commit, text.data, 41);
    }
    buf_fini(&text);
    free(path);
    return ok;
}

static int write_with_parents(const char *path, const char *bytes, size_t n, struct err *err)
{
    char *dir = xstrndup(path, (size_t)(strrchr(path, '/') - path));
    int rc = fs_mkdir_p(dir, false, err);

    if (rc == 0)
        rc = fs_write_file_atomic(path, bytes, n, err);
    free(dir);
    return rc;
}

void cache_write_ref(const struct cache *c, const char *revision, const char *commit)
{
    char *path = xasprintf("%s/refs/%s", c->folder, revision);
    struct err err = {0};
    char old[41];

    bool known = cache_read_ref(c, revision, old) && strcmp(old, commit) == 0;
    if (!known && write_with_parents(path, commit, strlen(commit), &err) != 0)
        log_warn("hub", "file=%s the revision is not remembered: %s", path, err.msg);
    free(path);
}

void cache_note_absent(const struct cache *c, const char *commit, const char *path)
{
    char *note = xasprintf("%s/.no_exist/%s/%s", c->folder, commit, path);

    if (!fs_exists(note))
        (void)write_with_parents(note, "", 0, NULL); /* only a courtesy */
    free(note);
}

static char *access_path(const struct cache *c)
{
    return fs_join(c->folder, ".public");
}

bool cache_is_public(const struct cache *c)
{
    char *path = access_path(c);
    bool is_public = fs_exists(path);

    free(path);
    return is_public;
}

void cache_note_access(const struct cache *c, bool is_public)
{
    char *path = access_path(c);

    if (!is_public)
        unlink(path);
    else if (!fs_exists(path))
        (void)write_with_parents(path, "", 0, NULL); /* else the hub is asked more often */
    free(path);
}

void cache_write_listing(const struct cache *c, const char *commit, const struct listing *l)
{
    char *path = listing_path(c, commit);
    json_t *json = listing_to_cached(l);
    char *text = json_to_line(json);
    struct err err = {0};

    if (write_with_parents(path, text, strlen(text), &err) != 0)
        log_warn("hub", "file=%s the listing is not kept: %s", path, err.msg);
    free(text);
    json_decref(json);
    free(path);
}

bool cache_read_listing(const struct cache *c, const char *commit, struct listing *out)
{
    char *path = listing_path(c, commit);
    struct err err = {0};
    json_t *json = NULL;
    bool ok = json_parse_file(path, MAX_LISTING_BYTES, JSON_MAX_DEPTH_FILE, &json, &err) == 0 &&
              listing_from_cached(json, out, &err) == 0;

    if (!ok && err.code != ERR_NOT_FOUND)
        log_warn("hub", "file=%s ignoring the cached listing: %s", path, err.msg);
    json_decref(json);
    free(path);
    return ok;
}

/* --- what is there --- */

static bool is_below(const char *path, const char *dir)
{
    size_t n = strlen(dir);

    return strncmp(path, dir, n) == 0 && path[n] == '/';
}

/* Size of the regular file that path leads to, or -1 when that is outside the cache or not there.
 */
static int64_t size_inside(const struct cache *c, const char *path)
{
    char real[PATH_MAX], folder[PATH_MAX], shared[PATH_MAX];
    char *blobs = fs_join(c->root, "blobs");
    struct stat st;
    int64_t size = -1;

    if (realpath(path, real) && realpath(c->folder, folder) &&
        (is_below(real, folder) || (realpath(blobs, shared) && is_below(real, shared))) &&
        stat(real, &st) == 0 && S_ISREG(st.st_mode))
        size = st.st_size;
    free(blobs);
    return size;
}

bool cache_has_file(const struct cache *c, const char *commit, const struct listing_file *file)
{
    char *path = xasprintf("%s/snapshots/%s/%s", c->folder, commit, file->path);
    int64_t size = size_inside(c, path);

    if (size >= 0 && size != file->size)
        log_warn("hub", "file=%s has %" PRId64 " bytes instead of %" PRId64, path, size,
                 file->size);
    free(path);
    return size == file->size;
}

bool cache_has_blob(const struct cache *c, const struct listing_file *file)
{
    char *path = cache_blob_path(c, listing_etag(file));
    int64_t size = size_inside(c, path);

    free(path);
    return size == file->size;
}

int64_t cache_partial_bytes(const struct cache *c, const char *etag)
{
    char *path = xasprintf("%s/blobs/%s.incomplete", c->folder, etag);
    struct stat st;
    int64_t bytes = lstat(path, &st) == 0 && S_ISREG(st.st_mode) ? st.st_size : 0;

    free(path);
    return bytes;
}

/* What the folder `dir` holds, whose name in the snapshot is `prefix`, with its '/'. */
static bool scan_folder(const struct cache *c, const char *dir, const char *prefix, int depth,
                        struct listing *l)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    bool ok = depth < MAX_SCAN_DEPTH;

    while (d && ok && (entry = readdir(d)) != NULL) {
        char *path = fs_join(dir, entry->d_name);
        char *name = xasprintf("%s%s", prefix, entry->d_name);
        struct listing_file file = {.path = name, .size = size_inside(c, path)};
        struct stat st;

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            /* not a file of the commit */
        } else if (file.size >= 0) {
            ok = listing_add(l, &file, NULL) == 0;
        } else if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
            char *below = xasprintf("%s/", name);
            ok = scan_folder(c, path, below, depth + 1, l);
            free(below);
        }
        free(name);
        free(path);
    }
    if (d)
        closedir(d);
    return ok;
}

bool cache_scan_snapshot(const struct cache *c, const char *commit, struct listing *out)
{
    char *dir = cache_snapshot_path(c, commit);
    struct listing l = {0};
    bool ok = scan_folder(c, dir, "", 0, &l) && l.n > 0 && listing_finish(&l, NULL) == 0;

    if (ok)
        *out = l;
    else
        listing_fini(&l);
    free(dir);
    return ok;
}

/* --- writing --- */

static void write_cachedir_tag(const struct cache *c)
{
    static const char tag[] = "Signature: 8a477f597d28d172789f06886806bc55\n"
                              "# A cache of model files from a hub; backups may leave it out.\n"
                              "# See https://bford.info/cachedir/\n";
    char *path = fs_join(c->root, "CACHEDIR.TAG");

    if (!fs_exists(path))
        (void)fs_write_file_atomic(path, tag, sizeof(tag) - 1, NULL); /* only a courtesy */
    free(path);
}

int cache_prepare(const struct cache *c, struct err *err)
{
    char *blobs = fs_join(c->folder, "blobs");
    int rc = 0;

    TRY(fs_mkdir_p(blobs, false, err));
    TRY(fs_mkdir_p(c->locks, false, err));
    write_cachedir_tag(c);
out:
    if (rc != 0)
        rc = err_wrap(err, rc, "the cache directory cannot be used (HF_HUB_CACHE names another)");
    free(blobs);
    return rc;
}

/* A lock on a file that somebody has meanwhile removed guards nothing. */
static bool is_still_at(int fd, const char *path)
{
    struct stat opened, there;

    return fstat(fd, &opened) == 0 && stat(path, &there) == 0 && opened.st_ino == there.st_ino &&
           opened.st_dev == there.st_dev;
}

int cache_lock(const struct cache *c, const char *etag, struct http *h, int *fd, struct err *err)
{
    char *path = xasprintf("%s/%s.lock", c->locks, etag);
    bool told = false;
    int rc = 0;

    for (;;) {
        int lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0664);
        if (lock_fd < 0) {
            rc = err_set_errno(err, errno, "cannot open lock file %s", path);
            break;
        }
        int failed = flock(lock_fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
        /* A file system without flock: see the header for why that is bearable. */
        if (failed ? failed != EWOULDBLOCK && failed != EINTR : is_still_at(lock_fd, path)) {
            if (failed)
                log_warn("hub", "file=%s no locks here: %s", path, strerror(failed));
            *fd = lock_fd;
            break;
        }
        close(lock_fd);
        if (!told)
            log_info("hub", "file=%s another process is downloading this, waiting for it", path);
        told = true;
        if (h->poll && h->poll(h->poll_ud) != 0) {
            rc = err_set(err, ERR_CANCELLED, "the download was cancelled");
            break;
        }
        clock_sleep(0.1);
    }
    free(path);
    return rc;
}

/* At `aside`, a link to the blob; where that cannot be, the blob itself. */
static int place_blob(const struct cache *c, const char *target, const char *blob,
                      const char *aside, struct err *err)
{
    unlink(aside);
    if (!c->no_links && symlink(target, aside) == 0)
        return 0;
    if (!c->no_links && errno != EPERM && errno != ENOSYS && errno != EOPNOTSUPP)
        return err_set_errno(err, errno, "cannot create symbolic link %s", aside);
    if (rename(blob, aside) != 0)
        return err_set_errno(err, errno, "cannot move %s to %s", blob, aside);
    return 0;
}

int cache_link(const struct cache *c, const char *commit, const char *path, const char *etag,
               struct err *err)
{
    char *link = xasprintf("%s/snapshots/%s/%s", c->folder, commit, path);
    char *dir = xstrndup(link, (size_t)(strrchr(link, '/') - link));
    char *aside = xasprintf("%s.tmp-%ld", link, (long)getpid());
    char *blob = cache_blob_path(c, etag);
    struct buf target = {0};
    int rc = 0;

    TRY(fs_mkdir_p(dir, false, err));
    buf_add_str(&target, "../../");
    for (const char *p = path; *p; p++)
        if (*p == '/')
            buf_add_str(&target, "../");
    buf_printf(&target, "blobs/%s", etag);
    TRY(place_blob(c, buf_str(&target), blob, aside, err));
    if (rename(aside, link) != 0) {
        rc = err_set_errno(err, errno, "cannot rename %s to %s", aside, link);
        unlink(aside);
    }
out:
    buf_fini(&target);
    free(blob);
    free(aside);
    free(dir);
    free(link);
    return rc;
}
