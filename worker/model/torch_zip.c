#include "worker/model/torch_zip.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/bytes.h"
#include "core/fs.h"
#include "worker/model/weight_file.h"

enum {
    LOCAL_HEADER = 30,
    CENTRAL_HEADER = 46,
    END_RECORD = 22,
    END64_LOCATOR = 20,
    END64_RECORD = 56,
    MAX_COMMENT = 65535,
    MAX_NAME = 1024,
    MAX_DIRECTORY = 256 << 20,
    FLAG_ENCRYPTED = 1 << 0,
    FLAG_SIZES_BEHIND = 1 << 3, /* the header has no sizes: they follow the data */
    FIELD64 = 1,                /* id of the extra field with 64-bit values */
};
static const uint32_t sig_local = 0x04034b50, sig_central = 0x02014b50, sig_end = 0x06054b50;
static const uint32_t sig_locator64 = 0x07064b50, sig_end64 = 0x06064b50;

static int corrupt(const struct torch_zip *z, const char *what, struct err *err)
{
    return weight_file_corrupt(err, z->path, "%s", what);
}

struct directory {
    size_t begin, bytes;
    uint64_t n;
};

/* The last record of the file, behind which lies nothing but its own comment. */
static int find_end(const struct torch_zip *z, size_t file_bytes, size_t *end,
                    unsigned char *record, struct err *err)
{
    size_t most = END_RECORD + MAX_COMMENT, n = file_bytes < most ? file_bytes : most;
    unsigned char *tail = xmalloc(n + 1);
    int rc = 0;

    TRY(fs_pread_all(z->fd, tail, n, (off_t)(file_bytes - n), z->path, err));
    for (size_t at = n >= END_RECORD ? n - END_RECORD + 1 : 0; at-- > 0;) {
        if (bytes_number(tail + at, 4) == sig_end &&
            bytes_number(tail + at + 20, 2) == n - at - END_RECORD) {
            memcpy(record, tail + at, END_RECORD);
            *end = file_bytes - n + at;
            goto out;
        }
    }
    rc = corrupt(z, "has no zip directory: it is cut off", err);
out:
    free(tail);
    return rc;
}

static int find_directory(const struct torch_zip *z, size_t file_bytes, struct directory *d,
                          struct err *err)
{
    unsigned char end[END_RECORD], locator[END64_LOCATOR], end64[END64_RECORD];
    uint64_t begin, bytes, n, disks;
    size_t limit = 0;
    int rc = 0;

    TRY(find_end(z, file_bytes, &limit, end, err));
    disks = bytes_number(end + 4, 2) | bytes_number(end + 6, 2);
    n = bytes_number(end + 10, 2);
    bytes = bytes_number(end + 12, 4);
    begin = bytes_number(end + 16, 4);
    if (n == 0xFFFF || bytes == 0xFFFFFFFF || begin == 0xFFFFFFFF) {
        uint64_t at;

        if (limit < END64_LOCATOR + END64_RECORD)
            TRY(corrupt(z, "lacks its zip64 record", err));
        TRY(fs_pread_all(z->fd, locator, sizeof(locator), (off_t)(limit - END64_LOCATOR), z->path,
                         err));
        at = bytes_number(locator + 8, 8);
        if (bytes_number(locator, 4) != sig_locator64 || at > limit - END64_LOCATOR - END64_RECORD)
            TRY(corrupt(z, "lacks its zip64 record", err));
        TRY(fs_pread_all(z->fd, end64, sizeof(end64), (off_t)at, z->path, err));
        if (bytes_number(end64, 4) != sig_end64)
            TRY(corrupt(z, "lacks its zip64 record", err));
        disks = bytes_number(end64 + 16, 4) | bytes_number(end64 + 20, 4);
        n = bytes_number(end64 + 32, 8);
        bytes = bytes_number(end64 + 40, 8);
        begin = bytes_number(end64 + 48, 8);
        limit = (size_t)at;
    }
    if (disks != 0 || begin > limit || bytes > limit - begin || bytes > MAX_DIRECTORY ||
        n > bytes / CENTRAL_HEADER)
        TRY(corrupt(z, "has a zip directory that does not fit the file", err));
    *d = (struct directory){.begin = (size_t)begin, .bytes = (size_t)bytes, .n = n};
out:
    return rc;
}

/* Values that did not fit 32 bits, in the order in which the header lacks them. */
static bool read_field64(const unsigned char *extra, size_t n, uint64_t *const *wanted,
                         int n_wanted)
{
    for (size_t at = 0; n_wanted > 0 && at + 4 <= n;) {
        size_t length = bytes_number(extra + at + 2, 2);

        if (length > n - at - 4)
            return false;
        if (bytes_number(extra + at, 2) == FIELD64) {
            if (length < (size_t)n_wanted * 8)
                return false;
            for (int i = 0; i < n_wanted; i++)
                *wanted[i] = bytes_number(extra + at + 4 + i * 8, 8);
            return true;
        }
        at += 4 + length;
    }
    return n_wanted == 0;
}

/* One entry of the directory, `left` bytes of it at h. Gives its length. */
static int parse_central(struct torch_zip *z, const unsigned char *h, size_t left, size_t *length,
                         struct err *err)
{
    struct torch_zip_member *m = &z->members[z->n_members];
    uint64_t packed, bytes, header, *wanted[3];
    size_t name_bytes, extra_bytes;
    int n_wanted = 0;

    if (left < CENTRAL_HEADER || bytes_number(h, 4) != sig_central)
        return corrupt(z, "has a broken zip directory", err);
    name_bytes = bytes_number(h + 28, 2);
    extra_bytes = bytes_number(h + 30, 2);
    *length = CENTRAL_HEADER + name_bytes + extra_bytes + bytes_number(h + 32, 2);
    if (*length > left || name_bytes == 0 || name_bytes > MAX_NAME ||
        memchr(h + CENTRAL_HEADER, '\0', name_bytes) != NULL)
        return corrupt(z, "has a broken zip directory", err);
    if (bytes_number(h + 10, 2) != 0 || (bytes_number(h + 8, 2) & FLAG_ENCRYPTED) != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: member %.*s is compressed or encrypted, which PyTorch never does; "
                       "convert the model to safetensors",
                       z->path, (int)(name_bytes < 100 ? name_bytes : 100), h + CENTRAL_HEADER);
    packed = bytes_number(h + 20, 4);
    bytes = bytes_number(h + 24, 4);
    header = bytes_number(h + 42, 4);
    if (bytes == 0xFFFFFFFF)
        wanted[n_wanted++] = &bytes;
    if (packed == 0xFFFFFFFF)
        wanted[n_wanted++] = &packed;
    if (header == 0xFFFFFFFF)
        wanted[n_wanted++] = &header;
    if (!read_field64(h + CENTRAL_HEADER + name_bytes, extra_bytes, wanted, n_wanted) ||
        packed != bytes)
        return corrupt(z, "has a member of contradictory sizes", err);
    m->name = xstrndup((const char *)h + CENTRAL_HEADER, name_bytes);
    m->bytes = bytes;
    m->header = header;
    z->n_members++;
    return 0;
}

/* The member's own header must agree with the directory, and its data end in front of that. */
static int check_local(const struct torch_zip *z, struct torch_zip_member *m, size_t end,
                       struct err *err)
{
    unsigned char h[LOCAL_HEADER], name[MAX_NAME];
    size_t name_bytes = strlen(m->name), flags, stored;
    int rc = 0;

    if (m->header > end || end - m->header < LOCAL_HEADER + name_bytes)
        TRY(corrupt(z, "has a member that lies outside the file", err));
    TRY(fs_pread_all(z->fd, h, sizeof(h), (off_t)m->header, z->path, err));
    TRY(fs_pread_all(z->fd, name, name_bytes, (off_t)(m->header + sizeof(h)), z->path, err));
    flags = bytes_number(h + 6, 2);
    stored = bytes_number(h + 22, 4);
    if (bytes_number(h, 4) != sig_local || bytes_number(h + 8, 2) != 0 ||
        (flags & FLAG_ENCRYPTED) != 0 || bytes_number(h + 26, 2) != name_bytes ||
        memcmp(name, m->name, name_bytes) != 0 || bytes_number(h + 18, 4) != stored ||
        (stored != m->bytes && stored != 0xFFFFFFFF &&
         !(stored == 0 && (flags & FLAG_SIZES_BEHIND) != 0)))
        TRY(corrupt(z, "has a member whose header contradicts the directory", err));
    m->begin = m->header + LOCAL_HEADER + name_bytes + bytes_number(h + 28, 2);
    if (m->begin > end || m->bytes > end - m->begin)
        TRY(corrupt(z, "has a member that lies outside the file", err));
out:
    return rc;
}

static int by_header(const void *a, const void *b)
{
    const struct torch_zip_member *x = a, *y = b;

    return (x->header > y->header) - (x->header < y->header);
}

static int by_name(const void *a, const void *b)
{
    const struct torch_zip_member *x = a, *y = b;

    return strcmp(x->name, y->name);
}

static int check_members(struct torch_zip *z, size_t end, struct err *err)
{
    size_t n = (size_t)z->n_members;
    int rc = 0;

    for (size_t i = 0; i < n; i++)
        TRY(check_local(z, &z->members[i], end, err));
    if (n == 0)
        goto out;
    qsort(z->members, n, sizeof(*z->members), by_header);
    for (size_t i = 1; i < n; i++) {
        const struct torch_zip_member *before = &z->members[i - 1];

        if (z->members[i].header < before->begin + before->bytes)
            TRY(corrupt(z, "has members that overlap", err));
    }
    qsort(z->members, n, sizeof(*z->members), by_name);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(z->members[i].name, z->members[i - 1].name) == 0)
            TRY(weight_file_corrupt(err, z->path, "holds %.100s twice", z->members[i].name));
    }
out:
    return rc;
}

static int read_directory(struct torch_zip *z, const struct directory *d, struct err *err)
{
    void *text = NULL, *members = NULL;
    size_t at = 0, length = 0;
    int rc = 0;

    TRY(alloc_try(&text, d->bytes + 1, 1, "a zip directory", err));
    TRY(alloc_try(&members, (size_t)d->n + 1, sizeof(*z->members), "a zip directory", err));
    z->members = members;
    TRY(fs_pread_all(z->fd, text, d->bytes, (off_t)d->begin, z->path, err));
    for (uint64_t i = 0; i < d->n; i++) {
        TRY(parse_central(z, (unsigned char *)text + at, d->bytes - at, &length, err));
        at += length;
    }
    if (at != d->bytes)
        TRY(corrupt(z, "has a broken zip directory", err));
    TRY(check_members(z, d->begin, err));
out:
    free(text);
    return rc;
}

int torch_zip_open(const char *path, struct torch_zip *out, struct err *err)
{
    struct torch_zip z = {.fd = -1, .path = xstrdup(path)};
    unsigned char magic[4];
    struct directory d;
    size_t file_bytes = 0;
    int rc = 0;

    TRY(weight_file_open_regular(path, &z.fd, &file_bytes, err));
    if (file_bytes < sizeof(magic))
        TRY(corrupt(&z, "is cut off", err));
    TRY(fs_pread_all(z.fd, magic, sizeof(magic), 0, path, err));
    if (bytes_number(magic, 4) != sig_local)
        TRY(err_set(err, ERR_UNSUPPORTED,
                    "%s: not a zip file: it is from before PyTorch 1.6, or no PyTorch file; "
                    "convert the model to safetensors",
                    path));
    TRY(find_directory(&z, file_bytes, &d, err));
    TRY(read_directory(&z, &d, err));
    *out = z;
    z = (struct torch_zip){.fd = -1};
out:
    torch_zip_close(&z);
    return rc;
}

void torch_zip_close(struct torch_zip *z)
{
    if (z->path == NULL)
        return; /* zeroed or closed: fd 0 is not ours */
    for (int64_t i = 0; i < z->n_members; i++)
        free(z->members[i].name);
    free(z->members);
    free(z->path);
    if (z->fd >= 0)
        close(z->fd);
    *z = (struct torch_zip){.fd = -1};
}

const struct torch_zip_member *torch_zip_find(const struct torch_zip *z, const char *name)
{
    struct torch_zip_member key = {.name = (char *)name};

    if (z->n_members == 0)
        return NULL;
    return bsearch(&key, z->members, (size_t)z->n_members, sizeof(*z->members), by_name);
}
