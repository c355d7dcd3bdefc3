/*
 * A model's anatomy: the blocks in the order they run, and the tensors they use, as shapes. No
 * memory is owned here except these descriptions; weights live in chunks.
 *
 * Blocks: 0 is the embedding, 1 .. layers the decoder layers, layers + 1 the head (final norm,
 * logits, loss). A tensor may be used by several blocks (a tied table by the first and the last).
 *
 * Weights are stored as this file says, not as files have them: matrices (out, in); q, k and v
 * stacked in one matrix [q | k | v] by rows, gate and up likewise [gate | up]. Families map their
 * files' names and layouts onto that (worker/model/family.h).
 */
#ifndef CASTOR_WORKER_MODEL_MODEL_H
#define CASTOR_WORKER_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/quant.h"
#include "worker/model/config.h"

enum tensor_role {
    TENSOR_EMBED,      /* (vocab, embed_dim)             */
    TENSOR_POSITIONS,  /* (max_positions + offset, hidden) */
    TENSOR_PROJECT_IN, /* (hidden, embed_dim)            */
    TENSOR_EMBED_NORM_W,
    TENSOR_EMBED_NORM_B,
    TENSOR_NORM1_W,
    TENSOR_NORM1_B, /* before (post-norm: after) attention */
    TENSOR_QKV_W,   /* ((heads + 2 kv_heads) head_dim, hidden) */
    TENSOR_QKV_B,
    TENSOR_Q_NORM_W,
    TENSOR_K_NORM_W, /* (head_dim) */
    TENSOR_OUT_W,    /* (hidden, heads head_dim) */
    TENSOR_OUT_B,
    TENSOR_POST_ATTN_NORM_W,
    TENSOR_NORM2_W,
    TENSOR_NORM2_B,
    TENSOR_UP_W, /* (ffn or 2 ffn, hidden): [up] or [gate | up] */
    TENSOR_UP_B,
    TENSOR_DOWN_W, /* (hidden, ffn) */
    TENSOR_DOWN_B,
    TENSOR_POST_MLP_NORM_W,
    TENSOR_FINAL_NORM_W,
    TENSOR_FINAL_NORM_B,
    TENSOR_PROJECT_OUT, /* (embed_dim, hidden) */
    TENSOR_HEAD_W,      /* (vocab, embed_dim), untied models only */
    TENSOR_HEAD_B,
    /* Low-rank adapters of matrices (worker/model/adapter.h): A (parts rank, in) then B (rows of
     * the parts, rank), the adapted parts of the matrix one below the other */
    TENSOR_PROJECT_IN_LORA_A,
    TENSOR_PROJECT_IN_LORA_B,
    TENSOR_QKV_LORA_A,
    TENSOR_QKV_LORA_B,
    TENSOR_OUT_LORA_A,
    TENSOR_OUT_LORA_B,
    TENSOR_UP_LORA_A,
    TENSOR_UP_LORA_B,
    TENSOR_DOWN_LORA_A,
    TENSOR_DOWN_LORA_B,
    TENSOR_PROJECT_OUT_LORA_A,
    TENSOR_PROJECT_OUT_LORA_B,
    TENSOR_ROLE_COUNT,
};

struct tensor_desc {
    enum tensor_role role;
    int64_t layer;      /* 0-based, -1 outside the layers */
    int64_t rows, cols; /* a vector has rows = its length, cols = 1 */
    bool decay; /* weight decay applies: matrices, not biases, norms and embeddings of positions */
    bool trainable; /* false: frozen, without gradient and optimizer state, never written */
    uint32_t parts; /* of an adapter: which of the matrix's parts it adapts, bit by bit; else 0 */
    enum quant_format quant; /* how it lies in memory; QUANT_NONE: in the compute type */
};

enum block_kind { BLOCK_EMBED, BLOCK_LAYER, BLOCK_HEAD };

enum { BLOCK_MAX_TENSORS = 32 };

struct block_desc {
    enum block_kind kind;
    int64_t layer; /* of BLOCK_LAYER */
    int64_t n_tensors;
    int64_t tensors[BLOCK_MAX_TENSORS]; /* indices into model.tensors, in use order */
};

/* A part of a stored matrix that is a module of its own to the family: q_proj in [q | k | v]. */
struct matrix_part {
    int64_t first_row, rows;
};
enum { MATRIX_MAX_PARTS = 3, ADAPTABLE_MATRICES = 6 };

/* A matrix that adapters may stand beside, the same in all layers. */
struct adaptable {
    enum tensor_role matrix, a, b;
    int64_t n_parts; /* 0: this model has no such matrix */
    struct matrix_part parts[MATRIX_MAX_PARTS];
};

struct adapters { /* rank 0: none */
    int64_t rank;
    double alpha, dropout;
    bool rslora;
    float scale; /* of the adapters' product */
    struct adaptable matrices[ADAPTABLE_MATRICES];
    int64_t n_params;
};

struct model {
    struct decoder_config config; /* taken over */
    struct tensor_desc *tensors;  /* the weights, then the adapters */
    int64_t n_tensors, n_weights;
    struct block_desc *blocks;
    int64_t n_blocks;
    int64_t n_params; /* of the weights */
    struct adapters adapters;
};

/* Takes ownership of *config (zeroed on return). */
void model_init(struct model *m, struct decoder_config *config);
void model_fini(struct model *m);
/* Have the matrices of the decoder layers, which are frozen, lie quantised. Everything else stays
 * in the compute type: biases, norms, embeddings, projections beside them, the head. */
void model_quantize(struct model *m, enum quant_format format);

const char *tensor_role_name(enum tensor_role role);
/* The block's tensor with that role: position in block.tensors, -1 when the block has none. */
int64_t block_find(const struct model *m, const struct block_desc *b, enum tensor_role role);
int64_t tensor_elements(const struct tensor_desc *t);
/* The lowest block with a trainable tensor: backward ends there. */
int64_t model_first_trained(const struct model *m);

#endif
