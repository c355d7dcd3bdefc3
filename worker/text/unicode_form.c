#include "worker/text/unicode_form.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "worker/text/utf8.h"

enum { MAX_COMBINING_RUN = 4096 };

/* Newer than Unicode 9, with a decomposition or a combining class; U+11930 composes. */
static const uint32_t newer[][2] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},
    {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x10781, 0x10785}, {0x10787, 0x107B0},
    {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11938, 0x11938},
    {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E030, 0x1E06D},
    {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
    {0x1E4EC, 0x1E4EF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}};

static bool is_newer(uint32_t c)
{
    size_t low = 0, high = sizeof(newer) / sizeof(newer[0]);

    if (c < newer[0][0])
        return false;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (c > newer[mid][1])
            low = mid + 1;
        else if (c < newer[mid][0])
            high = mid;
        else
            return true;
    }
    return false;
}

/* Bytes up to the first newer character. ERR_INVALID for too long a run of marks. */
static int find_newer(const char *text, size_t n, size_t *length, struct err *err)
{
    int run = 0;
    size_t i = 0;

    for (size_t bytes; i < n; i += bytes) {
        uint32_t c = utf8_read(text + i, n - i, &bytes);
        if (is_newer(c))
            break;
        bool combines =
            c >= 0x300 && utf8proc_get_property((utf8proc_int32_t)c)->combining_class != 0;
        run = combines ? run + 1 : 0;
        if (run > MAX_COMBINING_RUN)
            return err_set(err, ERR_INVALID,
                           "the text has more than %d combining marks in a row, which is no "
                           "language; remove it",
                           MAX_COMBINING_RUN);
    }
    *length = i;
    return 0;
}

static int add_form(enum unicode_form form, const char *text, size_t n, struct buf *out,
                    struct err *err)
{
    static const int options[] = {
        [FORM_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [FORM_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [FORM_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [FORM_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    utf8proc_uint8_t *result = NULL;
    utf8proc_ssize_t length = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n,
                                           &result, (utf8proc_option_t)options[form]);

    if (length < 0)
        return err_set(err, length == UTF8PROC_ERROR_NOMEM ? ERR_NOMEM : ERR_INVALID,
                       "the text cannot be brought into its Unicode normal form: %s",
                       utf8proc_errmsg(length));
    buf_add(out, result, (size_t)length);
    free(result);
    return 0;
}

int unicode_form_add(enum unicode_form form, const char *text, size_t n, struct buf *out,
                     struct err *err)
{
    size_t length = 0, bytes;
    int rc = 0;

    while (n > 0) {
        TRY(find_newer(text, n, &length, err));
        if (length > 0)
            TRY(add_form(form, text, length, out, err));
        text += length;
        n -= length;
        if (n == 0)
            break;
        utf8_read(text, n, &bytes);
        buf_add(out, text, bytes);
        text += bytes;
        n -= bytes;
    }
out:
    return rc;
}
