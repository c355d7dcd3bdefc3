/* Adapters in PEFT's files: the names of their modules, and their rows in the family's order. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/model/adapter.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights_names.h"

/* The row of the family's table about a part of a matrix. */
static const struct name_map *part_map(const struct model *m, enum tensor_role matrix, int64_t part)
{
    const struct name_map *map = family_find(m->config.family)->names;

    for (; map->name != NULL; map++) {
        if (map->role == matrix && part-- == 0)
            return map;
    }
    assert(!"no such part");
    return NULL;
}

char *adapter_module(const struct model *m, enum tensor_role matrix, int64_t layer, int64_t part)
{
    const struct family *family = family_find(m->config.family);
    char *name = weights_name(part_map(m, matrix, part), family->prefixes[0], layer);
    char *end = strrchr(name, '.');

    assert(end != NULL && strcmp(end, ".weight") == 0);
    *end = '\0';
    return name;
}

/* The matrix beside which an adapter's tensor stands. */
static const struct adaptable *adapted(const struct model *m, const struct tensor_desc *t)
{
    for (int i = 0; i < ADAPTABLE_MATRICES; i++) {
        const struct adaptable *a = &m->adapters.matrices[i];

        if (t->role == a->a || t->role == a->b)
            return a;
    }
    assert(!"no adapter");
    return NULL;
}

static int each_slice(const struct model *m, int64_t tensor, adapter_slice_fn fn, void *ud,
                      struct err *err)
{
    const struct tensor_desc *t = &m->tensors[tensor];
    const struct adaptable *a = adapted(m, t);
    bool is_a = t->role == a->a;
    int64_t first = 0;
    int rc = 0;

    for (int64_t p = 0; p < a->n_parts && rc == 0; p++) {
        struct adapter_slice s = {.tensor = tensor, .first_row = first, .layout = FILE_ROWS};
        char *module, *name;

        if (!(t->parts >> p & 1))
            continue;
        if (!is_a && part_map(m, a->matrix, p)->layout == FILE_GROUPED_QKV)
            s.layout = FILE_GROUPED_QKV;
        module = adapter_module(m, a->matrix, t->layer, p);
        s.name = name = xasprintf("base_model.model.%s.lora_%c.weight", module, is_a ? 'A' : 'B');
        s.rows = is_a ? m->adapters.rank : a->parts[p].rows;
        rc = fn(ud, &s, err);
        first += s.rows;
        free(name);
        free(module);
    }
    return rc;
}

int adapters_each(const struct model *m, adapter_slice_fn fn, void *ud, struct err *err)
{
    int rc = 0;

    for (int64_t t = m->n_weights; t < m->n_tensors; t++)
        TRY(each_slice(m, t, fn, ud, err));
out:
    return rc;
}

struct writing {
    const struct model *m;
    struct safetensors_writer *writer;
    enum dtype to;
    weights_source_fn source;
    void *ud;
    void *converted; /* one row */
};

static int declare_slice(void *ud, const struct adapter_slice *s, struct err *err)
{
    struct writing *w = ud;
    int64_t shape[2] = {s->rows, w->m->tensors[s->tensor].cols};

    return safetensors_writer_declare(w->writer, s->name, w->to, 2, shape, err);
}

static int write_slice(void *ud, const struct adapter_slice *s, struct err *err)
{
    struct writing *w = ud;
    const struct decoder_config *c = &w->m->config;
    int64_t cols = w->m->tensors[s->tensor].cols;
    const void *data = NULL;
    enum dtype from = DT_F32;
    int rc = 0;

    TRY(w->source(w->ud, s->tensor, &data, &from, err));
    w->converted = xrealloc(w->converted, (size_t)cols * dtype_size(w->to));
    for (int64_t i = 0; i < weights_blocks(c, s->layout); i++) {
        struct row_block b = weights_block(c, s->layout, s->rows, i);

        for (int64_t row = s->first_row + b.our_row, n = 0; n < b.rows; n++, row++) {
            dtype_convert(w->to, w->converted, from,
                          (const char *)data + (size_t)(row * cols) * dtype_size(from), cols);
            TRY(safetensors_writer_data(w->writer, w->converted, (size_t)cols * dtype_size(w->to),
                                        err));
        }
    }
out:
    return rc;
}

int adapters_write(const char *dir, const struct model *m, enum dtype to, weights_source_fn source,
                   void *ud, struct err *err)
{
    struct writing w = {.m = m, .to = to, .source = source, .ud = ud};
    char *path = fs_join(dir, "adapter_model.safetensors");
    int rc = 0;

    assert(m->adapters.rank > 0);
    TRY(safetensors_writer_create(path, &w.writer, err));
    TRY(adapters_each(m, declare_slice, &w, err));
    TRY(adapters_each(m, write_slice, &w, err));
    TRY(safetensors_writer_finish(w.writer, err));
out:
    safetensors_writer_destroy(w.writer);
    free(w.converted);
    free(path);
    return rc;
}

/* ---- what was adapted --------------------------------------------------------------------------
 */

/* Modules that could be adapted, one after the other; `adapted`: this one is. */
typedef void (*module_fn)(json_t *ud, const char *module, bool is_adapted);

static uint32_t adapted_parts(const struct model *m, const struct adaptable *a, int64_t layer)
{
    for (int64_t t = m->n_weights; t < m->n_tensors; t++) {
        if (m->tensors[t].role == a->a && m->tensors[t].layer == layer)
            return m->tensors[t].parts;
    }
    return 0;
}

static void each_module(const struct model *m, module_fn fn, json_t *ud)
{
    for (int64_t t = 0; t < m->n_weights; t++) {
        const struct adaptable *a = model_adaptable(m, m->tensors[t].role);
        uint32_t parts = a != NULL ? adapted_parts(m, a, m->tensors[t].layer) : 0;

        for (int64_t p = 0; a != NULL && p < a->n_parts; p++) {
            char *module = adapter_module(m, a->matrix, m->tensors[t].layer, p);

            fn(ud, module, parts >> p & 1);
            free(module);
        }
    }
}

static const char *last_component(const char *module)
{
    const char *dot = strrchr(module, '.');

    return dot != NULL ? dot + 1 : module;
}

/* {"q_proj": every module of that name is adapted} */
static void note_whole(json_t *ud, const char *module, bool is_adapted)
{
    const char *name = last_component(module);
    bool before = json_object_get(ud, name) == NULL || json_is_true(json_object_get(ud, name));

    json_object_set_new(ud, name, json_boolean(before && is_adapted));
}

/* {"whole": the above, "names": {...}} */
static void note_name(json_t *ud, const char *module, bool is_adapted)
{
    const char *name = last_component(module);
    bool whole = json_is_true(json_object_get(json_object_get(ud, "whole"), name));

    if (is_adapted)
        json_object_set_new(json_object_get(ud, "names"), whole ? name : module, json_true());
}

json_t *adapters_target_modules(const struct model *m)
{
    json_t *notes = json_pack("{s:{}, s:{}}", "whole", "names"), *list = json_array(), *yes;
    const char *name;

    each_module(m, note_whole, json_object_get(notes, "whole"));
    each_module(m, note_name, notes);
    json_object_foreach(json_object_get(notes, "names"), name, yes)
    {
        json_array_append_new(list, json_string(name));
    }
    json_decref(notes);
    return list;
}
