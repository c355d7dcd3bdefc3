/*
 * A shared object to preload: device memory, be it a GPU's or the CPU's, has no FAULT_BYTES in one
 * piece, as if another process had taken it since somebody looked.
 */
#include <dlfcn.h>
#include <stdlib.h>

static int too_many(size_t bytes)
{
    const char *least = getenv("FAULT_BYTES");
    return least && bytes >= strtoull(least, NULL, 10);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    static void *(*real)(size_t, size_t);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "aligned_alloc");
    return too_many(bytes) ? NULL : real(alignment, bytes);
}

int cudaMalloc(void **out, size_t bytes);
int cudaMalloc(void **out, size_t bytes)
{
    enum { MEMORY_ALLOCATION = 2 };
    static int (*real)(void **, size_t);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "cudaMalloc");
    return too_many(bytes) ? MEMORY_ALLOCATION : real(out, bytes);
}
