/*
 * Families: one small file each (family_opt.c, ...) with two things: config.json -> flags, and a
 * table that maps each of our tensors to the tensors of the family's files. Adding a family adds a
 * file, a row in family.c and a golden test.
 */
#ifndef CASTOR_WORKER_MODEL_FAMILY_H
#define CASTOR_WORKER_MODEL_FAMILY_H

#include <jansson.h>

#include "core/err.h"
#include "worker/model/model.h"

/* How a file's tensor lies, seen from ours. */
enum file_layout {
    FILE_ROWS,        /* the same rows                                                     */
    FILE_TRANSPOSED,  /* (in, out): GPT-2's Conv1D                                         */
    FILE_GROUPED_QKV, /* for each key-value head: its heads' q, then k, then v; head_dim
                         rows each (NeoX, BLOOM, newer Falcons)                            */
};

/* Where a part of one of our tensors comes from. "{i}" in the name is the layer. Several rows with
 * one role stack by rows in the order given (q, k, v). */
struct name_map {
    enum tensor_role role;
    const char *name;    /* without the optional prefix */
    int64_t part, parts; /* this source is part `part` of `parts` of the role, rows by
                            family_part_rows; 0 parts means 1 */
    bool bare;           /* the name never carries a prefix: lm_head */
    enum file_layout layout;
};

/* The file's rows of modules that several families have under the same names; `at` is the path in
 * front of the module, with its dot. */
#define FAMILY_QKV_PROJ(at)                                                                        \
    {TENSOR_QKV_W, at "q_proj.weight", 0, 3}, {TENSOR_QKV_W, at "k_proj.weight", 1, 3},            \
        {TENSOR_QKV_W, at "v_proj.weight", 2, 3}, {TENSOR_QKV_B, at "q_proj.bias", 0, 3},          \
        {TENSOR_QKV_B, at "k_proj.bias", 1, 3},                                                    \
    {                                                                                              \
        TENSOR_QKV_B, at "v_proj.bias", 2, 3                                                       \
    }
#define FAMILY_GROUPED_QKV(at)                                                                     \
    {TENSOR_QKV_W, at "query_key_value.weight", .layout = FILE_GROUPED_QKV},                       \
    {                                                                                              \
        TENSOR_QKV_B, at "query_key_value.bias", .layout = FILE_GROUPED_QKV                        \
    }
/* Weight and bias of one module. */
#define FAMILY_PAIR(role, module)                                                                  \
    {role##_W, module ".weight"},                                                                  \
    {                                                                                              \
        role##_B, module ".bias"                                                                   \
    }
#define FAMILY_QK_NORMS(at)                                                                        \
    {TENSOR_Q_NORM_W, at "q_norm.weight"},                                                         \
    {                                                                                              \
        TENSOR_K_NORM_W, at "k_norm.weight"                                                        \
    }
/* What Llama's descendants call what they all have. */
#define FAMILY_LLAMA_NAMES                                                                         \
    {TENSOR_EMBED, "embed_tokens.weight"}, {TENSOR_NORM1_W, "layers.{i}.input_layernorm.weight"},  \
        FAMILY_QKV_PROJ("layers.{i}.self_attn."),                                                  \
        FAMILY_PAIR(TENSOR_OUT, "layers.{i}.self_attn.o_proj"),                                    \
        {TENSOR_UP_W, "layers.{i}.mlp.gate_proj.weight", 0, 2},                                    \
        {TENSOR_UP_W, "layers.{i}.mlp.up_proj.weight", 1, 2},                                      \
        {TENSOR_DOWN_W, "layers.{i}.mlp.down_proj.weight"}, {TENSOR_FINAL_NORM_W, "norm.weight"},  \
    {                                                                                              \
        TENSOR_HEAD_W, "lm_head.weight", .bare = true                                              \
    }

struct family {
    const char *model_type;
    const char *const *prefixes; /* optional prefixes a file's names may carry, NULL-terminated:
                                    "model.", "" ...; the first is the one written on export */
    const char *const
        *ignored; /* tensors that files may carry and the model does not use (glob with '*') */
    const struct name_map *names; /* ends with name == NULL */
    /* Where settings of the model change names: its table; NULL: always `names`. */
    const struct name_map *(*choose_names)(const struct decoder_config *c);
    const char *const *lora_targets; /* modules that adapters stand beside unless told otherwise,
                                        NULL-terminated: as PEFT has them */
    int (*parse)(const json_t *config_json, struct decoder_config *out, struct err *err);
};

const struct family *family_find(const char *model_type); /* NULL = unknown */
/* "opt, ...": what family_find knows, for error texts. */
void family_list(char *out, size_t n);

extern const struct family family_opt, family_gpt2, family_gpt_neox, family_gptj, family_phi;
extern const struct family family_bloom, family_falcon;
extern const struct family family_llama, family_mistral, family_qwen2, family_qwen3, family_phi3;
extern const struct family family_gemma, family_gemma2, family_gemma3, family_cohere;

/* Prefixes "model." or "transformer." and none. */
extern const char *const family_model_prefixes[], *const family_transformer_prefixes[];
/* What older files carry: the buffers of rope, and GPT-2's and -J's causal masks. */
extern const char *const family_rope_buffers[], *const family_gpt_masks[];

const struct name_map *family_names(const struct family *family, const struct decoder_config *c);

/* Rows of our tensor that name_map part p covers: q, k, v parts differ in height under GQA. */
void family_part_rows(const struct decoder_config *c, const struct tensor_desc *t,
                      const struct name_map *map, int64_t *first_row, int64_t *rows);

/* Adapters beside queries and values, and beside all three where they are one module. */
extern const char *const family_lora_q_v[], *const family_lora_query_key_value[];

/* Readers of config.json members that families share. Missing members leave *out alone. */
int family_get_act(const json_t *config_json, const char *key, enum act_kind *out, struct err *err);
/* What a family calls its sizes; NULL where its configs have no such member. */
struct size_keys {
    const char *layers, *hidden, *heads, *ffn, *positions;
    const char *kv_heads, *head_dim;
    bool four_wide; /* the MLP is four times as wide as the model where `ffn` is missing */
};
/* num_hidden_layers, hidden_size, ...: most families since Llama; n_layer, n_embd, ...: GPT-2, -J
 */
extern const struct size_keys family_usual_sizes, family_gpt_sizes;
/* Those, vocab_size, and what follows from them: embed_dim, attn_scale. A size that *c holds
 * already is the value of a missing member; without one the member is required. */
int family_get_sizes(const json_t *config_json, const struct size_keys *keys,
                     struct decoder_config *c, struct err *err);
/* Rates under these names, NULL where the family has no such dropout. */
int family_get_dropouts(const json_t *config_json, const char *embed, const char *hidden,
                        const char *attn, struct decoder_config *c, struct err *err);
/* The members that every family has: tie_word_embeddings, the special ids, dtype. */
int family_get_common(const json_t *config_json, struct decoder_config *c, struct err *err);
/* Rope on that fraction of each head unless partial_rotary_factor says otherwise: rope_theta and
 * rope_scaling, or rope_parameters since transformers 5; a base that *c holds already is the
 * default. After sizes. */
int family_get_rope(const json_t *config_json, double fraction, struct decoder_config *c,
                    struct err *err);
/* layer_types, where the layers called sliding have that window. After sizes. */
int family_get_windows(const json_t *config_json, int64_t window, struct decoder_config *c,
                       struct err *err);
void family_set_window(struct decoder_config *c, int64_t layer, int64_t window);
/* ERR_UNSUPPORTED, unsupported_architecture: "key: what, which this build does not train". */
int family_refuse(const char *key, const char *what, struct err *err);

#endif
