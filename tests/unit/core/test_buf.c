#include <criterion/criterion.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"

Test(buf, empty_is_an_empty_string)
{
    struct buf b = {0};

    cr_assert_str_eq(buf_str(&b), "");
    buf_clear(&b);
    buf_add(&b, NULL, 0);
    cr_assert_str_eq(buf_str(&b), "");
    cr_assert_eq(b.len, 0);
    buf_fini(&b);
    buf_fini(&b);
    cr_assert(b.data == NULL && b.len == 0 && b.cap == 0);
}

Test(buf, grows_and_stays_terminated)
{
    struct buf b;
    size_t n = 0;

    buf_init(&b);
    for (int i = 0; i < 20000; i++) {
        char c = (char)('a' + i % 26);
        buf_add_char(&b, c);
        n++;
        cr_assert_eq(b.len, n);
        cr_assert(b.cap > b.len && b.data[b.len] == '\0');
    }
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(b.data[i], (char)('a' + i % 26));
    buf_fini(&b);
}

Test(buf, holds_any_byte)
{
    struct buf b = {0};

    buf_add(&b, "a\0b", 3);
    buf_add_str(&b, "cd");
    cr_assert_eq(b.len, 5);
    cr_assert_eq(memcmp(b.data, "a\0bcd", 6), 0);
    buf_fini(&b);
}

Test(buf, printf_appends_at_every_length)
{
    struct buf b = {0};

    /* Around the capacities, where an off-by-one would cut the last byte. */
    for (int width = 0; width < 300; width++) {
        buf_clear(&b);
        buf_add_str(&b, "<");
        buf_printf(&b, "%*s", width, "");
        buf_printf(&b, "%s", "");
        buf_add_str(&b, ">");
        cr_assert_eq(b.len, (size_t)width + 2);
        cr_assert_eq(b.data[b.len - 1], '>');
        cr_assert_eq(strlen(b.data), b.len);
    }
    buf_clear(&b);
    buf_printf(&b, "%d/%s", 7, "x");
    cr_assert_str_eq(buf_str(&b), "7/x");
    buf_fini(&b);
}

Test(buf, reserve_keeps_content_and_makes_room)
{
    struct buf b = {0};

    buf_add_str(&b, "abc");
    buf_reserve(&b, 1000);
    cr_assert(b.cap >= 1004);
    char *before = b.data;
    for (int i = 0; i < 1000; i++)
        buf_add_char(&b, 'x');
    cr_assert_eq(b.data, before, "room that was reserved does not move");
    cr_assert_eq(memcmp(b.data, "abcx", 4), 0);
    buf_fini(&b);
}

Test(buf, clear_keeps_the_memory)
{
    struct buf b = {0};

    buf_add_str(&b, "abc");
    char *before = b.data;
    buf_clear(&b);
    cr_assert_str_eq(buf_str(&b), "");
    cr_assert_eq(b.data, before);
    buf_fini(&b);
}

Test(buf, take_hands_over)
{
    struct buf b = {0};

    buf_add_str(&b, "abc");
    char *text = buf_take(&b);
    cr_assert_str_eq(text, "abc");
    cr_assert(b.data == NULL && b.len == 0 && b.cap == 0);
    free(text);
    text = buf_take(&b);
    cr_assert_str_eq(text, "", "an empty buffer gives an empty string of its own");
    free(text);
}

#ifndef __SANITIZE_ADDRESS__
Test(buf, overflow_aborts, .signal = SIGABRT)
{
    struct buf b = {0};

    buf_add_str(&b, "abc");
    buf_reserve(&b, SIZE_MAX - 2);
}
#endif
