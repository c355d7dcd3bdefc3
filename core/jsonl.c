#include "core/jsonl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"

enum { READ_CHUNK = 64 * 1024 };

/* The offset behind the last newline at or before `size`. */
static int find_line_start(int fd, int64_t size, const char *path, int64_t *start, struct err *err)
{
    char chunk[4096];

    while (size > 0) {
        size_t n = size < (int64_t)sizeof(chunk) ? (size_t)size : sizeof(chunk);
        int rc = fs_pread_all(fd, chunk, n, size - (int64_t)n, path, err);
        if (rc != 0)
            return rc;
        const char *newline = memrchr(chunk, '\n', n);
        if (newline) {
            *start = size - (int64_t)n + (newline - chunk) + 1;
            return 0;
        }
        size -= (int64_t)n;
    }
    *start = 0;
    return 0;
}

/* Cut off half a line that a dead writer or a failed write left behind. */
static int cut_half_line(const struct jsonl_writer *w, struct err *err)
{
    struct stat st;
    int64_t start;
    int rc;

    if (fstat(w->fd, &st) != 0)
        return err_set_errno(err, errno, "cannot ask for the size of %s", w->path);
    if (!S_ISREG(st.st_mode))
        return 0;
    rc = find_line_start(w->fd, st.st_size, w->path, &start, err);
    if (rc != 0 || start == st.st_size)
        return rc;
    if (ftruncate(w->fd, start) != 0)
        return err_set_errno(err, errno, "cannot cut the unfinished last line off %s", w->path);
    return 0;
}

int jsonl_writer_init(struct jsonl_writer *w, const char *path, struct err *err)
{
    struct jsonl_writer fresh = {.path = (char *)path};
    int rc;

    fresh.fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fresh.fd < 0)
        return err_set_errno(err, errno, "cannot open %s for appending", path);
    rc = cut_half_line(&fresh, err);
    if (rc != 0) {
        close(fresh.fd);
        return rc;
    }
    fresh.path = xstrdup(path);
    *w = fresh;
    return 0;
}

int jsonl_writer_append(struct jsonl_writer *w, const json_t *value, struct err *err)
{
    char *line = NULL;
    int rc = 0;

    assert(w->path && w->fd >= 0);
    /* Normally reads one block and finds the newline at its end; after a failed write whose cut
     * failed as well, this is the second chance. */
    TRY(cut_half_line(w, err));
    line = json_to_line(value);
    size_t n = strlen(line);
    line[n] = '\n'; /* in place of the NUL: fs_write_all takes a length */
    rc = fs_write_all(w->fd, line, n + 1, w->path, err);
    if (rc != 0)
        cut_half_line(w, NULL);
out:
    free(line);
    return rc;
}

int jsonl_writer_sync(struct jsonl_writer *w, struct err *err)
{
    assert(w->path && w->fd >= 0);
    if (fdatasync(w->fd) != 0)
        return err_set_errno(err, errno, "cannot sync %s", w->path);
    return 0;
}

void jsonl_writer_fini(struct jsonl_writer *w)
{
    if (w->path && w->fd >= 0)
        close(w->fd);
    free(w->path);
    w->path = NULL;
    w->fd = -1;
}

struct reading {
    const char *path;
    int64_t *offset; /* just behind the last line handed out */
    size_t max_line;
    jsonl_line_fn fn;
    void *ud;
};

/* Hand out the complete lines in `text`; *consumed counts their bytes. */
static int hand_out(const struct reading *r, const char *text, size_t text_n, size_t *consumed,
                    struct err *err)
{
    const char *line = text;
    const char *end = text + text_n;
    int rc = 0;

    for (;;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t n = (size_t)((newline ? newline : end) - line);
        struct err cause = {0};
        json_t *value = NULL;

        if (n > r->max_line) {
            rc = err_set(err, ERR_CORRUPT,
                         "%s: the line at byte %" PRId64 " is longer than %zu bytes", r->path,
                         *r->offset, r->max_line);
            break;
        }
        if (!newline)
            break;
        if (json_parse_limited(line, n, r->max_line, JSON_MAX_DEPTH_FILE, &value, &cause) ==
            ERR_NOMEM) {
            rc = err_set(err, ERR_NOMEM, "%s: the line at byte %" PRId64 ": %s", r->path,
                         *r->offset, cause.msg);
            break;
        }
        line = newline + 1;
        *r->offset += (int64_t)n + 1;
        rc = r->fn(r->ud, value, *r->offset, err);
        json_decref(value);
        if (rc != 0)
            break;
    }
    *consumed = (size_t)(line - text);
    return rc;
}

/* Each read starts at a line's first byte. To read on behind half a line would splice two lines
 * together when the writer cuts that half off and writes another line meanwhile. */
static int read_lines(const struct reading *r, int fd, struct err *err)
{
    size_t cap = READ_CHUNK;
    char *text = xmalloc(cap);
    int rc = 0;

    for (;;) {
        size_t consumed;
        ssize_t n = pread(fd, text, cap, *r->offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = err_set_errno(err, errno, "cannot read %s", r->path);
            goto out;
        }
        TRY(hand_out(r, text, (size_t)n, &consumed, err));
        if (consumed > 0)
            continue;
        if ((size_t)n < cap)
            goto out;
        cap *= 2;
        free(text);
        text = xmalloc(cap);
    }
out:
    free(text);
    return rc;
}

int jsonl_read_from(const char *path, int64_t *offset, size_t max_line, jsonl_line_fn fn, void *ud,
                    struct err *err)
{
    struct reading r = {path, offset, max_line, fn, ud};
    struct stat st;
    int rc = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd < 0)
        return err_set_errno(err, errno, "cannot open %s", path);
    if (fstat(fd, &st) != 0)
        rc = err_set_errno(err, errno, "cannot ask for the size of %s", path);
    else if (st.st_size < *offset)
        rc = err_set(err, ERR_CORRUPT,
                     "%s has %" PRId64 " bytes, but %" PRId64
                     " were read before; somebody replaced or cut it",
                     path, (int64_t)st.st_size, *offset);
    else
        rc = read_lines(&r, fd, err);
    close(fd);
    return rc;
}
