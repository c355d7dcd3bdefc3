#include <criterion/criterion.h>

#include "core/bytes.h"

Test(bytes, nothing_is_taken_from_behind_the_end)
{
    static const unsigned char text[] = {1, 2, 3, 4, 5, 6, 7, 8, 0xFF};
    struct bytes b = bytes_of(text, sizeof(text));
    const unsigned char *p = NULL;
    uint64_t n = 0;

    cr_assert(bytes_take_number(&b, 2, &n) && n == 0x0201);
    cr_assert(bytes_take(&b, 3, &p) && p == text + 2 && bytes_left(&b) == 4);
    cr_assert(!bytes_take(&b, 5, &p) && !bytes_take(&b, SIZE_MAX, &p));
    cr_assert(!bytes_take_number(&b, 8, &n) && n == 0x0201);
    cr_assert(bytes_left(&b) == 4, "a number that is not there was passed over");
    cr_assert(bytes_take_number(&b, 4, &n) && n == 0xFF080706);
    cr_assert(bytes_take_number(&b, 0, &n) && n == 0);
    cr_assert(!bytes_take(&b, 1, &p) && bytes_take(&b, 0, &p) && p == text + 9);
    cr_assert(bytes_number(text, 8) == 0x0807060504030201);
}

struct number {
    const char *text;
    size_t n;
    bool good;
    uint64_t value;
    int64_t zigzag;
};

Test(bytes, varints)
{
    static const struct number cases[] = {
        {"\0", 1, true, 0, 0},
        {"\x7F", 1, true, 127, -64},
        {"\x80\x01", 2, true, 128, 64},
        {"\xAC\x02", 2, true, 300, 150},
        {"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 10, true, UINT64_MAX, INT64_MIN},
        {"\xFE\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 10, true, UINT64_MAX - 1, INT64_MAX},
        {"", 0, false, 0, 0},
        {"\x80", 1, false, 0, 0},
        {"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11, false, 0, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct number *c = &cases[i];
        struct bytes b = bytes_of(c->text, c->n), z = b;
        uint64_t value = 0;
        int64_t zigzag = 0;

        cr_expect_eq(bytes_take_varint(&b, &value), c->good, "case %zu", i);
        cr_expect_eq(bytes_take_zigzag(&z, &zigzag), c->good, "case %zu", i);
        cr_expect_eq(value, c->value, "case %zu", i);
        cr_expect_eq(zigzag, c->zigzag, "case %zu", i);
        cr_expect(!c->good || bytes_left(&b) == 0, "case %zu", i);
    }
}
