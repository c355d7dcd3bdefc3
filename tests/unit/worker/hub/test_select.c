#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "worker/hub/listing.h"
#include "worker/hub/select.h"

#define SHA1 "0123456789abcdef0123456789abcdef01234567"

static struct listing listing_of(const char *const *names)
{
    struct listing l = {0};

    for (int64_t i = 0; names[i]; i++) {
        struct listing_file file = {
            .path = (char *)names[i], .size = 10 + i, .git_sha1 = (char *)SHA1};
        cr_assert_eq(listing_add(&l, &file, NULL), 0);
    }
    cr_assert_eq(listing_finish(&l, NULL), 0);
    return l;
}

static void expect_names(const struct listing_file *const *files, int64_t n,
                         const char *const *names)
{
    int64_t i = 0;

    for (; i < n && names[i]; i++)
        cr_expect_str_eq(files[i]->path, names[i]);
    cr_expect(i == n && !names[i], "%ld files, another number was expected", (long)n);
}
#define EXPECT_NAMES(files, n, ...) expect_names(files, n, (const char *const[]){__VA_ARGS__, NULL})

Test(select, takes_safetensors_and_leaves_the_rest)
{
    static const char *const names[] = {"tokenizer.json",
                                        "config.json",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "pytorch_model.bin",
                                        "tf_model.h5",
                                        "flax_model.msgpack",
                                        "rust_model.ot",
                                        "model.tflite",
                                        "model.gguf",
                                        "original/config.json",
                                        "original/consolidated.00.pth",
                                        "consolidated.safetensors",
                                        "onnx/model.onnx",
                                        "modeling_x.py",
                                        "training_args.bin",
                                        "README.md",
                                        NULL};
    struct listing l = listing_of(names);
    struct selection s = {0};

    cr_assert_eq(select_files(&l, &s, NULL), 0);
    EXPECT_NAMES(s.metadata, s.n_metadata, "config.json", "tokenizer.json");
    EXPECT_NAMES(s.weights, s.n_weights, "model.safetensors");
    cr_expect_null(s.index);
    cr_expect_eq(select_weight_bytes(&s), 12);
    select_fini(&s);
    listing_fini(&l);
}

Test(select, knows_all_metadata)
{
    static const char *const names[] = {
        "added_tokens.json",       "chat_template.jinja", "config.json",
        "generation_config.json",  "merges.txt",          "pytorch_model.bin",
        "special_tokens_map.json", "tokenizer.json",      "tokenizer.model",
        "tokenizer_config.json",   "vocab.json",          NULL};
    struct listing l = listing_of(names);
    struct selection s = {0};

    cr_assert_eq(select_files(&l, &s, NULL), 0);
    cr_expect_eq(s.n_metadata, 10);
    EXPECT_NAMES(s.weights, s.n_weights, "pytorch_model.bin");
    select_fini(&s);
    listing_fini(&l);
}

static int shards_of(const char *const *names, const char *index_text, struct selection *s,
                     struct listing *l, struct err *err)
{
    json_t *index = json_loads(index_text, 0, NULL);

    cr_assert_not_null(index);
    *l = listing_of(names);
    *s = (struct selection){0};
    cr_assert_eq(select_files(l, s, NULL), 0);
    cr_assert_not_null(s->index);
    int rc = select_shards(l, index, s, err);
    json_decref(index);
    return rc;
}

Test(select, takes_each_shard_once)
{
    static const char *const names[] = {"config.json",
                                        "b.safetensors",
                                        "a.safetensors",
                                        "c.safetensors",
                                        "model.safetensors.index.json",
                                        NULL};
    struct listing l;
    struct selection s;

    int rc = shards_of(names,
                       "{\"metadata\": {}, \"weight_map\": {\"x\": \"b.safetensors\", \"y\": "
                       "\"a.safetensors\", \"z\": \"b.safetensors\"}}",
                       &s, &l, NULL);
    cr_assert_eq(rc, 0);
    EXPECT_NAMES(s.weights, s.n_weights, "a.safetensors", "b.safetensors");
    EXPECT_NAMES(s.metadata, s.n_metadata, "config.json", "model.safetensors.index.json");
    cr_expect_eq(select_weight_bytes(&s), 11 + 12);
    select_fini(&s);
    listing_fini(&l);
}

Test(select, prefers_safetensors_shards_to_bin)
{
    static const char *const names[] = {"config.json", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json", NULL};
    struct listing l = listing_of(names);
    struct selection s = {0};

    cr_assert_eq(select_files(&l, &s, NULL), 0);
    cr_expect_str_eq(s.index->path, "model.safetensors.index.json");
    cr_expect_eq(s.n_weights, 0);
    select_fini(&s);
    listing_fini(&l);
}

Test(select, refuses_an_index_that_points_elsewhere)
{
    static const char *const names[] = {
        "config.json", "a.safetensors", "sub/a.bin", "x.bin", "pytorch_model.bin.index.json", NULL};
    static const char *const indexes[] = {
        "{\"weight_map\": {\"x\": \"a.safetensors\"}}",
        "{\"weight_map\": {\"x\": \"sub/a.bin\"}}",
        "{\"weight_map\": {\"x\": \"../x.bin\"}}",
        "{\"weight_map\": {\"x\": \"none.bin\"}}",
        "{\"weight_map\": {\"x\": 1}}",
        "{\"weight_map\": {\"x\": \"config.json\"}}",
        "{\"weight_map\": {}}",
        "{\"weight_map\": []}",
        "{}",
        "[]",
    };

    for (size_t i = 0; i < sizeof(indexes) / sizeof(indexes[0]); i++) {
        struct listing l;
        struct selection s;
        struct err err = {0};
        cr_expect_eq(shards_of(names, indexes[i], &s, &l, &err), ERR_CORRUPT, "%s", indexes[i]);
        cr_expect_str_eq(err.reason, "hub_corrupt");
        cr_expect_eq(s.n_weights, 0);
        select_fini(&s);
        listing_fini(&l);
    }
}

Test(select, says_when_there_are_no_weights)
{
    static const char *const names[] = {"config.json", "model.gguf", NULL};
    struct listing l = listing_of(names);
    struct selection s = {0};
    struct err err = {0};

    cr_expect_eq(select_files(&l, &s, &err), ERR_UNSUPPORTED);
    cr_expect_str_eq(err.reason, "no_weights");
    cr_expect_null(s.metadata);
    listing_fini(&l);
}

Test(select, refuses_an_absurd_config)
{
    struct listing l = {0};
    struct selection s = {0};
    struct listing_file config = {
        .path = (char *)"config.json", .size = INT64_C(1) << 40, .git_sha1 = (char *)SHA1};

    cr_assert_eq(listing_add(&l, &config, NULL), 0);
    cr_expect_eq(select_files(&l, &s, NULL), ERR_CORRUPT);
    listing_fini(&l);
}

Test(listing, refuses_paths_sizes_and_hashes_that_cannot_be)
{
    static const struct listing_file bad[] = {
        {(char *)"../x", 1, (char *)SHA1, NULL, NULL},
        {(char *)"/etc/passwd", 1, (char *)SHA1, NULL, NULL},
        {(char *)"a\\..\\b", 1, (char *)SHA1, NULL, NULL},
        {NULL, 1, (char *)SHA1, NULL, NULL},
        {(char *)"a", -1, (char *)SHA1, NULL, NULL},
        {(char *)"a", INT64_MAX, (char *)SHA1, NULL, NULL},
        {(char *)"a", 1, (char *)"../../x", NULL, NULL},
        {(char *)"a", 1, (char *)SHA1, (char *)SHA1, NULL},
    };
    struct listing l = {0};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_expect_eq(listing_add(&l, &bad[i], NULL), ERR_CORRUPT, "case %zu", i);
    cr_expect_eq(l.n, 0);
    struct listing_file a = {.path = (char *)"a", .size = 1, .git_sha1 = (char *)SHA1};
    cr_assert_eq(listing_add(&l, &a, NULL), 0);
    cr_assert_eq(listing_add(&l, &a, NULL), 0);
    cr_expect_eq(listing_finish(&l, NULL), ERR_CORRUPT);
    listing_fini(&l);
}

Test(listing, survives_the_way_through_the_cache)
{
    struct listing l = {0}, back = {0};
    struct listing_file small = {.path = (char *)"b", .size = 7, .git_sha1 = (char *)SHA1};
    struct listing_file large = {.path = (char *)"a",
                                 .size = INT64_C(10) << 30,
                                 .git_sha1 = (char *)SHA1,
                                 .sha256 = (char *)SHA1 "0123456789abcdef01234567",
                                 .xet_hash = (char *)SHA1 "0123456789abcdef01234567"};

    cr_assert_eq(listing_add(&l, &small, NULL), 0);
    cr_assert_eq(listing_add(&l, &large, NULL), 0);
    cr_assert_eq(listing_finish(&l, NULL), 0);
    json_t *json = listing_to_cached(&l);
    cr_assert_eq(listing_from_cached(json, &back, NULL), 0);
    cr_assert_eq(back.n, 2);
    const struct listing_file *a = listing_find(&back, "a"), *b = listing_find(&back, "b");
    cr_assert(a && b && !listing_find(&back, "c"));
    cr_expect_eq(a->size, INT64_C(10) << 30);
    cr_expect_str_eq(listing_etag(a), large.sha256);
    cr_expect_str_eq(a->xet_hash, large.xet_hash);
    cr_expect_str_eq(listing_etag(b), SHA1);
    cr_expect_eq(b->size, 7);
    json_object_set_new(json, "format_version", json_integer(2));
    cr_expect_eq(listing_from_cached(json, &back, NULL), ERR_CORRUPT);
    json_decref(json);
    listing_fini(&l);
    listing_fini(&back);
}

/* A hub may leave the git hash of a file out whose content has one of its own. */
Test(listing, survives_the_way_through_the_cache_without_git_hash)
{
    static const char page[] =
        "[{\"type\": \"file\", \"path\": \"a\", \"size\": 3, \"lfs\": {\"oid\": "
        "\"" SHA1 "0123456789abcdef01234567\", \"size\": 9}}]";
    struct listing l = {0}, back = {0};
    json_t *json = json_loads(page, 0, NULL);

    cr_assert_eq(listing_add_page(&l, json, "http://hub", "a/b", NULL), 0);
    json_decref(json);
    json = listing_to_cached(&l);
    cr_assert_eq(listing_from_cached(json, &back, NULL), 0);
    cr_assert_eq(back.n, 1);
    cr_expect_null(back.files[0].git_sha1);
    cr_expect_str_eq(listing_etag(&back.files[0]), SHA1 "0123456789abcdef01234567");
    cr_expect_eq(back.files[0].size, 9);
    json_decref(json);
    listing_fini(&l);
    listing_fini(&back);
}
