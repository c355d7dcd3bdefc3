/* A whole .bin file: any bytes; what opens must be readable and no larger than the file. */
#include <stdlib.h>

#include "core/alloc.h"
#include "tests/fuzz/fuzz.h"
#include "worker/model/torch_bin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct torch_bin bin = {.zip = {.fd = -1}};

    if (torch_bin_open(fuzz_file("pytorch_model.bin", data, n), &bin, NULL) != 0)
        return 0;
    for (int64_t i = 0; i < bin.n_tensors; i++) {
        const struct torch_tensor *t = &bin.tensors[i];
        void *elements;

        if ((uint64_t)t->elements > n)
            abort();
        elements = xmalloc((size_t)t->elements * dtype_size(t->dtype) + 1);
        if (torch_bin_read(&bin, t, 0, t->elements, elements, NULL) != 0)
            abort();
        free(elements);
    }
    torch_bin_close(&bin);
    return 0;
}
