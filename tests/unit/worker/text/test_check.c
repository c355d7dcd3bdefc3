/* What a bad line of a data file is told, with its number, whatever the file is. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "core/buf.h"
#include "tests/unit/worker/text/scratch_dir.h"
#include "worker/text/dataset.h"

/* --- lines --- */

struct faults {
    int n;
    int64_t line[16];
    char message[16][256];
};

static int note_fault(void *ud, int64_t line, const char *message)
{
    struct faults *f = ud;

    cr_assert_lt(f->n, 16);
    f->line[f->n] = line;
    snprintf(f->message[f->n++], sizeof(f->message[0]), "%s", message);
    return 0;
}

static int64_t check(const char *bytes, size_t n, enum data_format format, struct faults *faults)
{
    struct scratch_dir d;
    struct err err = {0};
    struct dataset_summary summary = {0};

    memset(faults, 0, sizeof(*faults));
    scratch_dir_init(&d);
    cr_assert_eq(dataset_check(scratch_dir_write(&d, "f", bytes, n), format, note_fault, faults,
                               &summary, &err),
                 0, "%s", err.msg);
    scratch_dir_fini(&d);
    return summary.examples;
}

static int64_t check_text(const char *text, struct faults *faults)
{
    return check(text, strlen(text), DATA_AUTO, faults);
}

Test(check, tells_what_is_wrong_with_each_line)
{
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"{\"text\": \"a\"", "not valid"},
        {"{\"text\": 1}", "must be a string, not a number"},
        {"{\"text\": null}", "not null"},
        {"{\"text\": [\"a\"]}", "not an array"},
        {"{\"text\": \"\"}", "empty"},
        {"{}", "no \"text\""},
        {"[{\"text\": \"a\"}]", "without an array"},
        {"\"a\"", "a string, not an object"},
        {"{\"prompt\": \"a\"}", "no \"completion\""},
        {"{\"completion\": \"a\"}", "no \"prompt\""},
        {"{\"prompt\": [], \"completion\": \"b\"}", "\"prompt\" must be a string, not an array"},
        {"{\"prompt\": \"a\", \"completion\": \"b\", \"text\": \"c\"}",
         "both \"prompt\" and \"text\""},
        {"{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}", "preference"},
        {"{\"instruction\": \"a\"}", "no \"output\""},
        {"{\"instruction\": \"\", \"output\": \"a\"}", "\"instruction\" is empty"},
        {"{\"instruction\": \"a\", \"input\": 1, \"output\": \"a\"}", "\"input\" must be"},
        {"{\"instruction\": \"a\", \"output\": \"a\", \"history\": [[\"a\"]]}", "history[0]"},
        {"{\"instruction\": \"a\", \"output\": \"a\", \"history\": {}}", "must be an array"},
        {"{\"messages\": []}", "nothing to learn"},
        {"{\"messages\": {}}", "must be an array, not an object"},
        {"{\"messages\": [1]}", "messages[0] must be an object"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "nothing to learn"},
        {"{\"messages\": [{\"role\": \"robot\", \"content\": \"a\"}]}",
         "messages[0].role is \"robot\""},
        {"{\"messages\": [{\"content\": \"a\"}]}", "role must be a string, not missing"},
        {"{\"messages\": [{\"role\": \"assistant\"}]}", "content must be a string, not missing"},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0.5}]}",
         "weight"},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": [{\"type\": \"image_url\"}]}]}",
         "only text can be"},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}], \"tools\": 1}",
         "\"tools\""},
        {"{\"conversations\": [{\"from\": \"who\", \"value\": \"a\"}]}",
         "conversations[0].from is who"},
        {"{\"conversations\": [{\"from\": \"gpt\"}]}", "conversations[0].value"},
        {"{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}]}", "nothing to learn"},
        {"{\"text\": \"a\", \"text\": \"b\"}", "not valid"},
        {"{\"text\": \"a\\u0000b\"}", "not valid"},
        {"{\"text\": \"a\\ud800\"}", "not valid"},
        {"{\"text\": \"a\xFF\"}", "UTF-8"},
        {"{\"text\": \"a\"} x", "not valid"},
    };
    struct faults faults;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *text = NULL;
        cr_assert(
            asprintf(&text, "{\"text\": \"fine\"}\n\n%s\n{\"text\": \"fine\"}", cases[i].line) > 0);
        cr_expect_eq(check_text(text, &faults), 2, "%s", cases[i].line);
        cr_assert_eq(faults.n, 1, "%s", cases[i].line);
        cr_expect_eq(faults.line[0], 3, "%s", cases[i].line);
        cr_expect_not_null(strstr(faults.message[0], cases[i].message), "%s: %s", cases[i].line,
                           faults.message[0]);
        free(text);
    }
}

Test(check, refuses_bombs_nul_bytes_and_lines_without_end)
{
    struct faults faults;
    size_t n = 11 << 20;
    char *text = malloc(n);

    memset(text, '[', n);
    memcpy(text, "{\"text\":", 8);
    text[100000] = '\n';
    cr_expect_eq(check(text, 100001, DATA_AUTO, &faults), 0);
    cr_assert_eq(faults.n, 1);
    cr_expect_not_null(strstr(faults.message[0], "nested"), "%s", faults.message[0]);

    memset(text, 'x', n);
    memcpy(text, "{\"text\": \"", 10);
    memcpy(text + n - 20, "\"}\n{\"text\": \"ok\"}\n\n\n", 20);
    cr_expect_eq(check(text, n, DATA_TEXT, &faults), 1);
    cr_assert_eq(faults.n, 1);
    cr_expect_eq(faults.line[0], 1);
    cr_expect_not_null(strstr(faults.message[0], "longer than"), "%s", faults.message[0]);
    free(text);

    cr_expect_eq(check("{\"text\": \"a\0b\"}\n", 16, DATA_AUTO, &faults), 0);
    cr_expect_not_null(strstr(faults.message[0], "NUL"));
    cr_expect_eq(check("some\0thing\n\nmore", 16, DATA_PLAIN, &faults), 1);
    cr_expect_not_null(strstr(faults.message[0], "NUL"));
    cr_expect_eq(check("\xFF\xFEh\0i\0\n\0", 8, DATA_PLAIN, &faults), 0);
    cr_expect_not_null(strstr(faults.message[0], "UTF-16"));
}

Test(check, takes_bom_crlf_blank_lines_and_a_missing_last_newline)
{
    struct faults faults;

    cr_expect_eq(check_text("\xEF\xBB\xBF\r\n{\"text\": \"a\"}\r\n \t\r\n{\"text\": \"b\", "
                            "\"meta\": {\"x\": 1}}",
                            &faults),
                 2);
    cr_expect_eq(faults.n, 0);
    cr_expect_eq(check_text("", &faults), 0);
    cr_expect_eq(check_text("\n\n \n", &faults), 0);
    cr_expect_eq(check_text("one\nparagraph\n\n  \n\nand another\n", &faults), 2);
    cr_expect_eq(check_text("[a plain text may begin so]\n", &faults), 1);
    cr_expect_eq(faults.n, 0);
}

/* --- CSV --- */

Test(check, csv_rows_are_examples)
{
    struct faults faults;

    cr_expect_eq(check_text("text\na\n\nb\n", &faults), 2);
    cr_expect_eq(
        check_text("\xEF\xBB\xBFid,prompt,completion\r\n1,a,b\r\n2,\"a, \"\"b\"\"\r\nc\",d",
                   &faults),
        2);
    cr_expect_eq(check_text("output,instruction,history\na,b,junk\n", &faults), 1);
    cr_expect_eq(check("text\n\nmore\n", 11, DATA_PLAIN, &faults), 2, "plain is never CSV");
    cr_expect_eq(check_text("some text, with a comma\n", &faults), 1, "nor is what has no header");
    cr_expect_eq(check("prompt,completion\na,b\n", 22, DATA_PROMPT, &faults), 1);
    cr_expect_eq(faults.n, 0);
}

Test(check, bad_csv_rows_are_told_by_their_first_line)
{
    static const struct {
        const char *row, *message;
    } cases[] = {
        {"a", "1 fields, but the header 2"},     {"a,b,c", "3 fields, but the header 2"},
        {"\"a\"b,c", "behind its quote"},        {"a\"b\",c", "not quoted"},
        {"\"a\nb\" c,\"\"", "behind its quote"},
    };
    struct faults faults;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *text = NULL;
        cr_assert(asprintf(&text, "prompt,completion\n\"x\ny\",z\n%s\nu,v\n", cases[i].row) > 0);
        cr_expect_eq(check_text(text, &faults), 2, "%s", cases[i].row);
        cr_assert_eq(faults.n, 1, "%s", cases[i].row);
        cr_expect_eq(faults.line[0], 4, "%s", cases[i].row);
        cr_expect_not_null(strstr(faults.message[0], cases[i].message), "%s", faults.message[0]);
        free(text);
    }
    cr_expect_eq(check_text("text\na\n\"b\nc\n", &faults), 1);
    cr_expect_eq(faults.line[0], 3);
    cr_expect_not_null(strstr(faults.message[0], "not closed"), "%s", faults.message[0]);
    cr_expect_eq(check_text("text\n\"\"\n", &faults), 0);
    cr_expect_not_null(strstr(faults.message[0], "\"text\" is empty"), "%s", faults.message[0]);
}

/* --- compressed files --- */

/* gzip of n bytes into `out`; returns its size. */
static size_t gzip(const void *bytes, size_t n, unsigned char *out, size_t cap)
{
    z_stream z = {
        .next_in = (void *)bytes, .avail_in = (uInt)n, .next_out = out, .avail_out = (uInt)cap};

    cr_assert_eq(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return cap - z.avail_out;
}

static int check_file(const unsigned char *bytes, size_t n, int64_t *examples, struct err *err)
{
    struct faults faults = {0};
    struct scratch_dir d;

    struct dataset_summary summary = {.examples = -1};
    scratch_dir_init(&d);
    int rc = dataset_check(scratch_dir_write(&d, "f", (const char *)bytes, n), DATA_AUTO,
                           note_fault, &faults, &summary, err);
    *examples = summary.examples;
    cr_expect_eq(faults.n, 0);
    scratch_dir_fini(&d);
    return rc;
}

Test(check, compressed_files_are_read_and_damaged_ones_refused)
{
    static unsigned char packed[1 << 20];
    struct buf text = {0};
    struct err err = {0};
    int64_t examples;

    for (int i = 0; i < 30000; i++)
        buf_printf(&text, "{\"text\": \"number %d\"}\n", i * 7919);
    for (int zstd = 0; zstd < 2; zstd++) {
        size_t n = zstd ? ZSTD_compress(packed, sizeof(packed), text.data, text.len, 3)
                        : gzip(text.data, text.len, packed, sizeof(packed));
        cr_assert(n > 1000 && 2 * n < sizeof(packed));
        err_clear(&err);
        cr_expect_eq(check_file(packed, n, &examples, &err), 0, "%s", err.msg);
        cr_expect_eq(examples, 30000);
        memcpy(packed + n, packed, n); /* one behind the other */
        cr_expect_eq(check_file(packed, 2 * n, &examples, &err), 0, "%s", err.msg);
        cr_expect_eq(examples, 60000);
        for (size_t cut = 5; cut < n; cut += n / 7) {
            err_clear(&err);
            cr_expect_eq(check_file(packed, cut, &examples, &err), ERR_CORRUPT, "cut at %zu", cut);
            cr_expect_not_null(strstr(err.msg, "end too early"), "%s", err.msg);
        }
        packed[n] ^= 0x55;
        err_clear(&err);
        cr_expect_eq(check_file(packed, n + 100, &examples, &err), ERR_CORRUPT);
        cr_expect_not_null(strstr(err.msg, "damaged"), "%s", err.msg);
    }
    buf_fini(&text);
}

Test(check, bombs_are_refused)
{
    size_t n = (size_t)100 << 20, cap = 1 << 20;
    char *text = malloc(n);
    unsigned char *packed = malloc(cap);
    struct err err = {0};
    int64_t examples;

    memset(text, '\n', n);
    for (int zstd = 0; zstd < 2; zstd++) {
        size_t packed_n =
            zstd ? ZSTD_compress(packed, cap, text, n, 1) : gzip(text, n, packed, cap);
        cr_assert_lt(packed_n, cap);
        err_clear(&err);
        cr_expect_eq(check_file(packed, packed_n, &examples, &err), ERR_INVALID);
        cr_expect_not_null(strstr(err.msg, "more than 200 times"), "%s", err.msg);
    }
    free(text);
    free(packed);
}

/* --- every format --- */

struct numbers {
    int n;
    int64_t line[2000];
};

static int note_number(void *ud, int64_t line, const char *message)
{
    struct numbers *f = ud;

    cr_assert_lt(f->n, 2000);
    cr_assert_neq(message[0], '\0');
    f->line[f->n++] = line;
    return 0;
}

static void expect_numbers(const char *what, const char *bytes, size_t n, const char *format)
{
    static struct numbers f;
    struct dataset_summary summary = {0};
    struct scratch_dir d;
    struct err err = {0};

    f.n = 0;
    scratch_dir_init(&d);
    cr_assert_eq(dataset_check(scratch_dir_write(&d, "f", bytes, n), DATA_AUTO, note_number, &f,
                               &summary, &err),
                 0, "%s: %s", what, err.msg);
    scratch_dir_fini(&d);
    cr_expect_str_eq(summary.format, format);
    cr_expect_eq(summary.examples, 2000);
    cr_expect_eq(f.n, 1000, "%s: %d bad lines", what, f.n);
    for (int i = 0; i < f.n; i++) /* the second of each three, behind a first line */
        cr_assert_eq(f.line[i], 3 + 3 * i, "%s: %d", what, (int)f.line[i]);
}

/* Three thousand lines behind one that is blank or a header, the second of each three bad. */
Test(check, every_bad_line_has_its_number_in_every_format)
{
    static const struct {
        const char *what, *first, *good, *bad, *format;
    } cases[] = {
        {"text", "", "{\"text\": \"a\"}", "{\"text\": \"\"}", "jsonl"},
        {"prompt", "", "{\"prompt\": \"a\", \"completion\": \"b\"}", "{\"prompt\": \"a\"}",
         "jsonl"},
        {"messages", "", "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
         "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "jsonl"},
        {"alpaca", "", "{\"instruction\": \"a\", \"input\": \"\", \"output\": \"b\"}",
         "{\"instruction\": \"a\", \"input\": \"b\"}", "jsonl"},
        {"sharegpt", "", "{\"conversations\": [{\"from\": \"gpt\", \"value\": \"a\"}]}",
         "{\"conversations\": [{\"from\": \"gpt\"}]}", "jsonl"},
        {"not JSON", "", "{\"text\": \"a\"}", "{\"text\": ", "jsonl"},
        {"not UTF-8", "", "{\"text\": \"a\"}", "{\"text\": \"\xE9\"}", "jsonl"},
        {"CSV", "prompt,completion", "a,\"b, c\"", "a,b,c", "csv"},
        {"CSV, empty", "text", "a", "\"\"", "csv"},
    };
    size_t cap = 1 << 20;
    unsigned char *packed = malloc(cap);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf text = {0};
        buf_printf(&text, "%s\n", cases[i].first);
        for (int k = 0; k < 1000; k++)
            buf_printf(&text, "%s\n%s\n%s\n", cases[i].good, cases[i].bad, cases[i].good);
        expect_numbers(cases[i].what, text.data, text.len, cases[i].format);
        size_t n = gzip(text.data, text.len, packed, cap);
        expect_numbers(cases[i].what, (char *)packed, n, cases[i].format);
        n = ZSTD_compress(packed, cap, text.data, text.len, 3);
        expect_numbers(cases[i].what, (char *)packed, n, cases[i].format);
        buf_fini(&text);
    }
    free(packed);
}

/* Of a Parquet file the row, over all row groups. tests/golden/parquet_gen.py made these bad. */
Test(check, every_bad_row_of_a_parquet_file_has_its_number)
{
    struct dataset_summary summary = {0};
    struct numbers f = {0};
    struct err err = {0};

    cr_assert_eq(dataset_check("tests/golden/parquet/hostile/bad_rows", DATA_AUTO, note_number, &f,
                               &summary, &err),
                 0, "%s", err.msg);
    cr_expect_str_eq(summary.format, "parquet");
    cr_expect_eq(summary.examples, 96);
    cr_assert_eq(f.n, 4);
    cr_expect(f.line[0] == 3 && f.line[1] == 40 && f.line[2] == 50 && f.line[3] == 99);
}
