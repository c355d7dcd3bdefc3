#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/err.h"

Test(err, set_returns_the_code_and_formats_the_text)
{
    struct err err = {0};

    cr_assert_eq(err_set(&err, ERR_NOT_FOUND, "no job %s, %d left", "a", 3), ERR_NOT_FOUND);
    cr_assert_eq(err.code, ERR_NOT_FOUND);
    cr_assert_str_eq(err.msg, "no job a, 3 left");
    cr_assert_str_eq(err.param, "");
    cr_assert_str_eq(err.reason, "");
}

Test(err, first_error_wins)
{
    struct err err = {0};

    err_set(&err, ERR_IO, "cause");
    err_set_reason(&err, ERR_IO, "first");
    cr_assert_eq(err_set(&err, ERR_INVALID, "cleanup"), ERR_IO);
    cr_assert_eq(err_set_errno(&err, ENOSPC, "cleanup"), ERR_IO);
    cr_assert_str_eq(err.msg, "cause");
    cr_assert_str_eq(err.reason, "first");
}

Test(err, null_err_still_carries_the_code)
{
    cr_assert_eq(err_set(NULL, ERR_NET, "x"), ERR_NET);
    cr_assert_eq(err_set_errno(NULL, ENOENT, "x"), ERR_NOT_FOUND);
    cr_assert_eq(err_wrap(NULL, ERR_PEER, "x"), ERR_PEER);
    cr_assert_eq(err_set_param(NULL, ERR_PEER, "x"), ERR_PEER);
    cr_assert_eq(err_set_reason(NULL, ERR_PEER, "x"), ERR_PEER);
    err_clear(NULL);
}

Test(err, errno_maps_to_codes_and_appends_its_text)
{
    static const struct {
        int e;
        enum err_code code;
    } rows[] = {{ENOSPC, ERR_NOSPACE},    {EDQUOT, ERR_NOSPACE},   {ENOENT, ERR_NOT_FOUND},
                {EACCES, ERR_PERMISSION}, {EPERM, ERR_PERMISSION}, {EROFS, ERR_PERMISSION},
                {ENOMEM, ERR_NOMEM},      {EIO, ERR_IO},           {EFBIG, ERR_IO}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct err err = {0};
        char wanted[128];
        cr_assert_eq(err_set_errno(&err, rows[i].e, "open %s", "f"), rows[i].code);
        snprintf(wanted, sizeof(wanted), "open f: %s", strerror(rows[i].e));
        cr_assert_str_eq(err.msg, wanted);
    }
}

Test(err, errno_text_survives_a_long_context)
{
    struct err err = {0};
    char name[2000];

    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    err_set_errno(&err, ENOSPC, "write %s", name);
    cr_assert_not_null(strstr(err.msg, ": No space left on device"));
}

Test(err, wrap_prefixes_and_keeps_the_rest)
{
    struct err err = {0};

    err_set(&err, ERR_CORRUPT, "bad header");
    err_set_param(&err, ERR_CORRUPT, "model");
    cr_assert_eq(err_wrap(&err, ERR_CORRUPT, "loading layer %d", 3), ERR_CORRUPT);
    cr_assert_str_eq(err.msg, "loading layer 3: bad header");
    cr_assert_str_eq(err.param, "model");
}

Test(err, wrap_of_a_code_without_text)
{
    struct err err = {0};

    cr_assert_eq(err_wrap(&err, ERR_TIMEOUT, "joining"), ERR_TIMEOUT);
    cr_assert_eq(err.code, ERR_TIMEOUT);
    cr_assert_str_eq(err.msg, "joining");
    err_clear(&err);
    cr_assert_eq(err_wrap(&err, 0, "nothing happened"), 0);
    cr_assert_eq(err.code, ERR_OK);
    cr_assert_str_eq(err.msg, "");
}

Test(err, param_and_reason_are_cut_to_fit)
{
    struct err err = {0};
    char name[300];

    memset(name, 'p', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    err_set(&err, ERR_INVALID, "x");
    cr_assert_eq(err_set_param(&err, ERR_INVALID, name), ERR_INVALID);
    cr_assert_eq(err_set_reason(&err, ERR_INVALID, name), ERR_INVALID);
    cr_assert_eq(strlen(err.param), sizeof(err.param) - 1);
    cr_assert_eq(strlen(err.reason), sizeof(err.reason) - 1);
}

Test(err, clear_allows_a_new_error)
{
    struct err err = {0};

    err_set(&err, ERR_IO, "old");
    err_set_param(&err, ERR_IO, "old");
    err_clear(&err);
    cr_assert_eq(err_set(&err, ERR_NET, "new"), ERR_NET);
    cr_assert_str_eq(err.msg, "new");
    cr_assert_str_eq(err.param, "");
}

/* Texts go into JSON, so they are UTF-8 whatever they quote and wherever they are cut. */
Test(err, text_is_always_utf8)
{
    struct err err = {0};
    char name[2000] = "a";

    err_set(&err, ERR_IO, "%s", "ok \xC3\xA9 \xF0\x9F\x98\x80 bad \xFF \xC0\xAF \xED\xA0\x80.");
    cr_assert_str_eq(err.msg, "ok \xC3\xA9 \xF0\x9F\x98\x80 bad ? ?? ???.");
    err_clear(&err);
    for (int i = 1; i + 3 < (int)sizeof(name); i += 3)
        memcpy(name + i, "\xE2\x82\xAC", 4); /* the euro sign, three bytes */
    err_set(&err, ERR_IO, "%s", name);
    size_t n = strlen(err.msg);
    cr_assert_eq(n, 766, "767 bytes fit: one letter and 255 signs; got %zu", n);
    cr_assert_eq(memcmp(err.msg + n - 3, "\xE2\x82\xAC", 3), 0);
    cr_assert_null(strchr(err.msg, '?'));
}

Test(err, code_names_are_there_and_invert)
{
    for (int i = ERR_OK; i <= ERR_INTERNAL; i++) {
        const char *name = err_code_name((enum err_code)i);
        cr_assert_not_null(name);
        cr_assert_eq(err_code_from_name(name), i, "%s", name);
    }
    cr_assert_str_eq(err_code_name(ERR_DEVICE_OOM), "device_oom");
    cr_assert_str_eq(err_code_name((enum err_code)999), "internal");
    cr_assert_eq(err_code_from_name("no such"), ERR_INTERNAL);
    cr_assert_eq(err_code_from_name(""), ERR_INTERNAL);
    cr_assert_eq(err_code_from_name(NULL), ERR_INTERNAL);
}

static int try_and_clean_up(int code, int *cleaned)
{
    int rc = 0;

    TRY(code);
    *cleaned += 10;
out:
    *cleaned += 1;
    return rc;
}

Test(err, try_leaves_through_out)
{
    int cleaned = 0;

    cr_assert_eq(try_and_clean_up(ERR_PEER, &cleaned), ERR_PEER);
    cr_assert_eq(cleaned, 1);
    cr_assert_eq(try_and_clean_up(0, &cleaned), 0);
    cr_assert_eq(cleaned, 12);
}
