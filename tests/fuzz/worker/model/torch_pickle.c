/* A pickle that describes weights: any bytes; counts come out as the header promises. */
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"
#include "worker/model/torch_pickle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct torch_pickled *tensors = NULL;
    int64_t n_tensors = 0;

    if (torch_pickle_read(data, n, &tensors, &n_tensors, NULL) != 0)
        return 0;
    for (int64_t i = 0; i < n_tensors; i++) {
        const struct torch_pickled *t = &tensors[i];

        if (t->name == NULL || t->storage == NULL || t->rank < 0 || t->rank > TORCH_MAX_RANK ||
            t->offset < 0 || t->storage_elements < 0)
            abort();
        for (int64_t d = 0; d < t->rank; d++)
            if (t->shape[d] < 0 || t->stride[d] < 0)
                abort();
    }
    torch_pickled_free(tensors, n_tensors);
    return 0;
}
