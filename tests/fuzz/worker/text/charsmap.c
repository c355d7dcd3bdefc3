/* SentencePiece's normalizer, bare: its trie and texts, then texts under it. */
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"
#include "tests/fuzz/fuzz.h"
#include "worker/text/charsmap.h"
#include "worker/text/utf8.h"

static void to_base64(struct buf *out, const uint8_t *data, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i < n; i += 3) {
        size_t left = n - i < 3 ? n - i : 3;
        uint32_t bits = (uint32_t)data[i] << 16 | (left > 1 ? (uint32_t)data[i + 1] << 8 : 0) |
                        (left > 2 ? data[i + 2] : 0);
        for (size_t k = 0; k < 4; k++)
            buf_add_char(out, k <= left ? digits[bits >> (18 - 6 * k) & 63] : '=');
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char *const texts[] = {
        "", "Hello, world!\t\n", "e\xCC\x81 \xC3\xA9 \xEF\xBC\xA1\xEF\xAC\x81 \xC2\xA0",
        "\xE3\x8E\x9E\xE2\x85\xA7 \xF0\x9F\x91\xA8\xE2\x80\x8D\xF0\x9F\x91\xA9"};
    struct charsmap map = {0};
    struct buf base64 = {0}, out = {0};

    to_base64(&base64, data, n);
    if (charsmap_init(&map, buf_str(&base64), base64.len, NULL) == 0) {
        for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
            buf_clear(&out);
            if (charsmap_add(&map, texts[i], strlen(texts[i]), 1 << 16, &out, NULL) == 0 &&
                (out.len > 1 << 16 || utf8_check(buf_str(&out), out.len) != out.len))
                abort();
        }
    }
    charsmap_fini(&map);
    buf_fini(&base64);
    buf_fini(&out);
    return 0;
}
