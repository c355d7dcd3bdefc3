#include "worker/text/regex.h"

#include <oniguruma.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "worker/text/utf8.h"

enum {
    MAX_PATTERN = 16384,
    MAX_STACK = 64 << 20, /* entries of some 50 bytes; a 10 MB run of letters takes one a letter */
    MAX_RETRIES = 50 << 20, /* a second or so */
};

struct regex {
    regex_t *onig;
    bool is_gpt2;
};

const char REGEX_GPT2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void initialize(void)
{
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};

    onig_initialize(encodings, 1);
}

/* Oniguruma's own words for a result code. */
static void explain(int code, OnigErrorInfo *info, char out[ONIG_MAX_ERROR_MESSAGE_LEN])
{
    int n = info ? onig_error_code_to_str((UChar *)out, code, info)
                 : onig_error_code_to_str((UChar *)out, code);

    out[n > 0 && n < ONIG_MAX_ERROR_MESSAGE_LEN ? n : 0] = '\0';
}

static void add_escaped(struct buf *out, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (text[i] && strchr("\\.+*?()|[]{}^$#&-~", text[i]))
            buf_add_char(out, '\\');
        buf_add_char(out, text[i]);
    }
}

int regex_create(const char *pattern, size_t n, bool literal, struct regex **out, struct err *err)
{
    char text[ONIG_MAX_ERROR_MESSAGE_LEN];
    struct buf source = {0};
    OnigErrorInfo info;
    regex_t *onig = NULL;
    int rc = 0;

    pthread_once(&once, initialize);
    if (n > MAX_PATTERN)
        return err_set(err, ERR_INVALID, "the tokenizer has a pattern of %zu bytes; %d are allowed",
                       n, MAX_PATTERN);
    if (literal)
        add_escaped(&source, pattern, n);
    else
        buf_add(&source, pattern, n);
    const UChar *p = (const UChar *)buf_str(&source);
    int code = onig_new(&onig, p, p + source.len, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                        ONIG_SYNTAX_DEFAULT, &info);
    if (code != ONIG_NORMAL) {
        explain(code, &info, text);
        rc = err_set(err, ERR_INVALID, "the tokenizer has a pattern that does not compile: %s",
                     text);
    } else {
        *out = xcalloc(1, sizeof(**out));
        (*out)->onig = onig;
        (*out)->is_gpt2 = !literal && strcmp(buf_str(&source), REGEX_GPT2) == 0;
    }
    buf_fini(&source);
    return rc;
}

void regex_destroy(struct regex *r)
{
    if (!r)
        return;
    onig_free(r->onig);
    free(r);
}

void regex_cursor_start(struct regex_cursor *c, const struct regex *r, const char *text, size_t n)
{
    c->regex = r;
    c->text = text;
    c->n = n;
    c->at = 0;
    c->last_match_end = SIZE_MAX;
}

void regex_cursor_fini(struct regex_cursor *c)
{
    if (c->region)
        onig_region_free(c->region, 1);
    if (c->limits)
        onig_free_match_param(c->limits);
    memset(c, 0, sizeof(*c));
}

/* --- GPT-2's pattern on ASCII --- */

enum ascii_class { ASCII_OTHER, ASCII_LETTER, ASCII_DIGIT, ASCII_SPACE, NOT_ASCII };

static enum ascii_class class_of(unsigned char c)
{
    if (c >= 0x80)
        return NOT_ASCII;
    if ((c | 32) >= 'a' && (c | 32) <= 'z')
        return ASCII_LETTER;
    if (c >= '0' && c <= '9')
        return ASCII_DIGIT;
    return c == ' ' || (c >= '\t' && c <= '\r') ? ASCII_SPACE : ASCII_OTHER;
}

/* Length of 's 't 're 've 'm 'll 'd at p, or 0. */
static size_t contraction(const char *p, size_t n)
{
    if (n < 2 || p[0] != '\'')
        return 0;
    if (p[1] == 's' || p[1] == 't' || p[1] == 'm' || p[1] == 'd')
        return 2;
    if (n < 3)
        return 0;
    return ((p[1] == 'r' || p[1] == 'v') && p[2] == 'e') || (p[1] == 'l' && p[2] == 'l') ? 3 : 0;
}

/* End of GPT-2's match at `at`, or 0 when a character beyond ASCII has a say in it. */
static size_t gpt2_match(const char *text, size_t n, size_t at)
{
    size_t length = contraction(text + at, n - at);

    if (length > 0)
        return at + length;
    size_t i = at + (text[at] == ' ' && at + 1 < n &&
                     class_of((unsigned char)text[at + 1]) != ASCII_SPACE);
    enum ascii_class kind = class_of((unsigned char)text[i]), stop = kind;
    while (kind != NOT_ASCII && ++i < n && (stop = class_of((unsigned char)text[i])) == kind)
        ;
    if (kind == NOT_ASCII || (i < n && stop == NOT_ASCII))
        return 0;
    /* \s+(?!\S): the last space of several stays with the word behind it. */
    if (kind == ASCII_SPACE && i < n && i - at > 1)
        i--;
    return i;
}

/* --- searching --- */

static int search(struct regex_cursor *c, bool *found, size_t *start, size_t *end, struct err *err)
{
    const UChar *text = (const UChar *)c->text, *stop = text + c->n;
    char reason[ONIG_MAX_ERROR_MESSAGE_LEN];
    OnigRegion *region;

    if (!c->region)
        c->region = onig_region_new();
    if (!c->limits) {
        c->limits = onig_new_match_param();
        onig_initialize_match_param(c->limits);
        onig_set_match_stack_limit_size_of_match_param(c->limits, MAX_STACK);
        onig_set_retry_limit_in_match_of_match_param(c->limits, MAX_RETRIES);
        onig_set_retry_limit_in_search_of_match_param(c->limits, MAX_RETRIES);
    }
    region = c->region;
    onig_region_clear(region);
    int code = onig_search_with_param(c->regex->onig, text, stop, text + c->at, stop, region,
                                      ONIG_OPTION_NONE, c->limits);
    *found = code >= 0;
    if (code >= 0) {
        *start = (size_t)region->beg[0];
        *end = (size_t)region->end[0];
        return 0;
    }
    if (code == ONIG_MISMATCH)
        return 0;
    explain(code, NULL, reason);
    return err_set(err, ERR_INVALID,
                   "the tokenizer's pattern gave up on this text (%s); the text has a run of "
                   "similar characters that is too long for it",
                   reason);
}

int regex_next(struct regex_cursor *c, bool *found, size_t *start, size_t *end, struct err *err)
{
    while (c->at <= c->n) {
        if (c->regex->is_gpt2 && c->at < c->n) {
            size_t stop = gpt2_match(c->text, c->n, c->at);
            if (stop > 0) {
                *start = c->at;
                *end = c->at = c->last_match_end = stop;
                *found = true;
                return 0;
            }
        }
        int rc = search(c, found, start, end, err);
        if (rc != 0)
            return rc;
        if (!*found)
            return 0;
        if (*start != *end || *end != c->last_match_end) {
            c->at = c->last_match_end = *end;
            return 0;
        }
        size_t bytes = 1;
        if (c->at < c->n)
            utf8_read(c->text + c->at, c->n - c->at, &bytes);
        c->at += bytes;
    }
    *found = false;
    return 0;
}
