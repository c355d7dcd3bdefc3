/* Data sets: what a bad line is told, and what rows and batches hold. Tokens come from the golden
 * tokenizer (bos <s> = 0, eos </s> = 1, template "<s> $A </s>"). */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "tests/unit/worker/text/scratch_dir.h"
#include "worker/text/dataset.h"
#include "worker/text/rows.h"
#include "worker/text/template.h"

enum { BOS = 0, EOS = 1, PAD = 2 };

static struct tokenizer *load_tokenizer(void)
{
    struct tokenizer *t = NULL;
    struct err err = {0};

    cr_assert_eq(tokenizer_load("tests/golden/tokenizer", &t, &err), 0, "%s", err.msg);
    return t;
}

static struct dataset_options options(void)
{
    return (struct dataset_options){.max_seq_length = 16,
                                    .packing = true,
                                    .seed = 5,
                                    .param = "training_file",
                                    .name = "my.jsonl"};
}

/* --- lines ------------------------------------------------------------------------------------ */

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

Test(dataset, tells_what_is_wrong_with_each_line)
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

Test(dataset, refuses_bombs_nul_bytes_and_lines_without_end)
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

Test(dataset, takes_bom_crlf_blank_lines_and_a_missing_last_newline)
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

Test(dataset, load_stops_at_the_first_bad_line_with_its_number)
{
    struct tokenizer *t = load_tokenizer();
    struct dataset_options o = options();
    struct dataset *set = NULL;
    struct scratch_dir d;
    struct err err = {0};

    scratch_dir_init(&d);
    const char *path = scratch_dir_text(&d, "f", "{\"text\": \"a\"}\n{\"text\": 3}\n{}\n");
    cr_expect_eq(dataset_load(&path, 1, t, &o, &set, &err), ERR_INVALID);
    cr_expect_not_null(strstr(err.msg, "my.jsonl, line 2: \"text\" must be"), "%s", err.msg);
    cr_expect_str_eq(err.reason, "invalid_training_file");
    cr_expect_str_eq(err.param, "training_file");
    cr_expect_null(set);

    err_clear(&err);
    o.param = "validation_file";
    cr_expect_eq(dataset_load(&path, 1, t, &o, &set, &err), ERR_INVALID);
    cr_expect_str_eq(err.reason, "invalid_validation_file");

    err_clear(&err);
    o.max_examples = 1; /* the bad lines are not reached */
    cr_assert_eq(dataset_load(&path, 1, t, &o, &set, &err), 0, "%s", err.msg);
    dataset_destroy(set);
    set = NULL;

    o.min_examples = 10;
    cr_expect_eq(dataset_load(&path, 1, t, &o, &set, &err), ERR_INVALID);
    cr_expect_str_eq(err.reason, "invalid_n_examples");
    cr_expect_not_null(strstr(err.msg, "has 1 example,"), "%s", err.msg);

    err_clear(&err);
    o.format = DATA_PROMPT;
    cr_expect_eq(dataset_load(&path, 1, t, &o, &set, &err), ERR_INVALID);
    cr_expect_not_null(strstr(err.msg, "line 1: the object has no \"prompt\""), "%s", err.msg);
    err_clear(&err);
    o.format = DATA_AUTO;
    cr_expect_eq(dataset_load((const char *[]){"/no/such/file"}, 1, t, &o, &set, &err),
                 ERR_NOT_FOUND);
    scratch_dir_fini(&d);
    tokenizer_destroy(t);
}

/* --- CSV -------------------------------------------------------------------------------------- */

Test(dataset, csv_rows_are_examples)
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

Test(dataset, bad_csv_rows_are_told_by_their_first_line)
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

/* --- compressed files ------------------------------------------------------------------------- */

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

Test(dataset, compressed_files_are_read_and_damaged_ones_refused)
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

Test(dataset, bombs_are_refused)
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

/* --- rows ------------------------------------------------------------------------------------- */

/* A file of n texts "<i> <i> ..." of varying length; the longest has 60 words. */
static const char *write_numbers(struct scratch_dir *d, int n)
{
    struct buf text = {0};

    for (int i = 0; i < n; i++) {
        buf_add_str(&text, "{\"text\": \"");
        for (int j = 0; j <= i * 7 % (i % 9 == 0 ? 60 : 9); j++)
            buf_printf(&text, "%s%d", j ? " " : "", i);
        buf_add_str(&text, "\"}\n");
    }
    scratch_dir_write(d, "numbers.jsonl", text.data, text.len);
    buf_fini(&text);
    return d->file;
}

static struct dataset *load_numbers(const struct tokenizer *t, int n, struct dataset_options o)
{
    struct dataset *set = NULL;
    struct scratch_dir d;
    struct err err = {0};

    scratch_dir_init(&d);
    cr_assert_eq(dataset_load((const char *[]){write_numbers(&d, n)}, 1, t, &o, &set, &err), 0,
                 "%s", err.msg);
    scratch_dir_fini(&d);
    return set;
}

static void batch_init(struct batch *b, int64_t B, int64_t T)
{
    size_t n = (size_t)(B * T);

    *b = (struct batch){.B = B,
                        .T = T,
                        .tokens = malloc(n * 4),
                        .targets = malloc(n * 4),
                        .positions = malloc(n * 4),
                        .first_key = malloc(n * 4)};
}

static void batch_fini(struct batch *b)
{
    free(b->tokens);
    free(b->targets);
    free(b->positions);
    free(b->first_key);
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The examples of an epoch as texts of ids, sorted; also checks every row on the way. */
static char **collect(const struct dataset *set, int64_t T, int64_t epoch, int64_t B,
                      int64_t *count)
{
    struct dataset_stats stats;
    struct batch b;
    int64_t tokens = 0, targets = 0, eos_targets = 0;
    char **found;

    dataset_get_stats(set, &stats);
    found = calloc((size_t)stats.examples + 1, sizeof(*found));
    *count = 0;
    batch_init(&b, B, T);
    for (int64_t row = 0; row < stats.rows; row += B) {
        dataset_fill(set, epoch, row, &b);
        cr_expect_eq(b.n_targets, dataset_count_targets(set, epoch, row, B));
        tokens += b.n_tokens;
        targets += b.n_targets;
        for (int64_t r = 0; r < B; r++) {
            const int32_t *id = b.tokens + r * T, *target = b.targets + r * T;
            const int32_t *position = b.positions + r * T, *first = b.first_key + r * T;
            int64_t used = T; /* the tail of padding sees itself only and is never a target */
            while (used > 0 && first[used - 1] == used - 1 && id[used - 1] == PAD &&
                   target[used - 1] == TARGET_IGNORE && position[used - 1] == 0)
                used--;
            for (int64_t i = 0, end; i < used; i = end) {
                struct buf text = {0};
                for (end = i; end < used && first[end] == i; end++) {
                    bool last = end + 1 == used || first[end + 1] != i;
                    cr_assert_eq(position[end], end - i);
                    cr_assert_eq(target[end], last ? TARGET_IGNORE : id[end + 1]);
                    eos_targets += target[end] == EOS;
                    buf_printf(&text, "%d ", id[end]);
                }
                cr_assert_gt(end, i, "row %d begins at %d", (int)(row + r), (int)i);
                cr_assert_lt(*count, stats.examples);
                found[(*count)++] = buf_take(&text);
            }
            cr_assert(row + r < stats.rows || used == 0);
        }
    }
    cr_expect_eq(tokens, stats.tokens);
    cr_expect_eq(targets, stats.target_tokens);
    cr_expect_eq(eos_targets, stats.sources, "each source ends with eos, as a target");
    batch_fini(&b);
    qsort(found, (size_t)*count, sizeof(*found), compare_texts);
    return found;
}

static void free_texts(char **texts, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        free(texts[i]);
    free(texts);
}

/* The same examples straight from the tokenizer, cut at T. */
static char **expected(const struct tokenizer *t, int n, int64_t T, int64_t *count)
{
    char **texts = calloc((size_t)n * 64, sizeof(*texts));
    int64_t k = 0;

    for (int i = 0; i < n; i++) {
        struct token_list ids = {0};
        struct buf words = {0};
        for (int j = 0; j <= i * 7 % (i % 9 == 0 ? 60 : 9); j++)
            buf_printf(&words, "%s%d", j ? " " : "", i);
        cr_assert_eq(tokenizer_encode(t, words.data, words.len, true, &ids, NULL), 0);
        for (int64_t at = 0, end; at < ids.n; at = end) {
            struct buf text = {0};
            end = ids.n - at <= T ? ids.n : ids.n - at == T + 1 ? at + T - 1 : at + T;
            if (end - at == 1) /* nothing to train on; in rows of two */
                continue;
            for (int64_t m = at; m < end; m++)
                buf_printf(&text, "%d ", ids.ids[m]);
            texts[k++] = buf_take(&text);
        }
        token_list_fini(&ids);
        buf_fini(&words);
    }
    qsort(texts, (size_t)k, sizeof(*texts), compare_texts);
    *count = k;
    return texts;
}

Test(dataset, every_example_comes_once_an_epoch_whole_and_apart)
{
    struct tokenizer *t = load_tokenizer();

    for (int trial = 0; trial < 24; trial++) {
        struct dataset_options o = options();
        int n = trial < 4 ? trial + 1 : 300;
        int64_t count, want_count;
        o.packing = trial % 2;
        o.max_seq_length = (const int64_t[]){2, 3, 16, 17, 50, 1000}[trial % 6];
        o.seed = (uint64_t)trial * 977;
        struct dataset *set = load_numbers(t, n, o);
        char **want = expected(t, n, o.max_seq_length, &want_count);
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            char **got = collect(set, o.max_seq_length, epoch, 1 + trial % 5, &count);
            cr_assert_eq(count, want_count, "trial %d", trial);
            for (int64_t i = 0; i < count; i++)
                cr_assert_str_eq(got[i], want[i], "trial %d, example %d", trial, (int)i);
            free_texts(got, count);
        }
        free_texts(want, want_count);
        dataset_destroy(set);
    }
    tokenizer_destroy(t);
}

Test(dataset, order_and_packing_depend_on_seed_and_epoch_alone)
{
    struct tokenizer *t = load_tokenizer();
    struct dataset_options o = options();
    struct batch a, b;

    struct dataset *one = load_numbers(t, 200, o), *same = load_numbers(t, 200, o);
    o.seed = 6;
    struct dataset *other = load_numbers(t, 200, o);
    batch_init(&a, 8, 16);
    batch_init(&b, 8, 16);
    dataset_fill(one, 3, 16, &a);
    dataset_fill(same, 1, 0, &b); /* no history */
    dataset_fill(same, 3, 16, &b);
    cr_expect_eq(memcmp(a.tokens, b.tokens, 8 * 16 * 4), 0);
    cr_expect_eq(memcmp(a.targets, b.targets, 8 * 16 * 4), 0);
    cr_expect_eq(memcmp(a.first_key, b.first_key, 8 * 16 * 4), 0);
    dataset_fill(same, 4, 16, &b);
    cr_expect_neq(memcmp(a.tokens, b.tokens, 8 * 16 * 4), 0, "epochs differ");
    dataset_fill(other, 3, 16, &b);
    cr_expect_neq(memcmp(a.tokens, b.tokens, 8 * 16 * 4), 0, "seeds differ");
    batch_fini(&a);
    batch_fini(&b);
    dataset_destroy(one);
    dataset_destroy(same);
    dataset_destroy(other);
    tokenizer_destroy(t);
}

Test(dataset, packing_wastes_little)
{
    struct tokenizer *t = load_tokenizer();
    struct dataset_options o = options();
    struct dataset_stats stats;

    o.max_seq_length = 128;
    struct dataset *set = load_numbers(t, 2000, o);
    dataset_get_stats(set, &stats);
    cr_expect_eq(stats.sources, 2000);
    cr_expect_lt((double)(stats.rows * 128), 1.05 * (double)stats.tokens);
    dataset_destroy(set);
    tokenizer_destroy(t);
}

Test(dataset, split_takes_the_last_examples_and_keeps_the_rest)
{
    struct tokenizer *t = load_tokenizer();
    struct dataset_options o = options();
    struct dataset *set = load_numbers(t, 40, o), *last = NULL;
    struct dataset_stats all, kept, taken;
    int64_t count, first_count, whole_count;
    struct err err = {0};

    dataset_get_stats(set, &all);
    cr_assert_eq(dataset_split(set, 0.1, &last, &err), 0, "%s", err.msg);
    dataset_get_stats(set, &kept);
    dataset_get_stats(last, &taken);
    cr_expect_eq(kept.sources, 36);
    cr_expect_eq(taken.sources, 4);
    cr_expect_eq(kept.tokens + taken.tokens, all.tokens);
    cr_expect_eq(kept.examples + taken.examples, all.examples);
    char **first = expected(t, 36, 16, &first_count), **got = collect(set, 16, 0, 3, &count);
    cr_assert_eq(count, first_count);
    for (int64_t i = 0; i < count; i++)
        cr_assert_str_eq(got[i], first[i]);
    free_texts(got, count);
    free_texts(first, first_count);
    char **whole = expected(t, 40, 16, &whole_count);
    got = collect(last, 16, 0, 3, &count);
    cr_expect_eq(count, whole_count - first_count);
    free_texts(got, count);
    free_texts(whole, whole_count);
    dataset_destroy(last);
    dataset_destroy(set);

    set = load_numbers(t, 1, o);
    last = NULL;
    cr_expect_eq(dataset_split(set, 0.5, &last, &err), ERR_INVALID);
    cr_expect_str_eq(err.reason, "invalid_n_examples");
    cr_expect_null(last);
    cr_expect_eq(dataset_count_targets(set, 0, 0, 10), 2);
    dataset_destroy(set);
    tokenizer_destroy(t);
}

Test(dataset, eos_is_not_doubled)
{
    struct tokenizer *t = load_tokenizer();
    struct dataset_options o = options();
    struct dataset *set = NULL;
    struct scratch_dir d;
    struct err err = {0};
    struct batch b;

    scratch_dir_init(&d);
    cr_assert_eq(dataset_load((const char *[]){scratch_dir_text(&d, "f", "{\"text\": \"a\"}")}, 1,
                              t, &o, &set, &err),
                 0, "%s", err.msg);
    batch_init(&b, 2, 16);
    dataset_fill(set, 0, 0, &b);
    cr_expect_eq(b.tokens[0], BOS);
    cr_expect_eq(b.tokens[2], EOS);
    cr_expect_eq(b.tokens[3], PAD);
    cr_expect_eq(b.targets[1], EOS);
    cr_expect_eq(b.n_tokens, 3);
    cr_expect_eq(b.n_targets, 2);
    cr_expect_eq(b.tokens[16], PAD, "a row past the end is padding");
    cr_expect_eq(b.targets[16], TARGET_IGNORE);
    batch_fini(&b);
    dataset_destroy(set);
    scratch_dir_fini(&d);
    tokenizer_destroy(t);
}

/* Padding is told by place: where eos is the pad token too, the one that ends an example is learnt.
 */
Test(dataset, eos_is_a_target_where_it_is_the_pad_token_too)
{
    struct tokenizer *t = NULL;
    struct dataset_options o = options();
    struct dataset *set = NULL;
    struct scratch_dir d;
    struct err err = {0};
    struct batch b;

    cr_assert_eq(tokenizer_load("tests/golden/chat/smollm2", &t, &err), 0, "%s", err.msg);
    int32_t eos = tokenizer_eos(t);
    cr_assert_eq(eos, tokenizer_pad(t));
    scratch_dir_init(&d);
    cr_assert_eq(dataset_load((const char *[]){scratch_dir_text(&d, "f", "{\"text\": \"x\"}")}, 1,
                              t, &o, &set, &err),
                 0, "%s", err.msg);
    batch_init(&b, 1, 16);
    dataset_fill(set, 0, 0, &b);
    cr_expect_eq(b.n_tokens, 2);
    cr_expect_eq(b.n_targets, 1);
    cr_expect_eq(b.targets[0], eos);
    for (int i = 1; i < 16; i++) {
        cr_expect_eq(b.tokens[i], eos);
        cr_expect_eq(b.targets[i], TARGET_IGNORE);
    }
    batch_fini(&b);
    dataset_destroy(set);
    scratch_dir_fini(&d);
    tokenizer_destroy(t);
}

/* --- what is trained on ----------------------------------------------------------------------- */

/* "token:target ..." of the set's rows of 32, one row a line; padding left out, "_" is no target.
 */
static char *show_rows(const char *lines, struct dataset_options o, struct err *err)
{
    struct tokenizer *t = load_tokenizer();
    int rc;
    struct dataset_stats stats;
    struct dataset *set = NULL;
    struct scratch_dir d;
    struct batch b;
    struct buf out = {0};

    scratch_dir_init(&d);
    o.packing = false;
    rc = dataset_load((const char *[]){scratch_dir_text(&d, "f", lines)}, 1, t, &o, &set, err);
    scratch_dir_fini(&d);
    if (rc == 0) {
        dataset_get_stats(set, &stats);
        batch_init(&b, stats.rows, o.max_seq_length);
        dataset_fill(set, 0, 0, &b);
        cr_expect_eq(b.n_targets, stats.target_tokens);
        cr_expect_eq(b.n_targets, dataset_count_targets(set, 0, 0, stats.rows));
        for (int64_t r = 0; r < stats.rows; r++) {
            for (int64_t i = r * b.T; i < (r + 1) * b.T && b.tokens[i] != PAD; i++) {
                struct buf word = {0};
                cr_assert_eq(tokenizer_decode(t, &b.tokens[i], 1, false, &word, NULL), 0);
                buf_printf(&out, "[%s]", buf_str(&word));
                buf_clear(&word);
                cr_assert(b.targets[i] == TARGET_IGNORE || b.targets[i] == b.tokens[i + 1]);
                buf_add_str(&out, b.targets[i] == TARGET_IGNORE ? "" : ">");
                buf_fini(&word);
            }
            buf_add_char(&out, '\n');
        }
        batch_fini(&b);
        dataset_destroy(set);
    }
    tokenizer_destroy(t);
    return buf_take(&out);
}

static void expect_rows(const char *lines, enum loss_on loss_on, int64_t length, const char *want)
{
    struct dataset_options o = options();
    struct err err = {0};

    o.loss_on = loss_on;
    o.max_seq_length = length;
    char *got = show_rows(lines, o, &err);
    cr_expect_str_eq(err.msg, "", "%s: %s", lines, err.msg);
    cr_expect_str_eq(got, want, "%s: %s", lines, got);
    free(got);
}

Test(dataset, completions_are_trained_on_and_prompts_are_not)
{
    static const char one[] = "{\"prompt\": \"a b\", \"completion\": \" the a\"}";

    /* '>' stands behind a token whose successor is a target. */
    expect_rows(one, LOSS_ON_AUTO, 32, "[<s>][a][ b]>[ the]>[ a]>[</s>]\n");
    expect_rows(one, LOSS_ON_ASSISTANT, 32, "[<s>][a][ b]>[ the]>[ a]>[</s>]\n");
    expect_rows(one, LOSS_ON_ALL, 32, "[<s>]>[a]>[ b]>[ the]>[ a]>[</s>]\n");
    expect_rows("{\"text\": \"a b\"}", LOSS_ON_AUTO, 32, "[<s>]>[a]>[ b]>[</s>]\n");
    expect_rows("{\"text\": \"a b\"}", LOSS_ON_ASSISTANT, 32, "[<s>]>[a]>[ b]>[</s>]\n");
    /* No token lies on both sides: "th" + "e" is not "the". */
    expect_rows("{\"prompt\": \"t\", \"completion\": \"he\"}", LOSS_ON_AUTO, 32,
                "[<s>][t]>[he]>[</s>]\n");
    /* An empty completion still ends. */
    expect_rows("{\"prompt\": \"a\", \"completion\": \"\"}", LOSS_ON_AUTO, 32, "[<s>][a]>[</s>]\n");
    /* A part of nothing but prompt is left out. */
    expect_rows("{\"prompt\": \"a b c d e f\", \"completion\": \" the\"}", LOSS_ON_AUTO, 4,
                "[ the]>[</s>]\n");
}

Test(dataset, instructions_become_paragraphs_where_there_is_no_chat_template)
{
    expect_rows("{\"instruction\": \"a\", \"input\": \"b\", \"output\": \"c\", \"system\": \"d\", "
                "\"history\": [[\"e\", \"f\"]]}",
                LOSS_ON_AUTO, 32,
                "[<s>][d][\n][\n][e][\n][\n]>[f][\n][\n][a][\n][\n][b][\n][\n]>[c]>[</s>]\n");
}

Test(dataset, conversations_need_a_chat_template)
{
    struct dataset_options o = options();
    struct err err = {0};

    free(show_rows(
        "{\"text\": \"a\"}\n{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}", o,
        &err));
    cr_expect_eq(err.code, ERR_UNSUPPORTED);
    cr_expect_str_eq(err.reason, "missing_chat_template");
    cr_expect_str_eq(err.param, "training_file");
    cr_expect_not_null(strstr(err.msg, "line 2: conversations cannot"), "%s", err.msg);
}

/* As expect_rows, through a chat template. `want` NULL: the error must have `reason` in it. */
static void expect_talk(const char *template, const char *line, enum loss_on loss_on,
                        const char *want, const char *reason)
{
    struct dataset_options o = options();
    struct chat_template *chat = NULL;
    json_t *tokens = json_pack("{s:s}", "eos_token", "</s>");
    struct err err = {0};

    cr_assert_eq(chat_template_create(template, strlen(template), tokens, 0, &chat, &err), 0, "%s",
                 err.msg);
    json_decref(tokens);
    o.loss_on = loss_on;
    o.max_seq_length = 64;
    o.chat = chat;
    char *got = show_rows(line, o, &err);
    if (want) {
        cr_expect_str_eq(err.msg, "", "%s: %s", line, err.msg);
        cr_expect_str_eq(got, want, "%s: %s", line, got);
    } else {
        cr_expect_not_null(strstr(err.msg, reason), "%s: %s", line, err.msg);
    }
    free(got);
    chat_template_destroy(chat);
}

#define USER(text)      "{\"role\": \"user\", \"content\": \"" text "\"}"
#define ASSISTANT(text) "{\"role\": \"assistant\", \"content\": \"" text "\"}"

static const char by_prefix[] =
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token if m.role == 'assistant' "
    "}}{% endfor %}{{ 'a:' if add_generation_prompt }}";
static const char by_marks[] =
    "{% for m in messages %}{% if m.role == 'assistant' %}a:{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.role[0] }}:{{ m.content }}{% endif %}{% endfor %}"
    "{{ 'a:' if add_generation_prompt }}";

Test(dataset, assistant_turns_are_trained_on_by_marks_and_by_prefixes_alike)
{
    static const char talk[] = "{\"messages\": [" USER("x") ", " ASSISTANT("the") ", " USER(
        "y") ", " ASSISTANT(" the") "]}";
    static const char weighed[] = "{\"messages\": [" USER(
        "x") ", {\"role\": \"assistant\", \"content\": \"the\", \"weight\": "
             "0}, " USER("y") ", " ASSISTANT(" the") "]}";
    static const char all_weighed[] =
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"the\", \"weight\": 0}]}";

    for (int i = 0; i < 2; i++) {
        const char *template = i ? by_marks : by_prefix;
        expect_talk(template, talk, LOSS_ON_AUTO,
                    "[u][:][x][a][:]>[th]>[e]>[</s>][u][:][y][a][:]>[ the]>[</s>]\n", NULL);
        expect_talk(template, weighed, LOSS_ON_ASSISTANT,
                    "[u][:][x][a][:][th][e][</s>][u][:][y][a][:]>[ the]>[</s>]\n", NULL);
        expect_talk(template, all_weighed, LOSS_ON_AUTO, NULL, "no token to train on");
    }
    /* No first token is taken from the tokenizer's own template: no second <s>. */
    expect_talk("<s>{{ messages[0].content }}{{ eos_token }}",
                "{\"messages\": [" ASSISTANT("a") "]}", LOSS_ON_ALL, "[<s>]>[a]>[</s>]\n", NULL);
}

Test(dataset, instructions_and_other_conversations_go_through_the_template)
{
    expect_talk(by_prefix, "{\"instruction\": \"x\", \"input\": \"\", \"output\": \"the\"}",
                LOSS_ON_AUTO, "[u][:][x][a][:]>[th]>[e]>[</s>]\n", NULL);
    expect_talk(by_prefix,
                "{\"conversations\": [{\"from\": \"human\", \"value\": \"x\"}, {\"from\": \"gpt\", "
                "\"value\": \"the\"}]}",
                LOSS_ON_AUTO, "[u][:][x][a][:]>[th]>[e]>[</s>]\n", NULL);
    expect_talk(by_prefix,
                "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": "
                "\"x\"}]}, " ASSISTANT("the") "]}",
                LOSS_ON_AUTO, "[u][:][x][a][:]>[th]>[e]>[</s>]\n", NULL);
}

Test(dataset, a_conversation_that_would_not_end_gets_an_end)
{
    static const char endless[] =
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
        "{{ 'a:' if add_generation_prompt }}";

    expect_talk(endless, "{\"messages\": [" USER("x") ", " ASSISTANT("the") "]}", LOSS_ON_AUTO,
                "[u][:][x][;][a][:]>[th]>[e]>[;]>[</s>]\n", NULL);
    expect_talk(endless, "{\"messages\": [" ASSISTANT("the") ", " USER("x") "]}", LOSS_ON_AUTO,
                "[a][:]>[th]>[e]>[;][u][:][x][;]\n", NULL);
}

Test(dataset, templates_that_hide_or_refuse_are_said_so)
{
    /* Writes the last answer only. */
    expect_talk(
        "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' }}{% endfor %}",
        "{\"messages\": [" USER("x") ", " ASSISTANT("a") ", " USER("y") ", " ASSISTANT("b") "]}",
        LOSS_ON_AUTO, NULL,
        "line 1: the model's chat template writes the first 2 messages otherwise");
    expect_talk("{{ raise_exception('never') }}", "{\"messages\": [" ASSISTANT("a") "]}",
                LOSS_ON_ALL, NULL, "refuses the conversation: never");
    expect_talk(
        "{% for m in messages %}{% generation %}a{% endgeneration %}{% generation %}b"
        "{% endgeneration %}{% endfor %}",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0}, " ASSISTANT(
            "b") "]}",
        LOSS_ON_AUTO, NULL, "marks 4 answers where the conversation has 2");
}

Test(rows, permute_is_a_permutation_and_a_mixed_one)
{
    for (int64_t n = 1; n < 3000; n = n < 70 ? n + 1 : n * 3 / 2) {
        char *seen = calloc((size_t)n, 1);
        int64_t fixed = 0, next = 0, last = -2;
        for (int64_t i = 0; i < n; i++) {
            int64_t p = rows_permute(i, n, 42, 1);
            cr_assert(p >= 0 && p < n && !seen[p], "n %d, index %d", (int)n, (int)i);
            seen[p] = 1;
            fixed += p == i;
            next += p == last + 1;
            last = p;
        }
        if (n > 100) { /* one of each is expected */
            cr_expect_lt(fixed, 8, "n %d", (int)n);
            cr_expect_lt(next, 8, "n %d", (int)n);
        }
        free(seen);
    }
}

/* Each place is taken about equally often by each row, over the epochs. */
Test(rows, permute_is_fair)
{
    enum { N = 10, EPOCHS = 10000 };
    int count[N][N] = {0};

    for (int64_t epoch = 0; epoch < EPOCHS; epoch++)
        for (int64_t i = 0; i < N; i++)
            count[i][rows_permute(i, N, 9, epoch)]++;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) /* sigma is 30 */
            cr_expect(abs(count[i][j] - EPOCHS / N) < 150, "row %d at %d: %d", j, i, count[i][j]);
}
