#include "kernels/cuda/kernels.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "core/log.h"
#include "kernels/cuda/driver.h"

struct loader {
    CUresult (*module_of)(CUmodule *, CUfunction);
    CUresult (*count)(unsigned int *, CUmodule);
    CUresult (*list)(CUfunction *, unsigned int, CUmodule);
    CUresult (*load)(CUfunction);
};

static bool find_calls(struct loader *l)
{
    enum { SINCE = 12040 };
    *(void **)&l->module_of = driver_call("cuFuncGetModule", SINCE);
    *(void **)&l->count = driver_call("cuModuleGetFunctionCount", SINCE);
    *(void **)&l->list = driver_call("cuModuleEnumerateFunctions", SINCE);
    *(void **)&l->load = driver_call("cuFuncLoad", SINCE);
    return l->module_of && l->count && l->list && l->load;
}

/* All kernels of the module that this one is of; how many. */
static unsigned int load_module(const struct loader *l, const void *kernel)
{
    cudaFunction_t function = NULL;
    CUmodule module = NULL;
    unsigned int n = 0, loaded = 0;

    if (cudaGetFuncBySymbol(&function, kernel) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    if (l->module_of(&module, function) != CUDA_SUCCESS || l->count(&n, module) != CUDA_SUCCESS)
        return 0;
    CUfunction *all = xcalloc(n + 1, sizeof *all);
    if (l->list(all, n, module) == CUDA_SUCCESS)
        while (loaded < n && l->load(all[loaded]) == CUDA_SUCCESS)
            loaded++;
    free(all);
    return loaded;
}

void kernels_load(void)
{
#define ADDRESS_OF(file) kernels_of_##file,
    static const void *(*const files[])(void) = {CUDA_FILES(ADDRESS_OF)};
    struct loader l;
    unsigned int loaded = 0;

    if (!find_calls(&l))
        return;
    for (size_t f = 0; f < sizeof files / sizeof files[0]; f++)
        loaded += load_module(&l, files[f]());
    log_debug("cuda", "loaded kernels=%u", loaded);
}
