#include "worker/model/family.h"

#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static const struct family *const families[] = {
    &family_opt,   &family_gpt2,     &family_llama,  &family_mistral, &family_qwen2, &family_qwen3,
    &family_phi3,  &family_gpt_neox, &family_gptj,   &family_phi,     &family_bloom, &family_falcon,
    &family_gemma, &family_gemma2,   &family_gemma3, &family_cohere,
};
enum { N_FAMILIES = sizeof(families) / sizeof(families[0]) };

const char *const family_model_prefixes[] = {"model.", "", NULL};
const char *const family_transformer_prefixes[] = {"transformer.", "", NULL};
const char *const family_gpt_masks[] = {"h.*.attn.bias", "h.*.attn.masked_bias", NULL};
const char *const family_rope_buffers[] = {"layers.*.self_attn.rotary_emb.inv_freq", NULL};
const char *const family_lora_q_v[] = {"q_proj", "v_proj", NULL};
const char *const family_lora_query_key_value[] = {"query_key_value", NULL};

const struct family *family_find(const char *model_type)
{
    for (int i = 0; i < N_FAMILIES; i++) {
        if (strcmp(families[i]->model_type, model_type) == 0)
            return families[i];
    }
    return NULL;
}

void family_list(char *out, size_t n)
{
    size_t used = 0;

    assert(n > 0);
    out[0] = '\0';
    for (int i = 0; i < N_FAMILIES && used < n; i++)
        used += (size_t)snprintf(out + used, n - used, "%s%s", i > 0 ? ", " : "",
                                 families[i]->model_type);
}

const struct name_map *family_names(const struct family *family, const struct decoder_config *c)
{
    return family->choose_names != NULL ? family->choose_names(c) : family->names;
}

void family_part_rows(const struct decoder_config *c, const struct tensor_desc *t,
                      const struct name_map *map, int64_t *first_row, int64_t *rows)
{
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;

    assert(map->part < map->parts || map->parts == 0);
    if (map->parts <= 1) {
        *first_row = 0;
        *rows = t->rows;
    } else if (t->role == TENSOR_QKV_W || t->role == TENSOR_QKV_B) {
        assert(map->parts == 3);
        *first_row = map->part == 0 ? 0 : q + (map->part - 1) * kv;
        *rows = map->part == 0 ? q : kv;
    } else {
        *rows = t->rows / map->parts;
        *first_row = map->part * *rows;
    }
}
