/*
 * Pages of host memory. The system gives an address before it gives memory: a page is taken when it
 * is first written, and then nobody can be told any more that there is none left.
 */
#ifndef CASTOR_KERNELS_HOST_PAGES_H
#define CASTOR_KERNELS_HOST_PAGES_H

#include <stddef.h>

/* Of a block that begins at a multiple of it, the system may make large pages: fewer to fetch and
 * to register with a driver, and a disk's request is a piece of memory instead of hundreds. */
enum { HOST_PAGE_LARGE = 2 << 20 };

/* Ask for large pages in [at, at + bytes), which begins at a multiple of HOST_PAGE_LARGE, before
 * they are fetched. Only a wish: a system that makes none says nothing. */
void host_pages_wish_large(void *at, size_t bytes);

/* Fetch the pages that hold [at, at + bytes), which begins at one. Changes nothing in them; another
 * thread may write there meanwhile. */
void host_pages_fetch(void *at, size_t bytes);

#endif
