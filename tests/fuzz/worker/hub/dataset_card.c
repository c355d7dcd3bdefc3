/* A data set's README: its configs, and the files that they and names alone find in a listing. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"
#include "tests/fuzz/fuzz.h"
#include "worker/hub/card.h"
#include "worker/hub/glob.h"
#include "worker/hub/splits.h"

static const char *const paths[] = {"README.md",
                                    "data/train-00000-of-00001.parquet",
                                    "data/test-00000-of-00001.parquet",
                                    "en/train.jsonl",
                                    "en/dev.jsonl.gz",
                                    ".hidden/x.csv",
                                    "__x__/y.txt",
                                    "a b/c[d].json"};

static void make_listing(struct listing *l)
{
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        struct listing_file file = {.path = (char *)paths[i], .size = 1};
        if (listing_add(l, &file, NULL) != 0)
            abort();
    }
    if (listing_finish(l, NULL) != 0)
        abort();
}

/* What is found is data of the listing, and splits that have files are known. */
static void check(struct split_files *found, struct buf *known)
{
    for (int64_t i = 0; i < found->n; i++)
        if (!splits_is_data(found->files[i]->path))
            abort();
    if (found->n > 0 && known->len == 0)
        abort();
    split_files_fini(found);
    buf_fini(known);
}

static void use(const struct listing *l, const json_t *config)
{
    const char *folder = json_string_value(json_object_get(config, "folder"));
    json_t *splits = json_object_get(config, "splits"), *patterns;
    struct split_files found = {0};
    struct buf known = {0};
    const char *name;

    folder = folder ? folder : "";
    json_object_foreach(splits, name, patterns)
    {
        splits_by_pattern(l, folder, splits, name, &found, &known);
        check(&found, &known);
    }
    splits_by_name(l, folder, "train", &found, &known);
    check(&found, &known);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct listing l = {0};
    json_t *configs = NULL, *config;
    size_t i;

    if (card_read_configs((const char *)data, n, &configs, NULL) != 0)
        return 0;
    make_listing(&l);
    json_array_foreach(configs, i, config)
    {
        use(&l, config);
    }
    json_decref(configs);
    listing_fini(&l);
    return 0;
}
