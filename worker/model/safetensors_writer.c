#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/model/safetensors.h"

struct safetensors_writer {
    char *path, *temporary;
    int fd;
    json_t *header;
    bool started;             /* the header is written: nothing more may be declared */
    size_t declared, written; /* bytes of data */
};

int safetensors_writer_create(const char *path, struct safetensors_writer **out, struct err *err)
{
    struct safetensors_writer *w = xcalloc(1, sizeof(*w));

    w->path = xstrdup(path);
    w->temporary = xasprintf("%s.tmp-%d", path, (int)getpid());
    w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (w->fd < 0) {
        int rc = err_set_errno(err, errno, "cannot write %s", w->temporary);

        safetensors_writer_destroy(w);
        return rc;
    }
    /* transformers refuses files that do not say which framework they are for */
    w->header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    assert(w->header != NULL);
    *out = w;
    return 0;
}

int safetensors_writer_declare(struct safetensors_writer *w, const char *name, enum dtype dtype,
                               int64_t rank, const int64_t *shape, struct err *err)
{
    size_t bytes = dtype_size(dtype);
    json_t *dims = json_array(), *entry;

    assert(!w->started && rank >= 0 && rank <= SAFETENSORS_MAX_RANK);
    for (int64_t i = 0; i < rank; i++) {
        assert(shape[i] >= 0);
        bytes *= (size_t)shape[i];
        json_array_append_new(dims, json_integer(shape[i]));
    }
    if (json_object_get(w->header, name) != NULL) {
        json_decref(dims);
        return err_set(err, ERR_INVALID, "%s: tensor %s is declared twice", w->path, name);
    }
    entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", safetensors_dtype_name(dtype), "shape", dims,
                      "data_offsets", (json_int_t)w->declared, (json_int_t)(w->declared + bytes));
    if (entry == NULL || json_object_set_new(w->header, name, entry) != 0)
        return err_set(err, ERR_INVALID, "%s: tensor name %.100s is not valid UTF-8", w->path,
                       name);
    w->declared += bytes;
    return 0;
}

/* The size, then the header padded with spaces so that data starts at a multiple of 8. */
static int write_header(struct safetensors_writer *w, struct err *err)
{
    static const char spaces[8] = "        ";
    char *text = json_to_line(w->header);
    size_t n = strlen(text), padding = (8 - n % 8) % 8;
    uint64_t claimed = n + padding;
    unsigned char prefix[8];
    int rc = 0;

    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)(claimed >> (8 * i));
    TRY(fs_write_all(w->fd, prefix, sizeof(prefix), w->temporary, err));
    TRY(fs_write_all(w->fd, text, n, w->temporary, err));
    TRY(fs_write_all(w->fd, spaces, padding, w->temporary, err));
    w->started = true;
out:
    free(text);
    return rc;
}

int safetensors_writer_data(struct safetensors_writer *w, const void *bytes, size_t n,
                            struct err *err)
{
    int rc = 0;

    if (!w->started)
        TRY(write_header(w, err));
    assert(n <= w->declared - w->written);
    TRY(fs_write_all(w->fd, bytes, n, w->temporary, err));
    w->written += n;
out:
    return rc;
}

int safetensors_writer_finish(struct safetensors_writer *w, struct err *err)
{
    int rc = 0;

    if (!w->started)
        TRY(write_header(w, err));
    assert(w->written == w->declared);
    if (fsync(w->fd) != 0)
        TRY(err_set_errno(err, errno, "cannot write %s", w->temporary));
    TRY(fs_rename_sync(w->temporary, w->path, err));
    free(w->temporary);
    w->temporary = NULL;
out:
    return rc;
}

void safetensors_writer_destroy(struct safetensors_writer *w)
{
    if (w == NULL)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (w->temporary != NULL && w->fd >= 0)
        unlink(w->temporary);
    json_decref(w->header);
    free(w->temporary);
    free(w->path);
    free(w);
}
