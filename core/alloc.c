#include "core/alloc.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Noreturn void die_out_of_memory(size_t bytes)
{
    fprintf(stderr, "out of memory: %zu bytes asked for\n", bytes);
    abort();
}

/* A request of 0 bytes gets an own byte: NULL then always means failure. */
void *xmalloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);

    if (!p)
        die_out_of_memory(bytes);
    return p;
}

void *xcalloc(size_t count, size_t bytes_each)
{
    void *p = count && bytes_each ? calloc(count, bytes_each) : calloc(1, 1);

    if (!p)
        die_out_of_memory(bytes_each && count > SIZE_MAX / bytes_each ? SIZE_MAX
                                                                      : count * bytes_each);
    return p;
}

void *xrealloc(void *p, size_t bytes)
{
    void *q = realloc(p, bytes ? bytes : 1);

    if (!q)
        die_out_of_memory(bytes);
    return q;
}

char *xstrdup(const char *s)
{
    return xstrndup(s, SIZE_MAX);
}

char *xstrndup(const char *s, size_t max_bytes)
{
    size_t n = max_bytes == SIZE_MAX ? strlen(s) : strnlen(s, max_bytes);
    char *copy = xmalloc(n + 1);

    memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

char *xasprintf(const char *fmt, ...)
{
    char *text = NULL;
    va_list args;

    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    if (n < 0)
        die_out_of_memory(0);
    return text;
}

int alloc_try(void **out, size_t count, size_t bytes_each, const char *what, struct err *err)
{
    void *p;

    if (bytes_each != 0 && count > SIZE_MAX / bytes_each)
        return err_set(err, ERR_NOMEM, "%s needs %zu times %zu bytes, more than can be addressed",
                       what, count, bytes_each);
    p = count && bytes_each ? calloc(count, bytes_each) : calloc(1, 1);
    if (!p)
        return err_set(err, ERR_NOMEM, "%s needs %zu bytes of host memory, which are not available",
                       what, count * bytes_each);
    *out = p;
    return 0;
}
