#include "core/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/alloc.h"

static bool is_directory(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int fs_mkdir_p(const char *path, bool private_dir, struct err *err)
{
    mode_t mode = private_dir ? 0700 : 0755;
    char *prefix = xstrdup(path);
    int rc = 0;

    for (char *end = prefix; rc == 0 && (*end || end == prefix);) {
        end += strspn(end, "/");
        end += strcspn(end, "/");
        char separator = *end;
        *end = '\0';
        if (mkdir(prefix, mode) != 0) {
            int e = errno;
            if (e == EEXIST && !is_directory(prefix))
                e = ENOTDIR;
            /* An existing directory is fine, also where mkdir has another reason to refuse it
             * (read-only file system, automounter). */
            if (e == ENOTDIR || !is_directory(prefix))
                rc = err_set_errno(err, e, "cannot create directory %s (for %s)", prefix, path);
        }
        *end = separator;
    }
    free(prefix);
    return rc;
}

static int remove_at(int dir_fd, const char *name, const char *path, struct err *err);

/* Takes over dir_fd. */
static int remove_entries(int dir_fd, const char *path, struct err *err)
{
    struct dirent *entry;
    char *inner = NULL;
    int rc = 0;

    DIR *dir = fdopendir(dir_fd);
    if (!dir) {
        rc = err_set_errno(err, errno, "cannot list directory %s to remove it", path);
        close(dir_fd);
        return rc;
    }
    while (errno = 0, (entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        free(inner);
        inner = fs_join(path, entry->d_name);
        TRY(remove_at(dirfd(dir), entry->d_name, inner, err));
    }
    if (errno != 0)
        rc = err_set_errno(err, errno, "cannot list directory %s to remove it", path);
out:
    free(inner);
    closedir(dir);
    return rc;
}

/* By descriptors and names, not by paths: a directory that somebody swaps for a symbolic link
 * meanwhile leads nowhere else. */
static int remove_at(int dir_fd, const char *name, const char *path, struct err *err)
{
    int rc;

    if (unlinkat(dir_fd, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return err_set_errno(err, errno, "cannot remove %s", path);
    int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot open directory %s to remove it", path);
    rc = remove_entries(fd, path, err);
    if (rc == 0 && unlinkat(dir_fd, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        rc = err_set_errno(err, errno, "cannot remove directory %s", path);
    return rc;
}

/* Whether removing `path` would remove the root directory or a directory by a name that rmdir(2)
 * cannot take. One wrong string here costs the whole machine, hence two checks: by name and by
 * identity, the latter without following a link, since removing a link to / is harmless. */
static bool is_never_removed(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *last = slash ? slash + 1 : path;
    struct stat st, root;

    if (*last == '\0' || strcmp(last, ".") == 0 || strcmp(last, "..") == 0)
        return true;
    return lstat(path, &st) == 0 && stat("/", &root) == 0 && st.st_dev == root.st_dev &&
           st.st_ino == root.st_ino;
}

int fs_remove_tree(const char *path, struct err *err)
{
    size_t n = strlen(path);
    int rc;

    while (n > 0 && path[n - 1] == '/') /* "link/" would be what the link points to */
        n--;
    char *name = xstrndup(path, n);
    if (is_never_removed(name)) {
        free(name);
        return err_set(err, ERR_INVALID, "refusing to remove '%s'", path);
    }
    rc = remove_at(AT_FDCWD, name, name, err);
    free(name);
    return rc;
}

static int open_sized(const char *path, int *out, uint64_t *size, struct err *err)
{
    struct stat st;

    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot open %s", path);
    if (fstat(fd, &st) != 0) {
        int rc = err_set_errno(err, errno, "cannot read %s", path);
        close(fd);
        return rc;
    }
    *out = fd;
    *size = (uint64_t)st.st_size;
    return 0;
}

int fs_read_file(const char *path, size_t max_bytes, struct buf *out, struct err *err)
{
    size_t old_len = out->len;
    uint64_t size;
    size_t want;
    ssize_t n;
    int fd, rc;

    rc = open_sized(path, &fd, &size, err);
    if (rc)
        return rc;
    /* The size is a hint only: files in /proc say 0, and a file may grow. */
    want = size > 0 && size < max_bytes ? (size_t)size + 1 : 4096;
    for (;;) {
        if (out->len - old_len > max_bytes || size > max_bytes) {
            rc = err_set(err, ERR_INVALID, "%s is larger than the %zu bytes allowed for it", path,
                         max_bytes);
            goto out;
        }
        buf_reserve(out, want);
        n = read(fd, out->data + out->len, want);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = err_set_errno(err, errno, "cannot read %s", path);
            goto out;
        }
        if (n == 0)
            break;
        out->len += (size_t)n;
        want = want < 65536 ? 65536 : want;
    }
out:
    if (rc != 0)
        out->len = old_len;
    if (out->data)
        out->data[out->len] = '\0';
    close(fd);
    return rc;
}

int fs_read_tail(const char *path, size_t max_bytes, struct buf *out, struct err *err)
{
    uint64_t size;
    int fd, rc;

    rc = open_sized(path, &fd, &size, err);
    if (rc)
        return rc;
    size_t n = size < max_bytes ? (size_t)size : max_bytes;
    buf_reserve(out, n);
    TRY(fs_pread_all(fd, out->data + out->len, n, (off_t)(size - n), path, err));
    out->len += n;
out:
    if (out->data)
        out->data[out->len] = '\0';
    close(fd);
    return rc;
}

int fs_write_all(int fd, const void *bytes, size_t n, const char *path, struct err *err)
{
    const char *p = bytes;

    while (n > 0) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return err_set_errno(err, errno, "cannot write %s", path);
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

static int pread_span(int fd, char *p, size_t n, off_t offset, const char *path, struct err *err)
{
    size_t left = n;

    while (left > 0) {
        ssize_t got = pread(fd, p, left, offset + (off_t)(n - left));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, errno, "cannot read %s", path);
        if (got == 0)
            return err_set(err, ERR_CORRUPT,
                           "%s ends at byte %" PRId64 ", but bytes up to %" PRId64
                           " were expected; the file is incomplete",
                           path, (int64_t)offset + (int64_t)(n - left),
                           (int64_t)offset + (int64_t)n);
        p += got;
        left -= (size_t)got;
    }
    return 0;
}

/* A thread's part of a large read. */
struct span {
    int fd;
    char *out;
    size_t n;
    off_t offset;
    const char *path;
    struct err err;
    int rc;
};

static void *read_span(void *ud)
{
    struct span *s = ud;
    s->rc = pread_span(s->fd, s->out, s->n, s->offset, s->path, &s->err);
    return NULL;
}

/* One thread copies from the page cache at a fraction of what memory and disks give. */
enum { READ_THREADS = 8, READ_SPAN = 8 << 20 };

int fs_pread_all(int fd, void *out, size_t n, off_t offset, const char *path, struct err *err)
{
    struct span spans[READ_THREADS];
    pthread_t threads[READ_THREADS];
    bool started[READ_THREADS] = {false};
    size_t parts = n / READ_SPAN < READ_THREADS ? n / READ_SPAN : READ_THREADS;
    int rc = 0;

    if (parts < 2)
        return pread_span(fd, out, n, offset, path, err);
    for (size_t k = 0; k < parts; k++) {
        size_t first = n / parts * k, end = k + 1 == parts ? n : n / parts * (k + 1);
        spans[k] = (struct span){.fd = fd,
                                 .out = (char *)out + first,
                                 .n = end - first,
                                 .offset = offset + (off_t)first,
                                 .path = path};
        /* the last part, and what finds no thread, is this one's */
        started[k] = k + 1 < parts && pthread_create(&threads[k], NULL, read_span, &spans[k]) == 0;
        if (!started[k])
            read_span(&spans[k]);
    }
    for (size_t k = 0; k < parts; k++) {
        if (started[k])
            pthread_join(threads[k], NULL);
        if (spans[k].rc != 0 && rc == 0) {
            rc = spans[k].rc;
            if (err)
                *err = spans[k].err;
        }
    }
    return rc;
}

int fs_sync_dir(const char *path, struct err *err)
{
    int rc = 0;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return err_set_errno(err, errno, "cannot open directory %s to sync it", path);
    /* EINVAL: the file system has nothing to sync a directory with. */
    if (fsync(fd) != 0 && errno != EINVAL)
        rc = err_set_errno(err, errno, "cannot sync directory %s", path);
    close(fd);
    return rc;
}

int fs_rename_sync(const char *from, const char *to, struct err *err)
{
    char *copy;
    int rc;

    if (rename(from, to) != 0)
        return err_set_errno(err, errno, "cannot rename %s to %s", from, to);
    copy = xstrdup(to);
    rc = fs_sync_dir(dirname(copy), err);
    free(copy);
    return rc;
}

int fs_write_file_atomic(const char *path, const void *bytes, size_t n, struct err *err)
{
    char *aside = xasprintf("%s.tmp-%ld", path, (long)getpid());
    bool made = false;
    int fd = -1;
    int rc = 0;

    fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0) {
        rc = err_set_errno(err, errno, "cannot create %s", aside);
        goto out;
    }
    made = true;
    TRY(fs_write_all(fd, bytes, n, aside, err));
    if (fsync(fd) != 0) {
        rc = err_set_errno(err, errno, "cannot sync %s", aside);
        goto out;
    }
    int closed = close(fd);
    fd = -1;
    if (closed != 0) { /* NFS reports a full disk here */
        rc = err_set_errno(err, errno, "cannot write %s", aside);
        goto out;
    }
    TRY(fs_rename_sync(aside, path, err));
out:
    if (fd >= 0)
        close(fd);
    if (rc != 0 && made)
        unlink(aside);
    free(aside);
    return rc;
}

int fs_file_size(const char *path, int64_t *bytes, struct err *err)
{
    struct stat st;

    if (stat(path, &st) != 0)
        return err_set_errno(err, errno, "cannot ask for the size of %s", path);
    *bytes = st.st_size;
    return 0;
}

bool fs_exists(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

int fs_free_bytes(const char *path, int64_t *bytes, struct err *err)
{
    struct statvfs st;
    int64_t product;

    if (statvfs(path, &st) != 0)
        return err_set_errno(err, errno, "cannot ask for the free space at %s", path);
    if (__builtin_mul_overflow(st.f_bavail, st.f_frsize, &product))
        product = INT64_MAX;
    *bytes = product;
    return 0;
}

int fs_lock_file(const char *path, int *fd, struct err *err)
{
    int rc = 0;
    int lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);

    if (lock_fd < 0)
        return err_set_errno(err, errno, "cannot open lock file %s", path);
    if (flock(lock_fd, LOCK_EX | LOCK_NB) != 0) {
        rc = errno == EWOULDBLOCK
                 ? err_set(err, ERR_CONFLICT,
                           "%s is locked by another process; stop that one first (`fuser %s` "
                           "shows it)",
                           path, path)
                 : err_set_errno(err, errno, "cannot lock %s", path);
        close(lock_fd);
        return rc;
    }
    *fd = lock_fd;
    return 0;
}

char *fs_join(const char *dir, const char *name)
{
    size_t n = strlen(dir);

    return xasprintf("%s%s%s", dir, n > 0 && dir[n - 1] != '/' ? "/" : "", name);
}
