#include "worker/plan/alternatives.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "worker/plan/build.h"

/* Less than that is not worth a word. */
static const double worth = 0.98;

enum { MAX_SETTINGS = 2 };

struct alternative {
    struct setting {
        const char *object, *member; /* of the job's settings */
        json_t *value;
    } settings[MAX_SETTINGS];
    int n;
    struct plan_input in;
};

/* Takes over the value. */
static void set(struct alternative *a, const char *object, const char *member, json_t *value)
{
    assert(a->n < MAX_SETTINGS);
    a->settings[a->n++] = (struct setting){object, member, value};
}

static double step_seconds(const struct plan *p)
{
    struct plan_simulation sim;
    if (!p || plan_simulate(p, LIST_TRAIN, &sim, NULL) != 0)
        return NAN;
    return sim.seconds;
}

static json_t *change_text(const struct alternative *a)
{
    struct buf text = {0};
    for (int k = 0; k < a->n; k++) {
        const struct setting *s = &a->settings[k];
        char *value = json_dumps(s->value, JSON_ENCODE_ANY);
        buf_printf(&text, "%s%s.%s %s", k > 0 ? ", " : "", s->object, s->member, value);
        free(value);
    }
    json_t *j = json_string(buf_str(&text));
    buf_fini(&text);
    return j;
}

static json_t *settings_object(const struct alternative *a)
{
    json_t *j = json_object();
    for (int k = 0; k < a->n; k++) {
        const struct setting *s = &a->settings[k];
        if (!json_object_get(j, s->object))
            json_object_set_new(j, s->object, json_object());
        json_object_set(json_object_get(j, s->object), s->member, s->value);
    }
    return j;
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
    j = json_pack("{s:o, s:o, s:O}", "change", change_text(a), "settings", settings_object(a),
                  "memory", memory);
    if (!isnan(seconds))
        json_object_set_new(j, "step_seconds", json_real(seconds));
out:
    json_decref(memory);
    plan_destroy(p);
    return j;
}

/* Takes over the alternative's values. */
static bool add(json_t *list, const struct alternative *a, double below)
{
    json_t *j = try_alternative(a, below);
    if (j)
        json_array_append_new(list, j);
    for (int k = 0; k < a->n; k++)
        json_decref(a->settings[k].value);
    return j != NULL;
}

static struct alternative with_policy_auto(struct alternative a)
{
    set(&a, "placement", "policy", json_string("auto"));
    a.in.policy = PLACE_AUTO;
    return a;
}

static struct alternative micro_batch(const struct plan_input *in, int64_t rows)
{
    struct alternative a = {.in = *in};
    plan_cut_step(&a.in, rows);
    set(&a, "optimization", "micro_batch_size", json_integer((json_int_t)a.in.micro_batch));
    return a;
}

static struct alternative length(const struct plan_input *in, int64_t tokens)
{
    struct alternative a = {.in = *in};
    set(&a, "dataset", "max_seq_length", json_integer((json_int_t)tokens));
    a.in.seq_length = tokens;
    return a;
}

static struct alternative smaller_moments(const struct plan_input *in, enum moment_kind moments)
{
    const char *word = moments == MOMENTS_BF16 ? "bf16" : "fp8";
    struct alternative a = {.in = *in};
    set(&a, "precision", "optimizer_state", json_string(word));
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
    struct alternative a = {.in = *in};
    set(&a, "lora", "quantize_base", json_string("nf4"));
    a.in.model = &q;
    add(list, &a, below);
    free(q.tensors);
}

static bool add_limit(json_t *list, const struct plan_input *in, enum plan_tier tier, size_t bytes)
{
    static const char *const members[TIER_COUNT] = {"gpu_memory_limit", "host_memory_limit",
                                                    "nvme_limit"};
    struct alternative a = {.in = *in};
    set(&a, "placement", members[tier], json_integer((json_int_t)bytes));
    a.in.limit[tier] = bytes;
    return add(list, &a, NAN);
}

/* A larger limit on one tier: what the plan that came nearest to fitting needs there, or else as
 * much as is used where the limit is the largest. */
static void add_limits(json_t *list, const struct plan_input *in, const size_t most[TIER_COUNT])
{
    size_t least[TIER_COUNT];
    plan_nearest_claims(in, least);
    for (int t = 0; t < TIER_COUNT; t++) {
        struct plan_input larger = *in;
        struct plan *p = NULL;
        if (most[t] <= in->limit[t] ||
            (least[t] > in->limit[t] && least[t] <= most[t] && add_limit(list, in, t, least[t])))
            continue;
        larger.limit[t] = most[t];
        if (plan_build(&larger, &p, NULL) == 0)
            add_limit(list, in, t, p->claim[t]);
        plan_destroy(p);
    }
}

/* The largest of fewer rows with which the job fits; `moved`: with policy auto. */
static bool add_fewer_rows(json_t *list, const struct plan_input *in, bool moved)
{
    for (int64_t rows = in->micro_batch / 2; rows >= 1; rows /= 2) {
        struct alternative a = micro_batch(in, rows);
        if (moved)
            a = with_policy_auto(a);
        if (add(list, &a, NAN))
            return true;
    }
    return false;
}

/* All of them change only what they name, so that the nearest stands alone. */
static void add_fitting(json_t *list, const struct plan_input *in, const size_t most[TIER_COUNT])
{
    struct alternative a;
    bool fits = false;

    if (in->policy == PLACE_CUDA) {
        a = with_policy_auto((struct alternative){.in = *in});
        fits = add(list, &a, NAN);
    }
    fits = add_fewer_rows(list, in, false) || fits;
    if (in->policy == PLACE_CUDA && !fits)
        add_fewer_rows(list, in, true);
    add_limits(list, in, most);
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
        a = with_policy_auto((struct alternative){.in = *in});
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

json_t *plan_alternatives(const struct plan_input *in, const size_t most[TIER_COUNT],
                          const struct plan *plan)
{
    json_t *list = json_array();
    if (!plan) {
        add_fitting(list, in, most);
    } else if (in->profile) {
        add_faster(list, in, step_seconds(plan));
        sort_by_time(list);
    }
    return list;
}
