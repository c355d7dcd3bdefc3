/* Texts that are cut for encoding: no token lies on both sides of a cut. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/rng.h"
#include "worker/text/tokenizer.h"

static const char *const folders[] = {
    "tests/golden/tokenizer",          "tests/golden/tokenizer_llama",
    "tests/golden/tokenizer_mistral",  "tests/golden/tokenizer_t5",
    "tests/golden/tokenizer_unigram",  "tests/golden/chat/phi3",
    "tests/golden/chat/mistral",       "tests/golden/chat/llama3",
    "tests/golden/chat/mistral_first", "tests/golden/chat/mistral_always",
};
enum { N_FOLDERS = sizeof(folders) / sizeof(folders[0]), CUTS = 6 };

static struct tokenizer *load(const char *folder)
{
    struct tokenizer *t = NULL;
    struct err err = {0};

    cr_assert_eq(tokenizer_load(folder, &t, &err), 0, "%s", err.msg);
    return t;
}

static void encode(const struct tokenizer *t, const char *text, size_t n, struct token_list *out)
{
    out->n = 0;
    cr_assert_eq(tokenizer_encode(t, text, n, false, out, NULL), 0);
}

static void expect_same_text(const struct tokenizer *t, const struct token_list *a,
                             const struct token_list *b)
{
    struct buf x = {0}, y = {0};

    cr_assert_eq(tokenizer_decode(t, a->ids, a->n, false, &x, NULL), 0);
    cr_assert_eq(tokenizer_decode(t, b->ids, b->n, false, &y, NULL), 0);
    cr_assert_str_eq(buf_str(&x), buf_str(&y));
    buf_fini(&x);
    buf_fini(&y);
}

static bool begins_with(const struct token_list *ids, const struct token_list *start, int64_t n)
{
    return ids->n >= n && (n == 0 || memcmp(ids->ids, start->ids, (size_t)n * 4) == 0);
}

/* A text of random pieces, and ascending cuts between characters. */
static void draw(struct rng_stream stream, struct buf *text, size_t cuts[CUTS])
{
    static const char *const pieces[] = {"the", " quick",  "\n", "\n\n", " ",  "  ",
                                         ".",   "ing",     "é",  "日",   "42", "</s>",
                                         "<s>", "<|end|>", "\t", "un",   "123"};
    uint64_t k = 0;

    for (int i = 0; i < 12; i++)
        buf_add_str(text, pieces[rng_draw(stream, k++) % (sizeof(pieces) / sizeof(pieces[0]))]);
    for (int i = 0; i < CUTS; i++) {
        cuts[i] = rng_draw(stream, k++) % (text->len + 1);
        while (cuts[i] < text->len && ((unsigned char)text->data[cuts[i]] & 0xC0) == 0x80)
            cuts[i]++;
    }
    for (int i = 1; i < CUTS; i++)
        for (int j = i; j > 0 && cuts[j] < cuts[j - 1]; j--) {
            size_t c = cuts[j];
            cuts[j] = cuts[j - 1];
            cuts[j - 1] = c;
        }
}

/* What is in front of the first cut has the ids that it has alone; where that holds for all cuts
 * and the whole text, nothing changes. T5's normalizer strips a text's end, so alone is not in
 * front. */
Test(cuts, text_in_front_keeps_its_ids_and_the_whole_where_it_can)
{
    int kept = 0, cut = 0;

    for (int f = 0; f < N_FOLDERS; f++) {
        struct tokenizer *t = load(folders[f]);
        struct token_list whole = {0}, front = {0}, got = {0};
        for (uint32_t trial = 0; trial < 400; trial++) {
            struct buf text = {0};
            size_t cuts[CUTS];
            int64_t at[CUTS];
            bool all = true;
            draw((struct rng_stream){.seed = 11, .step = trial, .site = (uint32_t)f}, &text, cuts);
            got.n = 0;
            cr_assert_eq(tokenizer_encode_cut(t, text.data, text.len, cuts, CUTS, at, &got, NULL),
                         0);
            encode(t, text.data, text.len, &whole);
            for (int i = 0; i < CUTS; i++) {
                cr_assert(at[i] <= got.n && (i == 0 || at[i] >= at[i - 1]));
                encode(t, text.data, cuts[i], &front);
                all = all && begins_with(&whole, &front, front.n);
            }
            encode(t, text.data, cuts[0], &front);
            if (all)
                cr_assert(got.n == whole.n && begins_with(&got, &whole, got.n), "%s: %s",
                          folders[f], text.data);
            if (!strchr(text.data, '<') && !strstr(folders[f], "t5"))
                cr_assert(at[0] == front.n && begins_with(&got, &front, front.n), "%s: %s",
                          folders[f], text.data);
            if (!strstr(folders[f], "t5"))
                expect_same_text(t, &got, &whole);
            kept += all;
            cut += !all;
            buf_fini(&text);
        }
        token_list_fini(&whole);
        token_list_fini(&front);
        token_list_fini(&got);
        tokenizer_destroy(t);
    }
    cr_expect_gt(kept, 300);
    cr_expect_gt(cut, 300);
}

/* White space that an added token swallows belongs to it, on either side. */
Test(cuts, added_tokens_are_not_taken_apart)
{
    static const char text[] = "a <|end|>\n b";
    struct tokenizer *t = load("tests/golden/tokenizer"); /* <|end|> swallows both sides */
    struct token_list whole = {0}, got = {0};
    const size_t cuts[] = {1, 2, 5, 9, 10, 11, 12};
    int64_t at[7];

    encode(t, text, strlen(text), &whole);
    cr_assert_eq(tokenizer_encode_cut(t, text, strlen(text), cuts, 7, at, &got, NULL), 0);
    cr_expect(got.n == 3 && begins_with(&got, &whole, 3));
    for (int i = 0; i < 7; i++)
        cr_expect_eq(at[i], i < 2 ? 1 : i < 6 ? 2 : 3, "cut %d at %d", i, (int)at[i]);
    token_list_fini(&whole);
    token_list_fini(&got);
    tokenizer_destroy(t);
}

Test(cuts, many_in_a_long_text_take_little_time)
{
    enum { N = 1 << 20, MANY = 2048 };
    static size_t cuts[MANY];
    static int64_t at[MANY];
    struct token_list got = {0};
    char *text = malloc(N);
    struct tokenizer *t = load("tests/golden/chat/mistral");

    for (int even = 0; even < 2; even++) { /* cuts between words, and within them */
        for (size_t i = 0; i < N; i++)
            text[i] = i % 8 == 0 ? ' ' : "abcdefgh"[i * 7 % 11 % 8];
        for (size_t i = 0; i < MANY; i++)
            cuts[i] = (i + 1) * (N / MANY / 8) * 8 - (even ? 0 : 3);
        clock_t start = clock();
        got.n = 0;
        cr_assert_eq(tokenizer_encode_cut(t, text, N, cuts, MANY, at, &got, NULL), 0);
        cr_expect_lt(clock() - start, 20 * CLOCKS_PER_SEC);
        for (size_t i = 1; i < MANY; i++)
            cr_assert_gt(at[i], at[i - 1]);
    }
    free(text);
    token_list_fini(&got);
    tokenizer_destroy(t);
}
