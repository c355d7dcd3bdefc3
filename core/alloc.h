/*
 * Host allocations for the program's own bookkeeping. These abort with a message when memory is
 * exhausted: nothing sensible can be done about a failed 200-byte allocation. Sizes that come from
 * outside (a file's header, a request, a model) never go through here unchecked: use alloc_try,
 * which reports ERR_NOMEM. All results are freed with free().
 */
#ifndef CASTOR_CORE_ALLOC_H
#define CASTOR_CORE_ALLOC_H

#include <stddef.h>

#include "core/err.h"

void *xmalloc(size_t bytes);
void *xcalloc(size_t count, size_t bytes_each); /* zeroed; overflow aborts */
void *xrealloc(void *p, size_t bytes);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t max_bytes);
/* printf into a fresh string. */
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* count * bytes_each bytes, zeroed, or ERR_NOMEM with `what` and the size in the text. */
int alloc_try(void **out, size_t count, size_t bytes_each, const char *what, struct err *err);

#endif
