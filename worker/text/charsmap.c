#include "worker/text/charsmap.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/alloc.h"
#include "core/bytes.h"
#include "worker/text/utf8.h"

enum { MAX_CHARSMAP = 16 << 20, SHORT_GRAPHEME = 6 };

/* --- the trie --- */

static bool has_leaf(uint32_t unit)
{
    return unit >> 8 & 1;
}

static uint32_t value_of(uint32_t unit)
{
    return unit & 0x7FFFFFFF;
}

static uint32_t label_of(uint32_t unit)
{
    return unit & 0x800000FF;
}

static uint32_t offset_of(uint32_t unit)
{
    return (unit >> 10) << ((unit & 1u << 9) >> 6);
}

/* Text from the middle of a character on would not be UTF-8. */
static bool begins_character(char c)
{
    return ((unsigned char)c & 0xC0) != 0x80;
}

/* What the shortest prefix of `key` that is in the map becomes: an offset in texts, or -1. */
static int32_t find(const struct charsmap *map, const char *key, size_t n)
{
    size_t at = offset_of(map->units[0]);

    for (size_t i = 0; i < n && key[i]; i++) {
        unsigned char c = (unsigned char)key[i];
        at ^= c;
        if (at >= map->n_units || label_of(map->units[at]) != c)
            return -1;
        uint32_t unit = map->units[at];
        at ^= offset_of(unit);
        if (has_leaf(unit)) {
            uint32_t value = at < map->n_units ? value_of(map->units[at]) : UINT32_MAX;
            return value < map->texts_n && begins_character(map->texts[value]) ? (int32_t)value
                                                                               : -1;
        }
    }
    return -1;
}

/* --- loading --- */

static int base64_digit(char c)
{
    return c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
}

/* Standard alphabet, with padding. */
static bool decode_base64(const char *text, size_t n, struct buf *out)
{
    uint32_t bits = 0;

    if (n % 4 != 0)
        return false;
    for (size_t i = 0; i < n; i++) {
        bool padding = text[i] == '=' && i + 2 >= n && (i + 1 == n || text[i + 1] == '=');
        int digit = padding ? 0 : base64_digit(text[i]);
        if (digit < 0)
            return false;
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4 == 3) {
            buf_add_char(out, (char)(bits >> 16));
            buf_add_char(out, (char)(bits >> 8));
            buf_add_char(out, (char)bits);
            bits = 0;
        }
    }
    for (size_t i = n; i > 0 && text[i - 1] == '='; i--)
        out->len--;
    return true;
}

static int refuse(struct err *err)
{
    return err_set(err, ERR_INVALID,
                   "the tokenizer's precompiled_charsmap is damaged; download the file again");
}

int charsmap_init(struct charsmap *map, const char *base64, size_t n, struct err *err)
{
    struct charsmap m = {0};
    struct buf raw = {0};
    int rc = 0;

    if (n > MAX_CHARSMAP || !decode_base64(base64, n, &raw) || raw.len < 8) {
        rc = refuse(err);
        goto out;
    }
    size_t bytes = bytes_number(raw.data, 4);
    if (bytes < 4 || bytes % 4 != 0 || bytes > raw.len - 4) {
        rc = refuse(err);
        goto out;
    }
    m.n_units = bytes / 4;
    m.texts_n = raw.len - 4 - bytes;
    if (utf8_check(raw.data + 4 + bytes, m.texts_n) != m.texts_n) {
        rc = refuse(err);
        goto out;
    }
    m.units = xcalloc(m.n_units, sizeof(*m.units));
    for (size_t i = 0; i < m.n_units; i++)
        m.units[i] = (uint32_t)bytes_number(raw.data + 4 + 4 * i, 4);
    m.texts = xcalloc(m.texts_n + 1, 1);
    memcpy(m.texts, raw.data + 4 + bytes, m.texts_n);
    for (int c = 0; c < 128; c++) {
        char key = (char)c;
        m.ascii[c] = find(&m, &key, 1);
    }
    *map = m;
out:
    buf_fini(&raw);
    return rc;
}

void charsmap_fini(struct charsmap *map)
{
    free(map->units);
    free(map->texts);
    memset(map, 0, sizeof(*map));
}

/* --- applying --- */

/* Bytes of the grapheme cluster at `text`. */
static size_t grapheme_length(const char *text, size_t n)
{
    utf8proc_int32_t state = 0;
    size_t bytes, at;
    uint32_t c = utf8_read(text, n, &at);

    while (at < n) {
        uint32_t next = utf8_read(text + at, n - at, &bytes);
        if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)c, (utf8proc_int32_t)next, &state))
            break;
        c = next;
        at += bytes;
    }
    return at;
}

/* Append what the map has for the key, or the key's first `bytes`. */
static void add_mapped(const struct charsmap *map, int32_t found, const char *key, size_t bytes,
                       struct buf *out)
{
    if (found >= 0)
        buf_add(out, map->texts + found, strlen(map->texts + found));
    else
        buf_add(out, key, bytes);
}

static void add_grapheme(const struct charsmap *map, const char *text, size_t n, struct buf *out)
{
    int32_t found = n < SHORT_GRAPHEME ? find(map, text, n) : -1;

    if (found >= 0) {
        add_mapped(map, found, text, n, out);
        return;
    }
    for (size_t i = 0, bytes; i < n; i += bytes) {
        utf8_read(text + i, n - i, &bytes);
        add_mapped(map, find(map, text + i, bytes), text + i, bytes, out);
    }
}

/* Bytes at the start that are each a grapheme cluster of one ASCII character without a
 * replacement. What stands before a character beyond ASCII may belong to its cluster. */
static size_t plain_length(const struct charsmap *map, const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;

    while (i < n && s[i] < 0x80 && map->ascii[s[i]] < 0 && s[i] != '\r')
        i++;
    return i > 0 && i < n && s[i] >= 0x80 ? i - 1 : i;
}

int charsmap_add(const struct charsmap *map, const char *text, size_t n, size_t max_bytes,
                 struct buf *out, struct err *err)
{
    while (n > 0) {
        size_t length = plain_length(map, text, n);
        if (length > 0) {
            buf_add(out, text, length);
        } else {
            length = grapheme_length(text, n);
            add_grapheme(map, text, length, out);
        }
        if (out->len > max_bytes)
            return err_set(err, ERR_INVALID,
                           "the tokenizer's normalizer makes the text longer than %zu bytes",
                           max_bytes);
        text += length;
        n -= length;
    }
    return 0;
}
