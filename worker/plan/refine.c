/*
 * The fastest plan of those that were looked at, made faster: what hardly changes the kind of plan
 * is tried on that one alone, and last the same with split masters.
 */
#include <math.h>
#include <string.h>

#include "worker/plan/search.h"

enum { EARLY_STEPS = 10 };

/* Less than that is no difference. */
static const double worth = 0.995;

/* Places that linger, for which fewer parameters stay over the turn. */
static bool linger(struct search *s, struct plan_choices c, int64_t most_turns)
{
    if (c.linger == 0)
        c.linger = 1;
    c.turn = 0;
    if (!search_fits(s, c, ALL_TIERS, false))
        return false;
    search_most(s, &c, &c.turn, 0, most_turns, ALL_TIERS);
    return search_consider(s, c);
}

/* Likewise, for which more saved tensors leave. */
static bool linger_saved(struct search *s, struct plan_choices c)
{
    c.offload_saved = c.keep;
    c.rounded = 0;
    return search_fits(s, c, ALL_TIERS, false) && search_consider_saved(s, c, c.keep);
}

/* While something leaves one more block runs, or one less, as long as that is faster. */
static void refine_linger(struct search *s)
{
    int64_t first = s->best->chosen.linger;
    for (int64_t step = 1; step >= -1 && s->best->chosen.linger == first; step -= 2) {
        double before = INFINITY;
        while (s->best_seconds < before && s->best->chosen.linger + step >= 0) {
            struct plan_choices c = s->best->chosen;
            before = s->best_seconds;
            c.linger += step;
            if (c.offload_saved > 0 ? !linger_saved(s, c) : !linger(s, c, c.turn))
                break;
        }
    }
}

/* Fewer chunks that are resident leave memory in which others stay over the turn, and a queue waits
 * less for the other: halving the step where none of the steps helps. */
static void refine_residency(struct search *s)
{
    for (int64_t step = s->best->chosen.resident / 2; step > 0; step /= 2) {
        struct plan_choices c = s->best->chosen;
        if (c.resident < step)
            continue;
        c.resident -= step;
        linger(s, c, search_count_visits(s, c.group));
    }
}

/* Between the numbers of kept layers that were tried, halving the step likewise: a layer more at
 * the cost of parameters that stay. */
static void refine_keep(struct search *s)
{
    for (int64_t step = s->layers / KEEP_STEPS; step > 0; step /= 2) {
        struct plan_choices c = s->best->chosen;
        if (c.keep + step > s->layers)
            continue;
        c.keep += step;
        c.cheap = 0;
        linger(s, c, search_count_visits(s, c.group));
    }
}

/* How many updates run as gradients arrive: too few, and the processor has nothing to do in
 * backward; too many, and it has nothing to do in the next forward, which waits for the last of
 * them; with clip also whether there is memory for their second states. */
static void refine_early(struct search *s)
{
    struct plan_choices c = s->best->chosen;
    size_t claim[TIER_COUNT];
    int64_t most = s->n_chunks;

    memcpy(claim, s->best->claim, sizeof claim);
    if (s->in->clip)
        most = search_most(s, &c, &c.early, 0, most, ALL_TIERS);
    for (int64_t k = 1; k <= EARLY_STEPS; k++) {
        c.early = most * k / EARLY_STEPS;
        search_consider_claiming(s, c, claim);
    }
    for (int64_t step = most / EARLY_STEPS / 2 + 1; step > 0; step /= 2) {
        int64_t middle = s->best->chosen.early;
        for (c.early = middle - step; c.early <= middle + step; c.early += 2 * step)
            if (c.early >= 0 && c.early <= most)
                search_consider_claiming(s, c, claim);
    }
}

/* What else lies on the gpu: did that change? */
static bool refine_memory(struct search *s)
{
    struct plan_choices c = s->best->chosen;
    if (c.resident == s->n_chunks)
        return false;
    if (s->in->force.resident == PLAN_AUTO)
        refine_residency(s);
    refine_keep(s);
    return s->best->chosen.resident != c.resident || s->best->chosen.keep != c.keep;
}

static void refine_updates(struct search *s)
{
    refine_early(s);
    if (s->best->chosen.grad_homes == 0)
        search_house_gradients(s, s->best->chosen);
}

/* What hardly changes the kind of plan is tried on the fastest one alone. */
void search_refine(struct search *s)
{
    struct plan_choices c = s->best->chosen;
    if (c.resident == s->n_chunks && !c.offload_boundaries && !c.offload_saved)
        return;
    refine_linger(s);
    if (s->in->clip) {
        search_house_gradients(s, s->best->chosen);
        refine_memory(s);
        s->most_waiting = search_waiting_seconds(s, s->best) / worth;
    }
    refine_updates(s);
    if (refine_memory(s) || s->in->clip)
        refine_early(s);
}

/* The fastest plan with split masters beside these choices. */
static void search_beside(struct search *t, struct plan_choices c)
{
    t->best = NULL;
    t->most_waiting = INFINITY;
    c.split_masters = 1;
    if (c.resident == t->n_chunks) {
        struct plan_choices first = {
            .group = 1, .prefetch = 1, .split_masters = 1, .slice = c.slice};
        search_resident(t, first);
    } else if (search_consider(t, c)) {
        search_house_gradients(t, c);
    }
}

/* Is a's plan to be preferred to b's? With clipping first by steps that wait for the norm. */
static bool faster(const struct search *a, const struct search *b)
{
    bool shorter = a->best_seconds < worth * b->best_seconds;
    if (!a->in->clip)
        return shorter;
    double mine = search_waiting_seconds(a, a->best), other = search_waiting_seconds(b, b->best);
    return mine < worth * other || (shorter && mine <= other / worth);
}

/* Is a tier full in which states lie? Then smaller ones leave memory for other things. Where even
 * parameters are on the disk that is not asked: such plans take long to make. */
static bool states_fill(const struct plan *p)
{
    bool there[TIER_COUNT] = {false}, full = false;
    if (p->chosen.nvme_params > 0)
        return false;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        for (int64_t k = 0; k < p->chunk[c].n_slices; k++)
            there[p->places[p->chunk[c].slices[k].home].tier] = true;
    for (int t = 0; t < TIER_COUNT; t++)
        full = full || (there[t] && p->in.limit[t] > 0 &&
                        p->claim[t] > p->in.limit[t] - p->in.limit[t] / 16);
    return full;
}

void search_try_split_masters(struct search *s)
{
    struct plan_choices c = {.group = 1, .prefetch = 1, .split_masters = 1};
    struct search t = *s;
    bool full = states_fill(s->best);
    if (full)
        search_from(&t, s->in, c);
    else
        search_beside(&t, s->best->chosen);
    if (t.best && (full || faster(&t, s)))
        search_refine(&t);
    if (t.best && faster(&t, s)) {
        struct plan *slower = s->best;
        s->best = t.best;
        s->best_seconds = t.best_seconds;
        t.best = slower;
    }
    plan_destroy(t.best);
}
