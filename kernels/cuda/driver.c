#include "kernels/cuda/driver.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

void *driver_call(const char *name, unsigned int since)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *entry = NULL;
    if (cudaGetDriverEntryPointByVersion(name, &entry, since, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    return entry;
}
