#include "tests/placement/trial.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/rng.h"
#include "kernels/master.h"
#include "worker/model/adapter.h"
#include "worker/model/weights.h"
#include "worker/parallel/comm.h"
#include "worker/train/checkpoint.h"

int trial_model_init(struct decoder_config *config, const char *dir, bool lora,
                     enum quant_format quant, struct trial_model *out, struct err *err)
{
    static const char *const everywhere[] = {"all-linear"};
    static const struct adapter_config adapters = {
        .rank = 2, .alpha = 6, .dropout = 0.1, .targets = everywhere, .n_targets = 1};
    struct trial_model m = {.dir = dir};
    int rc = 0;

    model_init(&m.model, config);
    if (lora)
        TRY(model_adapt(&m.model, &adapters, err));
    if (lora)
        model_quantize(&m.model, quant);
    *out = m;
    m = (struct trial_model){0};
out:
    model_fini(&m.model);
    return rc;
}

int trial_model_open(const char *dir, bool lora, enum quant_format quant, struct trial_model *out,
                     struct err *err)
{
    struct decoder_config config = {0};
    int rc = decoder_config_load(dir, &config, err);
    return rc ? rc : trial_model_init(&config, dir, lora, quant, out, err);
}

void trial_model_close(struct trial_model *m)
{
    model_fini(&m->model);
}

struct plan_input trial_input(const struct trial_model *m, const struct trial_job *job,
                              const struct trial_placement *place, struct device *device)
{
    const struct decoder_config *c = &m->model.config;
    struct plan_input in = {.model = &m->model,
                            .ops = device_ops(device, job->compute),
                            .policy = place->policy,
                            .clip = job->max_grad_norm > 0,
                            .force = place->force,
                            .master = job->master,
                            .moments = job->moments,
                            .fp8 = job->fp8,
                            .micro_batch = job->micro_batch,
                            .micro_batches = job->micro_batches,
                            .seq_length = job->seq_length,
                            .head_rows = job->head_rows,
                            .hidden_dropout = job->dropout,
                            .embed_dropout = c->embed_dropout > 0 ? job->dropout : 0,
                            .attn_dropout = c->attn_dropout > 0 ? job->dropout : 0};
    memcpy(in.limit, place->limit, sizeof in.limit);
    for (int a = 0; a < AXIS_COUNT; a++)
        in.mesh.size[a] = 1;
    return in;
}

int trial_plan(const struct trial_model *m, const struct trial_job *job,
               const struct trial_placement *place, struct device *device, struct plan **out,
               struct err *err)
{
    struct plan_input in = trial_input(m, job, place, device);
    return plan_build(&in, out, err);
}

/* --- data: rows of two documents, the second one's positions and attention starting anew --- */

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void fill_row(struct batch *b, int64_t row, int64_t vocab, uint64_t *state)
{
    int64_t cut = 1 + (int64_t)(next(state) % (uint64_t)(b->T - 1));
    for (int64_t t = 0; t < b->T; t++) {
        int64_t at = row * b->T + t, begin = t < cut ? 0 : cut;
        b->tokens[at] = (int32_t)(next(state) % (uint64_t)vocab);
        b->positions[at] = (int32_t)(t - begin);
        b->first_key[at] = (int32_t)begin;
        if (t > 0)
            b->targets[at - 1] = t == cut ? TARGET_IGNORE : b->tokens[at];
    }
    b->targets[row * b->T + b->T - 1] = TARGET_IGNORE;
}

/* Returns how many targets the step has. */
static int64_t fill_step(struct executor *e, const struct plan *p, int slot, int64_t step)
{
    uint64_t state = 77 + (uint64_t)step;
    int64_t targets = 0;
    for (int64_t m = 0; m < p->in.micro_batches; m++) {
        struct batch b;
        executor_batch(e, slot, m, &b);
        for (int64_t row = 0; row < b.B; row++)
            fill_row(&b, row, p->in.model->config.vocab, &state);
        for (int64_t i = 0; i < b.B * b.T; i++)
            targets += b.targets[i] != TARGET_IGNORE;
    }
    return targets;
}

/* --- payloads --- */

struct payloads {
    const struct plan *plan;
    char *data;
    struct weights_reader *weights; /* for what is frozen; to load */
};

/* As results keep them: masters whole, unless the job asks for split ones. */
static struct chunk_types result_types(const struct plan *p)
{
    struct chunk_types types = p->types;
    if (p->chosen.split_masters)
        types.master = DT_F32;
    return types;
}

/* Where a payload lies in trial_result.weights: independent of the order of a plan's lists. */
static size_t payload_offset(const struct plan *p, int64_t chunk, enum payload payload)
{
    enum { ALIGN = sizeof(float) }; /* behind an odd number of 16-bit parameters, too */
    struct chunk_types types = result_types(p);
    size_t at = 0;
    for (int64_t c = 0; c <= chunk; c++) {
        const struct chunk *ch = &p->chunks.chunks[c];
        for (int k = 0; k < PAYLOAD_COUNT; k++) {
            if (c == chunk && k == (int)payload)
                return at;
            if (k != PAYLOAD_GRAD)
                at += (chunk_payload_bytes(ch, k, types) + ALIGN - 1) / ALIGN * ALIGN;
        }
    }
    return at;
}

/* A state of split masters: what lies behind these is the same in a result. */
static bool is_split(const struct plan *p, enum payload payload)
{
    return payload == PAYLOAD_STATE && p->chosen.split_masters;
}

static int take(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                struct err *err)
{
    struct payloads *all = ud;
    char *to = all->data + payload_offset(all->plan, chunk, payload);
    size_t half = is_split(all->plan, payload)
                      ? (size_t)all->plan->chunks.chunks[chunk].n * sizeof(int16_t)
                      : 0;
    memcpy(to, host, half); /* until join_masters */
    memcpy(to + 2 * half, (char *)host + half, bytes - half);
    return 0;
}

static void join_masters(const struct payloads *all)
{
    const struct plan *p = all->plan;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        const struct chunk *ch = &p->chunks.chunks[c];
        if (!ch->trainable || !p->chosen.split_masters)
            continue;
        char *master = all->data + payload_offset(p, c, PAYLOAD_STATE);
        int16_t *remainder = xcalloc((size_t)ch->n, sizeof *remainder);
        memcpy(remainder, master, (size_t)ch->n * sizeof *remainder);
        master_join((float *)(void *)master,
                    (uint16_t *)(void *)(all->data + payload_offset(p, c, PAYLOAD_PARAM)),
                    remainder, ch->n);
        free(remainder);
    }
}

static int give_frozen(const struct payloads *all, const struct chunk *c, char *host,
                       struct err *err)
{
    enum dtype type = all->plan->types.compute;
    int rc = 0;
    for (int64_t k = 0; k < c->n_members; k++) {
        char *at = host + chunk_param_at(c, k, all->plan->types);
        int64_t tensor = c->members[k].tensor;
        if (c->quant == QUANT_NONE)
            TRY(weights_read(all->weights, tensor, type, at, err));
        else
            TRY(weights_read_quantized(all->weights, tensor, c->quant, at,
                                       (float *)(void *)(host + chunk_scales_at(c, k)), err));
    }
out:
    return rc;
}

static int give(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                struct err *err)
{
    struct payloads *all = ud;
    memset(host, 0, bytes);
    if (!all->plan->chunks.chunks[chunk].trainable)
        return give_frozen(all, &all->plan->chunks.chunks[chunk], host, err);
    const char *from = all->data + payload_offset(all->plan, chunk, payload);
    int64_t n = is_split(all->plan, payload) ? all->plan->chunks.chunks[chunk].n : 0;
    size_t half = (size_t)n * sizeof(int16_t);
    master_remainders(host, (const float *)(const void *)from, n);
    memcpy((char *)host + half, from + 2 * half, bytes - half);
    return 0;
}

static int load(struct executor *e, const struct plan *p, const struct trial_model *m,
                const struct trial_result *from, struct err *err)
{
    struct weights_reader *weights = NULL;
    int rc = 0;
    TRY(weights_open(m->dir, &m->model, &weights, err));
    if (from) {
        struct payloads all = {.plan = p, .data = from->weights, .weights = weights};
        TRY(executor_transfer(e, LIST_LOAD, give, &all, err));
    } else {
        TRY(checkpoint_load_weights(weights, 5, p, e, err));
    }
out:
    weights_close(weights);
    return rc;
}

static int save(struct executor *e, const struct plan *p, struct trial_result *out, struct err *err)
{
    out->weights_bytes = payload_offset(p, p->chunks.n_chunks - 1, PAYLOAD_COUNT);
    out->weights = xcalloc(1, out->weights_bytes);
    struct payloads all = {.plan = p, .data = out->weights};
    int rc = executor_transfer(e, LIST_SAVE, take, &all, err);
    if (rc == 0)
        join_masters(&all);
    return rc;
}

/* --- steps --- */

static int collect(struct executor *e, int64_t step, struct trial_result *out, struct err *err)
{
    return executor_collect(e, (int)(step % STEP_SLOTS), &out->step[step], err);
}

static int train(struct executor *e, const struct plan *p, const struct trial_job *job,
                 int64_t first, struct trial_result *out, struct err *err)
{
    int rc = 0;
    for (int64_t step = first; step < job->steps; step++) {
        int slot = (int)(step % STEP_SLOTS);
        if (step - first >= STEP_SLOTS)
            TRY(collect(e, step - STEP_SLOTS, out, err));
        int64_t targets = fill_step(e, p, slot, step);
        struct step_input in = {.step = step + 1,
                                .learning_rate = 1e-3 * (double)(step + 1),
                                .wait_for_norm = step % 2 == 0,
                                .grad_scale =
                                    job->overflow && step == 1 ? INFINITY : 1.0 / (double)targets};
        TRY(executor_step(e, slot, &in, err));
    }
    for (int64_t step = job->steps - STEP_SLOTS; step < job->steps; step++)
        if (step >= first)
            TRY(collect(e, step, out, err));
out:
    return rc;
}

static int evaluate(struct executor *e, const struct plan *p, struct trial_result *out,
                    struct err *err)
{
    struct step_result res;
    fill_step(e, p, 0, 1000);
    int rc = executor_eval(e, &res, err);
    if (rc == 0)
        out->eval_loss = res.loss_sum;
    return rc;
}

static int measured_steps(struct executor *e, struct device *d, const struct plan *p,
                          const struct trial_job *job, int64_t first, struct trial_result *out,
                          struct err *err)
{
    struct device_counters before = d->counters;
    struct nvme_counters disk = executor_disk_counters(e);
    struct plan_simulation sim, eval;
    int rc = 0;

    TRY(plan_simulate(p, LIST_TRAIN, &sim, err));
    TRY(plan_simulate(p, LIST_EVAL, &eval, err));
    TRY(train(e, p, job, first, out, err));
    out->link_bytes[LINK_H2D] = (int64_t)(d->counters.h2d_bytes - before.h2d_bytes);
    out->link_bytes[LINK_D2H] = (int64_t)(d->counters.d2h_bytes - before.d2h_bytes);
    TRY(evaluate(e, p, out, err)); /* all queues are idle behind it */
    out->link_bytes[LINK_DISK_READ] =
        (int64_t)(executor_disk_counters(e).read - disk.read) - eval.link_bytes[LINK_DISK_READ];
    out->link_bytes[LINK_DISK_WRITE] = (int64_t)(executor_disk_counters(e).written - disk.written);
    memcpy(out->planned_link_bytes, sim.link_bytes, sizeof sim.link_bytes);
out:
    return rc;
}

static int run(const struct trial_model *m, const struct trial_job *job,
               const struct trial_placement *place, struct device *d, struct plan *p, int64_t first,
               const struct trial_result *from, struct trial_result *out, struct err *err)
{
    struct comm *comm = NULL;
    struct executor *e = NULL;
    int rc = 0;

    TRY(comm_self_create(d, &comm, err));
    struct executor_config config = {.plan = p,
                                     .device = d,
                                     .data_comm = comm,
                                     .nvme_directory = place->nvme_directory,
                                     .update_threads = TRIAL_UPDATE_THREADS,
                                     .seed = 11,
                                     .beta1 = 0.9,
                                     .beta2 = 0.95,
                                     .epsilon = 1e-8,
                                     .weight_decay = 0.1,
                                     .max_grad_norm = job->max_grad_norm};
    TRY(executor_create(&config, &e, err));
    TRY(load(e, p, m, from, err));
    TRY(measured_steps(e, d, p, job, first, out, err));
    TRY(save(e, p, out, err));
    out->peak[TIER_GPU] = d->counters.device_peak;
    out->peak[TIER_HOST] = d->counters.host_peak;
    out->peak[TIER_NVME] = executor_disk_counters(e).reserved;
out:
    executor_destroy(e);
    comm_destroy(comm);
    return rc;
}

int trial_run(const struct trial_model *m, const struct trial_job *job,
              const struct trial_placement *place, int64_t first, const struct trial_result *from,
              struct trial_result *out, struct err *err)
{
    /* Tiny ops: threads would only wait for each other. */
    struct device_options options = {.memory_limit = place->limit[TIER_GPU], .threads = 1};
    struct device *d = NULL;
    struct plan *p = NULL;
    struct trial_result r = {0};
    int rc = 0;

    assert(job->steps <= TRIAL_MAX_STEPS);
    TRY(device_open(job->device, 0, &options, &d, err));
    TRY(trial_plan(m, job, place, d, &p, err));
    memcpy(r.claim, p->claim, sizeof r.claim);
    r.chosen = p->chosen;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        r.param_bytes += chunk_payload_bytes(&p->chunks.chunks[c], PAYLOAD_PARAM, p->types);
    TRY(run(m, job, place, d, p, first, from, &r, err));
    *out = r;
    r = (struct trial_result){0};
out:
    trial_result_fini(&r);
    plan_destroy(p);
    device_close(d);
    return rc;
}

void trial_result_fini(struct trial_result *r)
{
    free(r->weights);
    *r = (struct trial_result){0};
}
