/*
 * One file of weights, whatever its format: safetensors, or PyTorch's .bin. The name's suffix says
 * which. Opening reads headers only.
 */
#ifndef CASTOR_WORKER_MODEL_WEIGHT_FILE_H
#define CASTOR_WORKER_MODEL_WEIGHT_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/dtype.h"
#include "worker/model/safetensors.h"
#include "worker/model/torch_bin.h"

enum { WEIGHT_MAX_RANK = 8 };

struct weight_tensor {
    const char *name; /* the file's */
    enum dtype dtype;
    int64_t rank, shape[WEIGHT_MAX_RANK];
};

struct weight_file {
    struct safetensors_file safetensors; /* one of the two is open */
    struct torch_bin bin;
    const char *path;
    struct weight_tensor *tensors; /* sorted by name */
    int64_t n_tensors;
};

int weight_file_open(const char *path, struct weight_file *out, struct err *err);
void weight_file_close(struct weight_file *f); /* a zeroed one is fine */
/* NULL when there is none. */
const struct weight_tensor *weight_file_find(const struct weight_file *f, const char *name);
/* Read elements [first, first + n) of a tensor of this file, counted in C order. */
int weight_file_read(const struct weight_file *f, const struct weight_tensor *t, int64_t first,
                     int64_t n, void *out, struct err *err);

/* ERR_CORRUPT: the file, what is wrong with it ("has no ..."), and what to do. */
int weight_file_corrupt(struct err *err, const char *path, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Open a file that must be one: a FIFO or a device is refused. */
int weight_file_open_regular(const char *path, int *fd, size_t *bytes, struct err *err);

#endif
