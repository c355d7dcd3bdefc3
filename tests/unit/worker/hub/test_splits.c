/* Which files are which split: patterns, names, cards. Pure functions; no hub. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "worker/hub/card.h"
#include "worker/hub/glob.h"
#include "worker/hub/splits.h"

static void make_listing(struct listing *l, const char *const *paths)
{
    *l = (struct listing){0};
    for (; *paths; paths++) {
        struct listing_file file = {.path = (char *)*paths, .size = 1};
        cr_assert(listing_add(l, &file, NULL) == 0, "%s", *paths);
    }
    cr_assert(listing_finish(l, NULL) == 0);
}

/* The paths, with spaces between them. */
static char *join(const struct split_files *s)
{
    struct buf text = {0};

    for (int64_t i = 0; i < s->n; i++)
        buf_printf(&text, "%s%s", i ? " " : "", s->files[i]->path);
    return buf_take(&text);
}

static void expect(const char *const *paths, const char *folder, const char *split,
                   const char *files, const char *splits)
{
    struct split_files found = {0};
    struct listing l;
    struct buf known = {0};

    make_listing(&l, paths);
    splits_by_name(&l, folder, split, &found, &known);
    char *text = join(&found);
    cr_expect_str_eq(text, files);
    cr_expect_str_eq(buf_str(&known), splits);
    free(text);
    buf_fini(&known);
    split_files_fini(&found);
    listing_fini(&l);
}

Test(glob, patterns_are_those_of_the_hub)
{
    static const struct {
        const char *pattern, *path;
        bool matches;
    } cases[] = {
        {"data/train-*", "data/train-00000-of-00001.parquet", true},
        {"data/train-*", "data/x/train-1", false},
        {"*.jsonl", "a.jsonl", true},
        {"*.jsonl", "b/a.jsonl", false},
        {"**/*.jsonl", "a.jsonl", true},
        {"**/*.jsonl", "x/y/a.jsonl", true},
        {"**", "x/y/z", true},
        {"x/**", "x/y/z", true},
        {"x/**", "y/z", false},
        {"**/b/**", "a/b/c", true},
        {"**/b/**", "a/c", false},
        {"a?c", "abc", true},
        {"a?c", "ac", false},
        {"[a-c]x", "bx", true},
        {"[!a-c]x", "bx", false},
        {"[!a-c]x", "dx", true},
        {"[]]x", "]x", true},
        {"[x", "[x", true},
        {"*a*b*c", "xxaxxbxxc", true},
        {"*a*b*c", "xxaxxbxx", false},
        {"", "a", false},
        {"**", ".git/x", false},
        {".git/*", ".git/x", true},
        {"*/b.txt", "__pycache__/b.txt", false},
        {"__*/b.txt", "__pycache__/b.txt", true},
        {"**", "a/.hidden", false},
        {"20220301.en/*", "20220301.en/x", true},
    };
    char long_pattern[401], long_path[401];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        cr_expect(glob_path(cases[i].pattern, cases[i].path) == cases[i].matches, "%s %s",
                  cases[i].pattern, cases[i].path);
    for (int i = 0; i < 400; i++) {
        long_pattern[i] = i % 2 ? 'a' : '*';
        long_path[i] = 'a';
    }
    long_pattern[400] = long_path[400] = '\0';
    long_path[399] = 'b';
    cr_expect(!glob_path(long_pattern, long_path)); /* at once */
}

Test(splits, shards_name_their_split)
{
    static const char *const paths[] = {"README.md",
                                        "data/en-fr-00000-of-00001.parquet",
                                        "data/train-00000-of-00002-abc.parquet",
                                        "data/train-00001-of-00002-abc.parquet",
                                        "data/validation-00000-of-00001.parquet",
                                        "other/train.parquet",
                                        NULL};

    expect(paths, "", "train",
           "data/train-00000-of-00002-abc.parquet data/train-00001-of-00002-abc.parquet",
           "en-fr, train, validation");
    expect(paths, "", "en-fr", "data/en-fr-00000-of-00001.parquet", "en-fr, train, validation");
    expect(paths, "", "test", "", "en-fr, train, validation");
    expect(paths, "other", "train", "other/train.parquet", "train");
}

Test(splits, folders_name_theirs)
{
    static const char *const paths[] = {
        "dev-2024/a.jsonl",   "my_train_set/b.jsonl", "my_train_set/x/c.jsonl",
        "restrained/d.jsonl", "train.jsonl",          NULL};

    expect(paths, "", "train", "my_train_set/b.jsonl my_train_set/x/c.jsonl", "validation, train");
    expect(paths, "", "validation", "dev-2024/a.jsonl", "validation, train");
    expect(paths, "restrained", "train", "restrained/d.jsonl", "train");
}

Test(splits, names_of_files_do)
{
    static const char *const paths[] = {"gsm8k_test.jsonl.gz", "strain.jsonl", "train.jsonl",
                                        "training1.jsonl",     "valid.jsonl",  NULL};

    expect(paths, "", "train", "train.jsonl training1.jsonl", "test, train, validation");
    expect(paths, "", "test", "gsm8k_test.jsonl.gz", "test, train, validation");
    expect(paths, "", "validation", "valid.jsonl", "test, train, validation");
}

Test(splits, what_is_no_data_is_passed_over)
{
    static const char *const paths[] = {".hidden/a.jsonl", "__cache__/b.jsonl", "README.md",
                                        "a.jsonl",         "b.jsonl",           "config.json",
                                        "images/a.png",    "notes.txt",         NULL};
    static const char *const none[] = {"README.md", "data.zip", "load.py", NULL};

    expect(paths, "", "train", "a.jsonl b.jsonl", "train");
    expect(paths, "", "test", "", "train");
    expect(none, "", "train", "", "");
}

static void expect_converted(const char *config, const char *split, const char *files,
                             const char *splits, const char *configs)
{
    static const char *const paths[] = {"en/partial-train/0000.parquet",
                                        "en/partial-train/0001.parquet", "en/test/0000.parquet",
                                        "fr/train/0000.parquet", NULL};
    struct split_files found = {0};
    struct listing l;
    struct buf known = {0}, names = {0};

    make_listing(&l, paths);
    splits_converted(&l, config, split, &found, &known, &names);
    char *text = join(&found);
    cr_expect_str_eq(text, files);
    cr_expect_str_eq(buf_str(&known), splits);
    cr_expect_str_eq(buf_str(&names), configs);
    free(text);
    buf_fini(&known);
    buf_fini(&names);
    split_files_fini(&found);
    listing_fini(&l);
}

Test(splits, the_converters_folders_are_configurations_and_splits)
{
    expect_converted("en", "train", "en/partial-train/0000.parquet en/partial-train/0001.parquet",
                     "train, test", "en, fr");
    expect_converted("fr", "test", "", "train", "en, fr");
    expect_converted(NULL, "train", "", "", "en, fr");
    expect_converted("de", "train", "", "", "en, fr");
}

/* --- cards --- */

static json_t *card(const char *text, int want, struct err *err)
{
    json_t *configs = NULL;
    int rc = card_read_configs(text, strlen(text), &configs, err);

    cr_assert(rc == want, "%s: %d %s", text, rc, err->msg);
    return configs;
}

Test(card, configs_of_every_form)
{
    static const char text[] = "---\n"
                               "license: mit\n"
                               "size_categories:\n- n<1K\n"
                               "configs:\n"
                               "- config_name: en\n"
                               "  data_files:\n"
                               "  - split: train\n"
                               "    path: en/train-*\n"
                               "  - split: test\n"
                               "    path: [\"en/a.jsonl\", en/b.jsonl]\n"
                               "- config_name: fr\n"
                               "  default: true\n"
                               "  data_files: \"*.csv\"\n"
                               "- config_name: de\n"
                               "  data_dir: german\n"
                               "---\n"
                               "# Card\nconfigs: none of ours\n";
    struct err err = {0};
    json_t *configs = card(text, 0, &err);
    json_t *wanted = json_loads(
        "[{\"name\":\"en\",\"is_default\":false,\"folder\":null,\"splits\":"
        "{\"train\":[\"en/train-*\"],\"test\":[\"en/a.jsonl\",\"en/b.jsonl\"]}},"
        "{\"name\":\"fr\",\"is_default\":true,\"folder\":null,\"splits\":{\"train\":[\"*.csv\"]}},"
        "{\"name\":\"de\",\"is_default\":false,\"folder\":\"german\",\"splits\":null}]",
        0, NULL);
    char *got = json_dumps(configs, 0);

    cr_expect(json_equal(configs, wanted), "%s", got);
    free(got);
    json_decref(wanted);
    json_decref(configs);
}

Test(card, many_have_no_configs)
{
    static const char *const texts[] = {
        "",
        "# Title\n",
        "---\n---\n",
        "---\r\nlicense: mit\r\n---\r\n",
        "--- x\n",
        "---\nlicense: mit",
        "---\nconfigs: []\n---\n",
        "----\nconfigs: 1\n---\n",
    };

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct err err = {0};
        json_t *configs = card(texts[i], 0, &err);
        cr_expect(json_array_size(configs) == 0, "%s", texts[i]);
        json_decref(configs);
    }
}

Test(card, hostile_ones_are_refused)
{
    static const char *const texts[] = {
        "---\na: [\n---\n",
        "---\na: &x [1]\nb: *x\n---\n",
        "---\nconfigs: 5\n---\n",
        "---\nconfigs: [5]\n---\n",
        "---\nconfigs: [{data_files: {a: b}}]\n---\n",
        "---\nconfigs: [{data_files: [{split: a}]}]\n---\n",
        "---\nconfigs: [{data_files: [{split: '', path: x}]}]\n---\n",
        "---\nconfigs: [{data_files: [{split: a, path: x}, {split: a, path: y}]}]\n---\n",
        "---\nconfigs: [{data_files: [{split: a, path: {b: c}}]}]\n---\n",
        "---\na: \"\\xff\n---\n",
        "---\n[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]\n---\n",
    };

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct err err = {0};
        cr_expect_null(card(texts[i], ERR_CORRUPT, &err));
        cr_expect_not_null(strstr(err.msg, "README.md"));
    }
}
