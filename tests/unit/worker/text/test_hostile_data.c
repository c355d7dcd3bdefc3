/* Data files made to harm: every one ends in examples, in bad lines with their numbers, or in an
 * error that says what to do. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "tests/unit/worker/text/scratch_dir.h"
#include "worker/text/dataset.h"
#include "worker/text/line_reader.h"

struct seen {
    int64_t faults, first_line, last_line;
    char first[300];
};

static int note(void *ud, int64_t line, const char *message)
{
    struct seen *s = ud;

    if (s->faults++ == 0) {
        s->first_line = line;
        snprintf(s->first, sizeof(s->first), "%s", message);
    }
    s->last_line = line;
    return 0;
}

/* What checking the bytes gives; *examples is left alone by an error. */
static int check(const void *bytes, size_t n, struct seen *seen, int64_t *examples, struct err *err)
{
    struct dataset_summary summary = {0};
    struct scratch_dir d;

    *seen = (struct seen){0};
    scratch_dir_init(&d);
    int rc =
        dataset_check(scratch_dir_write(&d, "f", bytes, n), DATA_AUTO, note, seen, &summary, err);
    if (rc == 0)
        *examples = summary.examples;
    scratch_dir_fini(&d);
    return rc;
}

static void expect_faults(const void *bytes, size_t n, int64_t examples, int64_t faults,
                          int64_t line, const char *message)
{
    struct seen seen;
    struct err err = {0};
    int64_t got = -1;

    cr_assert_eq(check(bytes, n, &seen, &got, &err), 0, "%s", err.msg);
    cr_expect_eq(got, examples, "%d examples", (int)got);
    cr_expect_eq(seen.faults, faults, "%d faults, the first \"%s\"", (int)seen.faults, seen.first);
    cr_expect_eq(seen.first_line, line, "line %d", (int)seen.first_line);
    cr_expect_not_null(strstr(seen.first, message), "\"%s\" not in: %s", message, seen.first);
}

/* {"text": "xxx"} and its newline: a line of n bytes without the newline. */
static void add_line(struct buf *b, size_t n)
{
    static const char head[] = "{\"text\": \"", tail[] = "\"}\n";
    size_t fill = n - (sizeof(head) - 1) - (sizeof(tail) - 2);

    buf_add_str(b, head);
    buf_reserve(b, fill);
    memset(b->data + b->len, 'x', fill);
    b->len += fill;
    buf_add_str(b, tail);
}

Test(hostile_data, a_line_may_have_ten_mebibytes_and_no_more)
{
    struct buf b = {0};

    add_line(&b, LINE_MAX_BYTES);
    expect_faults(b.data, b.len, 1, 0, 0, "");
    buf_clear(&b);
    add_line(&b, 20);
    add_line(&b, LINE_MAX_BYTES + 1);
    add_line(&b, 20);
    expect_faults(b.data, b.len, 2, 1, 2, "longer than 10 MiB; split it");
    buf_fini(&b);
}

Test(hostile_data, nesting)
{
    struct buf b = {0};

    buf_add_str(&b, "{\"text\": \"a\"}\n{\"text\": \"a\", \"meta\": ");
    for (int i = 0; i < 10000; i++)
        buf_add_str(&b, i % 2 ? "[" : "{\"a\":");
    for (int i = 10000; i-- > 0;)
        buf_add_str(&b, i % 2 ? "]" : "}");
    buf_add_str(&b, "}\n{\"messages\": ");
    for (int i = 0; i < 10000; i++)
        buf_add_char(&b, '[');
    buf_add_str(&b, "\n{\"text\": \"b\"}\n");
    expect_faults(b.data, b.len, 2, 2, 2, "nested more than 32 levels deep");
    buf_fini(&b);
}

Test(hostile_data, bytes_that_are_no_utf8)
{
    static const char *const bad[] = {
        "\x80",
        "\xBF",
        "\xC0\xAF",
        "\xC1\xBF",
        "\xC3",
        "\xC3(",
        "\xE0\x80\xAF",
        "\xE2\x82",
        "\xED\xA0\x80",
        "\xED\xBF\xBF",
        "\xF0\x80\x80\xAF",
        "\xF0\x9F\x91",
        "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80",
        "\xFE",
        "\xFF",
    };
    static const char *const shapes[] = {"{\"text\": \"%s\"}", "{\"%s\": \"x\", \"text\": \"y\"}",
                                         "%s", "{\"text\": \"a\"}%s"};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
            char *line = NULL, *file = NULL;
            const char *hole = strstr(shapes[s], "%s");
            cr_assert(asprintf(&line, "%.*s%s%s", (int)(hole - shapes[s]), shapes[s], bad[i],
                               hole + 2) > 0);
            cr_assert(asprintf(&file, "{\"text\": \"a\"}\n%s\n{\"text\": \"b\"}\n", line) > 0);
            expect_faults(file, strlen(file), 2, 1, 2, "not valid UTF-8; save the file as UTF-8");
            free(line);
            free(file);
        }
    }
}

Test(hostile_data, csv_with_nul_bytes_and_open_quotes)
{
    static const char nul[] = "text\nfine\na\0b\n\"c\0d\"\nfine too\n";
    struct buf b = {0};

    expect_faults(nul, sizeof(nul) - 1, 2, 2, 3, "NUL byte; this is not a text file");
    /* A quote that never closes takes 10 MiB of lines, then reading goes on. */
    buf_add_str(&b, "text\nfine\n\"open\n");
    while (b.len < (11 << 20))
        buf_add_str(&b, "0123456789012345678901234567890123456789012345678901234567890123456789\n");
    int64_t left = 0;
    struct seen seen;
    struct err err = {0};
    cr_assert_eq(check(b.data, b.len, &seen, &left, &err), 0, "%s", err.msg);
    cr_expect_eq(seen.faults, 1);
    cr_expect_eq(seen.first_line, 3);
    cr_expect_not_null(strstr(seen.first, "a quote is not closed"), "%s", seen.first);
    cr_expect_gt(left, 1000);
    cr_expect_lt(left, 20000);
    buf_clear(&b);
    /* Every field of its own, none of them closed properly. */
    buf_add_str(&b, "text\n");
    for (int i = 0; i < 1000; i++)
        buf_add_str(&b, "a\"b\"\n");
    expect_faults(b.data, b.len, 0, 1000, 2, "not quoted");
    buf_clear(&b);
    for (int i = 0; i < 300; i++) /* more columns than are read: it is no header, so plain text */
        buf_printf(&b, "c%d,", i);
    buf_add_str(&b, "text\n");
    expect_faults(b.data, b.len, 1, 0, 0, "");
    buf_fini(&b);
}

static size_t pack(bool zstd, const char *text, size_t n, unsigned char *out, size_t cap)
{
    z_stream z = {
        .next_in = (void *)text, .avail_in = (uInt)n, .next_out = out, .avail_out = (uInt)cap};

    if (zstd)
        return ZSTD_compress(out, cap, text, n, 3);
    cr_assert_eq(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return cap - z.avail_out;
}

/* Cut at every byte, and with a bit changed at every byte: an error that says what to do, or lines;
 * of a gzip file, whose checksum is looked at, only ever the right ones. */
Test(hostile_data, compressed_files_cut_and_changed_at_every_byte, .timeout = 600)
{
    static unsigned char packed[4096];
    struct buf text = {0};

    for (int i = 0; i < 40; i++)
        buf_printf(&text, "{\"text\": \"number %d\"}\n", i * 7919);
    for (int zstd = 0; zstd < 2; zstd++) {
        size_t n = pack(zstd, text.data, text.len, packed, sizeof(packed));

        for (size_t cut = 4; cut < n; cut++) { /* of less the format cannot be told */
            struct seen seen;
            struct err err = {0};
            int64_t examples = -1;
            cr_expect_eq(check(packed, cut, &seen, &examples, &err), ERR_CORRUPT, "%d", (int)cut);
            cr_expect_not_null(strstr(err.msg, "compress and upload the file again"), "%s",
                               err.msg);
        }
        for (size_t i = 4; i < n; i++) {
            struct seen seen;
            struct err err = {0};
            int64_t examples = -1;
            packed[i] ^= (unsigned char)(1 << i % 8);
            int rc = check(packed, n, &seen, &examples, &err);
            packed[i] ^= (unsigned char)(1 << i % 8);
            cr_expect(rc == 0 || rc == ERR_CORRUPT, "%d: %s", (int)i, err.msg);
            cr_expect(rc != 0 || zstd || (examples == 40 && seen.faults == 0), "%d", (int)i);
        }
    }
    buf_fini(&text);
}
