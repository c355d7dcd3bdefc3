#include "kernels/host_pages.h"

#include <sys/mman.h>

enum { PAGE = 4096 };

void host_pages_wish_large(void *at, size_t bytes)
{
    (void)madvise(at, bytes, MADV_HUGEPAGE);
}

void host_pages_fetch(void *at, size_t bytes)
{
    char *first = at;
    if (madvise(at, bytes, MADV_POPULATE_WRITE) == 0)
        return;
    for (size_t i = 0; i < bytes; i += PAGE) /* a kernel before 5.14 */
        __atomic_fetch_or(first + i, 0, __ATOMIC_RELAXED);
}
