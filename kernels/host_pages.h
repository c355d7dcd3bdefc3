/*
 * Pages of host memory. The system gives an address before it gives memory: a page is taken when it
 * is first written, and then nobody can be told any more that there is none left.
 */
#ifndef CASTOR_KERNELS_HOST_PAGES_H
#define CASTOR_KERNELS_HOST_PAGES_H

#include <stddef.h>

/* Fetch the pages that hold [at, at + bytes), which begins at one. Changes nothing in them; another
 * thread may write there meanwhile. */
void host_pages_fetch(void *at, size_t bytes);

#endif
