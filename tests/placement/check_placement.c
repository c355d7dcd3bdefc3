/*
 * Placement never changes the numbers: every model under every policy, at limits from plenty down
 * to the smallest that the planner accepts, and on disk; then random models under random limits.
 *
 *   check_placement [--budgets N] [--nvme DIR] [--random TRIALS [--seed S]]
 *                   [--device cpu|cuda] [--compute f32|bf16] MODEL_DIR...
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/placement/judge.h"
#include "tests/placement/random.h"
#include "worker/plan/plan.h"

struct options {
    int64_t budgets, random;
    uint64_t seed;
    const char *nvme; /* or NULL */
    enum device_kind device;
    enum dtype compute;
    struct device *planner; /* plans are made for it, nothing runs on it */
};

static struct trial_placement resident = {.policy = PLACE_CUDA, .force = PLAN_CHOICES_AUTO};

/* `n` limits on a tier, evenly from the smallest to what it takes without one. */
static void run_budgets(const struct subject *s, struct trial_placement place, enum plan_tier tier,
                        int64_t n)
{
    size_t high = judge_claim(s, &place, tier);
    if (!judge_check(s, &place, high > 0, "refused without a limit"))
        return;
    size_t low = judge_smallest(s, place, tier, high);
    for (int64_t k = 0; k < n; k++) {
        size_t limit = n == 1 ? low : low + (high - low) / (size_t)(n - 1) * (size_t)k;
        place.limit[tier] = limit / DEVICE_ALIGN * DEVICE_ALIGN;
        judge_run(s, &place);
    }
    place.limit[tier] = low;
    judge_resume(s, &place, &resident);
    judge_resume(s, &resident, &place);
    printf("  %-5s %-16s %s %zu .. %zu bytes\n", s->policy, s->variant, plan_tier_name(tier), low,
           high);
}

static void check_policy(struct subject *s, const struct options *o, enum placement_policy policy)
{
    struct trial_placement place = {.policy = policy, .force = PLAN_CHOICES_AUTO};

    s->policy = placement_policy_name(policy);
    run_budgets(s, place, TIER_GPU, o->budgets);
    if (policy != PLACE_AUTO) { /* saved tensors of a layer in host memory */
        place.force.offload_saved = place.force.keep = 1;
        run_budgets(s, place, TIER_GPU, 1);
        place.force.offload_saved = place.force.keep = PLAN_AUTO;
    }
    if (s->job->compute == DT_BF16 && s->job->master == MASTER_FP32) {
        place.force.split_masters = 1;
        run_budgets(s, place, TIER_GPU, (o->budgets + 5) / 6);
        place.force.split_masters = PLAN_AUTO;
    }
    if (policy == PLACE_CUDA)
        return;
    if (policy == PLACE_AUTO) /* only as much device memory as leaves something to the host */
        place.limit[TIER_GPU] =
            judge_smallest(s, place, TIER_GPU, judge_claim(s, &place, TIER_GPU));
    if (policy == PLACE_CPU)
        run_budgets(s, place, TIER_HOST, (o->budgets + 3) / 4);
    if (policy == PLACE_CPU && s->job->max_grad_norm > 0) { /* speculative updates of some chunks */
        place.force.early = 2;
        run_budgets(s, place, TIER_HOST, (o->budgets + 3) / 4);
        place.force.early = PLAN_AUTO;
    }
    if (!o->nvme)
        return;
    place.nvme_directory = o->nvme;
    place.limit[TIER_NVME] = (size_t)1 << 30;
    run_budgets(s, place, TIER_HOST, (o->budgets + 1) / 2);
}

/* --- models and variants --- */

struct variant {
    const char *name;
    int64_t micro_batch, micro_batches;
    double dropout, max_grad_norm;
    bool overflow, fp8, bf16;
    enum moment_kind moments;
    enum master_kind master; /* but for fp32 they compute in bf16, as fp8 does on a GPU */
    int model;               /* which of the subject's */
};
/* Whole, with adapters, and with adapters beside quantised weights. */
enum { WHOLE, LORA, LORA_NF4, LORA_INT8, MODELS };
static const struct variant variants[] = {
    {"clip active", 1, 4, 0.1, 1e-2},
    {"clip inactive", 2, 2, 0.1, 1e9},
    {"no clip", 1, 3, 0, 0},
    {"bf16 moments", 1, 4, 0, 1e9, .moments = MOMENTS_BF16},
    {"fp8 moments", 1, 4, 0, 1e9, .moments = MOMENTS_FP8},
    {"lora", 1, 4, 0.1, 1e-2, .model = LORA},
    {"lora nf4", 1, 4, 0.1, 1e-2, .model = LORA_NF4},
    {"lora int8", 2, 2, 0, 0, .model = LORA_INT8},
    {"overflow", 1, 2, 0, 1e9, .overflow = true},
    {"split masters", 1, 2, 0.1, 1e9, .overflow = true, .master = MASTER_SPLIT},
    {"fp8", 1, 3, 0.1, 1e9, .fp8 = true},
    {"fp8 lora", 2, 2, 0, 1e9, .fp8 = true, .model = LORA},
    {"fp8 lora nf4", 2, 2, 0, 1e9, .fp8 = true, .model = LORA_NF4},
    {"whole masters", 1, 2, 0.1, 1e9, .bf16 = true},
    {"whole masters, no clip", 1, 3, 0, 0, .bf16 = true},
    {"both, clip active", 1, 2, 0, 1e-2, .moments = MOMENTS_FP8, .master = MASTER_SPLIT},
    {"both", 1, 3, 0, 0, .moments = MOMENTS_FP8, .master = MASTER_SPLIT},
};

static void check_variant(struct subject *s, const struct options *o, const struct variant *v)
{
    bool narrow = v->bf16 || v->master != MASTER_FP32 || (v->fp8 && o->device == DEVICE_CUDA);
    struct trial_job job = {.device = o->device,
                            .compute = narrow ? DT_BF16 : o->compute,
                            .micro_batch = v->micro_batch,
                            .micro_batches = v->micro_batches,
                            .seq_length = 12,
                            .head_rows = 16,
                            .dropout = v->dropout,
                            .max_grad_norm = v->max_grad_norm,
                            .master = v->master,
                            .moments = v->moments,
                            .overflow = v->overflow,
                            .fp8 = v->fp8,
                            .steps = 4};
    struct trial_result want = {0};
    struct err err = {0};

    s->variant = v->name;
    s->policy = "cuda";
    s->job = &job;
    s->want = &want;
    if (!judge_check(s, &resident, trial_run(s->model, &job, &resident, 0, NULL, &want, &err) == 0,
                     err.msg))
        return;
    judge_check(s, &resident,
                want.step[3].clipped == (v->max_grad_norm > 0 && v->max_grad_norm < 1),
                "the variant does not clip as it is meant to");
    judge_check(s, &resident, want.step[1].finite == !v->overflow,
                "the variant does not overflow as it is meant to");
    check_policy(s, o, PLACE_CUDA);
    check_policy(s, o, PLACE_CPU);
    check_policy(s, o, PLACE_AUTO);
    trial_result_fini(&want);
}

static void check_model(struct tally *t, const struct options *o, const char *dir)
{
    struct subject s = {
        .tally = t, .planner = o->planner, .name = dir, .policy = "", .variant = ""};
    static const enum quant_format quant[MODELS] = {
        [LORA_NF4] = QUANT_NF4, [LORA_INT8] = QUANT_INT8};
    struct trial_model m[MODELS];
    struct err err = {0};
    int64_t paged = t->paged;
    int opened = 0;

    while (opened < MODELS &&
           judge_check(&s, &resident,
                       trial_model_open(dir, opened != WHOLE, quant[opened], &m[opened], &err) == 0,
                       err.msg))
        opened++;
    printf("%s\n", dir);
    for (size_t v = 0; v < sizeof variants / sizeof variants[0] && opened == MODELS; v++) {
        s.model = &m[variants[v].model];
        check_variant(&s, o, &variants[v]);
    }
    judge_check(&s, &resident, !o->nvme || t->paged > paged,
                "the least host memory, and yet no parameters on the disk");
    while (opened > 0)
        trial_model_close(&m[--opened]);
}

/* Options stand before the models; returns where those begin, 0 for an unknown one. */
static int read_options(int argc, char **argv, struct options *o)
{
    int a = 1;
    for (; a + 1 < argc && strncmp(argv[a], "--", 2) == 0; a += 2) {
        const char *name = argv[a], *value = argv[a + 1];
        if (strcmp(name, "--budgets") == 0)
            o->budgets = strtol(value, NULL, 10);
        else if (strcmp(name, "--nvme") == 0)
            o->nvme = value;
        else if (strcmp(name, "--random") == 0)
            o->random = strtol(value, NULL, 10);
        else if (strcmp(name, "--seed") == 0)
            o->seed = strtoull(value, NULL, 10);
        else if (strcmp(name, "--device") == 0)
            o->device = strcmp(value, "cuda") == 0 ? DEVICE_CUDA : DEVICE_CPU;
        else if (strcmp(name, "--compute") == 0)
            o->compute = strcmp(value, "bf16") == 0 ? DT_BF16 : DT_F32;
        else
            return 0;
    }
    return a;
}

int main(int argc, char **argv)
{
    struct options o = {.budgets = 12, .seed = (uint64_t)time(NULL), .compute = DT_F32};
    struct tally t = {0};
    struct err err = {0};
    int models = read_options(argc, argv, &o);

    resident.force.split_masters = 0; /* numbers that others are compared with are in no halves */
    if (models == 0) {
        fprintf(stderr, "check_placement: no such option\n");
        return 2;
    }
    if (device_open(o.device, 0, NULL, &o.planner, &err) != 0) {
        fprintf(stderr, "check_placement: %s\n", err.msg);
        return 1;
    }
    for (int m = models; m < argc && o.budgets > 0; m++)
        check_model(&t, &o, argv[m]);
    if (o.random > 0)
        random_trials(&t, (const char *const *)argv + models, argc - models, o.random, o.seed,
                      o.nvme);
    device_close(o.planner);
    printf("%lld runs with parameters on the disk, %lld with less host memory than parameters\n",
           (long long)t.paged, (long long)t.below);
    printf("%lld passed, %lld failed\n", (long long)t.passed, (long long)t.failed);
    return t.failed == 0 && t.passed > 0 ? 0 : 1;
}
