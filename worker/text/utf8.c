#include "worker/text/utf8.h"

#include <string.h>

/* Length of the well-formed character at s, or 0; then *bad is the length of the ill-formed part
 * that a decoder replaces as one: the longest prefix that could have begun a character, or one
 * byte. */
static size_t character_length(const unsigned char *s, size_t n, size_t *bad)
{
    unsigned char low = 0x80, high = 0xBF;
    size_t length;

    *bad = 1;
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 0;
    length = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    if (s[0] == 0xE0)
        low = 0xA0;
    else if (s[0] == 0xED)
        high = 0x9F;
    else if (s[0] == 0xF0)
        low = 0x90;
    else if (s[0] == 0xF4)
        high = 0x8F;
    for (size_t i = 1; i < length; i++) {
        if (i >= n || s[i] < low || s[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

size_t utf8_check(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0, bad;

    while (i < n) {
        uint64_t eight;
        while (i + 8 <= n) {
            memcpy(&eight, s + i, 8);
            if (eight & UINT64_C(0x8080808080808080))
                break;
            i += 8;
        }
        if (i >= n)
            break;
        size_t length = character_length(s + i, n - i, &bad);
        if (length == 0)
            return i;
        i += length;
    }
    return n;
}

uint32_t utf8_read(const char *text, size_t n, size_t *bytes)
{
    const unsigned char *s = (const unsigned char *)text;

    if (s[0] < 0x80 || n < 2) {
        *bytes = 1;
        return s[0];
    }
    if (s[0] < 0xE0 || n < 3) {
        *bytes = 2;
        return (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    }
    if (s[0] < 0xF0 || n < 4) {
        *bytes = 3;
        return (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    }
    *bytes = 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 |
           (uint32_t)(s[2] & 0x3F) << 6 | (s[3] & 0x3F);
}

size_t utf8_step_back(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

size_t utf8_write(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

void utf8_add_lossy(struct buf *out, const char *text, size_t n)
{
    size_t i = 0;

    while (i < n) {
        size_t good = utf8_check(text + i, n - i), bad;
        buf_add(out, text + i, good);
        i += good;
        if (i < n) {
            character_length((const unsigned char *)text + i, n - i, &bad);
            buf_add(out, "\xEF\xBF\xBD", 3);
            i += bad;
        }
    }
}
