#include "worker/memory/nvme.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/log.h"

struct nvme_file {
    char *directory;
    int fd;
    size_t bytes;
    _Atomic uint64_t read, written;
    bool ring_open[2]; /* to read, to write */
    struct io_uring ring[2];
};

/* One piece of a transfer; what is left of it when the kernel moved less than asked goes again. */
struct piece {
    char *at;
    size_t bytes, offset;
};

/* --- creating --- */

/* Where the file system has no files without a name, it has one for a moment. */
static int open_unnamed(struct nvme_file *f, struct err *err)
{
    char *path = xasprintf("%s/castor-XXXXXX", f->directory);
    int rc = 0;

    f->fd = open(f->directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (f->fd >= 0)
        goto out;
    f->fd = mkostemp(path, O_CLOEXEC);
    if (f->fd < 0) {
        rc = err_set_errno(err, errno, "cannot create a file in the volume %s", f->directory);
    } else {
        unlink(path);
    }
out:
    free(path);
    return rc;
}

static int reserve(struct nvme_file *f, struct err *err)
{
    struct statvfs s;
    int code = posix_fallocate(f->fd, 0, (off_t)f->bytes);
    if (code == 0)
        return 0;
    double free_gib = statvfs(f->directory, &s) == 0
                          ? (double)s.f_bavail * (double)s.f_frsize / (1024.0 * 1024.0 * 1024.0)
                          : 0;
    return err_set_errno(err, code,
                         "cannot reserve %.2f GiB in the volume %s, which has %.2f GiB free; give "
                         "the job a smaller placement.nvme_limit or free space there",
                         (double)f->bytes / (1024.0 * 1024.0 * 1024.0), f->directory, free_gib);
}

int nvme_file_create(const char *directory, size_t bytes, struct nvme_file **out, struct err *err)
{
    struct nvme_file *f = xcalloc(1, sizeof *f);
    int rc = 0;

    assert(bytes > 0 && bytes % NVME_ALIGN == 0);
    f->fd = -1;
    f->bytes = bytes;
    f->directory = xstrdup(directory);
    TRY(open_unnamed(f, err));
    TRY(reserve(f, err));
    if (fcntl(f->fd, F_SETFL, fcntl(f->fd, F_GETFL) | O_DIRECT) != 0)
        log_warn("nvme",
                 "the volume %s has no O_DIRECT: its disk is reached through the page cache",
                 directory);
    for (int k = 0; k < 2; k++)
        f->ring_open[k] = io_uring_queue_init(NVME_DEPTH, &f->ring[k], 0) == 0;
    if (!f->ring_open[0] || !f->ring_open[1])
        log_warn("nvme", "no io_uring here: the disk is read and written request after request");
    *out = f;
    f = NULL;
out:
    nvme_file_destroy(f);
    return rc;
}

void nvme_file_destroy(struct nvme_file *f)
{
    if (!f)
        return;
    for (int k = 0; k < 2; k++)
        if (f->ring_open[k])
            io_uring_queue_exit(&f->ring[k]);
    if (f->fd >= 0)
        close(f->fd);
    free(f->directory);
    free(f);
}

struct nvme_counters nvme_file_counters(const struct nvme_file *f)
{
    return (struct nvme_counters){.read = atomic_load_explicit(&f->read, memory_order_relaxed),
                                  .written =
                                      atomic_load_explicit(&f->written, memory_order_relaxed),
                                  .reserved = f->bytes};
}

/* --- moving --- */

struct transfer {
    struct nvme_file *f;
    struct io_uring *ring; /* or NULL */
    bool write;
    char *at;
    size_t bytes, offset; /* not yet submitted */
    struct piece pieces[NVME_DEPTH];
    int free_pieces[NVME_DEPTH];
    int n_free;
};

static int io_error(const struct transfer *t, int code, size_t offset, struct err *err)
{
    return err_set_errno(err, code, "%s the job's file in the volume %s at byte %zu",
                         t->write ? "writing to" : "reading from", t->f->directory, offset);
}

static void submit(struct transfer *t, int slot)
{
    struct piece *p = &t->pieces[slot];
    struct io_uring_sqe *sqe = io_uring_get_sqe(t->ring);
    assert(sqe); /* no more pieces than the ring has entries */
    if (t->write)
        io_uring_prep_write(sqe, t->f->fd, p->at, (unsigned)p->bytes, p->offset);
    else
        io_uring_prep_read(sqe, t->f->fd, p->at, (unsigned)p->bytes, p->offset);
    io_uring_sqe_set_data64(sqe, (uint64_t)slot);
}

static void submit_more(struct transfer *t)
{
    while (t->n_free > 0 && t->bytes > 0) {
        size_t n = t->bytes < NVME_PIECE ? t->bytes : NVME_PIECE;
        int slot = t->free_pieces[--t->n_free];
        t->pieces[slot] = (struct piece){.at = t->at, .bytes = n, .offset = t->offset};
        submit(t, slot);
        t->at += n;
        t->offset += n;
        t->bytes -= n;
    }
}

/* `moved` bytes of a piece are done, or -errno. */
static int finish_piece(struct transfer *t, int slot, int moved, struct err *err)
{
    struct piece *p = &t->pieces[slot];

    if (moved == -EINTR || moved == -EAGAIN)
        moved = 0;
    else if (moved <= 0)
        return io_error(t, moved < 0 ? -moved : EIO, p->offset, err);
    p->at += moved;
    p->offset += (size_t)moved;
    p->bytes -= (size_t)moved;
    if (p->bytes > 0)
        submit(t, slot);
    else
        t->free_pieces[t->n_free++] = slot;
    return 0;
}

/* Every submitted piece is waited for, also behind an error: the kernel still owns its memory. */
static int move_by_ring(struct transfer *t, struct err *err)
{
    int rc = 0;
    submit_more(t);
    while (t->n_free < NVME_DEPTH) {
        struct io_uring_cqe *cqe = NULL;
        int code = io_uring_submit_and_wait(t->ring, 1);
        if (code == -EINTR)
            continue;
        if (code < 0)
            return io_error(t, -code, t->offset, err);
        while (io_uring_peek_cqe(t->ring, &cqe) == 0) {
            int slot = (int)io_uring_cqe_get_data64(cqe), moved = cqe->res;
            io_uring_cqe_seen(t->ring, cqe);
            if (rc == 0)
                rc = finish_piece(t, slot, moved, err);
            if (rc != 0 && t->pieces[slot].bytes > 0)
                t->free_pieces[t->n_free++] = slot;
        }
        if (rc == 0)
            submit_more(t);
    }
    return rc;
}

static int move_plainly(struct transfer *t, struct err *err)
{
    while (t->bytes > 0) {
        ssize_t n = t->write ? pwrite(t->f->fd, t->at, t->bytes, (off_t)t->offset)
                             : pread(t->f->fd, t->at, t->bytes, (off_t)t->offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return io_error(t, n < 0 ? errno : EIO, t->offset, err);
        t->at += n;
        t->offset += (size_t)n;
        t->bytes -= (size_t)n;
    }
    return 0;
}

static int move(struct nvme_file *f, bool write, char *at, size_t bytes, size_t offset,
                struct err *err)
{
    struct transfer t = {.f = f,
                         .ring = f->ring_open[write] ? &f->ring[write] : NULL,
                         .write = write,
                         .at = at,
                         .bytes = bytes,
                         .offset = offset,
                         .n_free = NVME_DEPTH};

    assert((uintptr_t)at % NVME_ALIGN == 0 && bytes % NVME_ALIGN == 0 && offset % NVME_ALIGN == 0 &&
           offset + bytes <= f->bytes);
    for (int k = 0; k < NVME_DEPTH; k++)
        t.free_pieces[k] = k;
    atomic_fetch_add_explicit(write ? &f->written : &f->read, bytes, memory_order_relaxed);
    return t.ring ? move_by_ring(&t, err) : move_plainly(&t, err);
}

int nvme_file_read(struct nvme_file *f, void *to, size_t bytes, size_t offset, struct err *err)
{
    return move(f, false, to, bytes, offset, err);
}

int nvme_file_write(struct nvme_file *f, const void *from, size_t bytes, size_t offset,
                    struct err *err)
{
    return move(f, true, (char *)(uintptr_t)from, bytes, offset, err);
}
