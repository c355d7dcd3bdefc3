/* Data sets of a hub: which files come, from which branch, and what is said where none do. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "tests/unit/worker/hub/fixture.h"

static struct fixture f;

static void put(const char *repo, const char *name, const char *text)
{
    char *full = xasprintf("datasets/%s", repo);

    fixture_put(&f, full, name, text, strlen(text));
    free(full);
}

static void setup(void)
{
    fixture_start(&f);
    put("org/plain", "README.md", "---\nlicense: mit\n---\n# Plain\n");
    put("org/plain", "data/train-00000-of-00002.parquet", "PAR1 one");
    put("org/plain", "data/train-00001-of-00002.parquet", "PAR1 two");
    put("org/plain", "data/validation-00000-of-00001.parquet", "PAR1 three");
    put("org/card", "README.md",
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - {split: train, path: en/*.jsonl}\n"
        "  - {split: test, path: ['extra/t.jsonl']}\n- config_name: fr\n  data_dir: french\n---\n");
    put("org/card", "en/a.jsonl", "{\"text\": \"a\"}\n");
    put("org/card", "en/b.jsonl", "{\"text\": \"b\"}\n");
    put("org/card", "extra/t.jsonl", "{\"text\": \"t\"}\n");
    put("org/card", "french/train.jsonl", "{\"text\": \"f\"}\n");
    put("org/script", "README.md", "---\nlicense: mit\n---\n");
    put("org/script", "script.py", "raise SystemExit\n");
    put("org/script@refs%2Fconvert%2Fparquet", "default/train/0000.parquet", "PAR1 converted");
    put("org/script@refs%2Fconvert%2Fparquet", "default/test/0000.parquet", "PAR1 tested");
    put("org/images", "a.png", "PNG");
    put("org/gated", "train.jsonl", "{\"text\": \"a\"}\n");
    put("org/broken", "README.md", "---\nconfigs: [\n---\n");
    put("org/broken", "train.jsonl", "{\"text\": \"a\"}\n");
    put("single", "train.jsonl", "{\"text\": \"single\"}\n");
}

static void teardown(void)
{
    fixture_stop(&f);
}

TestSuite(dataset, .init = setup, .fini = teardown, .timeout = 600);

static struct hub *client(const char *token, bool offline)
{
    struct hub_config config = {.endpoint = f.endpoint,
                                .token = token,
                                .cache_dir = f.cache,
                                .offline = offline,
                                .wait_scale = 0.01};
    struct hub *hub = NULL;

    cr_assert(hub_create(&config, &hub, NULL) == 0);
    return hub;
}

/* Fetches, and compares the names, with spaces between them, and the contents. */
static void expect(struct hub *hub, const struct hub_data_query *q, const char *files,
                   bool converted)
{
    struct hub_snapshot s = {0};
    struct buf names = {0};
    struct err err = {0};
    bool copy = false;

    cr_assert(hub_fetch_dataset(hub, q, &s, &copy, &err) == 0, "%s: %s", q->repo, err.msg);
    for (int64_t i = 0; i < s.n_files; i++) {
        struct buf mine = {0}, theirs = {0};
        char *here = fs_join(s.directory, s.files[i]);
        char *there = xasprintf("%s/datasets/%s%s/%s", f.root, q->repo,
                                converted ? "@refs%2Fconvert%2Fparquet" : "", s.files[i]);
        cr_assert(fs_read_file(here, 1 << 20, &mine, NULL) == 0, "%s", here);
        cr_assert(fs_read_file(there, 1 << 20, &theirs, NULL) == 0, "%s", there);
        cr_expect_str_eq(buf_str(&mine), buf_str(&theirs));
        buf_printf(&names, "%s%s", i ? " " : "", s.files[i]);
        buf_fini(&mine);
        buf_fini(&theirs);
        free(here);
        free(there);
    }
    cr_expect_str_eq(buf_str(&names), files);
    cr_expect(copy == converted);
    buf_fini(&names);
    hub_snapshot_fini(&s);
}

static void refused(struct hub *hub, const struct hub_data_query *q, enum err_code code,
                    const char *reason, const char *text)
{
    struct hub_snapshot s = {0};
    struct err err = {0};
    bool copy = false;

    cr_expect(hub_fetch_dataset(hub, q, &s, &copy, &err) == (int)code, "%s: %d %s", q->repo,
              err.code, err.msg);
    cr_expect_str_eq(err.reason, reason);
    cr_expect(strstr(err.msg, text), "%s", err.msg);
}

#define AT(commit, ...)                                                                            \
    (&(struct hub_data_query){.revision = commit, .usual_split = "train", __VA_ARGS__})
#define Q(...) AT("main", __VA_ARGS__)

Test(dataset, a_split_is_fetched_and_nothing_else)
{
    struct hub *hub = client("", false);

    expect(hub, Q(.repo = "org/plain"),
           "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet", false);
    cr_expect_eq(fixture_count(&f, NULL, "GET", "validation"), 0);
    cr_expect_eq(fixture_count(&f, "hub", NULL, "/api/models/"), 0);
    expect(hub, Q(.repo = "org/plain", .split = "validation"),
           "data/validation-00000-of-00001.parquet", false);
    expect(hub, Q(.repo = "org/plain", .path = "data/train-00001-of-00002.parquet"),
           "data/train-00001-of-00002.parquet", false);
    expect(hub, Q(.repo = "single"), "train.jsonl", false);
    refused(hub, Q(.repo = "org/plain", .split = "dev"), ERR_NOT_FOUND, "split_not_found",
            "train, validation");
    refused(hub, Q(.repo = "org/plain", .path = "data/none"), ERR_NOT_FOUND, "data_file_not_found",
            "data/none");
    refused(hub, Q(.repo = "org/plain", .path = "README.md"), ERR_UNSUPPORTED, "no_data_files",
            "README.md");
    refused(hub,
            Q(.repo = "org/plain", .path = "data/train-00001-of-00002.parquet", .split = "train"),
            ERR_INVALID, "split_not_found", "is one file");
    refused(hub, Q(.repo = "org/plain", .path = "../x"), ERR_INVALID, "", "../x");
    refused(hub, Q(.repo = "org/none"), ERR_NOT_FOUND, "dataset_not_found", "data set");
    refused(hub, Q(.repo = "org/images"), ERR_UNSUPPORTED, "no_data_files", "Parquet");
    hub_destroy(hub);
    char *folder = fs_join(f.cache, "datasets--org--plain/snapshots");
    cr_expect(fs_exists(folder));
    free(folder);
}

Test(dataset, a_card_says_which_files)
{
    struct hub *hub = client("", false);

    expect(hub, Q(.repo = "org/card", .config = "en"), "en/a.jsonl en/b.jsonl", false);
    expect(hub, Q(.repo = "org/card", .config = "en", .split = "test"), "extra/t.jsonl", false);
    expect(hub, Q(.repo = "org/card", .config = "fr"), "french/train.jsonl", false);
    expect(hub, Q(.repo = "org/card", .path = "extra/t.jsonl"), "extra/t.jsonl", false);
    refused(hub, Q(.repo = "org/card"), ERR_NOT_FOUND, "config_not_found", "one of: en, fr");
    refused(hub, Q(.repo = "org/card", .config = "de"), ERR_NOT_FOUND, "config_not_found",
            "one of: en, fr");
    refused(hub, Q(.repo = "org/card", .config = "en", .split = "dev"), ERR_NOT_FOUND,
            "split_not_found", "train, test");
    refused(hub, Q(.repo = "org/broken"), ERR_CORRUPT, "dataset_card", "README.md");
    hub_destroy(hub);
}

Test(dataset, the_converters_copy_stands_in_for_a_script)
{
    struct hub *hub = client("", false);
    struct hub_snapshot s = {0};
    bool copy = false;

    expect(hub, Q(.repo = "org/script"), "default/train/0000.parquet", true);
    expect(hub, Q(.repo = "org/script", .split = "test"), "default/test/0000.parquet", true);
    refused(hub, Q(.repo = "org/script", .config = "en"), ERR_NOT_FOUND, "config_not_found",
            "default");
    expect(hub, AT("refs/convert/parquet", .repo = "org/script"), "default/train/0000.parquet",
           true);
    /* Frozen: the commit alone, and that it is of that branch. */
    cr_assert(hub_fetch_dataset(hub, Q(.repo = "org/script"), &s, &copy, NULL) == 0);
    expect(hub, AT(s.commit, .repo = "org/script", .converted = true), "default/train/0000.parquet",
           true);
    hub_snapshot_fini(&s);
    hub_destroy(hub);
}

Test(dataset, what_is_there_is_not_asked_for_again_and_serves_offline)
{
    struct hub *hub = client("", false);
    struct hub_snapshot s = {0};
    bool copy = false;

    cr_assert(hub_fetch_dataset(hub, Q(.repo = "org/card", .config = "en"), &s, &copy, NULL) == 0);
    fixture_set_faults(&f, "[]");
    expect(hub, AT(s.commit, .repo = "org/card", .config = "en"), "en/a.jsonl en/b.jsonl", false);
    cr_expect_eq(fixture_count(&f, NULL, NULL, NULL), 0);
    hub_destroy(hub);
    hub = client("", true);
    expect(hub, Q(.repo = "org/card", .config = "en"), "en/a.jsonl en/b.jsonl", false);
    refused(hub, Q(.repo = "org/card", .config = "fr"), ERR_NOT_FOUND, "hub_offline", "french");
    refused(hub, Q(.repo = "org/plain"), ERR_NOT_FOUND, "hub_offline", "org/plain");
    cr_expect_eq(fixture_count(&f, NULL, NULL, NULL), 0);
    hub_destroy(hub);
    hub_snapshot_fini(&s);
}

Test(dataset, a_gated_one_takes_a_token_that_may_read_it)
{
    struct hub *hub = client("", false), *other = client("hf_other", false),
               *granted = client("hf_granted", false);

    refused(hub, Q(.repo = "org/gated"), ERR_PERMISSION, "gated_dataset", "datasets/org/gated");
    expect(granted, Q(.repo = "org/gated"), "train.jsonl", false);
    refused(other, Q(.repo = "org/gated"), ERR_PERMISSION, "gated_dataset", "accept its terms");
    refused(hub, Q(.repo = "org/gated"), ERR_PERMISSION, "gated_dataset", "");
    hub_destroy(granted);
    hub_destroy(other);
    hub_destroy(hub);
}

Test(dataset, a_cut_connection_is_continued_and_wrong_content_is_not_kept)
{
    struct hub *hub = client("", false);

    fixture_set_faults(&f, "[{\"match\": \"store GET\", \"action\": \"cut\", \"bytes\": 3, "
                           "\"times\": 2}]");
    expect(hub, Q(.repo = "org/plain", .split = "validation"),
           "data/validation-00000-of-00001.parquet", false);
    fixture_set_faults(&f, "[{\"match\": \"store GET\", \"action\": \"flip\", \"at\": 5}]");
    refused(hub, Q(.repo = "org/plain"), ERR_CORRUPT, "hub_corrupt", "hash");
    fixture_set_faults(&f,
                       "[{\"match\": \"hub GET .*/tree/\", \"action\": \"tree\", \"add\": "
                       "[{\"type\": \"file\", \"oid\": \"0000000000000000000000000000000000000000\""
                       ", \"size\": 1, \"path\": \"../../train.jsonl\"}]}]");
    refused(hub, Q(.repo = "single"), ERR_CORRUPT, "hub_corrupt", "leads out");
    hub_destroy(hub);
}
