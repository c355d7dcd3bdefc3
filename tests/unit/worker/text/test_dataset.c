/* Data sets: what rows and batches hold. Tokens come from the golden tokenizer. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"
#include "tests/unit/worker/text/dataset_rig.h"

Test(dataset, load_stops_at_the_first_bad_line_with_its_number)
{
    struct tokenizer *t = rig_tokenizer();
    struct dataset_options o = rig_options();
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

/* --- rows --- */

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
        rig_fill(set, epoch, row, &b);
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
        for (int j = 0; j < rig_number_words(i); j++)
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
    struct tokenizer *t = rig_tokenizer();

    for (int trial = 0; trial < 24; trial++) {
        struct dataset_options o = rig_options();
        int n = trial < 4 ? trial + 1 : 300;
        int64_t count, want_count;
        o.packing = trial % 2;
        o.max_seq_length = (const int64_t[]){2, 3, 16, 17, 50, 1000}[trial % 6];
        o.seed = (uint64_t)trial * 977;
        struct dataset *set = rig_load_numbers(t, n, o);
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
    struct tokenizer *t = rig_tokenizer();
    struct dataset_options o = rig_options();
    struct batch a, b;

    struct dataset *one = rig_load_numbers(t, 200, o), *same = rig_load_numbers(t, 200, o);
    o.seed = 6;
    struct dataset *other = rig_load_numbers(t, 200, o);
    batch_init(&a, 8, 16);
    batch_init(&b, 8, 16);
    rig_fill(one, 3, 16, &a);
    rig_fill(same, 1, 0, &b); /* no history */
    rig_fill(same, 3, 16, &b);
    cr_expect_eq(memcmp(a.tokens, b.tokens, 8 * 16 * 4), 0);
    cr_expect_eq(memcmp(a.targets, b.targets, 8 * 16 * 4), 0);
    cr_expect_eq(memcmp(a.first_key, b.first_key, 8 * 16 * 4), 0);
    rig_fill(same, 4, 16, &b);
    cr_expect_neq(memcmp(a.tokens, b.tokens, 8 * 16 * 4), 0, "epochs differ");
    rig_fill(other, 3, 16, &b);
    cr_expect_neq(memcmp(a.tokens, b.tokens, 8 * 16 * 4), 0, "seeds differ");
    batch_fini(&a);
    batch_fini(&b);
    dataset_destroy(one);
    dataset_destroy(same);
    dataset_destroy(other);
    tokenizer_destroy(t);
}

/* FNV-1a over all batches of three epochs. */
static uint64_t digest(const struct dataset *set, int64_t T)
{
    struct dataset_stats stats;
    struct batch b;
    uint64_t hash = UINT64_C(14695981039346656037);

    dataset_get_stats(set, &stats);
    batch_init(&b, 3, T);
    for (int64_t epoch = 0; epoch < 3; epoch++)
        for (int64_t row = 0; row < stats.rows; row += 3) {
            rig_fill(set, epoch, row, &b);
            const int32_t *const arrays[] = {b.tokens, b.targets, b.positions, b.first_key};
            for (int a = 0; a < 4; a++)
                for (int64_t i = 0; i < 3 * T; i++)
                    hash = (hash ^ (uint32_t)arrays[a][i]) * UINT64_C(1099511628211);
        }
    batch_fini(&b);
    return hash;
}

/* A job's data order is part of its result: it must not change from one version to the next. The
 * numbers are those of the first one. */
Test(dataset, the_order_of_a_seed_stays_what_it_is)
{
    static const struct {
        uint64_t seed, whole, front, last;
        bool packing;
    } cases[] = {
        {5, 0x7048ec572723efaf, 0x24dc0424f7e6f861, 0xc924f743b1c19157, true},
        {6, 0x4dc67765fcdaa3dd, 0x08ea4ce61abf7c65, 0xa2a270c9411eb345, true},
        {5, 0xa6e205cd664dd741, 0xb19c867a47007b91, 0x850fc134325e3ea1, false},
    };
    struct tokenizer *t = rig_tokenizer();

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct dataset_options o = rig_options();
        struct dataset *last = NULL;
        o.seed = cases[i].seed;
        o.packing = cases[i].packing;
        struct dataset *set = rig_load_numbers(t, 200, o);
        cr_expect_eq(digest(set, 16), cases[i].whole, "%zu: %#llx", i, (long long)digest(set, 16));
        cr_assert_eq(dataset_split(set, 0.2, &last, NULL), 0);
        cr_expect_eq(digest(set, 16), cases[i].front, "%zu: %#llx", i, (long long)digest(set, 16));
        cr_expect_eq(digest(last, 16), cases[i].last, "%zu: %#llx", i, (long long)digest(last, 16));
        dataset_destroy(set);
        dataset_destroy(last);
    }
    tokenizer_destroy(t);
}

Test(dataset, packing_wastes_little)
{
    struct tokenizer *t = rig_tokenizer();
    struct dataset_options o = rig_options();
    struct dataset_stats stats;

    o.max_seq_length = 128;
    struct dataset *set = rig_load_numbers(t, 2000, o);
    dataset_get_stats(set, &stats);
    cr_expect_eq(stats.sources, 2000);
    cr_expect_lt((double)(stats.rows * 128), 1.05 * (double)stats.tokens);
    dataset_destroy(set);
    tokenizer_destroy(t);
}

Test(dataset, split_takes_the_last_examples_and_keeps_the_rest)
{
    struct tokenizer *t = rig_tokenizer();
    struct dataset_options o = rig_options();
    struct dataset *set = rig_load_numbers(t, 40, o), *last = NULL;
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

    set = rig_load_numbers(t, 1, o);
    last = NULL;
    cr_expect_eq(dataset_split(set, 0.5, &last, &err), ERR_INVALID);
    cr_expect_str_eq(err.reason, "invalid_n_examples");
    cr_expect_null(last);
    dataset_get_stats(set, &all);
    cr_expect_eq(all.target_tokens, 2, "a set that cannot be split stays as it is");
    dataset_destroy(set);
    tokenizer_destroy(t);
}

Test(dataset, eos_is_not_doubled)
{
    struct tokenizer *t = rig_tokenizer();
    struct dataset_options o = rig_options();
    struct dataset *set = NULL;
    struct scratch_dir d;
    struct err err = {0};
    struct batch b;

    scratch_dir_init(&d);
    cr_assert_eq(dataset_load((const char *[]){scratch_dir_text(&d, "f", "{\"text\": \"a\"}")}, 1,
                              t, &o, &set, &err),
                 0, "%s", err.msg);
    batch_init(&b, 2, 16);
    rig_fill(set, 0, 0, &b);
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
    struct dataset_options o = rig_options();
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
    rig_fill(set, 0, 0, &b);
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
