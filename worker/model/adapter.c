#include "worker/model/adapter.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/rng.h"

static const struct adaptable adaptable_matrices[ADAPTABLE_MATRICES] = {
    {TENSOR_PROJECT_IN, TENSOR_PROJECT_IN_LORA_A, TENSOR_PROJECT_IN_LORA_B},
    {TENSOR_QKV_W, TENSOR_QKV_LORA_A, TENSOR_QKV_LORA_B},
    {TENSOR_OUT_W, TENSOR_OUT_LORA_A, TENSOR_OUT_LORA_B},
    {TENSOR_UP_W, TENSOR_UP_LORA_A, TENSOR_UP_LORA_B},
    {TENSOR_DOWN_W, TENSOR_DOWN_LORA_A, TENSOR_DOWN_LORA_B},
    {TENSOR_PROJECT_OUT, TENSOR_PROJECT_OUT_LORA_A, TENSOR_PROJECT_OUT_LORA_B},
};

static const char all_linear[] = "all-linear";

/* Of the fixed table: by the matrix, or by the adapter. */
static int find_row(enum tensor_role role)
{
    for (int i = 0; i < ADAPTABLE_MATRICES; i++) {
        const struct adaptable *a = &adaptable_matrices[i];

        if (role == a->matrix || role == a->a || role == a->b)
            return i;
    }
    return -1;
}

const struct adaptable *model_adaptable(const struct model *m, enum tensor_role matrix)
{
    int row = find_row(matrix);

    return row >= 0 ? &m->adapters.matrices[row] : NULL;
}

bool tensor_is_adapter(const struct tensor_desc *t)
{
    return t->parts != 0;
}

/* How many parts of its matrix an adapter adapts. */
static int64_t adapter_parts(const struct tensor_desc *t)
{
    return __builtin_popcount(t->parts);
}

/* --- names --- */

/* PEFT's rule for a list of names: the whole path, or its last components. */
static bool names_module(const char *target, const char *module)
{
    size_t n = strlen(target), m = strlen(module);

    return n <= m && strcmp(module + m - n, target) == 0 && (n == m || module[m - n - 1] == '.');
}

/* A module's last component, once. */
static void note_known(json_t *names, const char *module)
{
    const char *dot = strrchr(module, '.'), *name = dot != NULL ? dot + 1 : module;

    for (size_t i = 0; i < json_array_size(names); i++) {
        if (strcmp(json_string_value(json_array_get(names, i)), name) == 0)
            return;
    }
    json_array_append_new(names, json_string(name));
}

/* --- which modules --- */

struct adapting {
    const struct model *m;
    const struct family *family;
    const struct adapter_config *c;
    const char *const *targets;
    int64_t n_targets;
    bool *used;      /* by target: it named a module     */
    uint32_t *parts; /* by weight: the parts to adapt    */
    json_t *known;   /* modules that there are, for an error */
    struct adapters out;
};

static bool is_target(struct adapting *a, const char *module)
{
    bool found = a->n_targets == 1 && strcmp(a->targets[0], all_linear) == 0;

    if (found)
        a->used[0] = true;
    for (int64_t i = 0; i < a->n_targets; i++) {
        if (names_module(a->targets[i], module))
            found = a->used[i] = true;
    }
    return found;
}

static int check_rank(const struct adapting *a, const char *module, int64_t rows, int64_t cols,
                      struct err *err)
{
    int64_t most = rows < cols ? rows : cols;
    int rc;

    if (a->c->rank <= most)
        return 0;
    rc = err_set(err, ERR_INVALID,
                 "lora.rank is %" PRId64 ", but %.100s is a matrix of %" PRId64 " x %" PRId64
                 ": use at most %" PRId64 ", or leave it out of lora.target_modules",
                 a->c->rank, module, rows, cols, most);
    return err_set_param(err, rc, "lora.rank");
}

/* The modules that make one weight. */
static int look_at_weight(struct adapting *a, int64_t tensor, struct err *err)
{
    const struct tensor_desc *t = &a->m->tensors[tensor];
    int row = find_row(t->role);
    struct adaptable *matrix = row >= 0 ? &a->out.matrices[row] : NULL;
    int64_t part = 0;
    int rc = 0;

    for (const struct name_map *map = family_names(a->family, &a->m->config);
         map->name != NULL && matrix; map++) {
        struct matrix_part p;
        char *module;

        if (map->role != t->role)
            continue;
        assert(part < MATRIX_MAX_PARTS);
        family_part_rows(&a->m->config, t, map, &p.first_row, &p.rows);
        matrix->parts[part] = p;
        module = adapter_module(a->m, t->role, t->layer, part);
        note_known(a->known, module);
        if (is_target(a, module)) {
            a->parts[tensor] |= 1u << part;
            rc = check_rank(a, module, p.rows, t->cols, err);
        }
        free(module);
        matrix->n_parts = ++part;
        TRY(rc);
    }
out:
    return rc;
}

static int check_targets(const struct adapting *a, struct err *err)
{
    struct buf names = {0};
    int rc = 0;

    for (size_t i = 0; i < json_array_size(a->known); i++)
        buf_printf(&names, "%s%s", i > 0 ? ", " : "",
                   json_string_value(json_array_get(a->known, i)));
    for (int64_t i = 0; i < a->n_targets && rc == 0; i++) {
        if (a->used[i])
            continue;
        rc = err_set(err, ERR_INVALID,
                     "lora.target_modules: the model has no linear layer \"%.100s\" that adapters "
                     "can stand beside; it has %s",
                     a->targets[i], buf_str(&names));
        err_set_param(err, rc, "lora.target_modules");
    }
    buf_fini(&names);
    return rc;
}

/* --- the tensors --- */

static void add_tensor(struct model *m, struct block_desc *b, struct tensor_desc t)
{
    assert(b->n_tensors < BLOCK_MAX_TENSORS);
    b->tensors[b->n_tensors++] = m->n_tensors;
    m->adapters.n_params += tensor_elements(&t);
    m->tensors[m->n_tensors++] = t;
}

static void add_adapter(struct model *m, struct block_desc *b, int64_t weight, uint32_t parts)
{
    const struct adaptable *matrix = model_adaptable(m, m->tensors[weight].role);
    int64_t rank = m->adapters.rank, rows = 0;
    struct tensor_desc t = {
        .layer = m->tensors[weight].layer,
        .decay = true,
        .trainable = true,
        .parts = parts,
    };

    for (int64_t p = 0; p < matrix->n_parts; p++)
        rows += parts >> p & 1 ? matrix->parts[p].rows : 0;
    t.role = matrix->a;
    t.rows = adapter_parts(&t) * rank;
    t.cols = m->tensors[weight].cols;
    add_tensor(m, b, t);
    t.role = matrix->b;
    t.rows = rows;
    t.cols = rank;
    add_tensor(m, b, t);
}

static void add_adapters(struct model *m, const uint32_t *parts)
{
    m->tensors =
        xrealloc(m->tensors, (size_t)(m->n_tensors + 2 * m->n_weights) * sizeof(*m->tensors));
    for (int64_t t = 0; t < m->n_weights; t++)
        m->tensors[t].trainable = false;
    for (int64_t b = 0; b < m->n_blocks; b++) {
        int64_t n = m->blocks[b].n_tensors;

        for (int64_t i = 0; i < n; i++) {
            int64_t weight = m->blocks[b].tensors[i];

            if (parts[weight] != 0)
                add_adapter(m, &m->blocks[b], weight, parts[weight]);
        }
    }
}

int model_adapt(struct model *m, const struct adapter_config *c, struct err *err)
{
    struct adapting a = {
        .m = m,
        .family = family_find(m->config.family),
        .c = c,
        .targets = c->targets,
        .n_targets = c->n_targets,
        .known = json_array(),
        .out = {.rank = c->rank, .alpha = c->alpha, .dropout = c->dropout, .rslora = c->rslora},
    };
    int rc = 0;

    assert(a.family != NULL && m->adapters.rank == 0 && c->rank > 0);
    if (a.n_targets == 0) {
        a.targets = a.family->lora_targets;
        while (a.targets[a.n_targets] != NULL)
            a.n_targets++;
    }
    a.used = xcalloc((size_t)a.n_targets, sizeof(*a.used));
    a.parts = xcalloc((size_t)m->n_weights, sizeof(*a.parts));
    memcpy(a.out.matrices, adaptable_matrices, sizeof(a.out.matrices));
    a.out.scale = (float)(c->alpha / (c->rslora ? sqrt((double)c->rank) : (double)c->rank));
    for (int64_t t = 0; t < m->n_weights; t++)
        TRY(look_at_weight(&a, t, err));
    TRY(check_targets(&a, err));
    m->adapters = a.out;
    add_adapters(m, a.parts);
out:
    json_decref(a.known);
    free(a.parts);
    free(a.used);
    return rc;
}

int64_t adapter_of(const struct model *m, int64_t weight)
{
    const struct adaptable *of = model_adaptable(m, m->tensors[weight].role);

    for (int64_t t = m->n_weights; t < m->n_tensors && of != NULL; t++) {
        if (m->tensors[t].role == of->a && m->tensors[t].layer == m->tensors[weight].layer)
            return t;
    }
    return -1;
}

void adapter_init(const struct model *m, int64_t tensor, uint64_t seed, enum dtype to, void *out)
{
    const struct tensor_desc *t = &m->tensors[tensor];
    struct rng_stream s = {.seed = seed, .site = (uint32_t)tensor, .use = RNG_USE_INIT};
    float bound = (float)(1 / sqrt((double)t->cols));
    int64_t n = tensor_elements(t);
    float *values;

    if (t->role != adaptable_matrices[find_row(t->role)].a) {
        memset(out, 0, (size_t)n * dtype_size(to));
        return;
    }
    values = xcalloc((size_t)n, sizeof(*values));
    for (int64_t i = 0; i < n; i++)
        values[i] = bound * (2 * rng_to_unit(rng_draw(s, (uint64_t)i)) - 1);
    dtype_convert(to, out, DT_F32, values, n);
    free(values);
}

int adapter_merge(const struct model *m, int64_t weight, const float *a, const float *b,
                  const struct op_table *ops, struct stream *stream, float *w, struct err *err)
{
    const struct adaptable *of = model_adaptable(m, m->tensors[weight].role);
    uint32_t parts = m->tensors[adapter_of(m, weight)].parts;
    int64_t cols = m->tensors[weight].cols, rank = m->adapters.rank;
    void *workspace = NULL;
    int rc = 0;

    assert(ops->compute == DT_F32);
    for (int64_t p = 0; p < of->n_parts && rc == 0; p++) {
        struct linear_args add = {
            .N = of->parts[p].rows,
            .I = cols,
            .O = rank,
            .alpha = m->adapters.scale,
            .dy = b,
            .w = a,
            .dx_accum = ACCUM_ADD,
            .dx = w + of->parts[p].first_row * cols,
        };

        if (!(parts >> p & 1))
            continue;
        workspace = xrealloc(workspace, ops->workspace(OP_LINEAR_BWD_DATA, &add) + 1);
        add.workspace = workspace;
        rc = ops->linear_bwd_data(stream, &add);
        a += rank * cols;
        b += of->parts[p].rows * rank;
    }
    free(workspace);
    return rc == 0 ? 0 : err_set(err, (enum err_code)rc, "adding adapters to a matrix failed");
}
