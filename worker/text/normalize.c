#include "worker/text/normalize.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text/unicode.h"
#include "worker/text/unicode_form.h"
#include "worker/text/utf8.h"

void normalize_scratch_fini(struct normalize_scratch *s)
{
    buf_fini(&s->text);
    buf_fini(&s->next);
    regex_cursor_fini(&s->cursor);
}

/* --- loading --- */

static int unsupported(struct err *err, const char *what)
{
    return err_set(err, ERR_UNSUPPORTED,
                   "this tokenizer's normalizer %.60s is not supported; supported are NFC, NFD, "
                   "NFKC, NFKD, Lowercase, Nmt, Strip, StripAccents, Prepend, Replace, Precompiled "
                   "and a Sequence of up to 32 of these",
                   what);
}

static int read_prepend(struct normalize_step *step, const json_t *json, struct err *err)
{
    const json_t *text = json_object_get(json, "prepend");

    if (!json_is_string(text) || json_string_length(text) > REPLACEMENT_MAX_CONTENT)
        return unsupported(err, "Prepend without a text, or with one of more than 1024 bytes,");
    buf_add(&step->prepend, json_string_value(text), json_string_length(text));
    return 0;
}

static bool get_flag(const json_t *json, const char *key)
{
    return json_is_true(json_object_get(json, key));
}

static int read_step(struct normalize_step *step, const json_t *json, struct err *err)
{
    const json_t *map = json_object_get(json, "precompiled_charsmap");

    switch (step->kind) {
    case NORMALIZE_STRIP:
        step->strip_left = get_flag(json, "strip_left");
        step->strip_right = get_flag(json, "strip_right");
        return 0;
    case NORMALIZE_PREPEND:
        return read_prepend(step, json, err);
    case NORMALIZE_REPLACE:
        return replacement_init(&step->replacement, json, err);
    case NORMALIZE_PRECOMPILED:
        if (!json_is_string(map))
            return unsupported(err, "Precompiled without a charsmap");
        return charsmap_init(&step->map, json_string_value(map), json_string_length(map), err);
    default:
        return 0;
    }
}

static int add_steps(struct normalizer *nz, const json_t *json, int nesting, struct err *err)
{
    static const char *const names[] = {
        [NORMALIZE_NFC] = "NFC",
        [NORMALIZE_NFD] = "NFD",
        [NORMALIZE_NFKC] = "NFKC",
        [NORMALIZE_NFKD] = "NFKD",
        [NORMALIZE_LOWERCASE] = "Lowercase",
        [NORMALIZE_NMT] = "Nmt",
        [NORMALIZE_STRIP_ACCENTS] = "StripAccents",
        [NORMALIZE_STRIP] = "Strip",
        [NORMALIZE_PREPEND] = "Prepend",
        [NORMALIZE_REPLACE] = "Replace",
        [NORMALIZE_PRECOMPILED] = "Precompiled",
    };
    const char *type = json_string_value(json_object_get(json, "type"));
    const json_t *inner = json_object_get(json, "normalizers");
    int rc = 0;

    if (type && strcmp(type, "Sequence") == 0 && nesting < NORMALIZE_MAX_STEPS) {
        for (size_t i = 0; rc == 0 && i < json_array_size(inner); i++)
            rc = add_steps(nz, json_array_get(inner, i), nesting + 1, err);
        return rc;
    }
    for (int i = 0; type && i <= NORMALIZE_PRECOMPILED && nz->n < NORMALIZE_MAX_STEPS; i++)
        if (strcmp(type, names[i]) == 0) {
            struct normalize_step *step = &nz->steps[nz->n++];
            step->kind = (enum normalize_kind)i;
            return read_step(step, json, err);
        }
    return unsupported(err, type ? type : "without a type");
}

int normalizer_init(struct normalizer *nz, const json_t *json, struct err *err)
{
    int rc = 0;

    memset(nz, 0, sizeof(*nz));
    if (json && !json_is_null(json))
        rc = add_steps(nz, json, 0, err);
    if (rc != 0)
        normalizer_fini(nz);
    return rc;
}

void normalizer_fini(struct normalizer *nz)
{
    for (int i = 0; i < nz->n; i++) {
        buf_fini(&nz->steps[i].prepend);
        replacement_fini(&nz->steps[i].replacement);
        charsmap_fini(&nz->steps[i].map);
    }
    memset(nz, 0, sizeof(*nz));
}

/* --- the steps --- */

static bool is_ascii(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] >= 0x80)
            return false;
    return true;
}

static void add_character(struct buf *out, uint32_t c)
{
    char text[4];

    buf_add(out, text, utf8_write(c, text));
}

/* Character by character, without the context rule for the final sigma, as the reference does. */
static void add_lowercase(const char *text, size_t n, struct buf *out)
{
    for (size_t i = 0, bytes; i < n; i += bytes) {
        uint32_t c = utf8_read(text + i, n - i, &bytes);
        if (c == 0x130) /* the one character whose lower case is two */
            buf_add_str(out, "i\xCC\x87");
        else
            add_character(out, unicode_to_lower(c));
    }
}

/* SentencePiece's rules for machine translation: 0 leaves the character out. */
static uint32_t nmt(uint32_t c)
{
    if ((c >= 1 && c <= 8) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F ||
        c == 0x9F)
        return 0;
    if (c == 9 || c == 10 || c == 12 || c == 13 || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
        c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD)
        return ' ';
    return c;
}

/* Returns whether the first character stayed. NUL is no control character here. */
static bool add_filtered(enum normalize_kind kind, const char *text, size_t n, struct buf *out)
{
    bool first_stays = true;

    for (size_t i = 0, bytes; i < n; i += bytes) {
        uint32_t c = utf8_read(text + i, n - i, &bytes);
        uint32_t kept = kind == NORMALIZE_NMT ? nmt(c) : unicode_is_mark(c) ? 0 : c;
        if (kept != 0 || c == 0)
            add_character(out, kept);
        else if (i == 0)
            first_stays = false;
    }
    return first_stays;
}

static bool add_stripped(const struct normalize_step *step, const char *text, size_t n,
                         struct buf *out)
{
    size_t start = 0, stop = n, bytes;

    while (step->strip_left && start < n &&
           unicode_is_space(utf8_read(text + start, n - start, &bytes)))
        start += bytes;
    while (step->strip_right && stop > start) {
        size_t at = utf8_step_back(text, stop);
        if (!unicode_is_space(utf8_read(text + at, n - at, &bytes)))
            break;
        stop = at;
    }
    buf_add(out, text + start, stop - start);
    return start == 0;
}

/* Appends the step's result to s->next. `text` is not empty. */
static int apply(const struct normalize_step *step, const char *text, size_t n,
                 struct normalize_scratch *s, enum text_place *place, struct err *err)
{
    bool stays = true;
    int rc = 0;

    switch (step->kind) {
    case NORMALIZE_NFC:
    case NORMALIZE_NFD:
    case NORMALIZE_NFKC:
    case NORMALIZE_NFKD:
        rc = unicode_form_add((enum unicode_form)step->kind, text, n, &s->next, err);
        break;
    case NORMALIZE_LOWERCASE:
        add_lowercase(text, n, &s->next);
        break;
    case NORMALIZE_NMT:
    case NORMALIZE_STRIP_ACCENTS:
        stays = add_filtered(step->kind, text, n, &s->next);
        break;
    case NORMALIZE_STRIP:
        stays = add_stripped(step, text, n, &s->next);
        break;
    case NORMALIZE_PREPEND:
        buf_add(&s->next, step->prepend.data, step->prepend.len);
        buf_add(&s->next, text, n);
        break;
    case NORMALIZE_REPLACE:
        rc = replacement_add(&step->replacement, text, n, &s->cursor, NORMALIZE_MAX_TEXT, &s->next,
                             &stays, err);
        break;
    case NORMALIZE_PRECOMPILED:
        rc = charsmap_add(&step->map, text, n, NORMALIZE_MAX_TEXT, &s->next, err);
        break;
    }
    if (*place == TEXT_BEGINS && !stays)
        *place = TEXT_FOLLOWS;
    if (rc == 0 && s->next.len > NORMALIZE_MAX_TEXT)
        rc = err_set(err, ERR_INVALID,
                     "the tokenizer's normalizer makes the text longer than %d bytes",
                     NORMALIZE_MAX_TEXT);
    return rc;
}

/* Does the step leave such a text as it is? */
static bool is_identity(const struct normalize_step *step, const char *text, size_t n,
                        enum text_place place)
{
    return n == 0 || (step->kind <= NORMALIZE_NFKD && is_ascii(text, n)) ||
           (step->kind == NORMALIZE_PREPEND && place == TEXT_CONTINUES);
}

int normalizer_run(const struct normalizer *nz, const char *text, size_t n,
                   struct normalize_scratch *s, enum text_place *place, const char **out,
                   size_t *out_n, struct err *err)
{
    int rc = 0;

    for (int i = 0; i < nz->n; i++) {
        if (is_identity(&nz->steps[i], text, n, *place))
            continue;
        buf_clear(&s->next);
        buf_reserve(&s->next, n + n / 4);
        TRY(apply(&nz->steps[i], text, n, s, place, err));
        struct buf swapped = s->text;
        s->text = s->next;
        s->next = swapped;
        text = buf_str(&s->text);
        n = s->text.len;
    }
    *out = text;
    *out_n = n;
out:
    return rc;
}
