/*
 * safetensors files, read and written (format: github.com/huggingface/safetensors). The header of a
 * file is untrusted: size, JSON, dtypes, shapes, offsets (contiguous, no holes, no overlap, exactly
 * to the end of the file) and products are all checked before a byte of data is used. Data is read
 * with pread, so a file that shrinks gives an error rather than a signal.
 */
#ifndef CASTOR_WORKER_MODEL_SAFETENSORS_H
#define CASTOR_WORKER_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/dtype.h"

enum { SAFETENSORS_MAX_RANK = 8 };

struct safetensor {
    char *name;
    enum dtype dtype;
    int64_t rank, shape[SAFETENSORS_MAX_RANK];
    size_t begin, bytes; /* absolute position in the file, length */
};

struct safetensors_file {
    int fd;
    char *path;
    struct safetensor *tensors; /* sorted by name */
    int64_t n_tensors;
};

int safetensors_open(const char *path, struct safetensors_file *out, struct err *err);
void safetensors_close(struct safetensors_file *f);
/* NULL when there is none. */
const struct safetensor *safetensors_find(const struct safetensors_file *f, const char *name);
/* Read bytes [offset, offset + n) of a tensor's data. */
int safetensors_read(const struct safetensors_file *f, const struct safetensor *t, size_t offset,
                     size_t n, void *out, struct err *err);

/* "F32", "BF16", ...: the format's name of a type. */
const char *safetensors_dtype_name(enum dtype dtype);

/* Writer: declare all tensors, then stream their data in the declared order; written aside and
 * renamed at finish. */
struct safetensors_writer;
int safetensors_writer_create(const char *path, struct safetensors_writer **out, struct err *err);
int safetensors_writer_declare(struct safetensors_writer *w, const char *name, enum dtype dtype,
                               int64_t rank, const int64_t *shape, struct err *err);
/* Data of the declared tensors, in declared order, in pieces of any size. */
int safetensors_writer_data(struct safetensors_writer *w, const void *bytes, size_t n,
                            struct err *err);
/* fsync + rename; the file does not exist before this returns 0. */
int safetensors_writer_finish(struct safetensors_writer *w, struct err *err);
void safetensors_writer_destroy(
    struct safetensors_writer *w); /* unfinished: removes the temporary */

#endif
