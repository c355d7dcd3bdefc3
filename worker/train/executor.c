#include "worker/train/executor.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/memory/arena.h"

struct executor {
    struct executor_config config;
    const struct plan *plan;
    const struct op_table *ops;
    struct device *device;
    struct arena arena[TIER_COUNT]; /* gpu: device memory; host: pinned */
    struct stream *compute;
    struct event_mark *done[STEP_SLOTS];
    bool in_flight[STEP_SLOTS];
    int64_t step; /* of the list being executed */
    int64_t logit_position;
    payload_fn transfer;
    void *transfer_ud;
};

static void *at(struct executor *e, int32_t place)
{
    if (place == NO_PLACE)
        return NULL;
    const struct place *p = &e->plan->places[place];
    return arena_at(&e->arena[p->tier], p->offset, p->bytes);
}

static struct step_scalars *scalars(struct executor *e)
{
    return at(e, e->plan->io.scalars);
}

/* ---- life
 * ---------------------------------------------------------------------------------------- */

static int upload_rope(struct executor *e, struct err *err)
{
    const struct plan *p = e->plan;
    if (p->io.rope == NO_PLACE)
        return 0;
    const struct decoder_config *c = &p->in.model->config;
    bool alibi = c->position == POSITION_ALIBI;
    int64_t half = p->in.seq_length * c->rope.dim / 2, n = alibi ? c->heads : 2 * half;
    int rc = 0;
    float *tables = xcalloc((size_t)n, sizeof *tables);
    if (alibi)
        model_alibi_slopes(c, tables);
    else
        model_rope_tables(c, p->in.seq_length, tables, tables + half);
    TRY(device_copy(e->device, e->compute, COPY_H2D, at(e, p->io.rope), tables,
                    (size_t)n * sizeof *tables, err));
    TRY(device_stream_sync(e->device, e->compute, err));
out:
    free(tables);
    return rc;
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
    assert(p->claim[TIER_NVME] == 0);
    TRY(device_stream_create(e->device, 0, &e->compute, err));
    for (int s = 0; s < STEP_SLOTS; s++)
        TRY(device_mark_create(e->device, &e->done[s], err));
    /* Gaps between tensors must hold zeros; everything else is written before it is read. */
    TRY(device_zero(e->device, e->compute, e->arena[TIER_GPU].base, e->arena[TIER_GPU].bytes, err));
    TRY(upload_rope(e, err));
    *out = e;
    e = NULL;
out:
    executor_destroy(e);
    return rc;
}

void executor_destroy(struct executor *e)
{
    if (!e)
        return;
    if (e->compute) {
        device_stream_sync(e->device, e->compute, NULL);
        device_stream_destroy(e->device, e->compute);
    }
    for (int s = 0; s < STEP_SLOTS; s++)
        if (e->done[s])
            device_mark_destroy(e->device, e->done[s]);
    for (int t = 0; t < TIER_COUNT; t++)
        arena_fini(&e->arena[t]);
    free(e);
}

/* ---- batches
 * ------------------------------------------------------------------------------------- */

/* Micro-batch `micro` of a batch place: STEP_BATCH_ARRAYS arrays of rows. */
static int32_t *batch_array(struct executor *e, int32_t place, int64_t micro,
                            enum step_batch_array which)
{
    int64_t rows = e->plan->in.micro_batch * e->plan->in.seq_length;
    return (int32_t *)at(e, place) + (micro * STEP_BATCH_ARRAYS + which) * rows;
}

void executor_batch(struct executor *e, int slot, int64_t micro, struct batch *view)
{
    int32_t place = e->plan->io.host_batch[slot];
    assert(micro >= 0 && micro < e->plan->in.micro_batches && !e->in_flight[slot]);
    *view = (struct batch){.B = e->plan->in.micro_batch,
                           .T = e->plan->in.seq_length,
                           .tokens = batch_array(e, place, micro, STEP_TOKENS),
                           .targets = batch_array(e, place, micro, STEP_TARGETS),
                           .positions = batch_array(e, place, micro, STEP_POSITIONS),
                           .first_key = batch_array(e, place, micro, STEP_FIRST_KEY)};
}

/* ---- instructions
 * -------------------------------------------------------------------------------- */

static int launched(int rc, const struct executor *e, const struct instr *i, struct err *err)
{
    if (rc == 0)
        return 0;
    rc = err_set(err, rc, "the device refused the work");
    return err_wrap(err, rc, "step %lld, %s block %d chunk %d", (long long)e->step,
                    instr_op_name(i->op), i->block, i->chunk);
}

static void fill_batch(struct executor *e, int64_t micro, struct block_run *r)
{
    int32_t place = e->plan->io.batch;
    r->tokens = batch_array(e, place, micro, STEP_TOKENS);
    r->targets = batch_array(e, place, micro, STEP_TARGETS);
    r->positions = batch_array(e, place, micro, STEP_POSITIONS);
    r->first_key = batch_array(e, place, micro, STEP_FIRST_KEY);
    if (e->plan->io.rope == NO_PLACE)
        return;
    if (e->plan->in.model->config.position == POSITION_ALIBI) {
        r->alibi_slopes = at(e, e->plan->io.rope);
    } else {
        r->rope_cos = at(e, e->plan->io.rope);
        r->rope_sin = r->rope_cos + e->plan->in.seq_length * e->plan->in.model->config.rope.dim / 2;
    }
}

static void fill_results(struct executor *e, enum plan_list list, int64_t micro,
                         struct block_run *r)
{
    int64_t rows = r->shape.B * r->shape.T;
    size_t stat = dtype_size(e->ops->stat);
    char *base = at(e, e->plan->io.rows);

    if (list == LIST_SAMPLE) {
        r->logits = at(e, e->plan->io.logits);
        r->logit_first = e->logit_position;
        r->logit_rows = 1;
        return;
    }
    r->row_loss = base + (size_t)(micro * rows) * stat;
    r->row_correct = (int32_t *)(base + (size_t)plan_step_rows(e->plan) * stat) + micro * rows;
    r->grad_scale = &scalars(e)->grad_scale;
}

/* Addresses of the block's tensors inside its chunks. */
static void fill_tensors(struct executor *e, const struct instr *i, const struct block_operands *o,
                         void **weights, void **grads)
{
    const struct block_desc *b = &e->plan->in.model->blocks[i->block];
    for (int64_t t = 0; t < b->n_tensors; t++) {
        struct chunk_location l = e->plan->chunks.tensors[b->tensors[t]];
        const struct chunk *c = &e->plan->chunks.chunks[l.chunk];
        size_t offset = (size_t)c->members[l.member].offset;
        int32_t k = 0;
        while (o->chunk[k] != l.chunk)
            k++;
        weights[t] = (char *)at(e, o->param[k]) + offset * dtype_size(e->ops->compute);
        grads[t] =
            c->trainable ? (char *)at(e, o->grad[k]) + offset * dtype_size(e->ops->grad) : NULL;
    }
}

static int run_block(struct executor *e, enum plan_list list, const struct instr *i,
                     struct err *err)
{
    const struct plan *p = e->plan;
    const struct block_operands *o = &p->operands[i->operands];
    void *weights[BLOCK_MAX_TENSORS], *grads[BLOCK_MAX_TENSORS];
    struct block_run r = {.model = p->in.model,
                          .block = i->block,
                          .shape = p->shapes[list],
                          .ops = e->ops,
                          .device = e->device,
                          .stream = e->compute,
                          .weights = weights,
                          .grads = grads,
                          .grad_accum = i->first_grad ? ACCUM_ASSIGN : ACCUM_ADD,
                          .x = at(e, o->x),
                          .y = at(e, o->y),
                          .saved = at(e, o->saved),
                          .scratch = at(e, o->scratch),
                          .dy = at(e, o->dy),
                          .dx = at(e, o->dx),
                          .seed = e->config.seed,
                          .step = (uint32_t)e->step,
                          .first_sequence = i->micro * p->in.micro_batch};
    int rc = 0;

    fill_tensors(e, i, o, weights, grads);
    fill_batch(e, i->micro, &r);
    fill_results(e, list, i->micro, &r);
    if (i->op == INSTR_FORWARD)
        return block_forward(&r, err);
    for (int32_t k = 0; i->first_grad && k < o->n_chunks; k++)
        if (o->grad[k] != NO_PLACE)
            TRY(device_zero(e->device, e->compute, at(e, o->grad[k]), p->places[o->grad[k]].bytes,
                            err));
    TRY(block_backward(&r, err));
out:
    return rc;
}

static int run_reduce(struct executor *e, const struct instr *i, struct err *err)
{
    const struct chunk *c = &e->plan->chunks.chunks[i->chunk];
    const struct plan_chunk *pc = &e->plan->chunk[i->chunk];
    int rc = 0;

    for (int64_t u = 1; u < c->uses; u++) {
        struct add_args a = {.n = c->n, .x = at(e, pc->grad[u]), .y = at(e, pc->grad[0])};
        TRY(launched(e->ops->add(e->compute, &a), e, i, err));
    }
    TRY(comm_all_reduce(e->config.data_comm, e->compute, at(e, pc->grad[0]), c->n, e->ops->grad,
                        err));
    struct sumsq_args a = {.n = c->n,
                           .x = at(e, pc->grad[0]),
                           .partial = (double *)at(e, e->plan->io.partials) + pc->first_partial};
    TRY(launched(e->ops->sumsq(e->compute, &a), e, i, err));
out:
    return rc;
}

static int run_norm(struct executor *e, const struct instr *i, struct err *err)
{
    struct clip_args a = {.n = e->plan->n_partials,
                          .partial = at(e, e->plan->io.partials),
                          .max_norm = (float)e->config.max_grad_norm,
                          .inv_scale = 1.0f,
                          .result = &scalars(e)->clip};
    return launched(e->ops->clip(e->compute, &a), e, i, err);
}

static int run_update(struct executor *e, const struct instr *i, struct err *err)
{
    const struct chunk *c = &e->plan->chunks.chunks[i->chunk];
    const struct plan_slice *s = &e->plan->chunk[i->chunk].slices[i->slice];
    size_t first = (size_t)s->first, one = (size_t)s->n * dtype_size(e->ops->master);
    bool master = chunk_has_master(e->plan->types);
    char *state = at(e, i->state);
    char *param = (char *)at(e, i->dst) + first * dtype_size(e->ops->compute);
    char *moments = master ? state + one : state;
    int64_t decay = c->n_decay - s->first;
    struct adamw_args a = {.n = s->n,
                           .n_decay = decay < 0      ? 0
                                      : decay < s->n ? decay
                                                     : s->n,
                           .beta1 = (float)e->config.beta1,
                           .beta2 = (float)e->config.beta2,
                           .eps = (float)e->config.epsilon,
                           .weight_decay = (float)e->config.weight_decay,
                           .step = &scalars(e)->adamw,
                           .clip = e->plan->in.clip ? &scalars(e)->clip : &scalars(e)->unclipped,
                           .grad_type = e->ops->grad,
                           .grad = (char *)at(e, i->src) + first * dtype_size(e->ops->grad),
                           .master = master ? state : param,
                           .m = moments,
                           .v = moments + one,
                           .param = master ? param : NULL};
    return launched(e->ops->adamw(e->compute, &a), e, i, err);
}

/* A payload through the staging place: the host fills or reads it between the copies, so these
 * lists synchronise. */
static int run_transfer(struct executor *e, const struct instr *i, struct err *err)
{
    const struct plan *p = e->plan;
    size_t bytes = i->payload == PAYLOAD_STATE
                       ? plan_slice_bytes(p, &p->chunk[i->chunk].slices[i->slice])
                       : chunk_payload_bytes(&p->chunks.chunks[i->chunk], i->payload, p->types);
    bool load = i->op == INSTR_FETCH;
    int rc = 0;

    if (load)
        TRY(e->transfer(e->transfer_ud, i->chunk, i->payload, at(e, i->src), bytes, err));
    TRY(device_copy(e->device, e->compute, load ? COPY_H2D : COPY_D2H, at(e, i->dst), at(e, i->src),
                    bytes, err));
    TRY(device_stream_sync(e->device, e->compute, err));
    if (!load)
        TRY(e->transfer(e->transfer_ud, i->chunk, i->payload, at(e, i->dst), bytes, err));
out:
    return rc;
}

static void leave_crumb(struct executor *e, enum plan_list list, const struct instr *i)
{
    struct crumb *c = e->config.crumb;
    if (!c)
        return;
    c->step = e->step;
    snprintf(c->where, sizeof c->where, "%s %s block %d chunk %d micro %d", plan_list_name(list),
             instr_op_name(i->op), i->block, i->chunk, i->micro);
}

static int run_list(struct executor *e, enum plan_list list, struct err *err)
{
    const struct instr_list *l = &e->plan->lists[list];
    int rc = 0;

    for (int64_t n = 0; n < l->n; n++) {
        const struct instr *i = &l->items[n];
        leave_crumb(e, list, i);
        switch (i->op) {
        case INSTR_FORWARD:
        case INSTR_BACKWARD:
            TRY(run_block(e, list, i, err));
            break;
        case INSTR_REDUCE:
            TRY(run_reduce(e, i, err));
            break;
        case INSTR_NORM:
            TRY(run_norm(e, i, err));
            break;
        case INSTR_UPDATE:
            TRY(run_update(e, i, err));
            break;
        case INSTR_FETCH:
        case INSTR_EVICT:
            TRY(run_transfer(e, i, err));
            break;
        default:
            rc = err_set(err, ERR_UNSUPPORTED, "instruction %s is not executed by this build",
                         instr_op_name(i->op));
            goto out;
        }
    }
out:
    return rc ? err_wrap(err, rc, "list %s", plan_list_name(list)) : 0;
}

/* ---- steps
 * --------------------------------------------------------------------------------------- */

static int upload_batch(struct executor *e, int slot, struct err *err)
{
    return device_copy(e->device, e->compute, COPY_H2D, at(e, e->plan->io.batch),
                       at(e, e->plan->io.host_batch[slot]), plan_batch_bytes(e->plan), err);
}

static int download_rows(struct executor *e, int slot, struct err *err)
{
    return device_copy(e->device, e->compute, COPY_D2H, at(e, e->plan->io.host_rows[slot]),
                       at(e, e->plan->io.rows), plan_rows_bytes(e->plan), err);
}

int executor_step(struct executor *e, int slot, const struct step_input *in, struct err *err)
{
    struct step_scalars *host = at(e, e->plan->io.host_scalars[slot]);
    int rc = 0;

    assert(!e->in_flight[slot]);
    e->step = in->step;
    *host = (struct step_scalars){
        .adamw = {.lr = (float)in->learning_rate,
                  .bias1 = (float)(1.0 - pow(e->config.beta1, (double)in->step)),
                  .bias2 = (float)(1.0 - pow(e->config.beta2, (double)in->step))},
        .grad_scale = (float)in->grad_scale,
        .unclipped = {.coef = 1.0f, .finite = 1}};
    TRY(upload_batch(e, slot, err));
    TRY(device_copy(e->device, e->compute, COPY_H2D, scalars(e), host, sizeof *host, err));
    TRY(run_list(e, LIST_TRAIN, err));
    TRY(download_rows(e, slot, err));
    TRY(device_copy(e->device, e->compute, COPY_D2H, host, scalars(e), sizeof *host, err));
    TRY(device_mark_record(e->device, e->done[slot], e->compute, err));
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
    const char *base = at(e, e->plan->io.host_rows[slot]);
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
    const struct step_scalars *host = at(e, e->plan->io.host_scalars[slot]);
    sum_rows(e, slot, plan_step_rows(e->plan), &r);
    r.grad_norm = host->clip.norm;
    r.clipped = host->clip.clipped;
    r.finite = host->clip.finite;
    *out = r;
out:
    return rc ? err_wrap(err, rc, "step %lld", (long long)e->step) : 0;
}

int executor_eval(struct executor *e, struct step_result *out, struct err *err)
{
    struct step_result r = {.finite = true};
    int rc = 0;

    assert(!e->in_flight[0]);
    TRY(upload_batch(e, 0, err));
    TRY(run_list(e, LIST_EVAL, err));
    TRY(download_rows(e, 0, err));
    TRY(device_stream_sync(e->device, e->compute, err));
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
    void *host = at(e, e->plan->io.staging);
    int rc = 0;

    assert(!e->in_flight[0]);
    e->logit_position = position;
    TRY(upload_batch(e, 0, err));
    TRY(run_list(e, LIST_SAMPLE, err));
    TRY(device_copy(e->device, e->compute, COPY_D2H, host, at(e, e->plan->io.logits),
                    (size_t)vocab * dtype_size(e->ops->compute), err));
    TRY(device_stream_sync(e->device, e->compute, err));
    dtype_convert(DT_F32, logits, e->ops->compute, host, vocab);
    finish_logits(&e->plan->in.model->config, logits);
out:
    return rc;
}

int executor_transfer(struct executor *e, enum plan_list list, payload_fn fn, void *ud,
                      struct err *err)
{
    assert(list == LIST_LOAD || list == LIST_SAVE);
    e->transfer = fn;
    e->transfer_ud = ud;
    return run_list(e, list, err);
}
