#include "worker/hub/select.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/hub/status.h"

/* The largest tokenizer.json in use has some 35 MB. */
#define MAX_METADATA_BYTES (INT64_C(512) << 20)

static const char *const metadata_names[] = {
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
};
enum { N_METADATA_NAMES = sizeof(metadata_names) / sizeof(metadata_names[0]) };

static const struct weight_form {
    const char *file;
    const char *suffix;
    bool is_index;
} weight_forms[] = {
    {"model.safetensors", ".safetensors", false},
    {"model.safetensors.index.json", ".safetensors", true},
    {"pytorch_model.bin", ".bin", false},
    {"pytorch_model.bin.index.json", ".bin", true},
};
enum { N_WEIGHT_FORMS = sizeof(weight_forms) / sizeof(weight_forms[0]) };

const char *select_known_name(int i)
{
    if (i < N_METADATA_NAMES)
        return metadata_names[i];
    return i < N_METADATA_NAMES + N_WEIGHT_FORMS ? weight_forms[i - N_METADATA_NAMES].file : NULL;
}

void select_fini(struct selection *s)
{
    free(s->metadata);
    free(s->weights);
    *s = (struct selection){0};
}

static int add_metadata(struct selection *s, const struct listing_file *file, struct err *err)
{
    if (file->size > MAX_METADATA_BYTES)
        return status_corrupt(err, "the repository's %s has %" PRId64 " bytes, which is absurd",
                              file->path, file->size);
    s->metadata[s->n_metadata++] = file;
    return 0;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp((*(const struct listing_file *const *)a)->path,
                  (*(const struct listing_file *const *)b)->path);
}

int select_files(const struct listing *l, struct selection *out, struct err *err)
{
    struct selection s = {0};
    int rc = 0;

    s.metadata = xcalloc(N_METADATA_NAMES + 1, sizeof(*s.metadata));
    for (int i = 0; i < N_METADATA_NAMES; i++) {
        const struct listing_file *file = listing_find(l, metadata_names[i]);
        if (file)
            TRY(add_metadata(&s, file, err));
    }
    for (int i = 0; i < N_WEIGHT_FORMS; i++) {
        const struct listing_file *file = listing_find(l, weight_forms[i].file);
        if (!file)
            continue;
        if (weight_forms[i].is_index) {
            TRY(add_metadata(&s, file, err));
            s.index = file;
        } else {
            s.weights = xcalloc(1, sizeof(*s.weights));
            s.weights[s.n_weights++] = file;
        }
        qsort(s.metadata, (size_t)s.n_metadata, sizeof(*s.metadata), compare_files);
        *out = s;
        return 0;
    }
    err_set(err, ERR_UNSUPPORTED,
            "the repository holds neither safetensors nor pytorch_model.bin weights; name a "
            "revision or a repository that does");
    rc = err_set_reason(err, ERR_UNSUPPORTED, "no_weights");
out:
    select_fini(&s);
    return rc;
}

static const char *index_suffix(const struct selection *s)
{
    for (int i = 0; i < N_WEIGHT_FORMS; i++)
        if (strcmp(weight_forms[i].file, s->index->path) == 0)
            return weight_forms[i].suffix;
    return NULL;
}

static bool has_suffix(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);

    return n > m && strcmp(name + n - m, suffix) == 0;
}

int select_shards(const struct listing *l, const json_t *index, struct selection *s,
                  struct err *err)
{
    json_t *weight_map = json_object_get(index, "weight_map");
    const struct listing_file **shards = xcalloc((size_t)l->n + 1, sizeof(*shards));
    bool *taken = xcalloc((size_t)l->n + 1, sizeof(*taken));
    const char *suffix = index_suffix(s);
    const char *tensor;
    json_t *value;
    int64_t n = 0;
    int rc = 0;

    json_object_foreach(weight_map, tensor, value)
    {
        const char *name = json_string_value(value);
        const struct listing_file *file = NULL;
        if (name && !strchr(name, '/') && has_suffix(name, suffix))
            file = listing_find(l, name);
        if (!file) {
            rc = status_corrupt(err,
                                "%s says that tensor '%.100s' is in '%.200s', which is not a "
                                "weight file of the repository",
                                s->index->path, tensor, name ? name : "");
            goto out;
        }
        if (!taken[file - l->files])
            shards[n++] = file;
        taken[file - l->files] = true;
    }
    if (n == 0) {
        rc = status_corrupt(err, "%s names no weight file", s->index->path);
        goto out;
    }
    qsort(shards, (size_t)n, sizeof(*shards), compare_files);
    free(s->weights);
    s->weights = shards;
    s->n_weights = n;
    shards = NULL;
out:
    free(shards);
    free(taken);
    return rc;
}

int64_t select_weight_bytes(const struct selection *s)
{
    int64_t bytes = 0;

    for (int64_t i = 0; i < s->n_weights; i++)
        bytes += s->weights[i]->size;
    return bytes;
}
