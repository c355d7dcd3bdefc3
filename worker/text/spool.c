#include "worker/text/spool.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"

static int failed(const struct spool *s, int error, struct err *err)
{
    int64_t mib = (int64_t)((size_t)s->n * s->element >> 20);

    if (error == ENOSPC || error == EDQUOT)
        return err_set_errno(err, error,
                             "the tokenized data set does not fit in %s, %" PRId64
                             " MiB of this part were written; free some space there, or use a "
                             "smaller file or dataset.max_examples",
                             s->dir, mib);
    return err_set_errno(err, error, "cannot keep the tokenized data set in %s", s->dir);
}

/* Not every file system knows files without a name. */
static int open_nameless(const char *dir)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);

    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
        return fd;
    char *path = fs_join(dir, ".data-XXXXXX");
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0)
        unlink(path);
    free(path);
    return fd;
}

static int open_file(struct spool *s, const char *dir, size_t element, struct err *err)
{
    *s = (struct spool){.dir = dir, .element = element};
    int fd = open_nameless(dir);
    if (fd < 0)
        return failed(s, errno, err);
    s->fd = fd;
    return 0;
}

int spool_init(struct spool *s, const char *dir, size_t element, struct err *err)
{
    int rc = open_file(s, dir, element, err);

    if (rc == 0)
        s->block = xcalloc(1, SPOOL_BLOCK);
    return rc;
}

void spool_fini(struct spool *s)
{
    if (s->map)
        munmap(s->map, s->map_bytes);
    if (s->fd > 0)
        close(s->fd);
    free(s->block);
    memset(s, 0, sizeof(*s));
}

static int flush(struct spool *s, struct err *err)
{
    struct err cause = {0};
    int rc = fs_write_all(s->fd, s->block, s->used, s->dir, &cause);

    if (rc == ERR_NOSPACE)
        return failed(s, ENOSPC, err);
    if (rc != 0 && err)
        *err = cause;
    s->used = 0;
    return rc;
}

int spool_add(struct spool *s, const void *items, int64_t n, struct err *err)
{
    const char *from = items;
    size_t left = (size_t)n * s->element;
    int rc = 0;

    assert(s->block);
    while (left > 0) {
        size_t take = SPOOL_BLOCK - s->used < left ? SPOOL_BLOCK - s->used : left;
        memcpy(s->block + s->used, from, take);
        s->used += take;
        from += take;
        left -= take;
        if (s->used == SPOOL_BLOCK)
            TRY(flush(s, err));
    }
    s->n += n;
out:
    return rc;
}

int spool_seal(struct spool *s, struct err *err)
{
    int rc = flush(s, err);

    if (rc != 0)
        return rc;
    free(s->block);
    s->block = NULL;
    return 0;
}

int spool_read(const struct spool *s, int64_t first, int64_t n, void *out, struct err *err)
{
    assert(!s->block && first >= 0 && n >= 0 && first + n <= s->n);
    return fs_pread_all(s->fd, out, (size_t)n * s->element, (off_t)first * (off_t)s->element,
                        s->dir, err);
}

static int map(struct spool *s, int protection, struct err *err)
{
    size_t bytes = (size_t)s->n * s->element;
    void *p = mmap(NULL, bytes, protection, MAP_SHARED, s->fd, 0);

    if (p == MAP_FAILED)
        return failed(s, errno, err);
    s->map = p;
    s->map_bytes = bytes;
    return 0;
}

int spool_map(struct spool *s, struct err *err)
{
    assert(!s->block && !s->map && s->n > 0);
    return map(s, PROT_READ, err);
}

int spool_zeros(struct spool *s, const char *dir, size_t element, int64_t n, struct err *err)
{
    int rc = 0;

    TRY(open_file(s, dir, element, err));
    /* Room now, or an error now: a full disk must not strike when a page is touched. */
    int error = posix_fallocate(s->fd, 0, (off_t)((size_t)n * element));
    if (error) {
        rc = failed(s, error, err);
        goto out;
    }
    s->n = n;
    TRY(map(s, PROT_READ | PROT_WRITE, err));
out:
    if (rc != 0)
        spool_fini(s);
    return rc;
}
