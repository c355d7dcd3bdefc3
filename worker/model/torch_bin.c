#include "worker/model/torch_bin.h"

#include <assert.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/model/weight_file.h"

enum { PICKLE_MAX_BYTES = 16 << 20 };

/* The member ROOT/name, where ROOT/data.pkl is the pickle. */
static const struct torch_zip_member *find_member(const struct torch_zip *z, size_t root_bytes,
                                                  const char *root, const char *folder,
                                                  const char *name)
{
    char *path = xasprintf("%.*s/%s%s", (int)root_bytes, root, folder, name);
    const struct torch_zip_member *m = torch_zip_find(z, path);

    free(path);
    return m;
}

/* ROOT/data.pkl: the only member of that name one folder down. */
static int find_pickle(const struct torch_zip *z, const struct torch_zip_member **out,
                       size_t *root_bytes, struct err *err)
{
    *out = NULL;
    for (int64_t i = 0; i < z->n_members; i++) {
        const char *slash = strchr(z->members[i].name, '/');

        if (slash == NULL || strcmp(slash, "/data.pkl") != 0)
            continue;
        if (*out != NULL)
            return weight_file_corrupt(err, z->path, "holds two pickles");
        *out = &z->members[i];
        *root_bytes = (size_t)(slash - z->members[i].name);
    }
    if (*out == NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: holds no data.pkl: it is no file of torch.save; convert the model to "
                       "safetensors",
                       z->path);
    if ((*out)->bytes > PICKLE_MAX_BYTES)
        return err_set(err, ERR_INVALID, "%s: has a pickle of %zu bytes; at most %d are read",
                       z->path, (*out)->bytes, PICKLE_MAX_BYTES);
    return 0;
}

/* Files say their byte order since PyTorch 2.1; before that they came from little-endian machines
 * in practice. */
static int check_order(const struct torch_zip *z, const struct torch_zip_member *pickle,
                       size_t root_bytes, struct err *err)
{
    const struct torch_zip_member *m = find_member(z, root_bytes, pickle->name, "", "byteorder");
    char order[6];
    int rc = 0;

    if (m == NULL)
        return 0;
    if (m->bytes == sizeof(order))
        TRY(fs_pread_all(z->fd, order, sizeof(order), (off_t)m->begin, z->path, err));
    if (m->bytes != sizeof(order) || memcmp(order, "little", sizeof(order)) != 0)
        TRY(err_set(err, ERR_UNSUPPORTED,
                    "%s: its numbers are not little-endian; convert the model to safetensors",
                    z->path));
out:
    return rc;
}

/* Elements of a tensor, and the last one's place, both held against the storage. */
static int check_view(const char *path, const struct torch_pickled *p, int64_t *elements,
                      struct err *err)
{
    int64_t n = 1, last = p->offset, step;
    bool overflow = false;

    for (int64_t i = 0; i < p->rank; i++)
        overflow |= __builtin_mul_overflow(n, p->shape[i], &n);
    for (int64_t i = 0; i < p->rank && n > 0; i++) {
        overflow |= __builtin_mul_overflow(p->shape[i] - 1, p->stride[i], &step);
        overflow |= __builtin_add_overflow(last, step, &last);
    }
    if (overflow || n < 0 || n > p->storage_elements || (n > 0 && last >= p->storage_elements))
        return weight_file_corrupt(
            err, path, "tensor %.100s does not lie in its storage of %" PRId64 " elements", p->name,
            p->storage_elements);
    *elements = n;
    return 0;
}

static int place_tensor(const struct torch_zip *z, const struct torch_zip_member *pickle,
                        size_t root_bytes, struct torch_pickled *p, struct torch_tensor *t,
                        struct err *err)
{
    const struct torch_zip_member *m =
        find_member(z, root_bytes, pickle->name, "data/", p->storage);
    size_t bytes;
    int rc = 0;

    if (m == NULL)
        TRY(weight_file_corrupt(err, z->path,
                                "tensor %.100s lies in storage %.100s, which is missing", p->name,
                                p->storage));
    if (p->storage_elements < 0 ||
        __builtin_mul_overflow((size_t)p->storage_elements, dtype_size(p->dtype), &bytes) ||
        bytes != m->bytes)
        TRY(weight_file_corrupt(err, z->path,
                                "tensor %.100s claims a storage of %" PRId64
                                " elements of %s; it has %zu "
                                "bytes",
                                p->name, p->storage_elements, dtype_name(p->dtype), m->bytes));
    TRY(check_view(z->path, p, &t->elements, err));
    t->dtype = p->dtype;
    t->rank = p->rank;
    memcpy(t->shape, p->shape, sizeof(t->shape));
    memcpy(t->stride, p->stride, sizeof(t->stride));
    t->begin = m->begin + (t->elements > 0 ? (size_t)p->offset * dtype_size(p->dtype) : 0);
    t->name = p->name;
    p->name = NULL;
out:
    return rc;
}

static int by_name(const void *a, const void *b)
{
    const struct torch_tensor *x = a, *y = b;

    return strcmp(x->name, y->name);
}

static int read_tensors(struct torch_bin *f, struct err *err)
{
    const struct torch_zip_member *pickle = NULL;
    struct torch_pickled *pickled = NULL;
    size_t root_bytes = 0;
    void *text = NULL;
    int64_t n = 0;
    int rc = 0;

    TRY(find_pickle(&f->zip, &pickle, &root_bytes, err));
    TRY(check_order(&f->zip, pickle, root_bytes, err));
    TRY(alloc_try(&text, pickle->bytes + 1, 1, "a pickle", err));
    TRY(fs_pread_all(f->zip.fd, text, pickle->bytes, (off_t)pickle->begin, f->zip.path, err));
    rc = torch_pickle_read(text, pickle->bytes, &pickled, &n, err);
    if (rc != 0) {
        rc = err_wrap(err, rc, "%s", f->zip.path);
        goto out;
    }
    f->tensors = xcalloc((size_t)n + 1, sizeof(*f->tensors));
    for (int64_t i = 0; i < n; i++) {
        TRY(place_tensor(&f->zip, pickle, root_bytes, &pickled[i], &f->tensors[i], err));
        f->n_tensors++;
    }
    qsort(f->tensors, (size_t)n, sizeof(*f->tensors), by_name);
    for (int64_t i = 1; i < n; i++) {
        if (strcmp(f->tensors[i].name, f->tensors[i - 1].name) == 0)
            TRY(weight_file_corrupt(err, f->zip.path, "holds tensor %.100s twice",
                                    f->tensors[i].name));
    }
out:
    torch_pickled_free(pickled, n);
    free(text);
    return rc;
}

int torch_bin_open(const char *path, struct torch_bin *out, struct err *err)
{
    struct torch_bin f = {0};
    int rc = 0;

    TRY(torch_zip_open(path, &f.zip, err));
    TRY(read_tensors(&f, err));
    *out = f;
    f = (struct torch_bin){0};
out:
    torch_bin_close(&f);
    return rc;
}

void torch_bin_close(struct torch_bin *f)
{
    for (int64_t i = 0; i < f->n_tensors; i++)
        free(f->tensors[i].name);
    free(f->tensors);
    torch_zip_close(&f->zip);
    f->tensors = NULL;
    f->n_tensors = 0;
}

const struct torch_tensor *torch_bin_find(const struct torch_bin *f, const char *name)
{
    struct torch_tensor key = {.name = (char *)name};

    if (f->n_tensors == 0)
        return NULL;
    return bsearch(&key, f->tensors, (size_t)f->n_tensors, sizeof(*f->tensors), by_name);
}

/* Elements lie in the file as in C order. Dimensions of one element may have any stride. */
static bool is_contiguous(const struct torch_tensor *t)
{
    int64_t dense = 1;

    for (int64_t i = t->rank; i-- > 0;) {
        if (t->shape[i] != 1 && t->stride[i] != dense)
            return false;
        dense *= t->shape[i];
    }
    return true;
}

/* Where element i, in C order, lies behind element 0. */
static int64_t place_of(const struct torch_tensor *t, int64_t i)
{
    int64_t at = 0;

    for (int64_t d = t->rank; d-- > 0;) {
        at += i % t->shape[d] * t->stride[d];
        i /= t->shape[d];
    }
    return at;
}

int torch_bin_read(const struct torch_bin *f, const struct torch_tensor *t, int64_t first,
                   int64_t n, void *out, struct err *err)
{
    size_t size = dtype_size(t->dtype);
    void *span = NULL;
    int64_t last;
    int rc = 0;

    assert(first >= 0 && n >= 0 && first <= t->elements && n <= t->elements - first);
    if (n == 0)
        goto out;
    if (is_contiguous(t)) {
        TRY(fs_pread_all(f->zip.fd, out, (size_t)n * size, (off_t)(t->begin + (size_t)first * size),
                         f->zip.path, err));
        goto out;
    }
    last = place_of(t, t->elements - 1);
    TRY(alloc_try(&span, (size_t)last + 1, size, "a strided tensor", err));
    TRY(fs_pread_all(f->zip.fd, span, ((size_t)last + 1) * size, (off_t)t->begin, f->zip.path,
                     err));
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)out + (size_t)i * size, (char *)span + (size_t)place_of(t, first + i) * size,
               size);
out:
    free(span);
    return rc;
}
