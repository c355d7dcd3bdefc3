#include "tests/placement/judge.h"

#include <stdio.h>
#include <string.h>

#include "worker/plan/plan.h"

bool judge_check(const struct subject *s, const struct trial_placement *place, bool ok,
                 const char *what)
{
    if (ok) {
        s->tally->passed++;
        return true;
    }
    s->tally->failed++;
    fprintf(stderr, "FAILED %s, policy %s, %s, limits gpu %zu host %zu nvme %zu: %s\n", s->name,
            s->policy, s->variant, place->limit[TIER_GPU], place->limit[TIER_HOST],
            place->limit[TIER_NVME], what);
    return false;
}

/* --- comparing --- */

static bool same_step(const struct step_result *a, const struct step_result *b)
{
    return memcmp(&a->loss_sum, &b->loss_sum, sizeof a->loss_sum) == 0 &&
           memcmp(&a->grad_norm, &b->grad_norm, sizeof a->grad_norm) == 0 &&
           a->correct == b->correct && a->clipped == b->clipped && a->finite == b->finite;
}

static void compare(const struct subject *s, const struct trial_placement *place, int64_t first,
                    const struct trial_result *got)
{
    const struct trial_result *want = s->want;
    bool steps = true;
    for (int64_t k = first; k < s->job->steps; k++)
        steps = steps && same_step(&want->step[k], &got->step[k]);
    judge_check(s, place, steps, "losses or gradient norms differ from the resident run");
    judge_check(s, place, memcmp(&want->eval_loss, &got->eval_loss, sizeof got->eval_loss) == 0,
                "the evaluation's loss differs from the resident run");
    judge_check(s, place,
                want->weights_bytes == got->weights_bytes &&
                    memcmp(want->weights, got->weights, got->weights_bytes) == 0,
                "final weights or moments differ from the resident run");
    for (int t = TIER_GPU; t <= TIER_NVME; t++)
        judge_check(s, place, got->peak[t] == got->claim[t],
                    "memory counted is not what was planned");
    for (int l = LINK_H2D; l <= LINK_DISK_WRITE; l++)
        judge_check(s, place,
                    got->link_bytes[l] == got->planned_link_bytes[l] * (s->job->steps - first),
                    "link bytes counted are not what was planned");
}

void judge_run(const struct subject *s, const struct trial_placement *place)
{
    struct trial_result got = {0};
    struct err err = {0};
    if (judge_check(s, place, trial_run(s->model, s->job, place, 0, NULL, &got, &err) == 0,
                    err.msg))
        compare(s, place, 0, &got);
    s->tally->paged += got.chosen.nvme_params > 0;
    s->tally->below += got.claim[TIER_HOST] < got.param_bytes && got.chosen.resident == 0;
    trial_result_fini(&got);
}

void judge_resume(const struct subject *s, const struct trial_placement *before,
                  const struct trial_placement *behind)
{
    struct trial_job half = *s->job;
    struct trial_result begun = {0}, got = {0};
    struct err err = {0};

    half.steps = 3; /* one of them speculates: states with two places lie in the second ones */
    if (judge_check(s, behind,
                    trial_run(s->model, &half, before, 0, NULL, &begun, &err) == 0 &&
                        trial_run(s->model, s->job, behind, 3, &begun, &got, &err) == 0,
                    err.msg))
        compare(s, behind, 3, &got);
    trial_result_fini(&begun);
    trial_result_fini(&got);
}

/* --- limits --- */

/* A tier that has a limit. */
static bool names_tier(const char *message, const struct trial_placement *place)
{
    for (int t = TIER_GPU; t <= TIER_NVME; t++)
        if (place->limit[t] > 0 && strstr(message, plan_tier_name(t)))
            return true;
    return false;
}

/* Of a refusal the text is looked at where `told`: making it takes as long as planning. */
static size_t claim_of(const struct subject *s, const struct trial_placement *place,
                       enum plan_tier tier, bool told)
{
    struct plan *p = NULL;
    struct err err = {0};
    size_t claim = 0;
    int rc = trial_plan(s->model, s->job, place, s->planner, &p, told ? &err : NULL);

    if (rc == 0) {
        claim = p->claim[tier];
        for (int t = TIER_GPU; t <= TIER_NVME; t++)
            judge_check(s, place,
                        p->claim[t] <= place->limit[t] || (place->limit[t] == 0 && t != TIER_NVME),
                        "a plan claims more than its limit");
    } else if (told) {
        judge_check(s, place,
                    strcmp(err.reason, "insufficient_memory") == 0 && names_tier(err.msg, place),
                    err.msg);
    } else {
        judge_check(s, place, rc == ERR_DEVICE_OOM, "refused, but not for want of memory");
    }
    plan_destroy(p);
    return claim;
}

size_t judge_claim(const struct subject *s, const struct trial_placement *place,
                   enum plan_tier tier)
{
    return claim_of(s, place, tier, true);
}

size_t judge_smallest(const struct subject *s, struct trial_placement place, enum plan_tier tier,
                      size_t high)
{
    size_t low = 0; /* refused */
    while (high - low > DEVICE_ALIGN) {
        size_t middle = low + (high - low) / 2 / DEVICE_ALIGN * DEVICE_ALIGN;
        if (middle == low)
            middle += DEVICE_ALIGN;
        place.limit[tier] = middle;
        size_t claim = claim_of(s, &place, tier, false);
        if (claim > 0 && !judge_check(s, &place, claim > low, "refused with less, and yet it fits"))
            return claim;
        if (claim > 0)
            high = claim;
        else
            low = middle;
    }
    place.limit[tier] = low;
    if (low > 0)
        judge_check(s, &place, claim_of(s, &place, tier, true) == 0,
                    "refused, and accepted when asked again");
    return high;
}
