#include "worker/train/executor.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "kernels/host_pages.h"
#include "worker/train/executor_impl.h"

int32_t executor_state_place(const struct executor *e, const struct plan_slice *s)
{
    return e->swapped && s->shadow != NO_PLACE ? s->shadow : s->home;
}

void *executor_at(struct executor *e, int32_t place)
{
    if (place == NO_PLACE)
        return NULL;
    const struct place *p = &e->plan->places[place];
    return arena_at(&e->arena[p->tier], p->offset, p->bytes);
}

struct step_scalars *executor_scalars(struct executor *e)
{
    return executor_at(e, e->plan->io.scalars);
}

int executor_launched(int rc, const struct executor *e, const struct instr *i, struct err *err)
{
    if (rc == 0)
        return 0;
    rc = err_set(err, rc, "the device refused the work");
    return err_wrap(err, rc, "step %lld, %s block %d chunk %d", (long long)e->step,
                    instr_op_name(i->op), i->block, i->chunk);
}

void executor_begin(struct executor *e, enum op op, const void *args, struct stream *s)
{
    if (e->watch)
        e->watch->before(e->watch->ud, op, args, s);
}

int executor_end(int rc, struct executor *e, const struct instr *i, struct stream *s,
                 struct err *err)
{
    if (e->watch)
        e->watch->after(e->watch->ud, s);
    return executor_launched(rc, e, i, err);
}

void executor_watch(struct executor *e, const struct op_watch *watch)
{
    e->watch = watch;
}

/* --- life --- */

static int upload_rope(struct executor *e, struct err *err)
{
    const struct plan *p = e->plan;
    if (p->io.rope == NO_PLACE)
        return 0;
    const struct decoder_config *c = &p->in.model->config;
    bool alibi = c->position == POSITION_ALIBI;
    int64_t n = alibi ? c->heads : model_rope_floats(c, p->in.seq_length);
    int rc = 0;
    float *tables = xcalloc((size_t)n, sizeof *tables);
    if (alibi)
        model_alibi_slopes(c, tables);
    else
        model_rope_tables(c, p->in.seq_length, tables);
    TRY(device_copy(e->device, e->stream[QUEUE_COMPUTE], COPY_H2D, executor_at(e, p->io.rope),
                    tables, (size_t)n * sizeof *tables, err));
    TRY(device_stream_sync(e->device, e->stream[QUEUE_COMPUTE], err));
out:
    free(tables);
    return rc;
}

static int create_streams(struct executor *e, struct err *err)
{
    static const enum queue streams[] = {QUEUE_COMPUTE, QUEUE_H2D, QUEUE_D2H};
    int rc = 0;
    for (int k = 0; k < 3; k++)
        TRY(device_stream_create(e->device, 0, &e->stream[streams[k]], err));
out:
    return rc;
}

/* On a GPU's behalf the CPU updates masters beside parameters of the GPU's type. */
static int create_updates(struct executor *e, struct err *err)
{
    const struct op_table *ops = e->device->kind == DEVICE_CPU ? e->ops : NULL;
    int threads = e->config.update_threads;
    if (!e->host[QUEUE_CPU])
        return 0;
    return update_pool_create(threads > 0 ? threads : update_pool_all_threads(), ops, &e->updates,
                              err);
}

int executor_create(const struct executor_config *config, struct executor **out, struct err *err)
{
    struct executor *e = xcalloc(1, sizeof *e);
    const struct plan *p = config->plan;
    int rc = 0;

    e->config = *config;
    e->plan = p;
    e->device = config->device;
    e->ops = p->in.ops;
    TRY(arena_init(&e->arena[TIER_GPU], e->device, ARENA_DEVICE, p->claim[TIER_GPU], err));
    TRY(arena_init(&e->arena[TIER_HOST], e->device, ARENA_PINNED, p->claim[TIER_HOST], err));
    if (p->claim[TIER_NVME] > 0)
        TRY(nvme_file_create(config->nvme_directory, p->claim[TIER_NVME], &e->nvme, err));
    TRY(create_streams(e, err));
    TRY(executor_edges_init(e, err));
    TRY(executor_trail_init(e, err));
    TRY(executor_stalls_init(e, err));
    TRY(create_updates(e, err));
    for (int s = 0; s < STEP_SLOTS; s++)
        TRY(device_mark_create(e->device, &e->done[s], err));
    /* Gaps between tensors must hold zeros; everything else is written before it is read. */
    TRY(device_zero(e->device, e->stream[QUEUE_COMPUTE], e->arena[TIER_GPU].base,
                    e->arena[TIER_GPU].bytes, err));
    TRY(upload_rope(e, err));
    *out = e;
    e = NULL;
out:
    executor_destroy(e);
    return rc;
}

void executor_hold_memory(struct executor *e)
{
    const struct arena *host = &e->arena[TIER_HOST];
    if (host->bytes > 0)
        host_pages_fetch(host->base, host->bytes);
}

void executor_destroy(struct executor *e)
{
    if (!e)
        return;
    executor_quiesce(e, NULL);
    executor_edges_fini(e);
    executor_trail_fini(e);
    executor_stalls_fini(e);
    for (int q = 0; q < QUEUE_COUNT; q++)
        device_stream_destroy(e->device, e->stream[q]);
    update_pool_destroy(e->updates);
    nvme_file_destroy(e->nvme);
    for (int s = 0; s < STEP_SLOTS; s++)
        if (e->done[s])
            device_mark_destroy(e->device, e->done[s]);
    for (int t = 0; t < TIER_COUNT; t++)
        arena_fini(&e->arena[t]);
    free(e);
}

int executor_set_loss_scale(struct executor *e, struct loss_scale scale, struct err *err)
{
    struct step_scalars *host = executor_at(e, e->plan->io.host_scalars[0]);
    int rc = 0;

    assert(e->plan->in.clip && !e->in_flight[0]);
    host->loss_scale = scale;
    TRY(device_copy(e->device, e->stream[QUEUE_COMPUTE], COPY_H2D, &executor_scalars(e)->loss_scale,
                    &host->loss_scale, sizeof scale, err));
    TRY(device_stream_sync(e->device, e->stream[QUEUE_COMPUTE], err));
    e->scales_losses = true;
out:
    return rc;
}

/* --- batches --- */

/* Micro-batch `micro` of a batch place: STEP_BATCH_ARRAYS arrays of rows. */
int32_t *executor_batch_array(struct executor *e, int32_t place, int64_t micro,
                              enum step_batch_array which)
{
    int64_t rows = e->plan->in.micro_batch * e->plan->in.seq_length;
    return (int32_t *)executor_at(e, place) + (micro * STEP_BATCH_ARRAYS + which) * rows;
}

void executor_batch(struct executor *e, int slot, int64_t micro, struct batch *view)
{
    int32_t place = e->plan->io.host_batch[slot];
    assert(micro >= 0 && micro < e->plan->in.micro_batches && !e->in_flight[slot]);
    *view = (struct batch){.B = e->plan->in.micro_batch,
                           .T = e->plan->in.seq_length,
                           .tokens = executor_batch_array(e, place, micro, STEP_TOKENS),
                           .targets = executor_batch_array(e, place, micro, STEP_TARGETS),
                           .positions = executor_batch_array(e, place, micro, STEP_POSITIONS),
                           .first_key = executor_batch_array(e, place, micro, STEP_FIRST_KEY)};
}

/* --- steps --- */

static int upload_batch(struct executor *e, int slot, struct err *err)
{
    return device_copy(
        e->device, e->stream[QUEUE_COMPUTE], COPY_H2D, executor_at(e, e->plan->io.batch),
        executor_at(e, e->plan->io.host_batch[slot]), plan_batch_bytes(e->plan), err);
}

static int download_rows(struct executor *e, int slot, struct err *err)
{
    return device_copy(e->device, e->stream[QUEUE_COMPUTE], COPY_D2H,
                       executor_at(e, e->plan->io.host_rows[slot]),
                       executor_at(e, e->plan->io.rows), plan_rows_bytes(e->plan), err);
}

int executor_step(struct executor *e, int slot, const struct step_input *in, struct err *err)
{
    struct step_scalars *host = executor_at(e, e->plan->io.host_scalars[slot]);
    int rc = 0;

    assert(!e->in_flight[slot]);
    TRY(executor_host_error(e, err));
    e->step = in->step;
    e->speculates = !in->wait_for_norm;
    e->adamw = (struct adamw_step){.lr = (float)in->learning_rate,
                                   .bias1 = (float)(1.0 - pow(e->config.beta1, (double)in->step)),
                                   .bias2 = (float)(1.0 - pow(e->config.beta2, (double)in->step)),
                                   .step = (uint32_t)in->step};
    *host = (struct step_scalars){.adamw = e->adamw,
                                  .grad_scale = (float)in->grad_scale,
                                  .unclipped = {.coef = 1.0f, .finite = 1}};
    TRY(upload_batch(e, slot, err));
    TRY(device_copy(e->device, e->stream[QUEUE_COMPUTE], COPY_H2D, executor_scalars(e), host,
                    offsetof(struct step_scalars, clip), err));
    e->slot_parity[slot] = (int)(e->edges[LIST_TRAIN].pass & 1);
    TRY(executor_issue(e, LIST_TRAIN, err));
    if (e->speculates)
        e->swapped = !e->swapped;
    TRY(download_rows(e, slot, err));
    TRY(device_copy(e->device, e->stream[QUEUE_COMPUTE], COPY_D2H, host, executor_scalars(e),
                    sizeof *host, err));
    TRY(device_mark_record(e->device, e->done[slot], e->stream[QUEUE_COMPUTE], err));
    e->in_flight[slot] = true;
out:
    return rc;
}

bool executor_in_flight(const struct executor *e, int slot)
{
    return e->in_flight[slot];
}

/* Losses in row order, in double: the same sum however the rows were cut into micro-batches. */
static void sum_rows(struct executor *e, int slot, int64_t rows, struct step_result *out)
{
    const char *base = executor_at(e, e->plan->io.host_rows[slot]);
    size_t stat = dtype_size(e->ops->stat);
    const int32_t *correct = (const int32_t *)(base + (size_t)plan_step_rows(e->plan) * stat);
    for (int64_t r = 0; r < rows; r++) {
        out->loss_sum +=
            e->ops->stat == DT_F64 ? ((const double *)base)[r] : ((const float *)base)[r];
        out->correct += correct[r];
    }
}

int executor_collect(struct executor *e, int slot, struct step_result *out, struct err *err)
{
    struct step_result r = {0};
    int rc = 0;

    assert(e->in_flight[slot]);
    TRY(device_mark_sync(e->device, e->done[slot], err));
    e->in_flight[slot] = false;
    const struct step_scalars *host = executor_at(e, e->plan->io.host_scalars[slot]);
    sum_rows(e, slot, plan_step_rows(e->plan), &r);
    r.grad_norm = host->clip.norm;
    r.clipped = host->clip.clipped;
    r.finite = host->clip.finite;
    if (e->scales_losses)
        r.loss_scale = host->loss_scale;
    TRY(executor_sum_stalls(e, e->slot_parity[slot], &r, err));
    if (e->host[QUEUE_CPU])
        executor_sum_updates(e, &r);
    TRY(executor_host_error(e, err));
    *out = r;
out:
    rc = executor_trail_explain(e, rc, err);
    return rc ? err_wrap(err, rc, "step %lld", (long long)e->step) : 0;
}

int executor_eval(struct executor *e, struct step_result *out, struct err *err)
{
    struct step_result r = {.finite = true};
    int rc = 0;

    assert(!e->in_flight[0]);
    TRY(executor_quiesce(e, err));
    TRY(upload_batch(e, 0, err));
    TRY(executor_issue(e, LIST_EVAL, err));
    TRY(download_rows(e, 0, err));
    TRY(executor_quiesce(e, err));
    sum_rows(e, 0, e->plan->in.micro_batch * e->plan->in.seq_length, &r);
    *out = r;
out:
    return rc;
}

/* What the loss op applies on its way: the block gives logits before scale and cap. */
static void finish_logits(const struct decoder_config *c, float *logits)
{
    float cap = (float)c->final_softcap;
    for (int64_t v = 0; v < c->vocab; v++) {
        logits[v] *= (float)c->logit_scale;
        if (cap > 0)
            logits[v] = cap * tanhf(logits[v] / cap);
    }
}

int executor_logits(struct executor *e, int64_t position, float *logits, struct err *err)
{
    int64_t vocab = e->plan->in.model->config.vocab;
    void *host = executor_at(e, e->plan->io.staging);
    int rc = 0;

    assert(!e->in_flight[0]);
    e->logit_position = position;
    TRY(executor_quiesce(e, err));
    TRY(upload_batch(e, 0, err));
    TRY(executor_issue(e, LIST_SAMPLE, err));
    TRY(device_copy(e->device, e->stream[QUEUE_COMPUTE], COPY_D2H, host,
                    executor_at(e, e->plan->io.logits), (size_t)vocab * dtype_size(e->ops->compute),
                    err));
    TRY(executor_quiesce(e, err));
    dtype_convert(DT_F32, logits, e->ops->compute, host, vocab);
    finish_logits(&e->plan->in.model->config, logits);
out:
    return rc;
}

struct nvme_counters executor_disk_counters(struct executor *e)
{
    return e->nvme ? nvme_file_counters(e->nvme) : (struct nvme_counters){0};
}
