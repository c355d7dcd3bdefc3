#include "worker/model/family.h"

#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "core/json.h"

static const struct family *const families[] = {&family_opt};
enum { N_FAMILIES = sizeof(families) / sizeof(families[0]) };

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

int family_get_act(const json_t *config_json, const char *key, enum act_kind *out, struct err *err)
{
    static const struct {
        const char *name;
        enum act_kind act;
    } known[] = {
        {"relu", ACT_RELU},
        {"gelu", ACT_GELU_ERF},
        {"gelu_new", ACT_GELU_TANH},
        {"gelu_fast", ACT_GELU_TANH},
        {"gelu_pytorch_tanh", ACT_GELU_TANH},
        {"silu", ACT_SILU},
        {"swish", ACT_SILU},
    };
    const char *name = NULL;
    int rc = json_get_string(config_json, "", key, false, &name, err);

    if (rc != 0 || name == NULL)
        return rc;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name) == 0) {
            *out = known[i].act;
            return 0;
        }
    }
    rc = err_set(err, ERR_UNSUPPORTED,
                 "%s is \"%.64s\"; relu, gelu, gelu_new, gelu_pytorch_tanh and silu are supported",
                 key, name);
    rc = err_set_param(err, rc, key);
    return err_set_reason(err, rc, "unsupported_architecture");
}

int family_get_dtype(const json_t *config_json, enum dtype *out, struct err *err)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } known[] = {
        {"float64", DT_F64},
        {"float32", DT_F32},
        {"float16", DT_F16},
        {"bfloat16", DT_BF16},
    };
    const char *const keys[] = {"dtype", "torch_dtype"};
    const char *name = NULL;
    int rc = 0;

    for (int i = 0; i < 2 && name == NULL; i++)
        TRY(json_get_string(config_json, "", keys[i], false, &name, err));
    if (name == NULL)
        goto out;
    if (strncmp(name, "torch.", strlen("torch.")) == 0)
        name += strlen("torch.");
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name) == 0) {
            *out = known[i].dtype;
            goto out;
        }
    }
    rc = err_set(err, ERR_UNSUPPORTED,
                 "config.json says the weights are \"%.64s\"; float32, float16, bfloat16 and "
                 "float64 are supported",
                 name);
    rc = err_set_param(err, rc, "dtype");
out:
    return rc;
}

int family_get_special_ids(const json_t *config_json, struct decoder_config *out, struct err *err)
{
    int rc = 0;

    TRY(json_get_int64(config_json, "", "bos_token_id", false, -1, CONFIG_MAX_VOCAB, &out->bos_id,
                       err));
    TRY(json_get_int64(config_json, "", "eos_token_id", false, -1, CONFIG_MAX_VOCAB, &out->eos_id,
                       err));
    TRY(json_get_int64(config_json, "", "pad_token_id", false, -1, CONFIG_MAX_VOCAB, &out->pad_id,
                       err));
out:
    return rc;
}
