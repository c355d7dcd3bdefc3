#include "worker/model/safetensors.h"

#include <assert.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/bytes.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/model/weight_file.h"

/* The format's own limit on the header. */
enum { HEADER_MAX_BYTES = 100 * 1000 * 1000 };
/* { name: { "shape": [ ] } } */
enum { HEADER_MAX_DEPTH = 3 };

static const struct {
    const char *name;
    enum dtype dtype;
} dtypes[] = {
    {"F64", DT_F64}, {"F32", DT_F32},   {"F16", DT_F16},      {"BF16", DT_BF16},
    {"I64", DT_I64}, {"I32", DT_I32},   {"I16", DT_I16},      {"I8", DT_I8},
    {"U8", DT_U8},   {"BOOL", DT_BOOL}, {"F8_E4M3", DT_E4M3}, {"F8_E5M2", DT_E5M2},
};

static int parse_dtype(const char *path, const char *name, const json_t *entry, enum dtype *out,
                       struct err *err)
{
    const char *text = json_string_value(json_object_get(entry, "dtype"));

    if (text == NULL)
        return weight_file_corrupt(err, path, "tensor %.100s has no dtype", name);
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(dtypes[i].name, text) == 0) {
            *out = dtypes[i].dtype;
            return 0;
        }
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "%s: tensor %.100s has the type %.32s, which is not read; take a model with "
                   "F32, F16 or BF16 weights",
                   path, name, text);
}

/* A whole number from 0 on; JSON reals and negative numbers are none. */
static bool parse_count(const json_t *value, int64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = json_integer_value(value);
    return true;
}

/* Shape, and the bytes that it takes with overflow checked. */
static int parse_shape(const char *path, const char *name, const json_t *entry,
                       struct safetensor *t, struct err *err)
{
    const json_t *shape = json_object_get(entry, "shape");
    size_t rank = json_array_size(shape);
    size_t bytes = dtype_size(t->dtype);

    if (!json_is_array(shape) || rank > SAFETENSORS_MAX_RANK)
        return weight_file_corrupt(err, path, "tensor %.100s has no shape of at most %d dimensions",
                                   name, SAFETENSORS_MAX_RANK);
    t->rank = (int64_t)rank;
    for (size_t i = 0; i < rank; i++) {
        if (!parse_count(json_array_get(shape, i), &t->shape[i]))
            return weight_file_corrupt(err, path,
                                       "tensor %.100s has a dimension that is not a count", name);
        if (__builtin_mul_overflow(bytes, (size_t)t->shape[i], &bytes))
            return weight_file_corrupt(err, path, "the shape of tensor %.100s overflows any memory",
                                       name);
    }
    t->bytes = bytes;
    return 0;
}

/* begin is left relative to the data. */
static int parse_entry(const char *path, const char *name, const json_t *entry,
                       struct safetensor *t, struct err *err)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    int64_t begin = 0, end = 0;
    int rc = 0;

    if (!json_is_object(entry))
        TRY(weight_file_corrupt(err, path, "tensor %.100s is not described by an object", name));
    TRY(parse_dtype(path, name, entry, &t->dtype, err));
    TRY(parse_shape(path, name, entry, t, err));
    if (json_array_size(offsets) != 2 || !parse_count(json_array_get(offsets, 0), &begin) ||
        !parse_count(json_array_get(offsets, 1), &end) || end < begin)
        TRY(weight_file_corrupt(err, path, "tensor %.100s has no valid data_offsets", name));
    if ((size_t)(end - begin) != t->bytes)
        TRY(weight_file_corrupt(err, path,
                                "tensor %.100s takes %" PRId64 " bytes, but its shape needs %zu",
                                name, end - begin, t->bytes));
    t->begin = (size_t)begin;
out:
    return rc;
}

static int check_metadata(const char *path, const json_t *metadata, struct err *err)
{
    const char *key;
    json_t *value;

    if (!json_is_object(metadata))
        return weight_file_corrupt(err, path, "__metadata__ is not an object");
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            return weight_file_corrupt(err, path, "__metadata__ holds something not a string");
    }
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;

    return strcmp(x->name, y->name);
}

/* The tensors tile the data: no holes, no overlap, up to the last byte. */
static int check_tiling(struct safetensors_file *f, size_t data_bytes, struct err *err)
{
    size_t expected = 0;

    if (f->n_tensors > 1)
        qsort(f->tensors, (size_t)f->n_tensors, sizeof(*f->tensors), by_offset);
    for (int64_t i = 0; i < f->n_tensors; i++) {
        const struct safetensor *t = &f->tensors[i];

        if (t->begin != expected)
            return weight_file_corrupt(
                err, f->path, "tensor %.100s starts at byte %zu of the data where %zu follows",
                t->name, t->begin, expected);
        expected += t->bytes; /* at most an end offset, which is an int64_t */
    }
    if (expected != data_bytes)
        return weight_file_corrupt(err, f->path,
                                   "holds %zu bytes of data, but its tensors take %zu", data_bytes,
                                   expected);
    return 0;
}

static int parse_header(struct safetensors_file *f, const json_t *header, size_t data_start,
                        size_t data_bytes, struct err *err)
{
    const char *name;
    json_t *entry;
    void *tensors = NULL;
    int rc = 0;

    TRY(alloc_try(&tensors, json_object_size(header) + 1, sizeof(*f->tensors),
                  "the tensors of a safetensors header", err));
    f->tensors = tensors;
    json_object_foreach((json_t *)header, name, entry)
    {
        struct safetensor *t = &f->tensors[f->n_tensors];

        if (strcmp(name, "__metadata__") == 0) {
            TRY(check_metadata(f->path, entry, err));
            continue;
        }
        TRY(parse_entry(f->path, name, entry, t, err));
        t->name = xstrdup(name);
        f->n_tensors++;
    }
    TRY(check_tiling(f, data_bytes, err));
    for (int64_t i = 0; i < f->n_tensors; i++)
        f->tensors[i].begin += data_start;
    if (f->n_tensors > 1)
        qsort(f->tensors, (size_t)f->n_tensors, sizeof(*f->tensors), by_name);
out:
    return rc;
}

/* The header's text of f->fd, after its size was held against the file's. */
static int read_header(const struct safetensors_file *f, size_t file_bytes, char **text,
                       size_t *text_bytes, struct err *err)
{
    unsigned char prefix[8];
    uint64_t n = 0;
    void *buffer = NULL;
    int rc = 0;

    if (file_bytes < sizeof(prefix))
        TRY(weight_file_corrupt(err, f->path, "too short for a safetensors file"));
    TRY(fs_pread_all(f->fd, prefix, sizeof(prefix), 0, f->path, err));
    n = bytes_number(prefix, sizeof(prefix));
    if (n > HEADER_MAX_BYTES || n > file_bytes - sizeof(prefix))
        TRY(weight_file_corrupt(err, f->path,
                                "claims a header of %" PRIu64 " bytes; it is cut off, or not a "
                                "safetensors file",
                                n));
    TRY(alloc_try(&buffer, (size_t)n + 1, 1, "a safetensors header", err));
    TRY(fs_pread_all(f->fd, buffer, (size_t)n, sizeof(prefix), f->path, err));
    if (*(char *)buffer != '{')
        TRY(weight_file_corrupt(err, f->path, "the header does not begin with '{'"));
    *text = buffer;
    *text_bytes = (size_t)n;
    buffer = NULL;
out:
    free(buffer);
    return rc;
}

int safetensors_open(const char *path, struct safetensors_file *out, struct err *err)
{
    struct safetensors_file f = {.fd = -1, .path = xstrdup(path)};
    size_t file_bytes = 0, text_bytes = 0, data_start;
    json_t *header = NULL;
    char *text = NULL;
    struct err json_err = {0};
    int rc = 0;

    TRY(weight_file_open_regular(path, &f.fd, &file_bytes, err));
    TRY(read_header(&f, file_bytes, &text, &text_bytes, err));
    rc = json_parse_limited(text, text_bytes, HEADER_MAX_BYTES, HEADER_MAX_DEPTH, &header,
                            &json_err);
    if (rc == ERR_NOMEM)
        TRY(err_set(err, rc, "%s: %s", path, json_err.msg));
    if (rc != 0)
        TRY(weight_file_corrupt(err, path, "the header is no valid JSON: %s", json_err.msg));
    data_start = sizeof(uint64_t) + text_bytes;
    TRY(parse_header(&f, header, data_start, file_bytes - data_start, err));
    *out = f;
    f = (struct safetensors_file){.fd = -1};
out:
    json_decref(header);
    free(text);
    if (f.path != NULL)
        safetensors_close(&f);
    return rc;
}

void safetensors_close(struct safetensors_file *f)
{
    if (f->path == NULL)
        return; /* zeroed or closed: fd 0 is not ours */
    for (int64_t i = 0; i < f->n_tensors; i++)
        free(f->tensors[i].name);
    free(f->tensors);
    free(f->path);
    if (f->fd >= 0)
        close(f->fd);
    *f = (struct safetensors_file){.fd = -1};
}

const struct safetensor *safetensors_find(const struct safetensors_file *f, const char *name)
{
    struct safetensor key = {.name = (char *)name};

    if (f->n_tensors == 0)
        return NULL;
    return bsearch(&key, f->tensors, (size_t)f->n_tensors, sizeof(*f->tensors), by_name);
}

int safetensors_read(const struct safetensors_file *f, const struct safetensor *t, size_t offset,
                     size_t n, void *out, struct err *err)
{
    assert(offset <= t->bytes && n <= t->bytes - offset);
    return fs_pread_all(f->fd, out, n, (off_t)(t->begin + offset), f->path, err);
}

const char *safetensors_dtype_name(enum dtype dtype)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (dtypes[i].dtype == dtype)
            return dtypes[i].name;
    }
    assert(!"a type without a name in safetensors");
    return NULL;
}
