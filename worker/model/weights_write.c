#include <assert.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/model/family.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"
#include "worker/model/weights_names.h"

enum { CONVERT_ELEMENTS = 1 << 20 }; /* converted and written at a time */

/* transformers' default size of a shard. */
static const size_t shard_max_bytes = 5000000000u;

char *weights_name(const struct name_map *map, const char *prefix, int64_t layer)
{
    const char *number = strstr(map->name, "{i}");

    if (map->bare)
        prefix = "";
    if (number == NULL)
        return xasprintf("%s%s", prefix, map->name);
    return xasprintf("%s%.*s%" PRId64 "%s", prefix, (int)(number - map->name), map->name, layer,
                     number + strlen("{i}"));
}

struct export
{
    const struct model *m;
    const struct family *family;
    const char *dir;
    enum dtype to;
    size_t shard_bytes;
    int64_t n_shards;
    int64_t *shard_of; /* by tensor */
    weights_source_fn source;
    void *ud;
    void *converted; /* CONVERT_ELEMENTS of `to` */
};

/* Whole tensors in order; a new shard begins where the next one would not fit. */
static void assign_shards(struct export *e)
{
    size_t used = 0;

    e->n_shards = 1;
    e->shard_of = xcalloc((size_t)e->m->n_weights, sizeof(*e->shard_of));
    for (int64_t i = 0; i < e->m->n_weights; i++) {
        size_t bytes = (size_t)tensor_elements(&e->m->tensors[i]) * dtype_size(e->to);

        if (used > 0 && used + bytes > e->shard_bytes) {
            e->n_shards++;
            used = 0;
        }
        used += bytes;
        e->shard_of[i] = e->n_shards - 1;
    }
}

static char *shard_name(const struct export *e, int64_t shard)
{
    if (e->n_shards == 1)
        return xstrdup("model.safetensors");
    return xasprintf("model-%05" PRId64 "-of-%05" PRId64 ".safetensors", shard + 1, e->n_shards);
}

static int declare_tensor(const struct export *e, struct safetensors_writer *w, int64_t tensor,
                          struct err *err)
{
    const struct tensor_desc *t = &e->m->tensors[tensor];
    int rc = 0;

    for (const struct name_map *map = family_names(e->family, &e->m->config); map->name != NULL;
         map++) {
        int64_t first_row, shape[2] = {0, t->cols};
        char *name;

        if (map->role != t->role)
            continue;
        family_part_rows(&e->m->config, t, map, &first_row, &shape[0]);
        if (map->layout == FILE_TRANSPOSED) {
            shape[1] = shape[0];
            shape[0] = t->cols;
        }
        name = weights_name(map, e->family->prefixes[0], t->layer);
        rc = safetensors_writer_declare(w, name, e->to, t->cols == 1 ? 1 : 2, shape, err);
        free(name);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int write_elements(const struct export *e, struct safetensors_writer *w, const char *data,
                          enum dtype from, int64_t n, struct err *err)
{
    size_t from_size = dtype_size(from), to_size = dtype_size(e->to);
    int rc = 0;

    if (from == e->to)
        return safetensors_writer_data(w, data, (size_t)n * to_size, err);
    for (int64_t done = 0; done < n; done += CONVERT_ELEMENTS) {
        int64_t some = n - done < CONVERT_ELEMENTS ? n - done : CONVERT_ELEMENTS;

        dtype_convert(e->to, e->converted, from, data + (size_t)done * from_size, some);
        TRY(safetensors_writer_data(w, e->converted, (size_t)some * to_size, err));
    }
out:
    return rc;
}

/* Our (rows, cols) as the file's (cols, rows). */
static int write_transposed(const struct export *e, struct safetensors_writer *w, const char *data,
                            enum dtype from, int64_t rows, int64_t cols, struct err *err)
{
    void *turned = xmalloc(CONVERT_ELEMENTS * dtype_size(from));
    int64_t n = rows * cols;
    int rc = 0;

    for (int64_t done = 0; done < n; done += CONVERT_ELEMENTS) {
        int64_t some = n - done < CONVERT_ELEMENTS ? n - done : CONVERT_ELEMENTS;

        weights_gather(data, rows, cols, done, some, turned, dtype_size(from));
        TRY(write_elements(e, w, turned, from, some, err));
    }
out:
    free(turned);
    return rc;
}

static int write_tensor(const struct export *e, struct safetensors_writer *w, int64_t tensor,
                        struct err *err)
{
    const struct decoder_config *c = &e->m->config;
    const struct tensor_desc *t = &e->m->tensors[tensor];
    const void *data = NULL;
    enum dtype from = DT_F32;
    int rc = 0;

    TRY(e->source(e->ud, tensor, &data, &from, err));
    assert(data != NULL && dtype_is_float(from));
    for (const struct name_map *map = family_names(e->family, &e->m->config); map->name != NULL;
         map++) {
        size_t row_bytes = (size_t)t->cols * dtype_size(from);
        int64_t first_row, rows;
        const char *part;

        if (map->role != t->role)
            continue;
        family_part_rows(c, t, map, &first_row, &rows);
        part = (const char *)data + (size_t)first_row * row_bytes;
        if (map->layout == FILE_TRANSPOSED) {
            TRY(write_transposed(e, w, part, from, rows, t->cols, err));
            continue;
        }
        for (int64_t i = 0; i < weights_blocks(c, map->layout); i++) {
            struct row_block b = weights_block(c, map->layout, rows, i);

            TRY(write_elements(e, w, part + (size_t)b.our_row * row_bytes, from, b.rows * t->cols,
                               err));
        }
    }
out:
    return rc;
}

static int write_shard(const struct export *e, int64_t shard, struct err *err)
{
    char *name = shard_name(e, shard), *path = fs_join(e->dir, name);
    struct safetensors_writer *w = NULL;
    int rc = 0;

    TRY(safetensors_writer_create(path, &w, err));
    for (int64_t i = 0; i < e->m->n_weights; i++) {
        if (e->shard_of[i] == shard)
            TRY(declare_tensor(e, w, i, err));
    }
    for (int64_t i = 0; i < e->m->n_weights; i++) {
        if (e->shard_of[i] == shard)
            TRY(write_tensor(e, w, i, err));
    }
    TRY(safetensors_writer_finish(w, err));
out:
    safetensors_writer_destroy(w);
    free(path);
    free(name);
    return rc;
}

static int write_index(const struct export *e, struct err *err)
{
    json_t *map = json_object(), *index;
    char *path = fs_join(e->dir, "model.safetensors.index.json"), *text;
    int rc;

    for (int64_t i = 0; i < e->m->n_weights; i++) {
        const struct tensor_desc *t = &e->m->tensors[i];
        char *shard = shard_name(e, e->shard_of[i]);

        for (const struct name_map *n = family_names(e->family, &e->m->config); n->name != NULL;
             n++) {
            char *name;

            if (n->role != t->role)
                continue;
            name = weights_name(n, e->family->prefixes[0], t->layer);
            json_object_set_new(map, name, json_string(shard));
            free(name);
        }
        free(shard);
    }
    index =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size",
                  (json_int_t)e->m->n_params * (json_int_t)dtype_size(e->to), "weight_map", map);
    text = json_to_line(index);
    rc = fs_write_file_atomic(path, text, strlen(text), err);
    free(text);
    json_decref(index);
    free(path);
    return rc;
}

int weights_write_sharded(const char *dir, const struct model *m, enum dtype to, size_t shard_bytes,
                          weights_source_fn source, void *ud, struct err *err)
{
    struct export e = {
        .m = m,
        .family = family_find(m->config.family),
        .dir = dir,
        .to = to,
        .shard_bytes = shard_bytes,
        .source = source,
        .ud = ud,
    };
    int rc = 0;

    assert(e.family != NULL && dtype_is_float(to));
    assign_shards(&e);
    e.converted = xmalloc(CONVERT_ELEMENTS * dtype_size(to));
    for (int64_t i = 0; i < e.n_shards; i++)
        TRY(write_shard(&e, i, err));
    if (e.n_shards > 1)
        TRY(write_index(&e, err));
out:
    free(e.converted);
    free(e.shard_of);
    return rc;
}

int weights_write(const char *dir, const struct model *m, enum dtype to, weights_source_fn source,
                  void *ud, struct err *err)
{
    return weights_write_sharded(dir, m, to, shard_max_bytes, source, ud, err);
}
