/*
 * The pickle inside PyTorch's .bin files, read without running anything. A pickle is a program for
 * a stack machine; this one knows the few opcodes that torch.save writes for a dictionary of
 * tensors, builds a small tree of values, and understands four callables by name: OrderedDict, the
 * rebuilding of tensors and parameters, and the names of storages. Every other opcode or name is an
 * error, so a hostile file can do no more than be refused. What a tensor then says of its storage
 * (key, offset, sizes, strides) is not checked here: worker/model/torch_bin.h does that.
 *
 * Opcodes: Python's pickletools documents them; the subset is that of torch's own weights-only
 * loader (torch/_weights_only_unpickler.py).
 */
#ifndef CASTOR_WORKER_MODEL_TORCH_PICKLE_H
#define CASTOR_WORKER_MODEL_TORCH_PICKLE_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/dtype.h"

enum { TORCH_MAX_RANK = 8 };

struct torch_pickled { /* a tensor as the pickle describes it; counts are elements, all >= 0 */
    char *name;
    enum dtype dtype;
    char *storage;            /* the member data/<storage> */
    int64_t storage_elements; /* as claimed */
    int64_t offset, rank, shape[TORCH_MAX_RANK], stride[TORCH_MAX_RANK];
};

/* The tensors of a pickled dictionary, in its order. Free with torch_pickled_free. ERR_CORRUPT or
 * ERR_UNSUPPORTED with a text that says what was met. */
int torch_pickle_read(const void *bytes, size_t n, struct torch_pickled **out, int64_t *n_out,
                      struct err *err);
void torch_pickled_free(struct torch_pickled *tensors, int64_t n);

#endif
