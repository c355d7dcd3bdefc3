#include "tests/placement/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/model/weights.h"
#include "worker/plan/build.h"

/* --- chance --- */

struct chance {
    uint64_t state;
};

static uint64_t draw(struct chance *c)
{
    c->state = c->state * 6364136223846793005u + 1442695040888963407u;
    return c->state >> 33;
}

/* From low to high, both included. */
static int64_t between(struct chance *c, int64_t low, int64_t high)
{
    return low + (int64_t)(draw(c) % (uint64_t)(high - low + 1));
}

static double pick(struct chance *c, const double *from, int64_t n)
{
    return from[between(c, 0, n - 1)];
}

/* --- models --- */

/* The family's flags stay: how heads share keys, what is rotated, where windows are. */
static void change_sizes(struct chance *c, struct decoder_config *m)
{
    bool square = m->hidden == m->heads * m->head_dim, projected = m->embed_dim != m->hidden;
    bool each = m->kv_heads == m->heads, one = m->kv_heads == 1;
    int64_t layers = between(c, 1, 5), period = m->layers;

    if (m->window) {
        int64_t *window = xcalloc((size_t)layers, sizeof *window);
        for (int64_t k = 0; k < layers; k++)
            window[k] = m->window[k % period];
        free(m->window);
        m->window = window;
    }
    m->layers = layers;
    m->heads = between(c, 1, 4) * (each || one ? 1 : 2);
    m->kv_heads = each ? m->heads : one ? 1 : m->heads / 2;
    if (!m->rope.long_factors && m->position == POSITION_ROPE) {
        bool whole = m->rope.dim == m->head_dim;
        m->rope.dim = 2 * between(c, 1, 6);
        m->head_dim = whole ? m->rope.dim : m->rope.dim + 2 * between(c, 1, 4);
    }
    m->hidden = square ? m->heads * m->head_dim : 4 * between(c, 2, 10);
    m->embed_dim = projected ? 4 * between(c, 2, 10) : m->hidden;
    m->ffn = between(c, 5, 90);
    m->vocab = between(c, 20, 300);
    m->bos_id = m->eos_id = m->pad_id = -1;
}

struct weight_source {
    struct chance chance;
    const struct model *model;
    float *values;
};

static int make_weights(void *ud, int64_t tensor, const void **data, enum dtype *from,
                        struct err *err)
{
    struct weight_source *w = ud;
    const struct tensor_desc *t = &w->model->tensors[tensor];
    int64_t n = t->rows * t->cols;

    w->values = xrealloc(w->values, (size_t)n * sizeof *w->values);
    for (int64_t k = 0; k < n; k++)
        w->values[k] = (t->cols == 1) + 0.2f * ((float)draw(&w->chance) / (float)(1u << 31) - 0.5f);
    *data = w->values;
    *from = DT_F32;
    return 0;
}

static int write_weights(const struct decoder_config *config, const char *dir, uint64_t seed,
                         struct err *err)
{
    struct decoder_config copy = *config;
    struct weight_source source = {.chance = {seed}};
    struct model m = {0};
    int rc = 0;

    /* What the config owns stays with the caller. */
    model_init(&m, &copy);
    source.model = &m;
    TRY(weights_write(dir, &m, DT_F32, make_weights, &source, err));
out:
    m.config.window = NULL;
    m.config.rope.long_factors = m.config.rope.short_factors = NULL;
    model_fini(&m);
    free(source.values);
    return rc;
}

/* --- trials --- */

static struct trial_job change_job(struct chance *c, int64_t longest)
{
    static const double dropouts[] = {0, 0.1, 0.5}, norms[] = {0, 1e-2, 1e9};
    struct trial_job job = {.compute = DT_F32,
                            .micro_batch = between(c, 1, 3),
                            .micro_batches = between(c, 1, 5),
                            .seq_length = between(c, 2, longest < 20 ? longest : 20),
                            .dropout = pick(c, dropouts, 3),
                            .max_grad_norm = pick(c, norms, 3),
                            .moments = between(c, 0, 3) % 3,
                            .steps = 3};
    if (between(c, 0, 2) == 0) {
        job.compute = DT_BF16;
        job.master = between(c, 0, 2);
    }
    job.head_rows = between(c, 1, job.micro_batch * job.seq_length);
    job.fp8 = between(c, 0, 2) == 0;
    return job;
}

static bool fits(const struct plan_input *in, struct plan_choices c)
{
    struct plan *p = plan_make(in, &c);
    bool all = true;
    for (int t = TIER_GPU; t <= TIER_NVME; t++)
        all = all && (p->claim[t] <= in->limit[t] || (in->limit[t] == 0 && t != TIER_NVME));
    plan_destroy(p);
    return all;
}

/* Of states and parameters on the disk, all of the one or none with any number of the other. */
static bool any_disk_fits(const struct plan_input *in, struct plan_choices c, int64_t most)
{
    for (int64_t k = 0; k <= most; k++) {
        for (int64_t all = 0; all <= most; all += most > 0 ? most : 1) {
            c.nvme = k;
            c.nvme_params = all;
            if (fits(in, c))
                return true;
            c.nvme = all;
            c.nvme_params = k;
            if (fits(in, c))
                return true;
        }
    }
    return false;
}

static bool any_fits(const struct plan_input *in, struct plan_choices c, int64_t chunks)
{
    int64_t disks = in->limit[TIER_NVME] > 0 ? chunks - c.resident : 0;
    for (c.offload_boundaries = 0; c.offload_boundaries <= 1; c.offload_boundaries++)
        for (c.early = 0; c.early <= (in->clip ? 0 : chunks); c.early += chunks)
            if (any_disk_fits(in, c, disks))
                return true;
    return false;
}

/* Is there any plan within the limits? What only costs memory is left out. */
static bool any_plan_fits(const struct plan_input *in, int64_t chunks, int64_t slice)
{
    int64_t most = in->policy == PLACE_CPU ? 0 : chunks,
            least = in->policy == PLACE_CUDA ? most : 0;
    struct plan_choices c = {.slice = slice};
    for (c.group = 1; c.group <= in->micro_batches; c.group++)
        for (c.resident = least; c.resident <= most; c.resident++)
            if (any_fits(in, c, chunks)) {
                fprintf(stderr, "group %lld, %lld resident:\n", (long long)c.group,
                        (long long)c.resident);
                return true;
            }
    return false;
}

/* One limit below what the placement takes without any. */
static void judge_limits(const struct subject *s, struct trial_placement place,
                         struct plan_input in, int64_t chunks, int64_t slice)
{
    bool accepted = judge_claim(s, &place, TIER_GPU) > 0;
    memcpy(in.limit, place.limit, sizeof in.limit);
    in.policy = place.policy;
    if (accepted)
        judge_run(s, &place);
    else
        judge_check(s, &place, !any_plan_fits(&in, chunks, slice), "refused, and yet a plan fits");
}

static void judge_policies(struct chance *c, struct subject *s, struct device *d, const char *nvme)
{
    static const enum placement_policy policies[] = {PLACE_CUDA, PLACE_CPU, PLACE_AUTO, PLACE_AUTO};
    for (int k = 0; k < 4; k++) {
        struct trial_placement place = {.policy = policies[k], .force = PLAN_CHOICES_AUTO};
        struct plan_input in = trial_input(s->model, s->job, &place, d);
        struct plan *p = NULL;

        s->policy = placement_policy_name(policies[k]);
        if (!judge_check(s, &place, plan_build(&in, &p, NULL) == 0, "refused without a limit"))
            continue;
        place.limit[TIER_GPU] = p->claim[TIER_GPU] / 100 * (size_t)between(c, 15, 100);
        if (k != 0 && nvme) {
            place.nvme_directory = nvme;
            place.limit[TIER_NVME] = (size_t)between(c, 0, 1) << 30;
        }
        int64_t percent = place.limit[TIER_NVME] > 0 ? between(c, 15, 120) : between(c, 50, 300);
        if (k != 2)
            place.limit[TIER_HOST] = p->claim[TIER_HOST] / 100 * (size_t)percent;
        judge_limits(s, place, in, p->chunks.n_chunks, p->chosen.slice);
        plan_destroy(p);
    }
}

static int one_trial(struct chance *c, struct tally *t, const char *family_dir, const char *dir,
                     const char *nvme, struct err *err)
{
    static const struct trial_placement resident = {.policy = PLACE_CUDA,
                                                    .force = PLAN_CHOICES_AUTO};
    struct decoder_config config = {0};
    struct trial_model model = {0};
    struct trial_job job = {0};
    struct trial_result want = {0};
    struct device *d = NULL;
    struct subject s = {.tally = t, .name = family_dir, .variant = "random", .job = &job};
    int rc = 0;

    TRY(decoder_config_load(family_dir, &config, err));
    change_sizes(c, &config);
    job = change_job(c, config.max_positions);
    TRY(decoder_config_check(&config, err));
    TRY(write_weights(&config, dir, draw(c), err));
    bool lora = between(c, 0, 2) == 0;
    enum quant_format quant = (enum quant_format)between(c, QUANT_NONE, QUANT_INT8);
    TRY(trial_model_init(&config, dir, lora, quant, &model, err));
    TRY(trial_run(&model, &job, &resident, 0, NULL, &want, err));
    TRY(device_open(DEVICE_CPU, 0, NULL, &d, err));
    s.model = &model;
    s.want = &want;
    s.planner = d;
    judge_policies(c, &s, d, nvme);
out:
    decoder_config_fini(&config);
    trial_result_fini(&want);
    trial_model_close(&model);
    if (d)
        device_close(d);
    return rc;
}

void random_trials(struct tally *t, const char *const *dirs, int n_dirs, int64_t n, uint64_t seed,
                   const char *nvme)
{
    char *base = xstrdup("/tmp/castor-placement-XXXXXX");
    if (!mkdtemp(base)) {
        t->failed++;
        perror(base);
    }
    printf("%lld random models, --seed %llu\n", (long long)n, (unsigned long long)seed);
    for (int64_t k = 0; k < n && t->failed == 0; k++) {
        /* Each trial has a seed of its own: the first to fail can be had alone. */
        struct chance c = {(seed + (uint64_t)k) * 0x9e3779b97f4a7c15u};
        const char *family = dirs[between(&c, 0, n_dirs - 1)];
        char *dir = xasprintf("%s/%lld", base, (long long)k);
        struct err err = {0};

        if (fs_mkdir_p(dir, false, &err) != 0 || one_trial(&c, t, family, dir, nvme, &err) != 0) {
            t->failed++;
            fprintf(stderr, "FAILED %s: %s\n", family, err.msg);
        }
        if (t->failed > 0)
            fprintf(stderr, "again with --random 1 --seed %llu\n",
                    (unsigned long long)(seed + (uint64_t)k));
        fs_remove_tree(dir, NULL);
        free(dir);
    }
    fs_remove_tree(base, NULL);
    free(base);
}
