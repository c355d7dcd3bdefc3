#include "worker/model/weight_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/alloc.h"

static_assert((int)SAFETENSORS_MAX_RANK <= (int)WEIGHT_MAX_RANK &&
                  (int)TORCH_MAX_RANK <= (int)WEIGHT_MAX_RANK,
              "every format's shapes fit");

int weight_file_open_regular(const char *path, int *fd, size_t *bytes, struct err *err)
{
    struct stat st;
    int opened = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    int rc = 0;

    if (opened < 0)
        return err_set_errno(err, errno, "cannot open %s", path);
    if (fstat(opened, &st) != 0)
        rc = err_set_errno(err, errno, "cannot look at %s", path);
    else if (!S_ISREG(st.st_mode))
        rc = err_set(err, ERR_INVALID, "%s is not a file", path);
    if (rc != 0) {
        close(opened);
        return rc;
    }
    *fd = opened;
    *bytes = (size_t)st.st_size;
    return 0;
}

int weight_file_corrupt(struct err *err, const char *path, const char *fmt, ...)
{
    char text[sizeof(err->msg)];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return err_set(err, ERR_CORRUPT,
                   "%s: %s; download it again, or take a model whose files are whole", path, text);
}

static bool is_bin(const char *path)
{
    size_t n = strlen(path);

    return n > strlen(".bin") && strcmp(path + n - strlen(".bin"), ".bin") == 0;
}

static void list_bin(struct weight_file *f)
{
    f->path = f->bin.zip.path;
    f->n_tensors = f->bin.n_tensors;
    f->tensors = xcalloc((size_t)f->n_tensors + 1, sizeof(*f->tensors));
    for (int64_t i = 0; i < f->n_tensors; i++) {
        const struct torch_tensor *t = &f->bin.tensors[i];

        f->tensors[i] = (struct weight_tensor){.name = t->name, .dtype = t->dtype, .rank = t->rank};
        memcpy(f->tensors[i].shape, t->shape, (size_t)t->rank * sizeof(t->shape[0]));
    }
}

static void list_safetensors(struct weight_file *f)
{
    f->path = f->safetensors.path;
    f->n_tensors = f->safetensors.n_tensors;
    f->tensors = xcalloc((size_t)f->n_tensors + 1, sizeof(*f->tensors));
    for (int64_t i = 0; i < f->n_tensors; i++) {
        const struct safetensor *t = &f->safetensors.tensors[i];

        f->tensors[i] = (struct weight_tensor){.name = t->name, .dtype = t->dtype, .rank = t->rank};
        memcpy(f->tensors[i].shape, t->shape, (size_t)t->rank * sizeof(t->shape[0]));
    }
}

int weight_file_open(const char *path, struct weight_file *out, struct err *err)
{
    struct weight_file f = {0};
    int rc = 0;

    if (is_bin(path)) {
        TRY(torch_bin_open(path, &f.bin, err));
        list_bin(&f);
    } else {
        TRY(safetensors_open(path, &f.safetensors, err));
        list_safetensors(&f);
    }
    *out = f;
out:
    return rc;
}

void weight_file_close(struct weight_file *f)
{
    free(f->tensors);
    safetensors_close(&f->safetensors);
    torch_bin_close(&f->bin);
    memset(f, 0, sizeof(*f));
}

static int by_name(const void *a, const void *b)
{
    const struct weight_tensor *x = a, *y = b;

    return strcmp(x->name, y->name);
}

const struct weight_tensor *weight_file_find(const struct weight_file *f, const char *name)
{
    struct weight_tensor key = {.name = name};

    if (f->n_tensors == 0)
        return NULL;
    return bsearch(&key, f->tensors, (size_t)f->n_tensors, sizeof(*f->tensors), by_name);
}

int weight_file_read(const struct weight_file *f, const struct weight_tensor *t, int64_t first,
                     int64_t n, void *out, struct err *err)
{
    size_t size = dtype_size(t->dtype);

    if (f->bin.tensors != NULL)
        return torch_bin_read(&f->bin, &f->bin.tensors[t - f->tensors], first, n, out, err);
    return safetensors_read(&f->safetensors, &f->safetensors.tensors[t - f->tensors],
                            (size_t)first * size, (size_t)n * size, out, err);
}
