/* The zip around PyTorch's weights: any bytes; members must lie in the file. */
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"
#include "worker/model/torch_zip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct torch_zip zip = {.fd = -1};

    if (torch_zip_open(fuzz_file("pytorch_model.bin", data, n), &zip, NULL) != 0)
        return 0;
    for (int64_t i = 0; i < zip.n_members; i++) {
        const struct torch_zip_member *m = &zip.members[i];

        if (m->begin > n || m->bytes > n - m->begin || torch_zip_find(&zip, m->name) != m)
            abort();
    }
    torch_zip_close(&zip);
    return 0;
}
