#include "worker/text/byte_alphabet.h"

#include "worker/text/utf8.h"

static bool stands_for_itself(unsigned byte)
{
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

int byte_alphabet_byte(uint32_t c)
{
    if (c < 256)
        return stands_for_itself(c) ? (int)c : -1;
    if (c >= BYTE_ALPHABET_END)
        return -1;
    /* The c-256th byte that does not stand for itself: 0..32, 127..160, 173. */
    c -= 256;
    return c <= 32 ? (int)c : c <= 66 ? (int)c + 127 - 33 : 173;
}

static uint32_t character_of(unsigned char byte)
{
    if (stands_for_itself(byte))
        return byte;
    return 256 + (byte <= 32 ? byte : byte <= 160 ? (uint32_t)byte - 127 + 33 : 67);
}

void byte_alphabet_add(struct buf *out, const char *bytes, size_t n)
{
    char text[4];

    for (size_t i = 0; i < n; i++)
        buf_add(out, text, utf8_write(character_of((unsigned char)bytes[i]), text));
}

bool byte_alphabet_to_bytes(const char *text, size_t n, struct buf *out)
{
    size_t old_len = out->len;

    for (size_t i = 0, bytes; i < n; i += bytes) {
        int byte = byte_alphabet_byte(utf8_read(text + i, n - i, &bytes));
        if (byte < 0) {
            out->len = old_len;
            return false;
        }
        buf_add_char(out, (char)byte);
    }
    return true;
}
