#include "worker/plan/alternatives.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/plan/build.h"

/* Less than that is not worth a word. */
static const double worth = 0.98;

struct alternative {
    const char *object, *member; /* of the job's settings */
    json_t *value;
    struct plan_input in;
};

static double step_seconds(const struct plan *p)
{
    struct plan_simulation sim;
    if (!p || plan_simulate(p, LIST_TRAIN, &sim, NULL) != 0)
        return NAN;
    return sim.seconds;
}

static char *change_text(const struct alternative *a)
{
    char *value = json_dumps(a->value, JSON_ENCODE_ANY);
    char *text = xasprintf("%s.%s %s", a->object, a->member, value);
    free(value);
    return text;
}

/* The alternative as JSON where it can be planned, and in less than `below` seconds; else NULL. */
static json_t *try_alternative(const struct alternative *a, double below)
{
    struct plan *p = NULL;
    json_t *j = NULL, *memory = json_object();
    double seconds;

    if (plan_build(&a->in, &p, NULL) != 0)
        goto out;
    seconds = step_seconds(p);
    if (!isnan(below) && !(seconds < below * worth))
        goto out;
    for (int t = 0; t < TIER_COUNT; t++)
        json_object_set_new(memory, plan_tier_name(t), json_integer((json_int_t)p->claim[t]));
    char *text = change_text(a);
    j = json_pack("{s:s, s:{s:{s:O}}, s:O}", "change", text, "settings", a->object, a->member,
                  a->value, "memory", memory);
    free(text);
    if (!isnan(seconds))
        json_object_set_new(j, "step_seconds", json_real(seconds));
out:
    json_decref(memory);
    plan_destroy(p);
    return j;
}

/* Takes over the alternative's value. */
static bool add(json_t *list, const struct alternative *a, double below)
{
    json_t *j = try_alternative(a, below);
    if (j)
        json_array_append_new(list, j);
    json_decref(a->value);
    return j != NULL;
}

static struct alternative policy_auto(const struct plan_input *in)
{
    struct alternative a = {"placement", "policy", json_string("auto"), *in};
    a.in.policy = PLACE_AUTO;
    return a;
}

static struct alternative micro_batch(const struct plan_input *in, int64_t rows)
{
    struct alternative a = {"optimization", "micro_batch_size", json_integer((json_int_t)rows),
                            *in};
    a.in.micro_batches = (in->micro_batch * in->micro_batches + rows - 1) / rows;
    a.in.micro_batch = rows;
    if (a.in.head_rows > rows * in->seq_length)
        a.in.head_rows = rows * in->seq_length;
    return a;
}

static struct alternative length(const struct plan_input *in, int64_t tokens)
{
    struct alternative a = {"dataset", "max_seq_length", json_integer((json_int_t)tokens), *in};
    a.in.seq_length = tokens;
    if (a.in.head_rows > in->micro_batch * tokens)
        a.in.head_rows = in->micro_batch * tokens;
    return a;
}

static struct alternative smaller_moments(const struct plan_input *in, enum moment_kind moments)
{
    const char *word = moments == MOMENTS_BF16 ? "bf16" : "fp8";
    struct alternative a = {"precision", "optimizer_state", json_string(word), *in};
    a.in.moments = moments;
    return a;
}

/* The same model with the frozen layers' matrices in nf4. Shares all but its tensors' descriptions,
 * which are to be freed. */
static struct model quantised(const struct model *m)
{
    struct model q = *m;
    q.tensors = xcalloc((size_t)m->n_tensors, sizeof *q.tensors);
    memcpy(q.tensors, m->tensors, (size_t)m->n_tensors * sizeof *q.tensors);
    model_quantize(&q, QUANT_NF4);
    return q;
}

static bool has_plain_frozen_layers(const struct model *m)
{
    for (int64_t t = 0; t < m->n_tensors; t++)
        if (m->tensors[t].quant != QUANT_NONE)
            return false;
    return m->adapters.rank > 0;
}

static void add_quantised(json_t *list, const struct plan_input *in, double below)
{
    struct model q = quantised(in->model);
    struct alternative a = {"lora", "quantize_base", json_string("nf4"), *in};
    a.in.model = &q;
    add(list, &a, below);
    free(q.tensors);
}

/* As large a limit on a tier as a plan needs that has none there. */
static struct alternative limit(const struct plan_input *in, enum plan_tier tier,
                                const char *member)
{
    struct alternative a = {"placement", member, NULL, *in};
    struct plan *p = NULL;

    a.in.limit[tier] = tier == TIER_NVME ? SIZE_MAX / 2 : 0;
    if (plan_build(&a.in, &p, NULL) == 0) /* else it fails again where it is tried */
        a.in.limit[tier] = p->claim[tier];
    plan_destroy(p);
    a.value = json_integer((json_int_t)a.in.limit[tier]);
    return a;
}

/* All of them change only what they name, so that the nearest stands alone. */
static void add_fitting(json_t *list, const struct plan_input *in)
{
    struct alternative a;

    if (in->policy == PLACE_CUDA) {
        a = policy_auto(in);
        add(list, &a, NAN);
    }
    for (int64_t rows = in->micro_batch / 2; rows >= 1; rows /= 2) {
        a = micro_batch(in, rows);
        if (add(list, &a, NAN))
            break;
    }
    /* a limit that is the machine's own is not the job's to raise */
    if (in->limit[TIER_HOST] > 0 && !in->part[TIER_HOST] && in->policy != PLACE_CUDA) {
        a = limit(in, TIER_HOST, "host_memory_limit");
        add(list, &a, NAN);
    }
    if (in->policy != PLACE_CUDA) {
        a = limit(in, TIER_NVME, "nvme_limit");
        add(list, &a, NAN);
    }
    if (has_plain_frozen_layers(in->model))
        add_quantised(list, in, NAN);
    for (int kind = in->moments + 1; kind <= MOMENTS_FP8; kind++) {
        a = smaller_moments(in, kind);
        if (add(list, &a, NAN))
            break;
    }
    for (int64_t tokens = in->seq_length / 2; tokens >= 128; tokens /= 2) {
        a = length(in, tokens);
        if (add(list, &a, NAN))
            break;
    }
}

static void add_faster(json_t *list, const struct plan_input *in, double seconds)
{
    struct alternative a;

    if (in->policy != PLACE_AUTO) {
        a = policy_auto(in);
        add(list, &a, seconds);
    }
    if (in->micro_batches % 2 == 0) {
        a = micro_batch(in, in->micro_batch * 2);
        add(list, &a, seconds);
    }
    if (has_plain_frozen_layers(in->model))
        add_quantised(list, in, seconds);
    for (int kind = in->moments + 1; kind <= MOMENTS_FP8; kind++) {
        a = smaller_moments(in, kind);
        add(list, &a, seconds);
    }
}

static double seconds_of(const json_t *alternative)
{
    return json_number_value(json_object_get(alternative, "step_seconds"));
}

/* Few: the fastest first, by insertion. */
static void sort_by_time(json_t *list)
{
    for (size_t k = 1; k < json_array_size(list); k++) {
        size_t at = k;
        json_t *j = json_incref(json_array_get(list, k));
        while (at > 0 && seconds_of(json_array_get(list, at - 1)) > seconds_of(j))
            at--;
        json_array_remove(list, k);
        json_array_insert_new(list, at, j);
    }
}

json_t *plan_alternatives(const struct plan_input *in, const struct plan *plan)
{
    json_t *list = json_array();
    if (!plan) {
        add_fitting(list, in);
    } else if (in->profile) {
        add_faster(list, in, step_seconds(plan));
        sort_by_time(list);
    }
    return list;
}
