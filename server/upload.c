#include "server/upload.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/hash.h"
#include "server/request.h"

void upload_init(struct upload *u, const char *spool_dir, int64_t max_bytes)
{
    *u = (struct upload){.fd = -1, .spool_dir = spool_dir, .max_bytes = max_bytes};
}

static void drop_file(struct upload *u)
{
    if (u->fd >= 0)
        close(u->fd);
    u->fd = -1;
    if (u->path)
        unlink(u->path);
    free(u->path);
    u->path = NULL;
}

void upload_fini(struct upload *u)
{
    drop_file(u);
    free(u->filename);
    for (int i = 0; i < u->n_fields; i++)
        buf_fini(&u->fields[i].value);
    upload_init(u, NULL, 0);
}

/* The name is for people only: it never becomes a path here. */
static char *clean_filename(const char *sent)
{
    const char *base = sent ? sent : "";

    for (const char *p = base; *p; p++)
        if (*p == '/' || *p == '\\')
            base = p + 1;
    size_t n = strlen(base);
    if (n == 0 || n > 255 || !text_is_utf8(base, n))
        return xstrdup("upload");
    char *name = xstrdup(base);
    for (char *p = name; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F || *p == '"')
            *p = '_';
    return name;
}

static int file_begin(struct upload *u, const char *filename)
{
    char name[48] = "upload-";

    if (u->has_file && u->bytes > 0)
        return err_set(&u->error, ERR_INVALID, "the part 'file' is there twice; send one file");
    if (u->has_file)
        return 0; /* a part may begin with an empty piece, and again with its first bytes */
    hash_random_hex(name + 7, 16);
    u->has_file = true;
    u->filename = clean_filename(filename);
    u->path = fs_join(u->spool_dir, name);
    u->fd = open(u->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
    return u->fd >= 0 ? 0 : err_set_errno(&u->error, errno, "cannot create %s", u->path);
}

/* What the client reads must not name the server's paths. */
static int disk_full(struct err *err)
{
    err_clear(err);
    err_set(err, ERR_NOSPACE,
            "the server's disk is full; delete files or models that are no longer needed and "
            "upload again");
    return err_set_reason(err, ERR_NOSPACE, "disk_full");
}

static void file_add(struct upload *u, const char *bytes, size_t n)
{
    if ((int64_t)n > u->max_bytes - u->bytes) {
        err_set(&u->error, ERR_INVALID,
                "the file is larger than the %" PRId64 " bytes allowed; split it, or raise "
                "limits.file_bytes in castord's configuration",
                u->max_bytes);
        err_set_param(&u->error, ERR_INVALID, "file");
        err_set_reason(&u->error, ERR_INVALID, "file_too_large");
        u->error_status = 413;
    } else if (fs_write_all(u->fd, bytes, n, u->path, &u->error) == 0) {
        u->bytes += (int64_t)n;
    }
    if (u->error.code == ERR_NOSPACE)
        disk_full(&u->error);
    if (u->error.code != 0)
        drop_file(u); /* at once, not when the client has sent the rest */
}

/* The last field, with nothing in it so far: what looks like its beginning goes on with it. */
static bool is_begun(const struct upload *u, const char *name)
{
    return u->n_fields > 0 && strcmp(u->fields[u->n_fields - 1].name, name) == 0 &&
           u->fields[u->n_fields - 1].value.len == 0;
}

static void field_add(struct upload *u, const char *name, const char *bytes, int64_t offset,
                      size_t n)
{
    struct buf *value;

    if (offset == 0 && !is_begun(u, name)) {
        if (u->n_fields == UPLOAD_MAX_FIELDS || strlen(name) >= sizeof(u->fields[0].name) ||
            upload_field(u, name)) {
            err_set(&u->error, ERR_INVALID,
                    upload_field(u, name) ? "the form has a field twice"
                                          : "the form has too many or too long fields");
            return;
        }
        memcpy(u->fields[u->n_fields++].name, name, strlen(name) + 1);
    }
    if (u->n_fields == 0)
        return;
    value = &u->fields[u->n_fields - 1].value;
    if (value->len + n > UPLOAD_MAX_FIELD_BYTES) {
        err_set(&u->error, ERR_INVALID, "a form field is longer than %d bytes",
                UPLOAD_MAX_FIELD_BYTES);
        return;
    }
    buf_add(value, bytes, n);
}

void upload_add(struct upload *u, const char *name, const char *filename, const char *bytes,
                int64_t offset, size_t n)
{
    if (u->error.code != 0)
        return;
    if (!name || !text_is_utf8(name, strlen(name))) {
        err_set(&u->error, ERR_INVALID, "a part of the form has no name, or not a UTF-8 one");
        return;
    }
    if (strcmp(name, "file") != 0) {
        field_add(u, name, bytes, offset, n);
        return;
    }
    if (offset == 0 && (n > 0 || !u->has_file) && file_begin(u, filename) != 0)
        return;
    file_add(u, bytes, n);
}

int upload_finish(struct upload *u, struct err *err)
{
    int rc = 0;

    if (u->error.code == 0 && !u->closed)
        err_set(&u->error, ERR_INVALID,
                "the multipart body ends before its final boundary; send all of it");
    if (u->error.code == 0 && u->fd >= 0) {
        /* A full disk may show only here. */
        int synced = fdatasync(u->fd);
        int sync_errno = errno;
        int closed = close(u->fd);
        u->fd = -1;
        if (synced != 0 || closed != 0)
            err_set_errno(&u->error, synced != 0 ? sync_errno : errno, "cannot write %s", u->path);
        if (u->error.code == ERR_NOSPACE)
            disk_full(&u->error);
    }
    if (u->error.code == 0)
        return 0;
    drop_file(u);
    rc = err_set(err, u->error.code, "%s", u->error.msg);
    err_set_param(err, rc, u->error.param);
    return err_set_reason(err, rc, u->error.reason);
}

const char *upload_field(const struct upload *u, const char *name)
{
    for (int i = 0; i < u->n_fields; i++)
        if (strcmp(u->fields[i].name, name) == 0)
            return buf_str(&u->fields[i].value);
    return NULL;
}

int upload_check_room(const char *spool_dir, int64_t bytes, int64_t keep_free, struct err *err)
{
    int64_t free_bytes = 0;
    int rc = fs_free_bytes(spool_dir, &free_bytes, err);

    if (rc == 0 && free_bytes - keep_free < bytes)
        rc = disk_full(err);
    return rc;
}

int upload_prepare_spool(const char *state_dir, char **spool_dir, struct err *err)
{
    char *dir = fs_join(state_dir, "spool");
    int rc = 0;

    TRY(fs_remove_tree(dir, err));
    TRY(fs_mkdir_p(dir, true, err));
    *spool_dir = dir;
    dir = NULL;
out:
    free(dir);
    return rc;
}
