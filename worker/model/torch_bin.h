/*
 * PyTorch's .bin files of weights, read only: the zip of torch_zip.h, the pickle of torch_pickle.h,
 * and the check of what each tensor says against the storage it lies in. Tensors may share a
 * storage and may be strided views of it (a transposed matrix); they come out in C order. A view
 * of more elements than its storage has is refused, so a tensor is never larger than its file.
 */
#ifndef CASTOR_WORKER_MODEL_TORCH_BIN_H
#define CASTOR_WORKER_MODEL_TORCH_BIN_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/dtype.h"
#include "worker/model/torch_pickle.h"
#include "worker/model/torch_zip.h"

struct torch_tensor {
    char *name;
    enum dtype dtype;
    int64_t rank, shape[TORCH_MAX_RANK], stride[TORCH_MAX_RANK]; /* strides in elements */
    int64_t elements;
    size_t begin; /* of element 0: absolute position in the file */
};

struct torch_bin {
    struct torch_zip zip;
    struct torch_tensor *tensors; /* sorted by name */
    int64_t n_tensors;
};

int torch_bin_open(const char *path, struct torch_bin *out, struct err *err);
void torch_bin_close(struct torch_bin *f); /* a zeroed one is fine */
/* NULL when there is none. */
const struct torch_tensor *torch_bin_find(const struct torch_bin *f, const char *name);
/* Read elements [first, first + n) of a tensor, counted in C order. */
int torch_bin_read(const struct torch_bin *f, const struct torch_tensor *t, int64_t first,
                   int64_t n, void *out, struct err *err);

#endif
