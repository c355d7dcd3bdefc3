#include <criterion/criterion.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

Test(alloc, zero_bytes_is_not_null)
{
    void *a = xmalloc(0);
    void *b = xcalloc(0, 8);
    void *c = xcalloc(8, 0);
    void *d = xrealloc(NULL, 0);

    cr_assert(a && b && c && d);
    d = xrealloc(d, 0);
    cr_assert_not_null(d);
    free(a);
    free(b);
    free(c);
    free(d);
}

Test(alloc, calloc_is_zeroed_and_realloc_keeps_content)
{
    unsigned char *p = xcalloc(100, 10);

    for (int i = 0; i < 1000; i++)
        cr_assert_eq(p[i], 0);
    memcpy(p, "content", 8);
    p = xrealloc(p, 1 << 20);
    cr_assert_str_eq((char *)p, "content");
    free(p);
}

Test(alloc, strings)
{
    char *a = xstrdup("hello");
    char *b = xstrndup("hello", 2);
    char *c = xstrndup("hi", 100);
    char *d = xasprintf("%s-%05d", "job", 42);
    char *e = xstrdup("");
    char not_terminated[3] = {'a', 'b', 'c'};
    char *f = xstrndup(not_terminated, 3);

    cr_assert_str_eq(a, "hello");
    cr_assert_str_eq(b, "he");
    cr_assert_str_eq(c, "hi");
    cr_assert_str_eq(d, "job-00042");
    cr_assert_str_eq(e, "");
    cr_assert_str_eq(f, "abc");
    free(a);
    free(b);
    free(c);
    free(d);
    free(e);
    free(f);
}

/* volatile: the compiler would otherwise warn about a size that is knowingly absurd. */
static volatile size_t huge = SIZE_MAX / 2 + 1;

#ifndef __SANITIZE_ADDRESS__ /* which ends the program itself, with exit 1, for such sizes */
Test(alloc, malloc_of_too_much_aborts, .signal = SIGABRT)
{
    free(xmalloc(huge));
}

Test(alloc, calloc_overflow_aborts, .signal = SIGABRT)
{
    free(xcalloc(huge, 2));
}

Test(alloc, realloc_of_too_much_aborts, .signal = SIGABRT)
{
    free(xrealloc(NULL, huge));
}

Test(alloc, try_reports_what_does_not_fit)
{
    struct err err = {0};
    void *p = &err;

    cr_assert_eq(alloc_try(&p, huge, 1, "the tokenizer", &err), ERR_NOMEM);
    cr_assert_eq(p, &err, "the out-parameter is untouched");
    cr_assert_not_null(strstr(err.msg, "the tokenizer"));
    cr_assert_not_null(strstr(err.msg, "9223372036854775808"));
}
#endif

Test(alloc, try_gives_zeroed_memory)
{
    struct err err = {0};
    void *p = NULL;
    void *none = NULL;

    cr_assert_eq(alloc_try(&p, 1000, 4, "x", &err), 0);
    for (int i = 0; i < 1000; i++)
        cr_assert_eq(((int32_t *)p)[i], 0);
    cr_assert_eq(alloc_try(&none, 0, 4, "x", &err), 0);
    cr_assert_not_null(none);
    free(p);
    free(none);
}

Test(alloc, try_refuses_an_overflowing_product)
{
    struct err err = {0};
    void *p = &err;

    /* 2^63 * 2 wraps to 0, which malloc would gladly give. */
    cr_assert_eq(alloc_try(&p, huge, 2, "weights", &err), ERR_NOMEM);
    cr_assert_eq(p, &err);
    cr_assert_not_null(strstr(err.msg, "weights"));
}
