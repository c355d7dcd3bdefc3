/* A map made by hand: one key, "A". */
#include <criterion/criterion.h>
#include <string.h>

#include "worker/text/charsmap.h"

enum { UNITS = 129 };

static void add_base64(struct buf *out, const unsigned char *bytes, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i + 2 < n; i += 3) {
        unsigned bits = (unsigned)bytes[i] << 16 | (unsigned)bytes[i + 1] << 8 | bytes[i + 2];
        for (int k = 18; k >= 0; k -= 6)
            buf_add_char(out, digits[bits >> k & 63]);
    }
}

static void add_le32(struct buf *out, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        buf_add_char(out, (char)(v >> 8 * i));
}

/* "A" becomes what stands at `value` of the texts "\xC3\xA9" and "x". */
static void make_map(struct charsmap *map, uint32_t value)
{
    static const char texts[] = "\xC3\xA9\0x\0\0\0"; /* to whole groups of base64 */
    struct buf raw = {0}, base64 = {0};
    struct err err = {0};

    add_le32(&raw, 4 * UNITS);
    for (uint32_t i = 0; i < UNITS; i++)
        add_le32(&raw, i == 'A'   ? 'A' | 1u << 8 | ('A' ^ 128u) << 10
                       : i == 128 ? 0x80000000 | value
                                  : 0);
    buf_add(&raw, texts, 7 + (3 - (raw.len + 7) % 3) % 3);
    add_base64(&base64, (const unsigned char *)raw.data, raw.len);
    cr_assert_eq(charsmap_init(map, buf_str(&base64), base64.len, &err), 0, "%s", err.msg);
    buf_fini(&raw);
    buf_fini(&base64);
}

static void expect_normal(uint32_t value, const char *want)
{
    struct charsmap map = {0};
    struct buf out = {0};

    make_map(&map, value);
    cr_assert_eq(charsmap_add(&map, "bAb", 3, 100, &out, NULL), 0);
    cr_expect_str_eq(buf_str(&out), want, "value %u gives %s", value, buf_str(&out));
    buf_fini(&out);
    charsmap_fini(&map);
}

Test(charsmap, replacements_begin_at_a_character)
{
    expect_normal(0, "b\xC3\xA9"
                     "b");
    expect_normal(3, "bxb");
    expect_normal(1, "bAb"); /* in the middle of one: as if it were not there */
    expect_normal(1000, "bAb");
}
