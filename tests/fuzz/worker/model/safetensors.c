/* A safetensors file: any bytes; what opens must be readable to its last byte. */
#include <stdlib.h>

#include "core/alloc.h"
#include "tests/fuzz/fuzz.h"
#include "worker/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors_file file;

    if (safetensors_open(fuzz_file("model.safetensors", data, n), &file, NULL) != 0)
        return 0;
    for (int64_t i = 0; i < file.n_tensors; i++) {
        const struct safetensor *t = &file.tensors[i];
        void *bytes;

        if (t->bytes > n || safetensors_find(&file, t->name) != t)
            abort();
        bytes = xmalloc(t->bytes + 1);
        if (safetensors_read(&file, t, 0, t->bytes, bytes, NULL) != 0)
            abort();
        free(bytes);
    }
    safetensors_close(&file);
    return 0;
}
