/*
 * What config.json says about rotary positions, in its older form (rope_theta, rope_scaling) and as
 * transformers 5 writes it (rope_parameters). The formulas are in worker/model/positions.c.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/alloc.h"
#include "core/json.h"
#include "worker/model/family.h"

static int get_type(const json_t *j, struct rope_config *rope, struct err *err)
{
    static const struct {
        const char *name;
        enum rope_scaling scaling;
    } known[] = {
        {"default", ROPE_SCALING_NONE},    {"linear", ROPE_SCALING_LINEAR},
        {"dynamic", ROPE_SCALING_DYNAMIC}, {"llama3", ROPE_SCALING_LLAMA3},
        {"yarn", ROPE_SCALING_YARN},       {"longrope", ROPE_SCALING_LONG},
        {"su", ROPE_SCALING_LONG}, /* what Phi-3 called it at first */
    };
    const char *type = NULL;
    int rc = 0;

    TRY(json_get_string(j, "", "rope_type", false, &type, err));
    if (type == NULL)
        TRY(json_get_string(j, "", "type", false, &type, err));
    for (size_t i = 0; type != NULL; i++) {
        if (i == sizeof(known) / sizeof(known[0]))
            TRY(family_refuse("rope_scaling", type, err));
        if (strcmp(known[i].name, type) == 0) {
            rope->scaling = known[i].scaling;
            break;
        }
    }
out:
    return rc;
}

/* One factor for each rotated pair. */
static int get_factors(const json_t *j, const char *key, int64_t dim, double **out, struct err *err)
{
    const json_t *list = json_object_get(j, key);
    size_t n = dim > 0 ? (size_t)dim / 2 : 0;
    double *factors;
    int rc;

    if (!json_is_array(list) || n == 0 || json_array_size(list) != n) {
        rc = err_set(err, ERR_INVALID, "%s must be a list of %zu numbers, one a rotated pair", key,
                     n);
        return err_set_param(err, rc, key);
    }
    factors = xcalloc(n, sizeof(*factors));
    for (size_t i = 0; i < n; i++) {
        factors[i] = json_number_value(json_array_get(list, i));
        if (!(factors[i] >= 1e-6 && factors[i] <= 1e9)) {
            free(factors);
            rc = err_set(err, ERR_INVALID, "%s holds something that is no factor", key);
            return err_set_param(err, rc, key);
        }
    }
    free(*out);
    *out = factors;
    return 0;
}

/* Peng et al., "YaRN: Efficient context window extension of large language models", 2023, eq. 22;
 * mscale and mscale_all_dim are DeepSeek's addition. */
static double yarn_attention_factor(const struct rope_config *rope, double mscale, double all_dim)
{
    double log_factor = rope->factor > 1 ? 0.1 * log(rope->factor) : 0;

    if (mscale != 0 && all_dim != 0)
        return (mscale * log_factor + 1) / (all_dim * log_factor + 1);
    return log_factor + 1;
}

/* How far the attention temperature is adapted, unless the config says. */
static int get_attention_factor(const json_t *j, struct rope_config *rope, struct err *err)
{
    double mscale = 0, all_dim = 0;
    int rc = 0;

    rope->attention_factor = 0;
    TRY(json_get_double(j, "", "attention_factor", false, 1e-6, 1e6, &rope->attention_factor, err));
    TRY(json_get_double(j, "", "mscale", false, 0, 1e6, &mscale, err));
    TRY(json_get_double(j, "", "mscale_all_dim", false, 0, 1e6, &all_dim, err));
    if (rope->attention_factor != 0)
        goto out;
    if (rope->scaling == ROPE_SCALING_YARN)
        rope->attention_factor = yarn_attention_factor(rope, mscale, all_dim);
    else if (rope->factor > 1 && rope->original_max_positions > 1)
        rope->attention_factor =
            sqrt(1 + log(rope->factor) / log((double)rope->original_max_positions));
    else
        rope->attention_factor = 1;
out:
    return rc;
}

/* After type, base and dim. `original`: the config's own original_max_position_embeddings, which
 * goes before that of the scaling (Phi-3), or 0. */
static int get_scaling(const json_t *j, int64_t original, int64_t max_positions,
                       struct rope_config *rope, struct err *err)
{
    bool extends = rope->scaling == ROPE_SCALING_YARN || rope->scaling == ROPE_SCALING_LONG;
    int rc = 0;

    TRY(json_get_double(j, "", "factor", false, 0, 1e30, &rope->factor, err));
    TRY(json_get_double(j, "", "low_freq_factor", false, 0, 1e30, &rope->low_freq_factor, err));
    TRY(json_get_double(j, "", "high_freq_factor", false, 0, 1e30, &rope->high_freq_factor, err));
    rope->original_max_positions = max_positions;
    TRY(json_get_int64(j, "", "original_max_position_embeddings", false, 1, CONFIG_MAX_POSITIONS,
                       &rope->original_max_positions, err));
    if (original > 0)
        rope->original_max_positions = original;
    if (!extends)
        goto out;
    if (rope->factor == 0)
        rope->factor = (double)max_positions / (double)rope->original_max_positions;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    rope->truncate = true;
    TRY(json_get_double(j, "", "beta_fast", false, 0, 1e6, &rope->beta_fast, err));
    TRY(json_get_double(j, "", "beta_slow", false, 0, 1e6, &rope->beta_slow, err));
    TRY(json_get_bool(j, "", "truncate", false, &rope->truncate, err));
    TRY(get_attention_factor(j, rope, err));
    if (rope->scaling == ROPE_SCALING_LONG) {
        TRY(get_factors(j, "short_factor", rope->dim, &rope->short_factors, err));
        TRY(get_factors(j, "long_factor", rope->dim, &rope->long_factors, err));
    }
out:
    return rc;
}

/* The base of layers with a window, where rope_parameters has a part for each kind of layer. */
static int get_local(const json_t *parameters, struct rope_config *rope, struct err *err)
{
    const json_t *local = json_object_get(parameters, "sliding_attention");
    struct rope_config other = {0};
    int rc = 0;

    if (!json_is_object(local))
        goto out;
    TRY(json_get_double(local, "", "rope_theta", false, 1, 1e30, &rope->local_base, err));
    TRY(get_type(local, &other, err));
    if (other.scaling != ROPE_SCALING_NONE)
        TRY(family_refuse("rope_parameters", "scaled positions in layers with a window", err));
out:
    return rc;
}

int family_get_rope(const json_t *config_json, double fraction, struct decoder_config *c,
                    struct err *err)
{
    const json_t *parameters = json_object_get(config_json, "rope_parameters");
    const json_t *scaling = json_object_get(config_json, "rope_scaling");
    struct rope_config *rope = &c->rope;
    int64_t original = 0;
    int rc = 0;

    c->position = POSITION_ROPE;
    if (rope->base == 0)
        rope->base = 10000;
    if (json_is_object(json_object_get(parameters, "full_attention"))) {
        TRY(get_local(parameters, rope, err));
        parameters = json_object_get(parameters, "full_attention");
    }
    TRY(json_get_double(config_json, "", "rope_theta", false, 1, 1e30, &rope->base, err));
    TRY(json_get_double(config_json, "", "partial_rotary_factor", false, 0, 1, &fraction, err));
    TRY(json_get_int64(config_json, "", "original_max_position_embeddings", false, 1,
                       CONFIG_MAX_POSITIONS, &original, err));
    if (json_is_object(parameters)) { /* as transformers 5 writes it */
        TRY(json_get_double(parameters, "", "rope_theta", false, 1, 1e30, &rope->base, err));
        TRY(json_get_double(parameters, "", "partial_rotary_factor", false, 0, 1, &fraction, err));
        scaling = parameters;
    }
    rope->dim = (int64_t)((double)c->head_dim * fraction);
    if (json_is_object(scaling)) {
        TRY(get_type(scaling, rope, err));
        TRY(get_scaling(scaling, original, c->max_positions, rope, err));
    }
out:
    return rc;
}
