#include "worker/text/decode.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/byte_alphabet.h"
#include "worker/text/utf8.h"

/* --- loading --- */

static int unsupported(struct err *err, const char *what)
{
    return err_set(err, ERR_UNSUPPORTED,
                   "this tokenizer's decoder %.60s is not supported; supported are ByteLevel, "
                   "Metaspace, Replace, Strip, ByteFallback, Fuse and Sequence",
                   what);
}

static struct decode_step *add_step(struct decoder *d, enum decode_kind kind)
{
    d->steps[d->n].kind = kind;
    return &d->steps[d->n++];
}

static bool read_mark(struct decode_step *step, const json_t *value)
{
    size_t n = json_string_length(value);

    if (n == 0 || n > sizeof(step->mark))
        return false;
    utf8_read(json_string_value(value), n, &step->mark_n);
    memcpy(step->mark, json_string_value(value), n);
    return step->mark_n == n;
}

static int add_strip(struct decoder *d, const json_t *json, struct err *err)
{
    const json_t *start = json_object_get(json, "start"), *stop = json_object_get(json, "stop");
    struct decode_step *step = add_step(d, DECODE_STRIP);

    step->start = json_integer_value(start);
    step->stop = json_integer_value(stop);
    if (!read_mark(step, json_object_get(json, "content")) || step->start < 0 || step->stop < 0)
        return unsupported(err, "Strip without a character and numbers");
    return 0;
}

static int add_metaspace(struct decoder *d, const json_t *json, struct err *err)
{
    struct decode_step *step = add_step(d, DECODE_METASPACE);
    const char *scheme = json_string_value(json_object_get(json, "prepend_scheme"));

    step->keeps_first = (scheme && strcmp(scheme, "never") == 0) ||
                        json_is_false(json_object_get(json, "add_prefix_space"));
    if (!read_mark(step, json_object_get(json, "replacement")))
        return unsupported(err, "Metaspace without a replacement character");
    return 0;
}

static int add_any(struct decoder *d, const json_t *json, int nesting, struct err *err)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    const json_t *inner = json_object_get(json, "decoders");
    int rc = 0;

    if (!type)
        return unsupported(err, "without a type");
    if (strcmp(type, "Sequence") == 0 && nesting < DECODE_MAX_STEPS) {
        for (size_t i = 0; rc == 0 && i < json_array_size(inner); i++)
            rc = add_any(d, json_array_get(inner, i), nesting + 1, err);
        return rc;
    }
    if (d->n + 2 > DECODE_MAX_STEPS)
        return unsupported(err, "chain of more than 15 steps");
    if (strcmp(type, "ByteLevel") == 0) {
        add_step(d, DECODE_BYTES);
        add_step(d, DECODE_LOSSY);
    } else if (strcmp(type, "Replace") == 0) {
        return replacement_init(&add_step(d, DECODE_REPLACE)->replacement, json, err);
    } else if (strcmp(type, "Strip") == 0) {
        return add_strip(d, json, err);
    } else if (strcmp(type, "Metaspace") == 0) {
        return add_metaspace(d, json, err);
    } else if (strcmp(type, "ByteFallback") == 0) {
        add_step(d, DECODE_BYTE_FALLBACK);
    } else if (strcmp(type, "Fuse") == 0) {
        add_step(d, DECODE_FUSE);
    } else {
        return unsupported(err, type);
    }
    return 0;
}

/* The steps that see one token at a time. */
static void settle(struct decoder *d)
{
    while (d->n_done < d->n && d->steps[d->n_done].kind <= DECODE_BYTES)
        d->n_done++;
}

int decoder_init(struct decoder *d, const json_t *json, struct err *err)
{
    int rc = 0;

    memset(d, 0, sizeof(*d));
    d->spaced = !json || json_is_null(json);
    if (!d->spaced)
        rc = add_any(d, json, 0, err);
    settle(d);
    if (rc != 0)
        decoder_fini(d);
    return rc;
}

int decoder_init_byte_level(struct decoder *d, struct err *err)
{
    (void)err;
    memset(d, 0, sizeof(*d));
    add_step(d, DECODE_BYTES);
    add_step(d, DECODE_LOSSY);
    settle(d);
    return 0;
}

void decoder_fini(struct decoder *d)
{
    for (int i = 0; i < d->n; i++)
        replacement_fini(&d->steps[i].replacement);
    buf_fini(&d->bytes);
    buf_fini(&d->work);
    regex_cursor_fini(&d->cursor);
    free(d->offset);
    free(d->length);
    free(d->special);
    memset(d, 0, sizeof(*d));
}

int decoder_reserve(struct decoder *d, int64_t n_ids, struct err *err)
{
    void *offset = NULL, *length = NULL, *special = NULL;
    int rc = 0;

    TRY(alloc_try(&offset, (size_t)n_ids, sizeof(*d->offset), "the decoder's table", err));
    TRY(alloc_try(&length, (size_t)n_ids, sizeof(*d->length), "the decoder's table", err));
    TRY(alloc_try(&special, (size_t)n_ids, sizeof(*d->special), "the decoder's table", err));
    for (int64_t i = 0; i < n_ids; i++)
        ((uint32_t *)length)[i] = DECODE_ABSENT;
    d->offset = offset;
    d->length = length;
    d->special = special;
    d->n_ids = n_ids;
    return 0;
out:
    free(offset);
    free(length);
    free(special);
    return rc;
}

/* --- steps that see one token --- */

static bool is_mark(const struct decode_step *step, const char *at, size_t n)
{
    return n >= step->mark_n && memcmp(at, step->mark, step->mark_n) == 0;
}

static void add_stripped(const struct decode_step *step, const char *token, size_t n,
                         struct buf *out)
{
    size_t start = 0, stop = n;

    for (int64_t i = 0; i < step->start && is_mark(step, token + start, n - start); i++)
        start += step->mark_n;
    for (int64_t i = 0; i < step->stop && stop >= start + step->mark_n; i++) {
        if (!is_mark(step, token + stop - step->mark_n, step->mark_n))
            break;
        stop -= step->mark_n;
    }
    buf_add(out, token + start, stop - start);
}

static int add_token(const struct decode_step *step, const char *token, size_t n,
                     struct regex_cursor *cursor, struct buf *out, struct err *err)
{
    bool stays;

    switch (step->kind) {
    case DECODE_REPLACE:
        return replacement_add(&step->replacement, token, n, cursor, DECODE_MAX_TEXT, out, &stays,
                               err);
    case DECODE_STRIP:
        add_stripped(step, token, n, out);
        return 0;
    default:
        /* A token that is not written in the byte alphabet stands for itself. */
        if (!byte_alphabet_to_bytes(token, n, out))
            buf_add(out, token, n);
        return 0;
    }
}

int decoder_set(struct decoder *d, int32_t id, const char *token, size_t n, bool special,
                struct err *err)
{
    struct buf made = {0};
    size_t start = d->bytes.len;
    int rc = 0;

    buf_clear(&d->work);
    buf_add(&d->work, token, n);
    for (int i = 0; i < d->n_done; i++) {
        buf_clear(&made);
        TRY(add_token(&d->steps[i], buf_str(&d->work), d->work.len, &d->cursor, &made, err));
        struct buf swapped = d->work;
        d->work = made;
        made = swapped;
    }
    if (start + d->work.len >= UINT32_MAX || d->work.len > DECODE_MAX_TEXT) {
        rc = err_set(err, ERR_INVALID, "the tokenizer's tokens are too long");
        goto out;
    }
    buf_add(&d->bytes, d->work.data, d->work.len);
    d->offset[id] = (uint32_t)start;
    d->length[id] = (uint32_t)d->work.len;
    d->special[id] = special;
out:
    buf_fini(&made);
    return rc;
}

/* --- steps that see all tokens --- */

/* The tokens as they are by now: texts one behind the other, and their lengths. */
struct token_texts {
    struct buf text;
    size_t *lengths;
    size_t n, cap;
};

static void texts_end(struct token_texts *t, size_t start)
{
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 256;
        t->lengths = xrealloc(t->lengths, t->cap * sizeof(*t->lengths));
    }
    t->lengths[t->n++] = t->text.len - start;
}

static void texts_add(struct token_texts *t, const char *text, size_t n)
{
    size_t start = t->text.len;

    buf_add(&t->text, text, n);
    texts_end(t, start);
}

static void texts_clear(struct token_texts *t)
{
    buf_clear(&t->text);
    t->n = 0;
}

static void texts_fini(struct token_texts *t)
{
    buf_fini(&t->text);
    free(t->lengths);
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte of "<0x41>", or -1. The reference's parser lets "<0x+1>" pass, too. */
static int fallback_byte(const char *token, size_t n)
{
    if (n != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>')
        return -1;
    int high = token[3] == '+' ? 0 : hex_digit(token[3]), low = hex_digit(token[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* A run of byte tokens is a text if it is UTF-8, else one U+FFFD a byte. */
static void end_bytes(struct buf *bytes, struct token_texts *to)
{
    if (bytes->len == 0)
        return;
    if (utf8_check(bytes->data, bytes->len) == bytes->len)
        texts_add(to, bytes->data, bytes->len);
    else
        for (size_t i = 0; i < bytes->len; i++)
            texts_add(to, "\xEF\xBF\xBD", 3);
    buf_clear(bytes);
}

static void run_byte_fallback(const struct token_texts *from, struct token_texts *to)
{
    const char *at = buf_str(&from->text);
    struct buf bytes = {0};

    for (size_t i = 0; i < from->n; at += from->lengths[i++]) {
        int byte = fallback_byte(at, from->lengths[i]);
        if (byte >= 0) {
            buf_add_char(&bytes, (char)byte);
            continue;
        }
        end_bytes(&bytes, to);
        texts_add(to, at, from->lengths[i]);
    }
    end_bytes(&bytes, to);
    buf_fini(&bytes);
}

/* Marks become spaces, in the first token nothing. */
static void run_metaspace(const struct decode_step *step, const struct token_texts *from,
                          struct token_texts *to)
{
    const char *at = buf_str(&from->text);

    for (size_t i = 0; i < from->n; i++) {
        const char *stop = at + from->lengths[i], *next;
        size_t start = to->text.len;
        while (at < stop && (next = memchr(at, step->mark[0], (size_t)(stop - at))) != NULL) {
            bool hit = is_mark(step, next, (size_t)(stop - next));
            buf_add(&to->text, at, (size_t)(next - at) + !hit);
            if (hit && (i > 0 || step->keeps_first))
                buf_add_char(&to->text, ' ');
            at = next + (hit ? step->mark_n : 1);
        }
        buf_add(&to->text, at, (size_t)(stop - at));
        texts_end(to, start);
        at = stop;
    }
}

static int run_each(const struct decode_step *step, const struct token_texts *from,
                    struct token_texts *to, struct regex_cursor *cursor, struct err *err)
{
    const char *at = buf_str(&from->text);

    for (size_t i = 0; i < from->n; at += from->lengths[i++]) {
        size_t start = to->text.len;
        int rc = add_token(step, at, from->lengths[i], cursor, &to->text, err);
        if (rc != 0)
            return rc;
        texts_end(to, start);
    }
    return 0;
}

static int run_step(const struct decode_step *step, const struct token_texts *from,
                    struct token_texts *to, struct regex_cursor *cursor, struct err *err)
{
    texts_clear(to);
    switch (step->kind) {
    case DECODE_LOSSY:
        utf8_add_lossy(&to->text, buf_str(&from->text), from->text.len);
        texts_end(to, 0);
        return 0;
    case DECODE_FUSE:
        texts_add(to, buf_str(&from->text), from->text.len);
        return 0;
    case DECODE_BYTE_FALLBACK:
        run_byte_fallback(from, to);
        return 0;
    case DECODE_METASPACE:
        run_metaspace(step, from, to);
        return 0;
    default:
        return run_each(step, from, to, cursor, err);
    }
}

static void gather(const struct decoder *d, const int32_t *ids, int64_t n, bool skip_special,
                   struct token_texts *texts)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t length = d->length[ids[i]];
        if (length != DECODE_ABSENT && !(skip_special && d->special[ids[i]]))
            texts_add(texts, d->bytes.data + d->offset[ids[i]], length);
    }
}

static void add_spaced(const struct token_texts *texts, struct buf *out)
{
    const char *at = buf_str(&texts->text);

    for (size_t i = 0; i < texts->n; at += texts->lengths[i++]) {
        if (i > 0)
            buf_add_char(out, ' ');
        buf_add(out, at, texts->lengths[i]);
    }
}

int decoder_run(const struct decoder *d, const int32_t *ids, int64_t n, bool skip_special,
                struct buf *out, struct err *err)
{
    struct token_texts now = {0}, next = {0};
    struct regex_cursor cursor = {0};
    int rc = 0;

    gather(d, ids, n, skip_special, &now);
    for (int i = d->n_done; i < d->n; i++) {
        TRY(run_step(&d->steps[i], &now, &next, &cursor, err));
        struct token_texts swapped = now;
        now = next;
        next = swapped;
    }
    if (d->spaced)
        add_spaced(&now, out);
    else
        buf_add(out, now.text.data, now.text.len);
out:
    texts_fini(&now);
    texts_fini(&next);
    regex_cursor_fini(&cursor);
    return rc;
}
