#include "worker/text/normalize.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "worker/text/utf8.h"

enum { MAX_COMBINING_RUN = 4096 };

static int add_steps(struct normalizer *nz, const json_t *json, int nesting, struct err *err)
{
    static const char *const names[] = {
        [NORMALIZE_NFC] = "NFC",
        [NORMALIZE_NFD] = "NFD",
        [NORMALIZE_NFKC] = "NFKC",
        [NORMALIZE_NFKD] = "NFKD",
        [NORMALIZE_LOWERCASE] = "Lowercase",
    };
    const char *type = json_string_value(json_object_get(json, "type"));
    const json_t *inner = json_object_get(json, "normalizers");
    int rc = 0;

    if (type && strcmp(type, "Sequence") == 0 && nesting < NORMALIZE_MAX_STEPS) {
        for (size_t i = 0; rc == 0 && i < json_array_size(inner); i++)
            rc = add_steps(nz, json_array_get(inner, i), nesting + 1, err);
        return rc;
    }
    for (int i = 0; type && i <= NORMALIZE_LOWERCASE && nz->n < NORMALIZE_MAX_STEPS; i++)
        if (strcmp(type, names[i]) == 0) {
            nz->steps[nz->n++] = (enum normalize_step)i;
            return 0;
        }
    return err_set(err, ERR_UNSUPPORTED,
                   "this tokenizer's normalizer %.60s is not supported; supported are NFC, NFD, "
                   "NFKC, NFKD, Lowercase and a Sequence of up to 8 of these",
                   type ? type : "(without a type)");
}

int normalizer_init(struct normalizer *nz, const json_t *json, struct err *err)
{
    struct normalizer all = {0};
    int rc = json && !json_is_null(json) ? add_steps(&all, json, 0, err) : 0;

    if (rc == 0)
        *nz = all;
    return rc;
}

static bool is_ascii(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] >= 0x80)
            return false;
    return true;
}

static bool has_long_combining_run(const char *text, size_t n)
{
    int run = 0;

    for (size_t i = 0, bytes; i < n; i += bytes) {
        utf8proc_int32_t c = (utf8proc_int32_t)utf8_read(text + i, n - i, &bytes);
        run = c >= 0x300 && utf8proc_get_property(c)->combining_class != 0 ? run + 1 : 0;
        if (run > MAX_COMBINING_RUN)
            return true;
    }
    return false;
}

static int apply_form(enum normalize_step step, struct buf *work, struct err *err)
{
    static const int options[] = {
        [NORMALIZE_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [NORMALIZE_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [NORMALIZE_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [NORMALIZE_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    utf8proc_uint8_t *result = NULL;

    if (has_long_combining_run(work->data, work->len))
        return err_set(err, ERR_INVALID,
                       "the text has more than %d combining marks in a row, which is no language; "
                       "remove it",
                       MAX_COMBINING_RUN);
    utf8proc_ssize_t n =
        utf8proc_map((const utf8proc_uint8_t *)work->data, (utf8proc_ssize_t)work->len, &result,
                     (utf8proc_option_t)options[step]);
    if (n < 0)
        return err_set(err, n == UTF8PROC_ERROR_NOMEM ? ERR_NOMEM : ERR_INVALID,
                       "the text cannot be brought into its Unicode normal form: %s",
                       utf8proc_errmsg(n));
    buf_clear(work);
    buf_add(work, result, (size_t)n);
    free(result);
    return 0;
}

/* Character by character, without the context rule for the final sigma, as the reference does. */
static void apply_lowercase(struct buf *work)
{
    struct buf lower = {0};
    char text[4];

    buf_reserve(&lower, work->len);
    for (size_t i = 0, bytes; i < work->len; i += bytes) {
        uint32_t c = utf8_read(work->data + i, work->len - i, &bytes);
        if (c == 0x130) /* the one character whose lower case is two */
            buf_add_str(&lower, "i\xCC\x87");
        else
            buf_add(&lower, text,
                    utf8_write((uint32_t)utf8proc_tolower((utf8proc_int32_t)c), text));
    }
    buf_fini(work);
    *work = lower;
}

int normalizer_run(const struct normalizer *nz, const char *text, size_t n, struct buf *work,
                   const char **out, size_t *out_n, struct err *err)
{
    bool lowers = false;
    int rc = 0;

    for (int i = 0; i < nz->n; i++)
        lowers |= nz->steps[i] == NORMALIZE_LOWERCASE;
    if (nz->n > 0 && n > 0 && (lowers || !is_ascii(text, n))) {
        buf_clear(work);
        buf_add(work, text, n);
        for (int i = 0; i < nz->n; i++) {
            if (nz->steps[i] == NORMALIZE_LOWERCASE)
                apply_lowercase(work);
            else
                TRY(apply_form(nz->steps[i], work, err));
        }
        text = buf_str(work);
        n = work->len;
    }
    *out = text;
    *out_n = n;
out:
    return rc;
}
