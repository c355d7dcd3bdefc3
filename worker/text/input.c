#include "worker/text/input.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "core/alloc.h"

enum { PACKED_BYTES = 1 << 17 };

enum packing { PACKING_UNKNOWN, PACKING_NONE, PACKING_GZIP, PACKING_ZSTD };

struct input_state {
    int fd;
    char *path;
    enum packing packing;
    unsigned char packed[PACKED_BYTES]; /* bytes [at, n) are unread */
    size_t at, n;
    int64_t packed_bytes, unpacked_bytes;
    bool at_end;   /* of the file */
    bool in_frame; /* the member or frame at hand is not complete */
    z_stream gzip;
    bool gzip_started;
    ZSTD_DCtx *zstd;
};

int input_init(struct input *in, const char *path, struct err *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0)
        return err_set_errno(err, errno, "cannot open %s", path);
    if (fstat(fd, &st) != 0 || S_ISDIR(st.st_mode)) {
        close(fd);
        return err_set(err, ERR_INVALID, "%s is not a file", path);
    }
    in->state = xcalloc(1, sizeof(*in->state));
    in->state->fd = fd;
    in->state->path = xstrdup(path);
    return 0;
}

void input_fini(struct input *in)
{
    struct input_state *s = in->state;

    if (!s)
        return;
    close(s->fd);
    if (s->gzip_started)
        inflateEnd(&s->gzip);
    ZSTD_freeDCtx(s->zstd);
    free(s->path);
    free(s);
    in->state = NULL;
}

/* Read behind what is unread, which must not fill the block. */
static int fill(struct input_state *s, struct err *err)
{
    ssize_t got;

    if (s->at == s->n)
        s->at = s->n = 0;
    do
        got = read(s->fd, s->packed + s->n, PACKED_BYTES - s->n);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return err_set_errno(err, errno, "cannot read %s", s->path);
    s->n += (size_t)got;
    s->packed_bytes += got;
    s->at_end = got == 0;
    return 0;
}

/* Look at the first four bytes. */
static int find_packing(struct input_state *s, struct err *err)
{
    while (s->n < 4 && !s->at_end) {
        int rc = fill(s, err);
        if (rc != 0)
            return rc;
    }
    if (s->n >= 4 && memcmp(s->packed, "\x28\xB5\x2F\xFD", 4) == 0)
        s->packing = PACKING_ZSTD;
    else if (s->n >= 3 && memcmp(s->packed, "\x1F\x8B\x08", 3) == 0)
        s->packing = PACKING_GZIP;
    else
        s->packing = PACKING_NONE;
    if (s->packing == PACKING_ZSTD && !(s->zstd = ZSTD_createDCtx()))
        return err_set(err, ERR_NOMEM, "no memory to decompress %s", s->path);
    if (s->packing == PACKING_GZIP) {
        if (inflateInit2(&s->gzip, 15 + 16) != Z_OK) /* 16: the gzip format */
            return err_set(err, ERR_NOMEM, "no memory to decompress %s", s->path);
        s->gzip_started = true;
    }
    return 0;
}

static int damaged(const struct input_state *s, const char *how, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "the %s data %s; compress and upload the file again",
                   s->packing == PACKING_GZIP ? "gzip" : "zstd", how);
}

/* One step of decompression from the block to `out`; *made may be 0. */
static int unpack_gzip(struct input_state *s, void *out, size_t cap, size_t *made, struct err *err)
{
    z_stream *z = &s->gzip;

    if (!s->in_frame && inflateReset(z) != Z_OK)
        return damaged(s, "cannot be read", err);
    z->next_in = s->packed + s->at;
    z->avail_in = (uInt)(s->n - s->at);
    z->next_out = out;
    z->avail_out = (uInt)cap;
    int rc = inflate(z, Z_NO_FLUSH);
    s->at = s->n - z->avail_in;
    *made = cap - z->avail_out;
    s->in_frame = rc != Z_STREAM_END;
    return rc == Z_OK || rc == Z_STREAM_END || rc == Z_BUF_ERROR ? 0
                                                                 : damaged(s, "are damaged", err);
}

static int unpack_zstd(struct input_state *s, void *out, size_t cap, size_t *made, struct err *err)
{
    ZSTD_inBuffer from = {s->packed, s->n, s->at};
    ZSTD_outBuffer to = {out, cap, 0};
    size_t rc = ZSTD_decompressStream(s->zstd, &to, &from);

    s->at = from.pos;
    *made = to.pos;
    s->in_frame = rc != 0;
    return ZSTD_isError(rc) ? damaged(s, "are damaged, or need a window above 128 MiB", err) : 0;
}

static int unpack(struct input_state *s, void *out, size_t cap, size_t *got, struct err *err)
{
    int rc = 0;

    while (*got == 0) {
        /* Something may still be inside the decompressor when the file is read to its end. */
        if (s->at == s->n && !s->at_end)
            TRY(fill(s, err));
        if (s->at == s->n && s->at_end && !s->in_frame)
            break;
        bool last = s->at == s->n;
        TRY(s->packing == PACKING_GZIP ? unpack_gzip(s, out, cap, got, err)
                                       : unpack_zstd(s, out, cap, got, err));
        if (*got == 0 && last && s->in_frame) {
            rc = damaged(s, "end too early", err);
            goto out;
        }
    }
    s->unpacked_bytes += (int64_t)*got;
    if (s->unpacked_bytes > INPUT_FREE_BYTES + INPUT_MAX_RATIO * s->packed_bytes)
        rc = err_set(err, ERR_INVALID,
                     "the compressed file unpacks to more than %d times its size; upload it "
                     "uncompressed if that is meant",
                     INPUT_MAX_RATIO);
out:
    return rc;
}

int input_read(struct input *in, void *out, size_t cap, size_t *got, struct err *err)
{
    struct input_state *s = in->state;
    size_t n = 0;
    int rc = 0;

    if (s->packing == PACKING_UNKNOWN)
        TRY(find_packing(s, err));
    if (s->packing != PACKING_NONE) {
        TRY(unpack(s, out, cap, &n, err));
    } else {
        if (s->at == s->n && !s->at_end)
            TRY(fill(s, err));
        n = s->n - s->at < cap ? s->n - s->at : cap;
        memcpy(out, s->packed + s->at, n);
        s->at += n;
    }
    *got = n;
out:
    return rc;
}
