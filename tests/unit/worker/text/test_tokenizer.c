/* The tokenizer against ids that the reference library made (tests/golden/tokenizer_gen.py), its
 * two file layouts, and files it must refuse. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/unit/worker/text/scratch_dir.h"
#include "worker/text/tokenizer.h"
#include "worker/text/unicode.h"
#include "worker/text/unicode_form.h"

#define GOLDEN "tests/golden/tokenizer"

static struct tokenizer *load(const char *dir)
{
    struct tokenizer *t = NULL;
    struct err err = {0};

    cr_assert_eq(tokenizer_load(dir, &t, &err), 0, "%s", err.msg);
    return t;
}

static struct token_list encode(const struct tokenizer *t, const char *text, size_t n, bool special)
{
    struct token_list ids = {0};
    struct err err = {0};

    cr_assert_eq(tokenizer_encode(t, text, n, special, &ids, &err), 0, "%s", err.msg);
    return ids;
}

static void expect_text(const struct tokenizer *t, const struct token_list *ids, bool skip,
                        const json_t *want, const char *dir, const char *line)
{
    struct buf back = {0};

    cr_assert_eq(tokenizer_decode(t, ids->ids, ids->n, skip, &back, NULL), 0);
    cr_expect(back.len == json_string_length(want) &&
                  memcmp(buf_str(&back), json_string_value(want), back.len) == 0,
              "%s decodes as '%s': %s", dir, buf_str(&back), line);
    buf_fini(&back);
}

static void expect_ids(const struct token_list *ids, const json_t *want, const char *dir,
                       const char *line)
{
    cr_assert_eq(ids->n, (int64_t)json_array_size(want), "%s, %lld tokens: %s", dir,
                 (long long)ids->n, line);
    for (int64_t i = 0; i < ids->n; i++)
        cr_expect_eq(ids->ids[i], json_integer_value(json_array_get(want, (size_t)i)),
                     "%s, token %lld: %s", dir, (long long)i, line);
}

/* Each line: ["text", [ids with special tokens], "decoded without them", "decoded with them"]. */
static int check_cases(const char *dir)
{
    struct tokenizer *t = load(dir);
    char path[128], *line = NULL;
    size_t cap = 0;
    int cases = 0;

    snprintf(path, sizeof(path), "%s/cases.jsonl", dir);
    FILE *f = fopen(path, "r");
    cr_assert_not_null(f);
    for (ssize_t n; (n = getline(&line, &cap, f)) > 0; cases++) {
        json_t *c = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, NULL);
        const json_t *text = json_array_get(c, 0);
        struct token_list ids = encode(t, json_string_value(text), json_string_length(text), true);

        expect_ids(&ids, json_array_get(c, 1), dir, line);
        expect_text(t, &ids, true, json_array_get(c, 2), dir, line);
        expect_text(t, &ids, false, json_array_get(c, 3), dir, line);
        token_list_fini(&ids);
        json_decref(c);
    }
    fclose(f);
    free(line);
    tokenizer_destroy(t);
    return cases;
}

Test(tokenizer, gives_the_ids_and_texts_of_the_reference)
{
    cr_expect_gt(check_cases(GOLDEN), 400);
    cr_expect_gt(check_cases(GOLDEN "_falcon"), 200); /* stages behind ByteLevel */
    cr_expect_gt(check_cases(GOLDEN "_llama"), 400);  /* byte fallback; odd added tokens */
    cr_expect_gt(check_cases(GOLDEN "_mistral"), 200);
    cr_expect_gt(check_cases(GOLDEN "_t5"), 400); /* Unigram, precompiled charsmap */
    cr_expect_gt(check_cases(GOLDEN "_unigram"), 200);
}

Test(tokenizer, knows_its_special_tokens)
{
    struct tokenizer *t = load(GOLDEN);

    cr_expect_eq(tokenizer_bos(t), 0);
    cr_expect_eq(tokenizer_eos(t), 1);
    cr_expect_eq(tokenizer_pad(t), 2);
    cr_expect_eq(tokenizer_vocab_size(t), 2004);
    tokenizer_destroy(t);
}

Test(tokenizer, refuses_what_is_not_utf8_and_leaves_the_list_alone)
{
    static const char *const bad[] = {"a\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                      "ok\xE2\x82"};
    struct tokenizer *t = load(GOLDEN);
    struct token_list ids = {0};

    token_list_add(&ids, 7);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err err = {0};
        cr_expect_eq(tokenizer_encode(t, bad[i], strlen(bad[i]), true, &ids, &err), ERR_INVALID);
        cr_expect_not_null(strstr(err.msg, "UTF-8"));
        cr_expect_eq(ids.n, 1);
    }
    token_list_fini(&ids);
    tokenizer_destroy(t);
}

Test(tokenizer, decodes_broken_characters_as_replacement_and_refuses_unknown_ids)
{
    struct tokenizer *t = load(GOLDEN);
    struct token_list ids = encode(t, "\xF0\x91\x8D\x88", 4, false); /* no merges for this one */
    struct buf out = {0};
    int32_t wrong = 2004;

    cr_assert_eq(ids.n, 4);
    cr_assert_eq(tokenizer_decode(t, ids.ids, 3, false, &out, NULL), 0);
    cr_expect_str_eq(buf_str(&out), "\xEF\xBF\xBD"); /* one for the three */
    buf_clear(&out);
    cr_expect_eq(tokenizer_decode(t, &wrong, 1, false, &out, NULL), ERR_INVALID);
    wrong = -1;
    cr_expect_eq(tokenizer_decode(t, &wrong, 1, false, &out, NULL), ERR_INVALID);
    cr_expect_eq(out.len, 0);
    buf_fini(&out);
    token_list_fini(&ids);
    tokenizer_destroy(t);
}

/* A vocabulary of all bytes, written as GPT-2 does, and the merges of "ab", "abab" and so on. */
static void write_bytes_vocab(struct scratch_dir *d, bool special)
{
    struct buf vocab = {0};
    int id = 0;

    buf_add_str(&vocab, special ? "{\"<s>\": 0, \"<pad>\": 1, \"</s>\": 2" : "{\"a\": 0");
    for (int c = 33, n = 0; n < 256; c++) {
        if ((c > 126 && c < 161) || c == 173)
            continue;
        if (c != 'a' || special)
            buf_printf(&vocab, ", \"%s%c\": %d",
                       c < 128   ? (c == '"' || c == '\\' ? "\\" : "")
                       : c < 192 ? "\xC2"
                       : c < 256 ? "\xC3"
                       : c < 320 ? "\xC4"
                                 : "\xC5",
                       c < 128 ? c : 0x80 | (c & 0x3F), 3 + n);
        n++;
        id = 3 + n;
    }
    buf_printf(&vocab, ", \"ab\": %d, \"abab\": %d, \"aa\": %d}", id, id + 1, id + 2);
    scratch_dir_write(d, "vocab.json", vocab.data, vocab.len);
    scratch_dir_text(d, "merges.txt", "#version: 0.2\na b\nab ab\r\na a\n");
    buf_fini(&vocab);
}

Test(tokenizer, reads_vocab_and_merges_with_opts_rule_for_bos)
{
    struct scratch_dir d;
    scratch_dir_init(&d);
    write_bytes_vocab(&d, true);
    scratch_dir_text(&d, "special_tokens_map.json",
                     "{\"bos_token\": {\"content\": \"</s>\", \"normalized\": true}, "
                     "\"eos_token\": \"</s>\", \"pad_token\": \"<pad>\"}");
    scratch_dir_text(&d, "tokenizer_config.json", "{\"add_bos_token\": true}");
    struct tokenizer *t = load(d.path);
    struct token_list ids = encode(t, "ababa</s>b", 10, true);

    cr_expect_eq(tokenizer_bos(t), 2);
    cr_expect_eq(tokenizer_eos(t), 2);
    cr_expect_eq(tokenizer_pad(t), 1);
    cr_assert_eq(ids.n, 5);
    cr_expect_eq(ids.ids[0], 2);
    cr_expect_eq(ids.ids[1], 260); /* abab */
    cr_expect_eq(ids.ids[2], 3 + 'a' - 33);
    cr_expect_eq(ids.ids[3], 2);
    cr_expect_eq(ids.ids[4], 3 + 'b' - 33);
    token_list_fini(&ids);
    tokenizer_destroy(t);
    scratch_dir_fini(&d);
}

/* Three megabytes that are one word: the time must not grow with the square of the length. */
Test(tokenizer, is_not_quadratic_in_a_words_length, .timeout = 600)
{
    enum { N = 3 << 20 };
    static const char *const words[] = {"ab", "a", " ", "\xE6\x97\xA5", ".", "\xC2\xA0"};
    struct scratch_dir d;
    scratch_dir_init(&d);
    write_bytes_vocab(&d, true);
    struct tokenizer *t = load(d.path);
    char *text = malloc(N);

    for (size_t w = 0; w < sizeof(words) / sizeof(words[0]); w++) {
        size_t n = strlen(words[w]), bytes = N / n * n;
        for (size_t i = 0; i < bytes; i++)
            text[i] = words[w][i % n];
        clock_t start = clock();
        struct token_list ids = encode(t, text, bytes, false);
        cr_expect_gt(ids.n, 0);
        cr_expect_lt(clock() - start, 30 * CLOCKS_PER_SEC, "'%s'", words[w]);
        token_list_fini(&ids);
    }
    free(text);
    tokenizer_destroy(t);
    scratch_dir_fini(&d);
}

/* A megabyte without a space through the models on characters, and of what their normalizers and
 * added tokens look at twice. */
Test(tokenizer, takes_long_texts_without_spaces, .timeout = 600)
{
    enum { N = 1 << 20 };
    static const char *const dirs[] = {GOLDEN "_llama", GOLDEN "_t5", GOLDEN "_unigram"};
    static const char *const words[] = {
        "ab", "\xE2\x96\x81", "a\xCC\x81", "\xF0\x9F\x91\xA8\xE2\x80\x8D", "<lef", "<left> ", "  "};
    char *text = malloc(N);

    for (size_t d = 0; d < sizeof(dirs) / sizeof(dirs[0]); d++) {
        struct tokenizer *t = load(dirs[d]);
        for (size_t w = 0; w < sizeof(words) / sizeof(words[0]); w++) {
            size_t n = strlen(words[w]), bytes = N / n * n;
            for (size_t i = 0; i < bytes; i++)
                text[i] = words[w][i % n];
            clock_t start = clock();
            struct token_list ids = encode(t, text, bytes, false);
            struct buf back = {0};
            cr_expect_eq(tokenizer_decode(t, ids.ids, ids.n, false, &back, NULL), 0);
            cr_expect_lt(clock() - start, 15 * CLOCKS_PER_SEC, "'%s' in %s", words[w], dirs[d]);
            buf_fini(&back);
            token_list_fini(&ids);
        }
        tokenizer_destroy(t);
    }
    free(text);
}

/* Tables older and newer than utf8proc's. */
Test(tokenizer, has_the_character_classes_of_the_reference)
{
    struct buf out = {0};

    cr_expect(unicode_is_mark(0x301) && !unicode_is_mark(0xD3C) && !unicode_is_mark('a'));
    cr_expect(unicode_is_punctuation('$') && unicode_is_punctuation(0x166D));
    cr_expect(!unicode_is_punctuation(0x2E43) && unicode_is_punctuation(0x2014));
    cr_expect(unicode_is_word(0x2EBF0) && unicode_is_word('_') && !unicode_is_word('-'));
    cr_expect(unicode_is_numeric(0x10D40) && unicode_is_numeric(0xBD) && !unicode_is_numeric('a'));
    cr_expect_eq(unicode_to_lower(0xA7CB), 0x264);
    cr_expect_eq(unicode_to_lower(0xC4), 0xE4);
    /* U+1E08F came after Unicode 9, where it is no mark: it does not change places with U+0323. */
    cr_expect_eq(unicode_form_add(FORM_NFC, "a\xF0\x9E\x82\x8F\xCC\xA3", 7, &out, NULL), 0);
    cr_expect_str_eq(buf_str(&out), "a\xF0\x9E\x82\x8F\xCC\xA3");
    buf_fini(&out);
}

/* Short and long words merge alike: the two ways of finding the next pair must agree. */
Test(tokenizer, merges_short_and_long_words_alike)
{
    struct scratch_dir d;
    scratch_dir_init(&d);
    write_bytes_vocab(&d, true);
    struct tokenizer *t = load(d.path);
    char text[512];

    for (int n = 1; n <= 200; n++) {
        for (int i = 0; i < n; i++)
            text[i] = i * i % 7 % 3 == 0 ? 'b' : 'a';
        struct token_list ids = encode(t, text, (size_t)n, false), want = {0};
        /* By definition: all "a b" first, then "ab ab", then "a a", each from the left. */
        int32_t s[256];
        int k = n;
        for (int i = 0; i < n; i++)
            s[i] = 3 + text[i] - 33;
        static const int32_t rules[3][3] = {{67, 68, 259}, {259, 259, 260}, {67, 67, 261}};
        for (int r = 0; r < 3; r++) {
            int m = 0;
            for (int i = 0; i < k; i++) {
                bool hit = i + 1 < k && s[i] == rules[r][0] && s[i + 1] == rules[r][1];
                s[m++] = hit ? rules[r][2] : s[i];
                i += hit;
            }
            k = m;
        }
        cr_assert_eq(ids.n, k, "length %d", n);
        cr_assert_eq(memcmp(ids.ids, s, (size_t)k * sizeof(*s)), 0, "length %d", n);
        token_list_fini(&ids);
        token_list_fini(&want);
    }
    tokenizer_destroy(t);
    scratch_dir_fini(&d);
}

#define MODEL   "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, "
#define BYTES   "\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, "
#define DECODER "\"decoder\": {\"type\": \"ByteLevel\"}, "

static const struct {
    const char *json, *word;
    int rc;
} REFUSED[] = {
    {"{" BYTES DECODER "\"model\": {\"type\": \"Unigram\"}}", "Unigram", ERR_UNSUPPORTED},
    {"{" DECODER "\"model\": {\"type\": \"WordPiece\"}}", "WordPiece", ERR_UNSUPPORTED},
    {"{" DECODER "\"model\": {\"type\": \"Unigram\"}}", "vocab", ERR_INVALID},
    {"{" DECODER "\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\"]]}}", "entry 0",
     ERR_INVALID},
    {"{" DECODER "\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0]], \"unk_id\": 1}}",
     "unk_id", ERR_INVALID},
    {"{\"pre_tokenizer\": {\"type\": \"UnicodeScripts\"}, " DECODER MODEL "\"merges\": []}}",
     "UnicodeScripts", ERR_UNSUPPORTED},
    {"{\"pre_tokenizer\": {\"type\": \"Metaspace\"}, " DECODER MODEL "\"merges\": []}}",
     "Metaspace", ERR_UNSUPPORTED},
    {"{\"normalizer\": {\"type\": \"Prepend\"}, " BYTES DECODER MODEL "\"merges\": []}}", "Prepend",
     ERR_UNSUPPORTED},
    {"{\"normalizer\": {\"type\": \"BertNormalizer\"}, " DECODER MODEL "\"merges\": []}}",
     "BertNormalizer", ERR_UNSUPPORTED},
    {"{\"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": "
     "\"AAAA\"}, " DECODER MODEL "\"merges\": []}}",
     "charsmap", ERR_INVALID},
    {"{\"post_processor\": {\"type\": \"Odd\"}, " BYTES DECODER MODEL "\"merges\": []}}", "Odd",
     ERR_UNSUPPORTED},
    {"{" BYTES "\"decoder\": {\"type\": \"CTC\"}, " MODEL "\"merges\": []}}", "CTC",
     ERR_UNSUPPORTED},
    {"{" BYTES DECODER MODEL "\"merges\": [], \"byte_fallback\": true}}", "byte_fallback",
     ERR_UNSUPPORTED},
    {"{" BYTES DECODER MODEL "\"merges\": [\"a c\"]}}", "merge 1", ERR_INVALID},
    {"{" BYTES DECODER MODEL "\"merges\": [\"a  b\"]}}", "merge 1", ERR_INVALID},
    {"{" BYTES DECODER MODEL "\"merges\": [[\"a\"]]}}", "merge 1", ERR_INVALID},
    {"{" BYTES DECODER "\"model\": {\"merges\": [], \"vocab\": {\"a\": 0, \"b\": 0}}}", "'b'",
     ERR_INVALID},
    {"{" BYTES DECODER "\"model\": {\"merges\": [], \"vocab\": {\"a\": 4194304}}}", "'a'",
     ERR_INVALID},
    {"{" BYTES DECODER "\"model\": {\"merges\": [], \"vocab\": {\"a\": -1}}}", "'a'", ERR_INVALID},
    {"{\"added_tokens\": [{\"id\": 9, \"content\": \"<x>\"}], " BYTES DECODER MODEL
     "\"merges\": []}}",
     "<x>", ERR_UNSUPPORTED},
    {"{\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": "
     "{\"id\": \"<s>\"}}, {\"Sequence\": {\"id\": \"A\"}}], \"special_tokens\": {\"<s>\": "
     "{\"ids\": [3]}}}, " BYTES DECODER MODEL "\"merges\": []}}",
     "no token", ERR_INVALID},
    {"{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", "
     "\"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"(\"}}, {\"type\": \"ByteLevel\"}]}"
     ", " DECODER MODEL "\"merges\": []}}",
     "pattern", ERR_INVALID},
};

Test(tokenizer, refuses_what_it_cannot_do_by_name)
{
    for (size_t i = 0; i < sizeof(REFUSED) / sizeof(REFUSED[0]); i++) {
        struct tokenizer *t = NULL;
        struct scratch_dir d;
        struct err err = {0};
        scratch_dir_init(&d);
        scratch_dir_text(&d, "tokenizer.json", REFUSED[i].json);
        cr_expect_eq(tokenizer_load(d.path, &t, &err), REFUSED[i].rc, "case %zu: %s", i, err.msg);
        cr_expect_not_null(strstr(err.msg, REFUSED[i].word), "case %zu: %s", i, err.msg);
        cr_expect_null(t);
        scratch_dir_fini(&d);
    }
}

/* A pattern that backtracks without end is an error after a while, not a hang. */
Test(tokenizer, gives_up_on_a_pattern_that_explodes, .timeout = 600)
{
    struct scratch_dir d;
    scratch_dir_init(&d);
    scratch_dir_text(&d, "tokenizer.json",
                     "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
                     "\"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": "
                     "\"(x+x+)+(?=y.)\"}}, {\"type\": \"ByteLevel\"}]}, " DECODER MODEL
                     "\"merges\": [\"a b\"]}}");
    struct tokenizer *t = load(d.path);
    struct token_list ids = {0};
    struct err err = {0};
    char text[64];

    memset(text, 'x', sizeof(text));
    text[63] = 'y';
    cr_expect_eq(tokenizer_encode(t, text, 64, false, &ids, &err), ERR_INVALID);
    cr_expect_not_null(strstr(err.msg, "gave up"), "%s", err.msg);
    cr_expect_eq(ids.n, 0);
    err_clear(&err);
    cr_expect_eq(tokenizer_encode(t, "ab", 2, false, &ids, &err), 0);
    cr_assert_eq(ids.n, 1);
    cr_expect_eq(ids.ids[0], 2);
    token_list_fini(&ids);
    tokenizer_destroy(t);
    scratch_dir_fini(&d);
}

Test(tokenizer, says_what_files_a_model_lacks)
{
    struct scratch_dir d;
    struct tokenizer *t = NULL;
    struct err err = {0};

    scratch_dir_init(&d);
    cr_expect_eq(tokenizer_load(d.path, &t, &err), ERR_UNSUPPORTED);
    cr_expect_not_null(strstr(err.msg, "merges.txt"));
    scratch_dir_fini(&d);
}
