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

struct family {
    const char *model_type;
    const char *const *prefixes; /* optional prefixes a file's names may carry, NULL-terminated:
                                    "model.", "" ...; the first is the one written on export */
    const char *const
        *ignored; /* tensors that files may carry and the model does not use (glob with '*') */
    const struct name_map *names;    /* ends with name == NULL */
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
extern const struct family family_gemma, family_gemma2;

/* Rows of our tensor that name_map part p covers: q, k, v parts differ in height under GQA. */
void family_part_rows(const struct decoder_config *c, const struct tensor_desc *t,
                      const struct name_map *map, int64_t *first_row, int64_t *rows);

/* Adapters beside queries and values, and beside all three where they are one module. */
extern const char *const family_lora_q_v[], *const family_lora_query_key_value[];

/* Readers of config.json members that families share. Missing members leave *out alone. */
int family_get_act(const json_t *config_json, const char *key, enum act_kind *out, struct err *err);
/* "dtype", or "torch_dtype" as it was called before transformers 5. */
int family_get_dtype(const json_t *config_json, enum dtype *out, struct err *err);
/* bos_token_id, eos_token_id (of a list the first), pad_token_id. */
int family_get_special_ids(const json_t *config_json, struct decoder_config *out, struct err *err);
/* Sizes under the names of most families since Llama, and what follows from them:
 * num_hidden_layers, hidden_size, intermediate_size, num_attention_heads, num_key_value_heads,
 * head_dim, vocab_size, max_position_embeddings; attn_scale. */
int family_get_sizes(const json_t *config_json, struct decoder_config *c, struct err *err);
/* Rope on that fraction of each head unless partial_rotary_factor says otherwise: rope_theta and
 * rope_scaling, or rope_parameters since transformers 5. After sizes. */
int family_get_rope(const json_t *config_json, double fraction, struct decoder_config *c,
                    struct err *err);
/* layer_types, where the layers called sliding have that window. After sizes. */
int family_get_windows(const json_t *config_json, int64_t window, struct decoder_config *c,
                       struct err *err);
void family_set_window(struct decoder_config *c, int64_t layer, int64_t window);
/* head_dim = hidden / heads, or ERR_INVALID with param `key`. */
int family_head_dim(struct decoder_config *c, const char *key, struct err *err);
/* ERR_UNSUPPORTED, unsupported_architecture: "key: what, which this build does not train". */
int family_refuse(const char *key, const char *what, struct err *err);

#endif
