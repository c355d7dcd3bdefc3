/*
 * Placement never changes the numbers: every model under every policy, at budgets from plenty down
 * to the smallest that the planner accepts, against the run with everything resident. Losses, norms
 * and final weights and moments are compared with memcmp; planned peaks and link bytes with what
 * the device counted.
 *
 *   check_placement [--budgets N] [--nvme DIR] [--device cpu|cuda] [--compute f32|bf16]
 * MODEL_DIR...
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/placement/trial.h"
#include "worker/plan/plan.h"

struct tally {
    int64_t passed, failed;
    int64_t budgets;
    const char *nvme;
    enum device_kind device;
    enum dtype compute;
    struct device *planner; /* plans are made for it, nothing runs on it */
};

/* What is being checked now, for messages. */
struct subject {
    const char *model, *policy, *variant;
    size_t limit;
};

static bool check(struct tally *t, const struct subject *s, bool ok, const char *what)
{
    if (ok) {
        t->passed++;
        return true;
    }
    t->failed++;
    fprintf(stderr, "FAILED %s, policy %s, %s, gpu limit %zu: %s\n", s->model, s->policy,
            s->variant, s->limit, what);
    return false;
}

/* ---- comparing --------------------------------------------------------------------------------
 */

static bool same_step(const struct step_result *a, const struct step_result *b)
{
    return memcmp(&a->loss_sum, &b->loss_sum, sizeof a->loss_sum) == 0 &&
           memcmp(&a->grad_norm, &b->grad_norm, sizeof a->grad_norm) == 0 &&
           a->correct == b->correct && a->clipped == b->clipped && a->finite == b->finite;
}

static void compare(struct tally *t, const struct subject *s, const struct trial_job *job,
                    int64_t first, const struct trial_result *want, const struct trial_result *got)
{
    bool steps = true;
    for (int64_t k = first; k < job->steps; k++)
        steps = steps && same_step(&want->step[k], &got->step[k]);
    check(t, s, steps, "losses or gradient norms differ from the resident run");
    check(t, s, memcmp(&want->eval_loss, &got->eval_loss, sizeof got->eval_loss) == 0,
          "the evaluation's loss differs from the resident run");
    check(t, s,
          want->weights_bytes == got->weights_bytes &&
              memcmp(want->weights, got->weights, got->weights_bytes) == 0,
          "final weights or moments differ from the resident run");
    check(t, s, got->device_peak == got->claim[TIER_GPU],
          "device memory counted is not what was planned");
    check(t, s, got->host_peak == got->claim[TIER_HOST],
          "host memory counted is not what was planned");
    for (int l = LINK_H2D; l <= LINK_D2H; l++)
        check(t, s, got->link_bytes[l] == got->planned_link_bytes[l] * (job->steps - first),
              "link bytes counted are not what was planned");
}

/* ---- budgets ------------------------------------------------------------------------------------
 */

/* Bytes that the policy claims on the gpu under a limit; 0 = refused. The refusal must say what is
 * short. */
static size_t claimed(struct tally *t, struct subject *s, const struct trial_model *m,
                      const struct trial_job *job, struct trial_placement place, size_t limit)
{
    struct plan *p = NULL;
    struct err err = {0};
    size_t claim = 0;

    place.limit[TIER_GPU] = limit;
    s->limit = limit;
    if (trial_plan(m, job, &place, t->planner, &p, &err) == 0) {
        claim = p->claim[TIER_GPU];
        if (limit > 0)
            check(t, s, claim <= limit, "a plan claims more than its limit");
    } else {
        check(t, s,
              strcmp(err.reason, "insufficient_memory") == 0 && strstr(err.msg, "gpu") != NULL,
              err.msg);
    }
    plan_destroy(p);
    return claim;
}

/* The smallest limit that the planner accepts, by bisection down to the size that addresses have.
 */
static size_t smallest_limit(struct tally *t, struct subject *s, const struct trial_model *m,
                             const struct trial_job *job, const struct trial_placement *place,
                             size_t high)
{
    size_t low = 0; /* refused */
    while (high - low > DEVICE_ALIGN) {
        size_t middle = low + (high - low) / 2 / DEVICE_ALIGN * DEVICE_ALIGN;
        if (middle == low)
            middle += DEVICE_ALIGN;
        size_t claim = claimed(t, s, m, job, *place, middle);
        if (claim > 0)
            high = claim;
        else
            low = middle;
    }
    return high;
}

static void run_at(struct tally *t, struct subject *s, const struct trial_model *m,
                   const struct trial_job *job, struct trial_placement place, size_t limit,
                   const struct trial_result *want)
{
    struct trial_result got = {0};
    struct err err = {0};

    s->limit = place.limit[TIER_GPU] = limit;
    if (check(t, s, trial_run(m, job, &place, 0, NULL, &got, &err) == 0, err.msg))
        compare(t, s, job, 0, want, &got);
    trial_result_fini(&got);
}

/* Two steps under one placement, the rest under another. */
static void resume_elsewhere(struct tally *t, struct subject *s, const struct trial_model *m,
                             const struct trial_job *job, const struct trial_placement *before,
                             const struct trial_placement *behind, const struct trial_result *want)
{
    struct trial_job half = *job;
    struct trial_result begun = {0}, got = {0};
    struct err err = {0};

    half.steps = 2;
    if (check(t, s,
              trial_run(m, &half, before, 0, NULL, &begun, &err) == 0 &&
                  trial_run(m, job, behind, 2, &begun, &got, &err) == 0,
              err.msg))
        compare(t, s, job, 2, want, &got);
    trial_result_fini(&begun);
    trial_result_fini(&got);
}

static void check_policy(struct tally *t, struct subject *s, const struct trial_model *m,
                         const struct trial_job *job, enum placement_policy policy,
                         const struct trial_result *want)
{
    struct trial_placement place = {
        .policy = policy, .force = PLAN_CHOICES_AUTO, .nvme_directory = t->nvme};
    struct trial_placement resident = {.policy = PLACE_CUDA, .force = PLAN_CHOICES_AUTO};
    s->policy = placement_policy_name(policy);
    size_t high = claimed(t, s, m, job, place, 0);
    if (!check(t, s, high > 0, "refused without a limit"))
        return;
    size_t low = smallest_limit(t, s, m, job, &place, high);
    for (int64_t k = 0; k < t->budgets; k++) {
        size_t limit =
            t->budgets == 1 ? low : low + (high - low) / (size_t)(t->budgets - 1) * (size_t)k;
        run_at(t, s, m, job, place, limit / DEVICE_ALIGN * DEVICE_ALIGN, want);
    }
    s->limit = place.limit[TIER_GPU] = low;
    resume_elsewhere(t, s, m, job, &place, &resident, want);
    resume_elsewhere(t, s, m, job, &resident, &place, want);
    printf("  %-5s %-16s gpu %zu .. %zu bytes\n", s->policy, s->variant, low, high);
}

/* ---- models and variants ------------------------------------------------------------------------
 */

struct variant {
    const char *name;
    int64_t micro_batch, micro_batches;
    double dropout, max_grad_norm;
    bool bf16_moments, lora, overflow;
};
static const struct variant variants[] = {
    {"clip active", 1, 4, 0.1, 1e-2},
    {"clip inactive", 2, 2, 0.1, 1e9},
    {"no clip", 1, 3, 0, 0},
    {"bf16 moments", 1, 4, 0, 1e9, true, false},
    {"lora", 1, 4, 0.1, 1e-2, false, true},
    {"overflow", 1, 2, 0, 1e9, .overflow = true},
};

static void check_variant(struct tally *t, struct subject *s, const struct trial_model *m,
                          const struct variant *v)
{
    struct trial_job job = {.model_dir = m->dir,
                            .device = t->device,
                            .compute = t->compute,
                            .micro_batch = v->micro_batch,
                            .micro_batches = v->micro_batches,
                            .seq_length = 12,
                            .dropout = v->dropout,
                            .max_grad_norm = v->max_grad_norm,
                            .bf16_moments = v->bf16_moments,
                            .overflow = v->overflow,
                            .steps = 4};
    struct trial_placement resident = {.policy = PLACE_CUDA, .force = PLAN_CHOICES_AUTO};
    struct trial_result want = {0};
    struct err err = {0};

    s->variant = v->name;
    s->policy = "cuda";
    s->limit = 0;
    if (!check(t, s, trial_run(m, &job, &resident, 0, NULL, &want, &err) == 0, err.msg))
        return;
    check(t, s, want.step[3].clipped == (v->max_grad_norm > 0 && v->max_grad_norm < 1),
          "the variant does not clip as it is meant to");
    check(t, s, want.step[1].finite == !v->overflow,
          "the variant does not overflow as it is meant to");
    check_policy(t, s, m, &job, PLACE_CUDA, &want);
    check_policy(t, s, m, &job, PLACE_CPU, &want);
    check_policy(t, s, m, &job, PLACE_AUTO, &want);
    trial_result_fini(&want);
}

static void check_model(struct tally *t, const char *dir)
{
    struct subject s = {.model = dir, .policy = "", .variant = ""};
    struct trial_model m[2]; /* whole, and with adapters */
    struct err err = {0};
    int opened = 0;

    while (opened < 2 &&
           check(t, &s, trial_model_open(dir, opened == 1, &m[opened], &err) == 0, err.msg))
        opened++;
    printf("%s\n", dir);
    for (size_t v = 0; v < sizeof variants / sizeof variants[0] && opened == 2; v++)
        check_variant(t, &s, &m[variants[v].lora], &variants[v]);
    while (opened > 0)
        trial_model_close(&m[--opened]);
}

/* Options stand before the models; returns where those begin. */
static int read_options(int argc, char **argv, struct tally *t)
{
    int a = 1;
    for (; a + 1 < argc && strncmp(argv[a], "--", 2) == 0; a += 2) {
        const char *value = argv[a + 1];
        if (strcmp(argv[a], "--budgets") == 0)
            t->budgets = strtol(value, NULL, 10);
        else if (strcmp(argv[a], "--nvme") == 0)
            t->nvme = value;
        else if (strcmp(argv[a], "--device") == 0)
            t->device = strcmp(value, "cuda") == 0 ? DEVICE_CUDA : DEVICE_CPU;
        else if (strcmp(argv[a], "--compute") == 0)
            t->compute = strcmp(value, "bf16") == 0 ? DT_BF16 : DT_F32;
    }
    return a;
}

int main(int argc, char **argv)
{
    struct tally t = {.budgets = 12, .device = DEVICE_CPU, .compute = DT_F32};
    struct err err = {0};
    int first = read_options(argc, argv, &t);

    if (device_open(t.device, 0, NULL, &t.planner, &err) != 0) {
        fprintf(stderr, "check_placement: %s\n", err.msg);
        return 1;
    }
    for (int a = first; a < argc; a++)
        check_model(&t, argv[a]);
    device_close(t.planner);
    printf("%lld passed, %lld failed\n", (long long)t.passed, (long long)t.failed);
    return t.failed == 0 && t.passed > 0 ? 0 : 1;
}
