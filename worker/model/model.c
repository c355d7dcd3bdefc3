#include "worker/model/model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

static const char *const role_names[TENSOR_ROLE_COUNT] = {
    [TENSOR_EMBED] = "embed",
    [TENSOR_POSITIONS] = "positions",
    [TENSOR_PROJECT_IN] = "project_in",
    [TENSOR_EMBED_NORM_W] = "embed_norm_w",
    [TENSOR_EMBED_NORM_B] = "embed_norm_b",
    [TENSOR_NORM1_W] = "norm1_w",
    [TENSOR_NORM1_B] = "norm1_b",
    [TENSOR_QKV_W] = "qkv_w",
    [TENSOR_QKV_B] = "qkv_b",
    [TENSOR_Q_NORM_W] = "q_norm_w",
    [TENSOR_K_NORM_W] = "k_norm_w",
    [TENSOR_OUT_W] = "out_w",
    [TENSOR_OUT_B] = "out_b",
    [TENSOR_POST_ATTN_NORM_W] = "post_attn_norm_w",
    [TENSOR_NORM2_W] = "norm2_w",
    [TENSOR_NORM2_B] = "norm2_b",
    [TENSOR_UP_W] = "up_w",
    [TENSOR_UP_B] = "up_b",
    [TENSOR_DOWN_W] = "down_w",
    [TENSOR_DOWN_B] = "down_b",
    [TENSOR_POST_MLP_NORM_W] = "post_mlp_norm_w",
    [TENSOR_FINAL_NORM_W] = "final_norm_w",
    [TENSOR_FINAL_NORM_B] = "final_norm_b",
    [TENSOR_PROJECT_OUT] = "project_out",
    [TENSOR_HEAD_W] = "head_w",
    [TENSOR_HEAD_B] = "head_b",
    [TENSOR_PROJECT_IN_LORA_A] = "project_in_lora_a",
    [TENSOR_PROJECT_IN_LORA_B] = "project_in_lora_b",
    [TENSOR_QKV_LORA_A] = "qkv_lora_a",
    [TENSOR_QKV_LORA_B] = "qkv_lora_b",
    [TENSOR_OUT_LORA_A] = "out_lora_a",
    [TENSOR_OUT_LORA_B] = "out_lora_b",
    [TENSOR_UP_LORA_A] = "up_lora_a",
    [TENSOR_UP_LORA_B] = "up_lora_b",
    [TENSOR_DOWN_LORA_A] = "down_lora_a",
    [TENSOR_DOWN_LORA_B] = "down_lora_b",
    [TENSOR_PROJECT_OUT_LORA_A] = "project_out_lora_a",
    [TENSOR_PROJECT_OUT_LORA_B] = "project_out_lora_b",
};

/* Upper bounds on what the loops below add: the arrays are sized once. */
enum { MAX_TENSORS_OUTSIDE_LAYERS = 12 };

static void use_tensor(struct block_desc *b, int64_t tensor)
{
    assert(b->n_tensors < BLOCK_MAX_TENSORS);
    b->tensors[b->n_tensors++] = tensor;
}

static void add_tensor(struct model *m, struct block_desc *b, enum tensor_role role, int64_t rows,
                       int64_t cols)
{
    bool matrix =
        cols > 1 && role != TENSOR_POSITIONS && role != TENSOR_Q_NORM_W && role != TENSOR_K_NORM_W;

    m->tensors[m->n_tensors] = (struct tensor_desc){
        .role = role,
        .layer = b->kind == BLOCK_LAYER ? b->layer : -1,
        .rows = rows,
        .cols = cols,
        .decay = matrix,
        .trainable = true,
    };
    m->n_params += rows * cols;
    use_tensor(b, m->n_tensors++);
}

static void add_norm(struct model *m, struct block_desc *b, enum tensor_role weight,
                     enum tensor_role bias)
{
    const struct decoder_config *c = &m->config;

    if (!c->norm_affine)
        return;
    add_tensor(m, b, weight, c->hidden, 1);
    if (c->norm_bias)
        add_tensor(m, b, bias, c->hidden, 1);
}

static void add_linear(struct model *m, struct block_desc *b, enum tensor_role weight,
                       enum tensor_role bias, int64_t out, int64_t in, bool biased)
{
    add_tensor(m, b, weight, out, in);
    if (biased)
        add_tensor(m, b, bias, out, 1);
}

static void add_embedding(struct model *m, struct block_desc *b)
{
    const struct decoder_config *c = &m->config;

    add_tensor(m, b, TENSOR_EMBED, c->vocab, c->embed_dim);
    if (c->position == POSITION_LEARNED)
        add_tensor(m, b, TENSOR_POSITIONS, c->max_positions + c->position_offset, c->hidden);
    if (c->embed_dim != c->hidden)
        add_tensor(m, b, TENSOR_PROJECT_IN, c->hidden, c->embed_dim);
    if (c->embed_norm)
        add_norm(m, b, TENSOR_EMBED_NORM_W, TENSOR_EMBED_NORM_B);
}

static void add_layer(struct model *m, struct block_desc *b)
{
    const struct decoder_config *c = &m->config;
    bool post = c->norm_place == NORM_PLACE_POST, sandwich = c->norm_place == NORM_PLACE_SANDWICH;
    int64_t q_rows = c->heads * c->head_dim, kv_rows = c->kv_heads * c->head_dim;

    if (!post)
        add_norm(m, b, TENSOR_NORM1_W, TENSOR_NORM1_B);
    add_linear(m, b, TENSOR_QKV_W, TENSOR_QKV_B, q_rows + 2 * kv_rows, c->hidden, c->qkv_bias);
    if (c->qk_norm == QK_NORM_SHARED) {
        add_tensor(m, b, TENSOR_Q_NORM_W, c->head_dim, 1);
        add_tensor(m, b, TENSOR_K_NORM_W, c->head_dim, 1);
    } else if (c->qk_norm == QK_NORM_HEADS) {
        add_tensor(m, b, TENSOR_Q_NORM_W, c->heads, c->head_dim);
        add_tensor(m, b, TENSOR_K_NORM_W, c->kv_heads, c->head_dim);
    }
    add_linear(m, b, TENSOR_OUT_W, TENSOR_OUT_B, c->hidden, q_rows, c->out_bias);
    if (sandwich)
        add_tensor(m, b, TENSOR_POST_ATTN_NORM_W, c->hidden, 1);
    if (post)
        add_norm(m, b, TENSOR_NORM1_W, TENSOR_NORM1_B);
    else if (c->residual != RESIDUAL_PARALLEL_1NORM)
        add_norm(m, b, TENSOR_NORM2_W, TENSOR_NORM2_B);
    add_linear(m, b, TENSOR_UP_W, TENSOR_UP_B, c->gated ? 2 * c->ffn : c->ffn, c->hidden,
               c->mlp_bias);
    add_linear(m, b, TENSOR_DOWN_W, TENSOR_DOWN_B, c->hidden, c->ffn, c->mlp_bias);
    if (post)
        add_norm(m, b, TENSOR_NORM2_W, TENSOR_NORM2_B);
    if (sandwich)
        add_tensor(m, b, TENSOR_POST_MLP_NORM_W, c->hidden, 1);
}

static void add_head(struct model *m, struct block_desc *b)
{
    const struct decoder_config *c = &m->config;

    if (c->final_norm)
        add_norm(m, b, TENSOR_FINAL_NORM_W, TENSOR_FINAL_NORM_B);
    if (c->embed_dim != c->hidden)
        add_tensor(m, b, TENSOR_PROJECT_OUT, c->embed_dim, c->hidden);
    if (c->tied)
        use_tensor(b, m->blocks[0].tensors[0]);
    else
        add_tensor(m, b, TENSOR_HEAD_W, c->vocab, c->embed_dim);
    if (c->head_bias)
        add_tensor(m, b, TENSOR_HEAD_B, c->vocab, 1);
}

void model_init(struct model *m, struct decoder_config *config)
{
    int64_t layers = config->layers;
    size_t most = (size_t)layers * BLOCK_MAX_TENSORS + MAX_TENSORS_OUTSIDE_LAYERS;

    memset(m, 0, sizeof(*m));
    m->config = *config;
    memset(config, 0, sizeof(*config));
    m->n_blocks = layers + 2;
    m->blocks = xcalloc((size_t)m->n_blocks, sizeof(*m->blocks));
    m->tensors = xcalloc(most, sizeof(*m->tensors));

    m->blocks[0] = (struct block_desc){.kind = BLOCK_EMBED, .layer = -1};
    add_embedding(m, &m->blocks[0]);
    for (int64_t i = 0; i < layers; i++) {
        struct block_desc *b = &m->blocks[1 + i];

        *b = (struct block_desc){.kind = BLOCK_LAYER, .layer = i};
        add_layer(m, b);
    }
    m->blocks[layers + 1] = (struct block_desc){.kind = BLOCK_HEAD, .layer = -1};
    add_head(m, &m->blocks[layers + 1]);
    m->n_weights = m->n_tensors;
}

void model_fini(struct model *m)
{
    decoder_config_fini(&m->config);
    free(m->tensors);
    free(m->blocks);
    memset(m, 0, sizeof(*m));
}

void model_quantize(struct model *m, enum quant_format format)
{
    for (int64_t t = 0; t < m->n_weights; t++) {
        struct tensor_desc *d = &m->tensors[t];

        if (d->role != TENSOR_QKV_W && d->role != TENSOR_OUT_W && d->role != TENSOR_UP_W &&
            d->role != TENSOR_DOWN_W)
            continue;
        assert(!d->trainable);
        d->quant = format;
    }
}

const char *tensor_role_name(enum tensor_role role)
{
    assert(role < TENSOR_ROLE_COUNT);
    return role_names[role];
}

int64_t block_find(const struct model *m, const struct block_desc *b, enum tensor_role role)
{
    for (int64_t i = 0; i < b->n_tensors; i++) {
        if (m->tensors[b->tensors[i]].role == role)
            return i;
    }
    return -1;
}

int64_t tensor_elements(const struct tensor_desc *t)
{
    return t->rows * t->cols;
}

int64_t model_first_trained(const struct model *m)
{
    for (int64_t b = 0; b < m->n_blocks; b++) {
        for (int64_t i = 0; i < m->blocks[b].n_tensors; i++) {
            if (m->tensors[m->blocks[b].tensors[i]].trainable)
                return b;
        }
    }
    return m->n_blocks;
}
