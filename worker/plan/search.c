/*
 * Which choices. All combinations of group, kept layers and waiting boundaries are few; for each,
 * as much as fits of what always helps is found by bisection: first chunks that are resident, then
 * parameters that stay over the turn; and as little as is needed of what always costs: states and
 * parameters on the disk. Of all these plans the one with the shortest simulated step is taken.
 *
 * With clipping a step has two times. A job begins with steps whose updates wait for the norm, and
 * as long as it clips it has no others, so the plan is first the one whose such steps are shortest,
 * without speculation. Then host memory that is left goes into speculative updates, for the
 * shortest steps in which they hold, as long as those that wait take no longer for it.
 *
 * The best plan is then sought once more with split masters, by the same rules: from the beginning
 * where memory is full of states or nothing fits otherwise, else beside the choices that were best.
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/memory/nvme.h"
#include "worker/plan/search.h"

enum { SAVED_PARTS = 4 };

/* --- one plan --- */

static void remember_nearest(struct search *s, const struct plan *p)
{
    double sum = 0;
    for (int t = 0; t < TIER_COUNT; t++)
        sum += (double)plan_over(p, t) / (double)(p->in.limit[t] + 1);
    if (sum == 0 || sum >= s->least_over)
        return;
    s->least_over = sum;
    s->nearest = p->chosen;
}

/* The caller's choices win. */
static struct plan_choices forced(const struct search *s, struct plan_choices c)
{
    const struct plan_choices *f = &s->in->force;
#define FORCE(member)                                                                              \
    if (f->member != PLAN_AUTO)                                                                    \
    c.member = f->member
    FORCE(group);
    FORCE(resident);
    FORCE(nvme);
    FORCE(nvme_params);
    FORCE(keep);
    FORCE(cheap);
    FORCE(offload_boundaries);
    FORCE(offload_saved);
    FORCE(turn);
    FORCE(prefetch);
    FORCE(early);
    FORCE(grad_homes);
    FORCE(slice);
    FORCE(rounded);
    FORCE(linger);
    FORCE(split_masters);
#undef FORCE
    return c;
}

/* Could another number of chunks on the disk do? What passes through host memory on its way there
 * may take more of it than a small payload that stays. */
static bool nearly_fits(const struct plan *p)
{
    size_t state = chunk_state_bytes(p->types, p->chosen.slice), pieces = 3 * plan_piece_at(p, 1);
    size_t passing = 2 * PLAN_STAGES * (state + pieces + 4 * NVME_ALIGN);
    return plan_over(p, TIER_HOST) <= passing;
}

bool search_fits(struct search *s, struct plan_choices c, unsigned tiers, bool draft)
{
    c = forced(s, c);
    struct plan *p = plan_draft(s->in, &c);
    bool fits = true;
    if (!draft)
        plan_draft_moves(p);
    s->nearly = nearly_fits(p);
    for (int t = 0; t < TIER_COUNT; t++) {
        if (!(tiers >> t & 1))
            continue;
        fits = fits && plan_over(p, t) == 0;
        for (int list = 0; list < LIST_COUNT && fits && !draft; list++)
            plan_lay_out(p, list, t);
        fits = fits && plan_over(p, t) == 0;
    }
    remember_nearest(s, p);
    plan_destroy(p);
    return fits;
}

/* The value next to `bad`, towards `good` and up to it, with which the plan fits, found by halving
 * the distance; `good` does fit, `bad` does not. */
static int64_t halve(struct search *s, struct plan_choices *c, int64_t *member, int64_t good,
                     int64_t bad, unsigned tiers, bool draft)
{
    while (good - bad > 1 || bad - good > 1) {
        *member = good + (bad - good) / 2;
        if (search_fits(s, *c, tiers, draft))
            good = *member;
        else
            bad = *member;
    }
    return *member = good;
}

/* The value of a member nearest to `best` with which the draft fits; `good` does. */
static int64_t best_draft(struct search *s, struct plan_choices *c, int64_t *member, int64_t good,
                          int64_t best, unsigned tiers)
{
    *member = best;
    if (best != good && !search_fits(s, *c, tiers, true))
        halve(s, c, member, good, best, tiers, true);
    return *member;
}

/* Drafts, which are quickly made, say where to look: a plan needs little more than its draft. */
int64_t search_most(struct search *s, struct plan_choices *c, int64_t *member, int64_t good,
                    int64_t best, unsigned tiers)
{
    int64_t step = best < good ? 1 : -1;
    best_draft(s, c, member, good, best, tiers);
    for (int k = 0; k < 3; k++) {
        if (*member == good || search_fits(s, *c, tiers, false))
            return *member;
        *member += step;
    }
    if (*member == good || search_fits(s, *c, tiers, false))
        return *member;
    return halve(s, c, member, good, *member, tiers, false);
}

double search_waiting_seconds(const struct search *s, const struct plan *p)
{
    return plan_time(p, LIST_TRAIN, s->profile, SPECULATION_OFF);
}

static bool waits_too_long(const struct search *s, const struct plan *p)
{
    return isfinite(s->most_waiting) && search_waiting_seconds(s, p) > s->most_waiting;
}

bool search_consider_claiming(struct search *s, struct plan_choices c,
                              const size_t least[TIER_COUNT])
{
    c = forced(s, c);
    struct plan *p = plan_make(s->in, &c);
    for (int t = 0; t < TIER_COUNT; t++) {
        if (plan_over(p, t) > 0) {
            plan_destroy(p);
            return false;
        }
        if (p->claim[t] < least[t])
            p->claim[t] = least[t];
    }
    plan_insert_waits(p, LIST_TRAIN);
    double seconds = plan_time(p, LIST_TRAIN, s->profile, SPECULATION_HOLDS);
    if ((s->best && seconds >= s->best_seconds) || waits_too_long(s, p)) {
        plan_destroy(p);
        return true;
    }
    plan_destroy(s->best);
    s->best = p;
    s->best_seconds = seconds;
    return true;
}

bool search_consider(struct search *s, struct plan_choices c)
{
    static const size_t nothing[TIER_COUNT];
    return search_consider_claiming(s, c, nothing);
}

/* --- kinds of plans --- */

/* Blocks that run while the saved tensors of one leave, where nothing else does: where to begin. */
static int64_t blocks_meanwhile(const struct search *s, struct plan_choices c)
{
    c = forced(s, c);
    struct plan *p = plan_draft(s->in, &c);
    const struct instr_list *l = &p->lists[LIST_TRAIN];
    double block = 0, n = 0;
    for (int64_t k = 0; k < l->n && n == 0; k++) {
        const struct instr *i = &l->items[k];
        if (i->op == INSTR_FORWARD)
            block = plan_instr_seconds(p, LIST_TRAIN, i, s->profile);
        if (i->op == INSTR_SAVE_ACT && i->block >= 0 && block > 0) /* an embedding takes no time */
            n = ceil(plan_instr_seconds(p, LIST_TRAIN, i, s->profile) / block);
    }
    plan_destroy(p);
    return (int64_t)fmin(n, (double)s->layers);
}

bool search_consider_saved(struct search *s, struct plan_choices c, int64_t most)
{
    search_most(s, &c, &c.offload_saved, most, 0, ALL_TIERS);
    search_most(s, &c, &c.rounded, 0, s->in->fp8 ? s->layers : 0, ALL_TIERS);
    return search_consider(s, c);
}

/* As many layers as fit keep their saved tensors, of which up to `most` let them wait in host
 * memory: all of them keep them where that is enough, and no more wait than need be. */
static void search_kept(struct search *s, struct plan_choices c, int64_t most)
{
    c.keep = s->layers;
    c.offload_saved = most;
    int64_t meanwhile = c.linger = most > 0 ? blocks_meanwhile(s, c) : 0;
    bool fits = search_fits(s, c, ALL_TIERS, false);
    while (!fits && c.linger > 0) { /* rather wait for copies than make layers again */
        c.linger /= 2;
        fits = search_fits(s, c, ALL_TIERS, false);
    }
    if (fits) {
        search_consider_saved(s, c, most);
        return;
    }
    c.linger = meanwhile;
    c.keep = 0;
    if (!search_fits(s, c, ALL_TIERS, false))
        return;
    search_most(s, &c, &c.keep, 0, s->layers, ALL_TIERS);
    search_consider(s, c);
}

/* Everything resident: as many layers as fit keep their saved tensors. Micro-batch after
 * micro-batch needs the fewest boundary activations; all of them at once, the fewest gradients
 * beside activations. */
void search_resident(struct search *s, struct plan_choices c)
{
    c.group = 1;
    c.resident = s->n_chunks;
    c.keep = s->layers;
    for (c.cheap = 1; c.cheap >= 0; c.cheap--) {
        if (!search_fits(s, c, ALL_TIERS, false))
            continue;
        search_most(s, &c, &c.rounded, 0, s->in->fp8 ? s->layers : 0, ALL_TIERS);
        search_consider(s, c);
        return;
    }
    for (int k = 0; k < 4; k++) {
        c.group = k < 2 ? 1 : s->in->micro_batches;
        c.offload_boundaries = k % 2;
        for (c.cheap = 0; c.cheap <= 1; c.cheap++)
            for (int64_t part = 0; part <= SAVED_PARTS; part++)
                if (part > 0 || c.cheap == 0)
                    search_kept(s, c, s->layers * part / SAVED_PARTS);
    }
}

/* Is even the least that such a plan takes, with no parameter fetched twice in vain, too long? */
static bool hopeless(const struct search *s, struct plan_choices c, int64_t visits)
{
    c.turn = visits;
    c = forced(s, c);
    struct plan *p = plan_draft(s->in, &c);
    bool too_long = s->best && plan_time_bound(p, LIST_TRAIN, s->profile, SPECULATION_HOLDS,
                                               false) >= s->best_seconds;
    plan_destroy(p);
    return too_long;
}

/* Any number of chunks less than all of them. */
static bool some_fit(struct search *s, struct plan_choices *c, int64_t *member, int64_t most)
{
    for (*member = most - 1; *member > 0; --*member)
        if (search_fits(s, *c, NOT_GPU, false))
            return true;
    return false;
}

/* As little on the disk as the other tiers leave. States go first: they are read and written once a
 * step, while parameters are read twice as a rule, and their gradients pass by, too. Smaller groups
 * read them more often still, so that is for the largest group that fits. */
static bool search_disk(struct search *s, struct plan_choices *c)
{
    int64_t most = s->n_chunks - c->resident;
    struct plan_choices all[] = {*c, *c, *c};
    int kinds = s->best && c->group < s->best->chosen.group ? 1 : 3;
    bool nearly[3] = {false};

    if (search_fits(s, *c, NOT_GPU, false))
        return true;
    if (s->in->limit[TIER_NVME] == 0)
        return false;
    all[0].nvme = all[1].nvme = all[1].nvme_params = all[2].nvme_params = most;
    for (int k = 0; k < kinds; k++) {
        *c = all[k];
        bool fits = search_fits(s, *c, HOST_ONLY, false);
        nearly[k] = s->nearly;
        if (!fits)
            continue;
        if (c->nvme_params > 0)
            search_most(s, c, &c->nvme_params, most, 0, HOST_ONLY);
        if (c->nvme > 0)
            search_most(s, c, &c->nvme, most, 0, HOST_ONLY);
        if (search_fits(s, *c, NOT_GPU, false)) /* the least is not too much for the disk */
            return true;
    }
    for (int k = 0; k < kinds; k++) {
        if (!nearly[k])
            continue;
        *c = all[k];
        if (c->nvme > 0 && some_fit(s, c, &c->nvme, most))
            return true;
        *c = all[k];
        if (c->nvme_params > 0 && some_fit(s, c, &c->nvme_params, most))
            return true;
    }
    return false;
}

/* Are there gradients that wait for updates in places which others use, too? */
static bool shares_gradients(const struct search *s, struct plan_choices c)
{
    struct plan *p = plan_draft(s->in, &c);
    bool shares = false;
    for (int64_t k = p->chosen.resident; k < p->chunks.n_chunks; k++)
        shares = shares || (p->chunks.chunks[k].trainable && !plan_grad_waits_in_param(p, k));
    plan_destroy(p);
    return shares;
}

void search_house_gradients(struct search *s, struct plan_choices c)
{
    size_t claim[TIER_COUNT];
    c = forced(s, c);
    if (!shares_gradients(s, c))
        return;
    struct plan *p = plan_make(s->in, &c);
    memcpy(claim, p->claim, sizeof claim);
    plan_destroy(p);
    search_most(s, &c, &c.grad_homes, 0, s->n_chunks, NOT_GPU);
    search_consider_claiming(s, c, claim);
}

int64_t search_count_visits(const struct search *s, int64_t group)
{
    return 2 * s->in->model->n_blocks * ((s->in->micro_batches + group - 1) / group);
}

/* With group, kept layers and boundaries given. False: not even with nothing else on the gpu. */
static bool search_offloaded(struct search *s, struct plan_choices c)
{
    int64_t last = s->n_chunks - 1;
    int64_t visits = search_count_visits(s, c.group);
    if (!search_fits(s, c, GPU_ONLY, true))
        return false;
    if (s->in->policy == PLACE_AUTO)
        last = best_draft(s, &c, &c.resident, 0, last, GPU_ONLY);
    if (hopeless(s, c, visits))
        return true;
    c.resident = 0;
    if (!search_fits(s, c, GPU_ONLY, false))
        return false;
    if (s->in->policy == PLACE_AUTO)
        search_most(s, &c, &c.resident, 0, last, GPU_ONLY);
    if (!search_disk(s, &c) || hopeless(s, c, visits))
        return true;
    search_most(s, &c, &c.turn, 0, visits, ALL_TIERS);
    search_most(s, &c, &c.cheap, 0, 1, ALL_TIERS);
    if (search_consider(s, c))
        search_house_gradients(s, c);
    return true;
}

/* Without clipping an update runs as soon as its gradient is there, which then leaves host memory,
 * or when the next forward needs it, when no boundary activations wait there. */
static bool search_updates(struct search *s, struct plan_choices c)
{
    bool fits = search_offloaded(s, c);
    if (s->in->clip)
        return fits;
    c.early = s->n_chunks;
    return search_offloaded(s, c) || fits;
}

static void search_all_offloaded(struct search *s, struct plan_choices c)
{
    int64_t micro = s->in->micro_batches;
    for (c.group = micro;; c.group = c.group / 2) {
        for (c.offload_boundaries = 0; c.offload_boundaries <= 1; c.offload_boundaries++) {
            int64_t before = -1;
            for (int64_t k = 0; k <= KEEP_STEPS; k++) {
                c.keep = s->layers * k / KEEP_STEPS;
                if (c.keep != before && !search_updates(s, c))
                    break;
                before = c.keep;
            }
        }
        if (c.group == 1)
            break;
    }
}

/* --- the whole --- */

void search_from(struct search *s, const struct plan_input *in, struct plan_choices c)
{
    bool offloads = in->policy == PLACE_CPU || (in->policy == PLACE_AUTO && !in->one_memory);

    *s = (struct search){.in = in,
                         .profile = in->profile ? in->profile : &device_profile_nominal,
                         .layers = in->model->config.layers,
                         .least_over = INFINITY,
                         .most_waiting = INFINITY};
    plan_measure_chunks(in, &s->n_chunks, &c.slice);

    if (in->policy != PLACE_CPU)
        search_resident(s, c);
    bool all_kept =
        s->best && s->best->chosen.keep == s->layers && s->best->chosen.offload_saved == 0;
    if (offloads && !all_kept) {
        search_all_offloaded(s, c);
        c.prefetch = 0;
        if (!s->best)
            search_all_offloaded(s, c);
    }
}

/* Whether masters may be split is the input's, and whether they shall be may be forced. */
static bool may_choose_split_masters(const struct plan_input *in)
{
    return plan_may_split_masters(in) && in->force.split_masters == PLAN_AUTO;
}

/* Of a tier's claim split masters save less than a third: a parameter, its master and 8-bit moments
 * are 6 bytes instead of 8. */
static bool far_from_fitting(const struct search *s)
{
    return s->least_over > 2;
}

static void search(struct search *s, const struct plan_input *in)
{
    struct plan_choices c = {.group = 1, .prefetch = 1};
    search_from(s, in, c);
    if (s->best || !may_choose_split_masters(in) || far_from_fitting(s))
        return;
    c.split_masters = 1;
    struct search split;
    search_from(&split, in, c);
    if (split.best || split.least_over < s->least_over)
        *s = split;
}

int plan_choose(const struct plan_input *in, struct plan **out, struct err *err)
{
    struct search s;
    search(&s, in);
    if (!s.best)
        return plan_refuse(in, &s.nearest, err);
    search_refine(&s);
    if (may_choose_split_masters(in) && !s.best->chosen.split_masters)
        search_try_split_masters(&s);
    *out = s.best;
    return 0;
}

void plan_nearest_claims(const struct plan_input *in, size_t out[TIER_COUNT])
{
    struct search s;
    search(&s, in);
    assert(!s.best);
    plan_claims(in, &s.nearest, out);
}
