/* Running a block: addresses of its tensors, its micro-batch and its results. */
#include "worker/train/executor_impl.h"

static void fill_batch(struct executor *e, int64_t micro, struct block_run *r)
{
    int32_t place = e->plan->io.batch;
    r->tokens = executor_batch_array(e, place, micro, STEP_TOKENS);
    r->targets = executor_batch_array(e, place, micro, STEP_TARGETS);
    r->positions = executor_batch_array(e, place, micro, STEP_POSITIONS);
    r->first_key = executor_batch_array(e, place, micro, STEP_FIRST_KEY);
    if (e->plan->io.rope == NO_PLACE)
        return;
    if (e->plan->in.model->config.position == POSITION_ALIBI) {
        r->alibi_slopes = executor_at(e, e->plan->io.rope);
    } else {
        r->rope = executor_at(e, e->plan->io.rope);
        r->rope_positions = e->plan->in.seq_length;
    }
}

static void fill_results(struct executor *e, enum plan_list list, int64_t micro,
                         struct block_run *r)
{
    int64_t rows = r->shape.B * r->shape.T;
    size_t stat = dtype_size(e->ops->stat);
    char *base = executor_at(e, e->plan->io.rows);

    if (list == LIST_SAMPLE) {
        r->logits = executor_at(e, e->plan->io.logits);
        r->logit_first = e->logit_position;
        r->logit_rows = 1;
        return;
    }
    r->row_loss = base + (size_t)(micro * rows) * stat;
    r->row_correct = (int32_t *)(base + (size_t)plan_step_rows(e->plan) * stat) + micro * rows;
    r->grad_scale = &executor_scalars(e)->grad_scale;
    r->loss_scale = e->scales_losses ? &executor_scalars(e)->loss_scale : NULL;
}

/* Addresses of the block's tensors inside its chunks. */
static void fill_tensors(struct executor *e, const struct instr *i, const struct block_operands *o,
                         void **weights, const float **scales, void **grads)
{
    const struct block_desc *b = &e->plan->in.model->blocks[i->block];
    for (int64_t t = 0; t < b->n_tensors; t++) {
        struct chunk_location l = e->plan->chunks.tensors[b->tensors[t]];
        const struct chunk *c = &e->plan->chunks.chunks[l.chunk];
        size_t offset = (size_t)c->members[l.member].offset;
        int32_t k = 0;
        while (o->chunk[k] != l.chunk)
            k++;
        char *param = o->param[k] != NO_PLACE ? executor_at(e, o->param[k]) : NULL;
        weights[t] = param ? param + chunk_param_at(c, l.member, e->plan->types) : NULL;
        scales[t] = param && c->quant != QUANT_NONE
                        ? (const float *)(const void *)(param + chunk_scales_at(c, l.member))
                        : NULL;
        size_t grad = dtype_size(chunk_grad_type(c, e->plan->types));
        grads[t] =
            o->grad[k] != NO_PLACE ? (char *)executor_at(e, o->grad[k]) + offset * grad : NULL;
    }
}

/* Zero elements [first, last) of a gradient place. */
static int clear(struct executor *e, const struct chunk *c, int32_t place, int64_t first,
                 int64_t last, struct stream *s, struct err *err)
{
    size_t each = dtype_size(chunk_grad_type(c, e->plan->types));
    if (first >= last)
        return 0;
    return device_zero(e->device, s, (char *)executor_at(e, place) + (size_t)first * each,
                       (size_t)(last - first) * each, err);
}

/* Before the first gradient of a step: the gaps between tensors, which every op over the chunk
 * reads, and the tensors that this block's backward only adds to, are zero. A place that is the
 * chunk's for good has kept its gaps. */
static int clear_gradient(struct executor *e, const struct instr *i, int32_t chunk, int32_t place,
                          struct stream *s, struct err *err)
{
    const struct chunk *c = &e->plan->chunks.chunks[chunk];
    bool gaps = !e->plan->places[place].persistent;
    bool adds = e->plan->in.model->blocks[i->block].kind == BLOCK_EMBED;
    int64_t end = 0;
    int rc = 0;

    if (adds)
        return clear(e, c, place, 0, c->n, s, err);
    for (int64_t m = 0; gaps && m < c->n_members; m++) {
        TRY(clear(e, c, place, end, c->members[m].offset, s, err));
        end = c->members[m].offset + c->members[m].elements;
    }
    if (gaps)
        TRY(clear(e, c, place, end, c->n, s, err));
out:
    return rc;
}

int executor_run_block(struct executor *e, enum plan_list list, const struct instr *i,
                       struct stream *s, struct err *err)
{
    const struct plan *p = e->plan;
    const struct block_operands *o = &p->operands[i->operands];
    void *weights[BLOCK_MAX_TENSORS], *grads[BLOCK_MAX_TENSORS];
    const float *scales[BLOCK_MAX_TENSORS];
    struct block_run r = {.model = p->in.model,
                          .block = i->block,
                          .shape = p->shapes[list],
                          .ops = e->ops,
                          .device = e->device,
                          .stream = s,
                          .watch = e->watch,
                          .weights = weights,
                          .scales = scales,
                          .grads = grads,
                          .grad_accum = i->first_grad ? ACCUM_ASSIGN : ACCUM_ADD,
                          .x = executor_at(e, o->x),
                          .y = executor_at(e, o->y),
                          .saved = executor_at(e, o->saved),
                          .scratch = executor_at(e, o->scratch),
                          .held = executor_at(e, o->held),
                          .held_copies = plan_holds_copies(p, i->block),
                          .first_forward = i->first_forward,
                          .dy = executor_at(e, o->dy),
                          .dx = executor_at(e, o->dx),
                          .seed = e->config.seed,
                          .step = (uint32_t)e->step,
                          .first_sequence = i->micro * p->in.micro_batch};
    int rc = 0;

    fill_tensors(e, i, o, weights, scales, grads);
    fill_batch(e, i->micro, &r);
    fill_results(e, list, i->micro, &r);
    if (i->op == INSTR_FORWARD)
        return block_forward(&r, err);
    for (int32_t k = 0; i->first_grad && k < o->n_chunks; k++)
        if (o->grad[k] != NO_PLACE)
            TRY(clear_gradient(e, i, o->chunk[k], o->grad[k], s, err));
    TRY(block_backward(&r, err));
out:
    return rc;
}
