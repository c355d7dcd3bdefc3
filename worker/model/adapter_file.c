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
    const struct name_map *map = family_names(family_find(m->config.family), &m->config);

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

/* --- adapter_config.json --- */

json_t *adapters_target_modules(const struct model *m)
{
    json_t *names = json_object(), *list = json_array(), *yes;
    const char *name;

    for (int64_t t = m->n_weights; t < m->n_tensors; t++) {
        const struct adaptable *a = adapted(m, &m->tensors[t]);

        for (int64_t p = 0; p < a->n_parts; p++) {
            char *module = adapter_module(m, a->matrix, m->tensors[t].layer, p);
            const char *dot = strrchr(module, '.');

            if (m->tensors[t].parts >> p & 1)
                json_object_set_new(names, dot != NULL ? dot + 1 : module, json_true());
            free(module);
        }
    }
    json_object_foreach(names, name, yes)
    {
        json_array_append_new(list, json_string(name));
    }
    json_decref(names);
    return list;
}

/* GPT-2's matrices lie transposed in its files, and its modules are told so. */
static bool any_transposed(const struct model *m)
{
    for (int64_t t = m->n_weights; t < m->n_tensors; t++) {
        if (part_map(m, adapted(m, &m->tensors[t])->matrix, 0)->layout == FILE_TRANSPOSED)
            return true;
    }
    return false;
}

json_t *adapters_config(const struct model *m, const json_t *target_modules, const char *base_model,
                        const char *revision)
{
    const struct adapters *a = &m->adapters;
    json_t *j = json_pack("{s:s, s:s, s:s?, s:s?, s:b, s:I, s:f, s:b, s:O, s:b, s:s, s:b}",
                          "peft_type", "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path",
                          base_model, "revision", revision, "inference_mode", 1, "r",
                          (json_int_t)a->rank, "lora_dropout", a->dropout, "use_rslora",
                          (int)a->rslora, "target_modules", target_modules, "fan_in_fan_out",
                          (int)any_transposed(m), "bias", "none", "use_dora", 0);

    /* transformers' users expect a whole number where it is one */
    json_object_set_new(j, "lora_alpha",
                        a->alpha == (double)(json_int_t)a->alpha
                            ? json_integer((json_int_t)a->alpha)
                            : json_real(a->alpha));
    return j;
}
