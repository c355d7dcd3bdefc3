#include "worker/model/config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fs.h"
#include "core/json.h"
#include "worker/model/family.h"

enum { CONFIG_JSON_MAX_BYTES = 1 << 20 };

static int unsupported(struct err *err, const char *family, const char *what)
{
    int rc = err_set(err, ERR_UNSUPPORTED,
                     "this %s model uses %s, which this build does not train; choose another model",
                     family, what);

    return err_set_reason(err, rc, "unsupported_architecture");
}

static int check_range(const char *what, int64_t value, int64_t min, int64_t max, struct err *err)
{
    if (value >= min && value <= max)
        return 0;
    return err_set(err, ERR_INVALID,
                   "config.json gives %s = %" PRId64 ", which is not between %" PRId64
                   " and %" PRId64,
                   what, value, min, max);
}

static int check_sizes(const struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(check_range("the number of layers", c->layers, 1, CONFIG_MAX_LAYERS, err));
    TRY(check_range("the hidden size", c->hidden, 1, CONFIG_MAX_WIDTH, err));
    TRY(check_range("the embedding width", c->embed_dim, 1, CONFIG_MAX_WIDTH, err));
    TRY(check_range("the number of heads", c->heads, 1, CONFIG_MAX_HEADS, err));
    TRY(check_range("the number of key-value heads", c->kv_heads, 1, c->heads, err));
    TRY(check_range("the head size", c->head_dim, 1, CONFIG_MAX_HEAD_DIM, err));
    TRY(check_range("heads * head size", c->heads * c->head_dim, 1, CONFIG_MAX_WIDTH, err));
    TRY(check_range("the MLP width", c->ffn, 1, CONFIG_MAX_FFN, err));
    TRY(check_range("the vocabulary", c->vocab, 2, CONFIG_MAX_VOCAB, err));
    TRY(check_range("the longest sequence", c->max_positions, 1, CONFIG_MAX_POSITIONS, err));
    TRY(check_range("the position offset", c->position_offset, 0, CONFIG_MAX_POSITIONS, err));
    TRY(check_range("the bos token", c->bos_id, -1, c->vocab - 1, err));
    TRY(check_range("the eos token", c->eos_id, -1, c->vocab - 1, err));
    TRY(check_range("the pad token", c->pad_id, -1, c->vocab - 1, err));
    if (c->heads % c->kv_heads != 0)
        rc = err_set(err, ERR_INVALID,
                     "config.json gives %" PRId64 " heads, which %" PRId64
                     " key-value heads cannot share evenly",
                     c->heads, c->kv_heads);
out:
    return rc;
}

/* A number from outside that must lie in [min, max); NaN lies nowhere. */
static int check_number(const char *what, double value, double min, double max, struct err *err)
{
    if (value >= min && value < max)
        return 0;
    return err_set(err, ERR_INVALID,
                   "config.json gives %s = %g, which is not at least %g and below %g", what, value,
                   min, max);
}

static int check_numbers(const struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(check_number("the norm's epsilon", c->norm_eps, 1e-30, 1, err));
    TRY(check_number("the dropout of embeddings", c->embed_dropout, 0, 1, err));
    TRY(check_number("the dropout", c->hidden_dropout, 0, 1, err));
    TRY(check_number("the attention dropout", c->attn_dropout, 0, 1, err));
    TRY(check_number("the attention scale", c->attn_scale, 1e-30, 1e30, err));
    TRY(check_number("the score cap", c->score_softcap, 0, 1e30, err));
    TRY(check_number("the logit cap", c->final_softcap, 0, 1e30, err));
    TRY(check_number("the embedding scale", c->embed_scale, 1e-30, 1e30, err));
    TRY(check_number("the logit scale", c->logit_scale, 1e-30, 1e30, err));
out:
    return rc;
}

static int check_rope_scaling(const struct rope_config *rope, struct err *err)
{
    int rc = 0;

    if (rope->scaling == ROPE_SCALING_NONE)
        return 0;
    TRY(check_number("the rope factor", rope->factor, 1, 1e30, err));
    TRY(check_range("original_max_position_embeddings", rope->original_max_positions, 1,
                    CONFIG_MAX_POSITIONS, err));
    if (rope->scaling == ROPE_SCALING_LLAMA3) {
        TRY(check_number("low_freq_factor", rope->low_freq_factor, 1e-6, 1e6, err));
        TRY(check_number("high_freq_factor", rope->high_freq_factor, rope->low_freq_factor * 1.0001,
                         1e7, err));
    } else if (rope->scaling == ROPE_SCALING_YARN) {
        TRY(check_number("the rope base under yarn", rope->base, 1.0001, 1e30, err));
        TRY(check_number("beta_slow", rope->beta_slow, 1e-6, 1e6, err));
        TRY(check_number("beta_fast", rope->beta_fast, rope->beta_slow, 1e6 + 1, err));
    } else if (rope->scaling == ROPE_SCALING_LONG) {
        if (rope->long_factors == NULL || rope->short_factors == NULL)
            TRY(err_set(err, ERR_INVALID, "longrope needs long_factor and short_factor"));
    }
out:
    return rc;
}

static int check_rope(const struct decoder_config *c, struct err *err)
{
    const struct rope_config *rope = &c->rope;
    int rc = 0;

    if (c->position != POSITION_ROPE)
        return 0;
    TRY(check_range("the rotated dimensions", rope->dim, 2, c->head_dim, err));
    TRY(check_number("the rope base", rope->base, 1, 1e30, err));
    if (rope->dim % 2 != 0)
        TRY(err_set(err, ERR_INVALID, "config.json rotates %" PRId64 " dimensions, an odd number",
                    rope->dim));
    if (rope->local_base != 0)
        TRY(check_number("the rope base of layers with a window", rope->local_base, 1, 1e30, err));
    TRY(check_rope_scaling(rope, err));
out:
    return rc;
}

/* Flags that struct decoder_config can say and the blocks cannot run. */
static int check_built(const struct decoder_config *c, struct err *err)
{
    bool pre = c->norm_place == NORM_PLACE_PRE, sandwich = c->norm_place == NORM_PLACE_SANDWICH;

    if (sandwich && (c->norm == NORM_LAYER || c->norm_bias || !c->norm_affine))
        return unsupported(err, c->family, "layer norms before and after each part");
    if (c->residual != RESIDUAL_SEQUENTIAL && !pre)
        return unsupported(err, c->family, "attention and MLP in parallel without norms in front");
    if (c->embed_norm && c->embed_dim != c->hidden)
        return unsupported(err, c->family, "a norm behind a projected embedding");
    return 0;
}

int decoder_config_check(const struct decoder_config *c, struct err *err)
{
    int rc = 0;

    TRY(check_built(c, err));
    TRY(check_sizes(c, err));
    TRY(check_numbers(c, err));
    TRY(check_rope(c, err));
    for (int64_t i = 0; c->window != NULL && i < c->layers; i++)
        TRY(check_range("a layer's window", c->window[i], 0, CONFIG_MAX_POSITIONS, err));
out:
    return rc;
}

/* The config of what is trained, a new reference: config_json itself; of a model that also sees
 * images its text model's, as that would be on its own. */
static json_t *text_config(const json_t *config_json)
{
    static const char *const shared[] = {"dtype",        "torch_dtype",  "bos_token_id",
                                         "eos_token_id", "pad_token_id", "quantization_config"};
    const char *type = json_string_value(json_object_get(config_json, "model_type"));
    json_t *text = json_object_get(config_json, "text_config");

    if (type == NULL || strcmp(type, "gemma3") != 0 || !json_is_object(text))
        return json_incref((json_t *)config_json);
    text = json_copy(text);
    for (size_t i = 0; i < sizeof(shared) / sizeof(shared[0]); i++) {
        json_t *value = json_object_get(config_json, shared[i]);

        if (value != NULL && json_object_get(text, shared[i]) == NULL)
            json_object_set(text, shared[i], value);
    }
    json_object_set_new(text, "model_type", json_string("gemma3_text"));
    json_object_set_new(text, "architectures", json_pack("[s]", "Gemma3ForCausalLM"));
    return text;
}

int decoder_config_parse(const json_t *whole, struct decoder_config *out, struct err *err)
{
    json_t *config_json = text_config(whole);
    struct decoder_config c = {0};
    const struct family *family;
    const char *type = NULL;
    int rc = 0;

    if (!json_is_object(config_json))
        TRY(err_set(err, ERR_INVALID, "config.json must hold a JSON object"));
    TRY(json_get_string(config_json, "", "model_type", true, &type, err));
    family = family_find(type);
    if (family == NULL) {
        char supported[256];

        family_list(supported, sizeof(supported));
        rc = err_set(err, ERR_UNSUPPORTED,
                     "models of type \"%.64s\" are not supported; supported types: %s", type,
                     supported);
        rc = err_set_reason(err, rc, "unsupported_architecture");
        goto out;
    }
    if (json_is_object(json_object_get(config_json, "quantization_config")))
        TRY(unsupported(err, type, "quantised weights (quantization_config)"));

    snprintf(c.family, sizeof(c.family), "%s", type);
    c.dtype = DT_F32;
    c.embed_scale = c.logit_scale = 1;
    c.bos_id = c.eos_id = c.pad_id = -1;
    TRY(family->parse(config_json, &c, err));
    TRY(decoder_config_check(&c, err));
    *out = c;
    memset(&c, 0, sizeof(c));
out:
    decoder_config_fini(&c);
    json_decref(config_json);
    return rc;
}

int decoder_config_load(const char *model_dir, struct decoder_config *out, struct err *err)
{
    char *path = fs_join(model_dir, "config.json");
    json_t *config_json = NULL;
    int rc = 0;

    TRY(json_parse_file(path, CONFIG_JSON_MAX_BYTES, JSON_MAX_DEPTH_FILE, &config_json, err));
    rc = decoder_config_parse(config_json, out, err);
    if (rc != 0)
        err_wrap(err, rc, "%s", path);
out:
    json_decref(config_json);
    free(path);
    return rc;
}

int decoder_config_export(const char *model_dir, const char *dir, enum dtype dtype, struct err *err)
{
    const char *name = dtype == DT_F32 ? "float32" : dtype == DT_BF16 ? "bfloat16" : "float16";
    char *from = fs_join(model_dir, "config.json"), *to = fs_join(dir, "config.json");
    json_t *whole = NULL, *text = NULL;
    char *line = NULL;
    int rc = 0;

    TRY(json_parse_file(from, CONFIG_JSON_MAX_BYTES, JSON_MAX_DEPTH_FILE, &whole, err));
    text = text_config(whole);
    json_object_set_new(text, json_object_get(text, "dtype") != NULL ? "dtype" : "torch_dtype",
                        json_string(name));
    line = json_dumps(text, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    TRY(fs_write_file_atomic(to, line, strlen(line), err));
out:
    free(line);
    json_decref(text);
    json_decref(whole);
    free(from);
    free(to);
    return rc;
}

void decoder_config_fini(struct decoder_config *c)
{
    free(c->window);
    free(c->rope.long_factors);
    free(c->rope.short_factors);
    memset(c, 0, sizeof(*c));
}
