#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "tests/unit/worker/model/rig.h"
#include "tests/unit/worker/model/small.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"

static char dir[64];

static void make_dir(void)
{
    snprintf(dir, sizeof(dir), "/tmp/castor-weights-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
    fs_remove_tree(dir, NULL);
}

TestSuite(weights, .init = make_dir, .fini = remove_dir);

static void small_model(struct model *m, bool tied)
{
    struct decoder_config c = small_opt();

    c.tied = tied;
    model_init(m, &c);
}

/* Element i of tensor t: different everywhere, exact in every type written here. */
static float element(int64_t t, int64_t i)
{
    return (float)((t * 31 + i) % 127 - 63) / 64;
}

struct supply {
    const struct model *m;
    float *data;
};

static int supply(void *ud, int64_t tensor, const void **data, enum dtype *from, struct err *err)
{
    struct supply *s = ud;
    int64_t n = tensor_elements(&s->m->tensors[tensor]);

    s->data = xrealloc(s->data, (size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        s->data[i] = element(tensor, i);
    *data = s->data;
    *from = DT_F32;
    return 0;
}

static void write_model(const struct model *m, enum dtype to, size_t shard_bytes)
{
    struct supply s = {.m = m};
    struct err err = {0};

    cr_assert_eq(shard_bytes == 0
                     ? weights_write(dir, m, to, supply, &s, &err)
                     : weights_write_sharded(dir, m, to, shard_bytes, supply, &s, &err),
                 0, "%s", err.msg);
    free(s.data);
}

static void expect_same(const struct model *m, enum dtype as)
{
    struct weights_reader *r = NULL;
    struct err err = {0};

    cr_assert_eq(weights_open(dir, m, &r, &err), 0, "%s", err.msg);
    for (int64_t t = 0; t < m->n_tensors; t++) {
        int64_t n = tensor_elements(&m->tensors[t]);
        void *raw = xmalloc((size_t)n * dtype_size(as));
        double *got = xmalloc((size_t)n * sizeof(double));

        cr_assert_eq(weights_read(r, t, as, raw, &err), 0, "%s", err.msg);
        if (as == DT_F64)
            memcpy(got, raw, (size_t)n * sizeof(double));
        else
            dtype_convert(DT_F64, got, as, raw, n);
        for (int64_t i = 0; i < n; i++)
            cr_assert_eq(got[i], (double)element(t, i), "%s[%d]",
                         tensor_role_name(m->tensors[t].role), (int)i);
        free(raw);
        free(got);
    }
    weights_close(r);
}

static char *path_of(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

Test(weights, every_type_comes_back)
{
    const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F64};
    struct model m;

    small_model(&m, true);
    for (int i = 0; i < 4; i++) {
        write_model(&m, types[i], 0);
        expect_same(&m, DT_F64);
        expect_same(&m, types[i]);
    }
    expect_same(&m, DT_BF16);
    model_fini(&m);
}

/* More than one piece of reading and converting. */
Test(weights, large_tensor)
{
    struct decoder_config c = small_opt();
    struct model m;

    c.vocab = 70000;
    model_init(&m, &c);
    write_model(&m, DT_BF16, 0); /* converts */
    expect_same(&m, DT_F32);
    write_model(&m, DT_F32, 0);
    expect_same(&m, DT_F64);
    model_fini(&m);
}

Test(weights, shards_come_back)
{
    struct model m;

    small_model(&m, false);
    write_model(&m, DT_F32, 4000);
    cr_assert(fs_exists(path_of("model.safetensors.index.json")));
    cr_assert(!fs_exists(path_of("model.safetensors")));
    expect_same(&m, DT_F32);
    model_fini(&m);
}

Test(weights, stacked_rows_and_names)
{
    struct model m;
    struct safetensors_file f;
    const struct safetensor *k;
    struct err err = {0};
    float row[16];
    int64_t qkv;

    small_model(&m, true);
    write_model(&m, DT_F32, 0);
    cr_assert_eq(safetensors_open(path_of("model.safetensors"), &f, &err), 0);
    cr_assert_null(safetensors_find(&f, "lm_head.weight"), "a tied table is written once");
    k = safetensors_find(&f, "model.decoder.layers.1.self_attn.k_proj.weight");
    cr_assert_not_null(k);
    cr_assert(k->rank == 2 && k->shape[0] == 16 && k->shape[1] == 16);
    cr_assert_eq(safetensors_read(&f, k, 0, sizeof(row), row, &err), 0);
    qkv = m.blocks[2].tensors[block_find(&m, &m.blocks[2], TENSOR_QKV_W)];
    cr_assert_eq(row[0], element(qkv, 16 * 16)); /* k's first row follows q's 16 */
    cr_assert_eq(safetensors_find(&f, "model.decoder.final_layer_norm.bias")->rank, 1);
    safetensors_close(&f);
    model_fini(&m);
}

/* The written file once more under other names: rename(name) gives a fresh string or NULL to leave
 * the tensor out. Then `extra`, if any, as one more tensor of 2 floats. */
static void rewrite(char *(*rename_fn)(const char *), const char *extra, enum dtype extra_type)
{
    struct safetensors_file f;
    struct safetensors_writer *w = NULL;
    struct err err = {0};
    const int64_t two[1] = {2};
    char data[1 << 13] = {0};

    cr_assert_eq(safetensors_open(path_of("model.safetensors"), &f, &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_writer_create(path_of("model.safetensors"), &w, &err), 0);
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < f.n_tensors; i++) {
            const struct safetensor *t = &f.tensors[i];
            char *name = rename_fn != NULL ? rename_fn(t->name) : xstrdup(t->name);

            if (name == NULL)
                continue;
            if (pass == 0) {
                cr_assert_eq(safetensors_writer_declare(w, name, t->dtype, t->rank, t->shape, &err),
                             0);
            } else {
                cr_assert_leq(t->bytes, sizeof(data));
                cr_assert_eq(safetensors_read(&f, t, 0, t->bytes, data, &err), 0);
                cr_assert_eq(safetensors_writer_data(w, data, t->bytes, &err), 0);
            }
            free(name);
        }
        if (extra != NULL && pass == 0)
            cr_assert_eq(safetensors_writer_declare(w, extra, extra_type, 1, two, &err), 0);
        else if (extra != NULL)
            cr_assert_eq(safetensors_writer_data(w, data, 2 * dtype_size(extra_type), &err), 0);
    }
    cr_assert_eq(safetensors_writer_finish(w, &err), 0);
    safetensors_writer_destroy(w);
    safetensors_close(&f);
}

static char *without_prefix(const char *name)
{
    return xstrdup(strncmp(name, "model.", 6) == 0 ? name + 6 : name);
}

static char *without_layer_1(const char *name)
{
    return strstr(name, "layers.1.") != NULL ? NULL : xstrdup(name);
}

Test(weights, prefixes_and_ignored_tensors)
{
    struct model m;

    small_model(&m, true);
    write_model(&m, DT_F32, 0);
    rewrite(without_prefix, "decoder.version", DT_F32);
    expect_same(&m, DT_F32);
    rewrite(NULL, "lm_head.weight", DT_F32); /* tied: the table once more */
    expect_same(&m, DT_F32);
    rewrite(NULL, "model.decoder.version", DT_I64);
    expect_same(&m, DT_F32);
    model_fini(&m);
}

static void expect_refused(const struct model *m, enum err_code code, const char *text)
{
    struct weights_reader *r = NULL;
    struct err err = {0};

    cr_assert_eq(weights_open(dir, m, &r, &err), (int)code, "code %d: %s", err.code, err.msg);
    cr_assert_not_null(strstr(err.msg, text), "\"%s\" not in: %s", text, err.msg);
    cr_assert_null(r);
}

Test(weights, missing_and_unexpected_are_listed)
{
    struct model m, untied;

    small_model(&m, true);
    small_model(&untied, false);
    expect_refused(&m, ERR_NOT_FOUND, "pytorch_model.bin");
    write_model(&m, DT_F32, 0);
    expect_refused(&untied, ERR_INVALID, "1 missing tensors (lm_head.weight), 0 unexpected ()");
    rewrite(NULL, "stranger", DT_F32);
    expect_refused(&m, ERR_INVALID, "0 missing tensors (), 1 unexpected (stranger)");
    rewrite(without_layer_1, NULL, DT_F32);
    expect_refused(&m, ERR_INVALID, "16 missing");
    expect_refused(&m, ERR_INVALID, "model.decoder.layers.1.self_attn_layer_norm.weight");

    /* a head is surplus only where the table is tied */
    write_model(&untied, DT_F32, 0);
    rewrite(NULL, "model.lm_head.weight", DT_F32);
    expect_refused(&untied, ERR_INVALID, "1 unexpected (model.lm_head.weight)");
    model_fini(&m);
    model_fini(&untied);
}

Test(weights, wrong_shape_and_type)
{
    struct model m, wider;
    struct decoder_config c = small_opt();

    small_model(&m, true);
    write_model(&m, DT_F32, 0);
    c.ffn++;
    model_init(&wider, &c);
    expect_refused(&wider, ERR_INVALID, "(25, 16)");
    model_fini(&wider);
    model_fini(&m);

    small_model(&m, true);
    write_model(&m, DT_F32, 0);
    rewrite(without_layer_1, "model.decoder.layers.1.fc1.bias", DT_I32);
    expect_refused(&m, ERR_INVALID, "model.decoder.layers.1.fc1.bias does not have the shape");
    model_fini(&m);
}

static char *without_q_bias(const char *name)
{
    return strcmp(name, "model.decoder.layers.0.self_attn.q_proj.bias") == 0 ? NULL : xstrdup(name);
}

Test(weights, whole_numbers_are_no_weights)
{
    struct decoder_config c = small_opt();
    struct model m;

    c.hidden = c.embed_dim = 2; /* so that a bias has the two elements of rewrite's extra */
    c.heads = c.kv_heads = 1;
    c.head_dim = 2;
    model_init(&m, &c);
    write_model(&m, DT_F32, 0);
    rewrite(without_q_bias, "model.decoder.layers.0.self_attn.q_proj.bias", DT_I32);
    expect_refused(&m, ERR_UNSUPPORTED, "holds i32, not floating-point numbers");
    model_fini(&m);
}

static void write_index(const char *text)
{
    struct err err = {0};

    cr_assert_eq(
        fs_write_file_atomic(path_of("model.safetensors.index.json"), text, strlen(text), &err), 0);
}

Test(weights, bad_indexes)
{
    struct model m;
    char path[160];

    small_model(&m, true);
    write_model(&m, DT_F32, 0);
    snprintf(path, sizeof(path), "%s/part.safetensors", dir);
    cr_assert_eq(rename(path_of("model.safetensors"), path), 0);
    write_index("{}");
    expect_refused(&m, ERR_CORRUPT, "no weight_map");
    write_index("{\"weight_map\":{}}");
    expect_refused(&m, ERR_CORRUPT, "no weight_map");
    write_index("{\"weight_map\":{\"a\":\"../part.safetensors\"}}");
    expect_refused(&m, ERR_CORRUPT, "beside the index");
    write_index("{\"weight_map\":{\"a\":\"/etc/x.safetensors\"}}");
    expect_refused(&m, ERR_CORRUPT, "beside the index");
    write_index("{\"weight_map\":{\"a\":\"part.bin\"}}");
    expect_refused(&m, ERR_CORRUPT, "beside the index");
    write_index("{\"weight_map\":{\"a\":7}}");
    expect_refused(&m, ERR_CORRUPT, "beside the index");
    write_index("{\"weight_map\":{\"a\":\"part.safetensors\"}}");
    expect_refused(&m, ERR_CORRUPT, "names tensor a, which no shard holds");
    write_index("{\"weight_map\":{\"a\":\"gone.safetensors\"}}");
    expect_refused(&m, ERR_NOT_FOUND, "gone.safetensors");
    write_index("{\"weight_map\":{\"model.decoder.embed_tokens.weight\":\"part.safetensors\"}}");
    expect_same(&m, DT_F32);
    model_fini(&m);
}

/* The same tensor in two shards: neither is preferred silently. */
Test(weights, tensor_in_two_shards)
{
    struct model m;
    char command[256];

    small_model(&m, true);
    write_model(&m, DT_F32, 0);
    snprintf(command, sizeof(command),
             "cd %s && cp model.safetensors a.safetensors && mv model.safetensors b.safetensors",
             dir);
    cr_assert_eq(system(command), 0);
    write_index("{\"weight_map\":{\"model.decoder.embed_tokens.weight\":\"a.safetensors\","
                "\"model.decoder.final_layer_norm.bias\":\"b.safetensors\"}}");
    expect_refused(&m, ERR_INVALID, "unexpected (");
    model_fini(&m);
}

static int failing(void *ud, int64_t tensor, const void **data, enum dtype *from, struct err *err)
{
    return tensor == 3 ? err_set(err, ERR_IO, "no more") : supply(ud, tensor, data, from, err);
}

Test(weights, failed_export_leaves_no_file)
{
    struct model m;
    struct supply s = {.m = &m};
    struct err err = {0};

    small_model(&m, true);
    cr_assert_eq(weights_write(dir, &m, DT_F32, failing, &s, &err), ERR_IO);
    free(s.data);
    model_fini(&m);
    cr_assert_eq(rmdir(dir), 0, "something was left");
}
