#include "worker/model/weights.h"

#include <assert.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/model/family.h"
#include "worker/model/weight_file.h"
#include "worker/model/weights_names.h"

enum {
    INDEX_MAX_BYTES = 64 << 20, /* weight_map of a few hundred thousand tensors */
    MAX_SHARDS = 1000,
    PIECE_BYTES = 4 << 20, /* read and converted at a time */
    LISTED_NAMES = 8,      /* of missing or unexpected tensors in an error */
};

struct source { /* one tensor of the files: part of one of ours */
    const struct weight_file *file;
    const struct weight_tensor *tensor;
    int64_t first_row, rows; /* of ours */
    enum file_layout layout;
};

struct tensor_sources {
    struct source part[WEIGHTS_MAX_PARTS];
    int64_t n_parts;
};

struct weights_reader {
    const struct model *model;
    struct weight_file *files;
    int64_t n_files;
    struct tensor_sources *sources; /* by tensor */
    float *whole; /* of the last tensor that was quantised; of the largest so far */
    int64_t whole_elements;
};

static int add_file(struct weights_reader *r, const char *model_dir, const char *name,
                    struct err *err)
{
    char *path = fs_join(model_dir, name);
    int rc = weight_file_open(path, &r->files[r->n_files], err);

    if (rc == 0)
        r->n_files++;
    free(path);
    return rc;
}

/* A shard's name becomes part of a path: no folders, no way up. */
static bool is_plain_name(const char *name, const char *suffix)
{
    size_t n = strlen(name), s = strlen(suffix);

    return n > s && n < 256 && name[0] != '.' && strpbrk(name, "/\\") == NULL &&
           strcmp(name + n - s, suffix) == 0;
}

/* The shards that the index names, each once. */
static int open_shards(struct weights_reader *r, const char *model_dir, const char *index_path,
                       const char *suffix, struct err *err)
{
    json_t *index = NULL, *map, *value, *shards = json_object();
    const char *name;
    int rc = 0;

    TRY(json_parse_file(index_path, INDEX_MAX_BYTES, JSON_MAX_DEPTH_FILE, &index, err));
    map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        TRY(weight_file_corrupt(err, index_path, "has no weight_map"));
    json_object_foreach(map, name, value)
    {
        if (!json_is_string(value) || !is_plain_name(json_string_value(value), suffix))
            TRY(weight_file_corrupt(err, index_path,
                                    "tensor %.100s is not mapped to a %s file beside the index",
                                    name, suffix));
        json_object_set_new(shards, json_string_value(value), json_true());
    }
    if (json_object_size(shards) > MAX_SHARDS)
        TRY(err_set(err, ERR_INVALID, "%s: names %zu shards; at most %d are read", index_path,
                    json_object_size(shards), MAX_SHARDS));
    r->files = xcalloc(json_object_size(shards), sizeof(*r->files));
    json_object_foreach(shards, name, value) TRY(add_file(r, model_dir, name, err));
    json_object_foreach(map, name, value)
    {
        bool found = false;

        for (int64_t i = 0; i < r->n_files && !found; i++)
            found = weight_file_find(&r->files[i], name) != NULL;
        if (!found)
            TRY(weight_file_corrupt(err, index_path, "names tensor %.100s, which no shard holds",
                                    name));
    }
out:
    json_decref(shards);
    json_decref(index);
    return rc;
}

/* In the order of preference. */
static const struct {
    const char *name, *suffix;
    bool index;
} forms[] = {
    {"model.safetensors", ".safetensors", false},
    {"model.safetensors.index.json", ".safetensors", true},
    {"pytorch_model.bin", ".bin", false},
    {"pytorch_model.bin.index.json", ".bin", true},
};

static int open_files(struct weights_reader *r, const char *model_dir, struct err *err)
{
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        char *path = fs_join(model_dir, forms[i].name);
        bool exists = fs_exists(path);
        int rc = 0;

        if (exists && forms[i].index) {
            rc = open_shards(r, model_dir, path, forms[i].suffix, err);
        } else if (exists) {
            r->files = xcalloc(1, sizeof(*r->files));
            rc = add_file(r, model_dir, forms[i].name, err);
        }
        free(path);
        if (exists)
            return rc;
    }
    return err_set(err, ERR_NOT_FOUND,
                   "%s holds neither model.safetensors nor pytorch_model.bin, nor an index of "
                   "either's shards; weights in another format must be converted to safetensors "
                   "first",
                   model_dir);
}

/* A list of names for an error, cut off after a few. */
struct name_list {
    struct buf text;
    int64_t n;
};

static void name_list_add(struct name_list *l, const char *name)
{
    if (l->n < LISTED_NAMES)
        buf_printf(&l->text, "%s%.80s", l->n > 0 ? ", " : "", name);
    else if (l->n == LISTED_NAMES)
        buf_add_str(&l->text, ", ...");
    l->n++;
}

static const struct weight_tensor *find_in_files(const struct weights_reader *r, const char *name,
                                                 const struct weight_file **file)
{
    for (int64_t i = 0; i < r->n_files; i++) {
        const struct weight_tensor *t = weight_file_find(&r->files[i], name);

        if (t != NULL) {
            *file = &r->files[i];
            return t;
        }
    }
    return NULL;
}

/* Under any of the family's prefixes. */
static const struct weight_tensor *find_source(const struct weights_reader *r,
                                               const struct family *family,
                                               const struct name_map *map, int64_t layer,
                                               const struct weight_file **file)
{
    for (int i = 0; family->prefixes[i] != NULL; i++) {
        char *name = weights_name(map, family->prefixes[i], layer);
        const struct weight_tensor *t = find_in_files(r, name, file);

        free(name);
        if (t != NULL)
            return t;
    }
    return NULL;
}

static int check_source(const struct source *s, const struct tensor_desc *desc, struct err *err)
{
    const struct weight_tensor *t = s->tensor;
    bool vector = desc->cols == 1, turned = s->layout == FILE_TRANSPOSED;
    int64_t rows = turned ? desc->cols : s->rows, cols = turned ? s->rows : desc->cols;
    bool fits =
        t->rank == (vector ? 1 : 2) && t->shape[0] == rows && (vector || t->shape[1] == cols);

    if (!fits)
        return err_set(err, ERR_INVALID,
                       "%s: tensor %.100s does not have the shape (%" PRId64 ", %" PRId64
                       ") that config.json asks for",
                       s->file->path, t->name, rows, cols);
    if (!dtype_is_float(t->dtype))
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: tensor %.100s holds %s, not floating-point numbers", s->file->path,
                       t->name, dtype_name(t->dtype));
    return 0;
}

static int map_tensors(struct weights_reader *r, const struct family *family,
                       struct name_list *missing, struct err *err)
{
    const struct model *m = r->model;
    int rc = 0;

    r->sources = xcalloc((size_t)m->n_weights, sizeof(*r->sources));
    for (int64_t i = 0; i < m->n_weights; i++) {
        const struct tensor_desc *desc = &m->tensors[i];
        struct tensor_sources *s = &r->sources[i];

        for (const struct name_map *map = family_names(family, &m->config); map->name != NULL;
             map++) {
            struct source *part = &s->part[s->n_parts];

            if (map->role != desc->role)
                continue;
            assert(s->n_parts < WEIGHTS_MAX_PARTS);
            family_part_rows(&m->config, desc, map, &part->first_row, &part->rows);
            part->layout = map->layout;
            part->tensor = find_source(r, family, map, desc->layer, &part->file);
            s->n_parts++;
            if (part->tensor == NULL) {
                char *name = weights_name(map, family->prefixes[0], desc->layer);

                name_list_add(missing, name);
                free(name);
                continue;
            }
            TRY(check_source(part, desc, err));
        }
        assert(s->n_parts > 0);
    }
out:
    return rc;
}

static bool matches_after_prefix(const struct family *family, const char *pattern, const char *name)
{
    for (int i = 0; family->prefixes[i] != NULL; i++) {
        size_t n = strlen(family->prefixes[i]);

        if (strncmp(name, family->prefixes[i], n) == 0 &&
            fnmatch(pattern, name + n, FNM_NOESCAPE) == 0)
            return true;
    }
    return false;
}

/* Tensors that may lie in files and are not used: the family's list, and a tied model's head, which
 * is the embedding table once more. */
static bool is_ignored(const struct model *m, const struct family *family, const char *name)
{
    for (int i = 0; family->ignored[i] != NULL; i++) {
        if (matches_after_prefix(family, family->ignored[i], name))
            return true;
    }
    for (const struct name_map *map = family_names(family, &m->config);
         map->name != NULL && m->config.tied; map++) {
        if (map->role == TENSOR_HEAD_W && matches_after_prefix(family, map->name, name))
            return true;
    }
    return false;
}

static int by_address(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t) * (void *const *)a, y = (uintptr_t) * (void *const *)b;

    return (x > y) - (x < y);
}

/* Tensors of the files that are neither used nor to be ignored. */
static void list_unexpected(const struct weights_reader *r, const struct family *family,
                            struct name_list *unexpected)
{
    const struct model *m = r->model;
    const void **used = xcalloc((size_t)m->n_weights * WEIGHTS_MAX_PARTS + 1, sizeof(*used));
    size_t n = 0;

    for (int64_t i = 0; i < m->n_weights; i++) {
        for (int64_t p = 0; p < r->sources[i].n_parts; p++)
            used[n++] = r->sources[i].part[p].tensor;
    }
    qsort(used, n, sizeof(*used), by_address);
    for (int64_t f = 0; f < r->n_files; f++) {
        for (int64_t i = 0; i < r->files[f].n_tensors; i++) {
            const struct weight_tensor *t = &r->files[f].tensors[i];

            if (bsearch(&t, used, n, sizeof(*used), by_address) == NULL &&
                !is_ignored(m, family, t->name))
                name_list_add(unexpected, t->name);
        }
    }
    free(used);
}

int weights_open(const char *model_dir, const struct model *m, struct weights_reader **out,
                 struct err *err)
{
    struct weights_reader *r = xcalloc(1, sizeof(*r));
    const struct family *family = family_find(m->config.family);
    struct name_list missing = {0}, unexpected = {0};
    int rc = 0;

    assert(family != NULL);
    r->model = m;
    TRY(open_files(r, model_dir, err));
    TRY(map_tensors(r, family, &missing, err));
    list_unexpected(r, family, &unexpected);
    if (missing.n > 0 || unexpected.n > 0)
        TRY(err_set(err, ERR_INVALID,
                    "the weights in %s are not those of config.json: %" PRId64
                    " missing tensors (%s), %" PRId64 " unexpected (%s)",
                    model_dir, missing.n, buf_str(&missing.text), unexpected.n,
                    buf_str(&unexpected.text)));
    *out = r;
    r = NULL;
out:
    buf_fini(&missing.text);
    buf_fini(&unexpected.text);
    weights_close(r);
    return rc;
}

void weights_close(struct weights_reader *r)
{
    if (r == NULL)
        return;
    for (int64_t i = 0; i < r->n_files; i++)
        weight_file_close(&r->files[i]);
    free(r->files);
    free(r->sources);
    free(r->whole);
    free(r);
}

/* Elements [first, first + n) of a source, converted piece by piece. */
static int read_elements(const struct source *s, int64_t first, int64_t n, enum dtype to, char *out,
                         void *piece, struct err *err)
{
    enum dtype from = s->tensor->dtype;
    int64_t at_a_time = PIECE_BYTES / (int64_t)dtype_size(from);
    int rc = 0;

    if (from == to)
        return weight_file_read(s->file, s->tensor, first, n, out, err);
    for (int64_t done = 0; done < n; done += at_a_time) {
        int64_t some = n - done < at_a_time ? n - done : at_a_time;

        TRY(weight_file_read(s->file, s->tensor, first + done, some, piece, err));
        dtype_convert(to, out + (size_t)done * dtype_size(to), from, piece, some);
    }
out:
    return rc;
}

/* A file's (cols, rows) into our (rows, cols) at `out`. */
static int read_transposed(const struct source *s, int64_t cols, enum dtype to, char *out,
                           void *piece, struct err *err)
{
    int64_t n = s->rows * cols, at_a_time = PIECE_BYTES / (int64_t)dtype_size(to);
    void *turned = xmalloc(PIECE_BYTES);
    int rc = 0;

    for (int64_t done = 0; done < n; done += at_a_time) {
        int64_t some = n - done < at_a_time ? n - done : at_a_time;

        TRY(read_elements(s, done, some, to, turned, piece, err));
        weights_scatter(out, s->rows, cols, done, some, turned, dtype_size(to));
    }
out:
    free(turned);
    return rc;
}

int weights_read(struct weights_reader *r, int64_t tensor, enum dtype to, void *out,
                 struct err *err)
{
    const struct decoder_config *c = &r->model->config;
    const struct tensor_desc *desc = &r->model->tensors[tensor];
    const struct tensor_sources *s = &r->sources[tensor];
    void *piece = xmalloc(PIECE_BYTES);
    size_t row_bytes = (size_t)desc->cols * dtype_size(to);
    int rc = 0;

    assert(tensor >= 0 && tensor < r->model->n_weights && dtype_is_float(to));
    for (int64_t i = 0; i < s->n_parts; i++) {
        const struct source *part = &s->part[i];
        char *at = (char *)out + (size_t)part->first_row * row_bytes;

        if (part->layout == FILE_TRANSPOSED) {
            TRY(read_transposed(part, desc->cols, to, at, piece, err));
            continue;
        }
        for (int64_t b = 0; b < weights_blocks(c, part->layout); b++) {
            struct row_block block = weights_block(c, part->layout, part->rows, b);

            TRY(read_elements(part, block.file_row * desc->cols, block.rows * desc->cols, to,
                              at + (size_t)block.our_row * row_bytes, piece, err));
        }
    }
out:
    free(piece);
    return rc;
}

bool weights_are(const struct weights_reader *r, int64_t tensor, enum dtype type)
{
    const struct tensor_sources *s = &r->sources[tensor];
    bool all = true;
    for (int64_t i = 0; i < s->n_parts; i++)
        all = all && s->part[i].tensor->dtype == type;
    return all;
}

int weights_read_quantized(struct weights_reader *r, int64_t tensor, enum quant_format format,
                           void *codes, float *scales, struct err *err)
{
    const struct tensor_desc *desc = &r->model->tensors[tensor];
    int64_t n = tensor_elements(desc);
    void *larger = NULL;
    int rc = 0;

    if (n > r->whole_elements) {
        free(r->whole);
        r->whole = NULL;
        r->whole_elements = 0;
        TRY(alloc_try(&larger, (size_t)n, sizeof(float), tensor_role_name(desc->role), err));
        r->whole = larger;
        r->whole_elements = n;
    }
    TRY(weights_read(r, tensor, DT_F32, r->whole, err));
    quant_encode(format, n, r->whole, codes, scales);
out:
    return rc;
}
