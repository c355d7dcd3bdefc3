/*
 * The planner for jobs whose model data all fits on the compute device: every payload has a place
 * for the whole job, micro-batches pass the blocks one at a time (group size 1), nothing crosses a
 * link but batches and results.
 */
#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "kernels/device.h"
#include "worker/plan/layout.h"
#include "worker/plan/plan.h"
#include "worker/plan/step_io.h"

/* ---- chunks ---------------------------------------------------------------------------------- */

static void pack_chunks(struct plan *p)
{
    const struct model *m = p->in.model;
    struct chunk_input *in = xcalloc((size_t)m->n_tensors, sizeof *in);
    for (int64_t t = 0; t < m->n_tensors; t++)
        in[t] = (struct chunk_input){.elements = tensor_elements(&m->tensors[t]),
                                     .decay = m->tensors[t].decay,
                                     .trainable = m->tensors[t].trainable,
                                     .first_block = -1};
    for (int64_t b = 0; b < m->n_blocks; b++) {
        for (int64_t i = 0; i < m->blocks[b].n_tensors; i++) {
            struct chunk_input *t = &in[m->blocks[b].tensors[i]];
            if (t->n_blocks++ == 0)
                t->first_block = b;
            assert(t->n_blocks <= CHUNK_MAX_USES);
        }
    }
    chunk_set_init(&p->chunks, in, m->n_tensors);
    free(in);
}

static void place_chunks(struct plan *p, struct layout *l)
{
    p->chunk = xcalloc((size_t)p->chunks.n_chunks, sizeof *p->chunk);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        const struct chunk *ch = &p->chunks.chunks[c];
        struct plan_chunk *pc = &p->chunk[c];
        pc->param = layout_place(l, TIER_GPU, PURPOSE_WEIGHTS,
                                 chunk_payload_bytes(ch, PAYLOAD_PARAM, p->types), true);
        for (int u = 0; u < CHUNK_MAX_USES; u++)
            pc->grad[u] = NO_PLACE;
        if (!ch->trainable)
            continue;
        size_t slot = (size_t)ch->n * dtype_size(p->types.grad);
        for (int64_t u = 0; u < ch->uses; u++)
            pc->grad[u] = layout_place(l, TIER_GPU, PURPOSE_GRADIENTS, slot, true);
        pc->slices = xcalloc(1, sizeof *pc->slices);
        pc->n_slices = 1;
        pc->slices[0].n = ch->n;
        pc->slices[0].home =
            layout_place(l, TIER_GPU, PURPOSE_OPTIMIZER, plan_slice_bytes(p, &pc->slices[0]), true);
        pc->first_partial = p->n_partials;
        pc->n_partials = (ch->n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;
        p->n_partials += pc->n_partials;
    }
}

/* ---- places of the step as a whole ------------------------------------------------------------
 */

static void place_io(struct plan *p, struct layout *l)
{
    const struct plan_input *in = &p->in;
    size_t batch = plan_batch_bytes(p);
    size_t results = plan_rows_bytes(p);
    size_t largest = 0;

    p->io.batch = layout_place(l, TIER_GPU, PURPOSE_BUFFERS, batch, true);
    p->io.rows = layout_place(l, TIER_GPU, PURPOSE_BUFFERS, results, true);
    p->io.partials =
        layout_place(l, TIER_GPU, PURPOSE_BUFFERS, (size_t)p->n_partials * sizeof(double), true);
    p->io.scalars = layout_place(l, TIER_GPU, PURPOSE_BUFFERS, sizeof(struct step_scalars), true);
    p->io.rope = NO_PLACE;
    if (in->model->config.position == POSITION_ROPE)
        p->io.rope = layout_place(
            l, TIER_GPU, PURPOSE_BUFFERS,
            (size_t)model_rope_floats(&in->model->config, in->seq_length) * sizeof(float), true);
    else if (in->model->config.position == POSITION_ALIBI)
        p->io.rope = layout_place(l, TIER_GPU, PURPOSE_BUFFERS,
                                  (size_t)in->model->config.heads * sizeof(float), true);
    for (int slot = 0; slot < STEP_SLOTS; slot++) {
        p->io.host_batch[slot] = layout_place(l, TIER_HOST, PURPOSE_BUFFERS, batch, true);
        p->io.host_rows[slot] = layout_place(l, TIER_HOST, PURPOSE_BUFFERS, results, true);
        p->io.host_scalars[slot] =
            layout_place(l, TIER_HOST, PURPOSE_BUFFERS, sizeof(struct step_scalars), true);
    }
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        for (int k = 0; k < PAYLOAD_COUNT; k++) {
            size_t bytes = chunk_payload_bytes(&p->chunks.chunks[c], k, p->types);
            if (k != PAYLOAD_GRAD && bytes > largest)
                largest = bytes;
        }
    }
    size_t logits = (size_t)in->model->config.vocab * dtype_size(p->types.compute);
    p->io.staging =
        layout_place(l, TIER_HOST, PURPOSE_BUFFERS, largest > logits ? largest : logits, true);
}

/* ---- lists that run blocks ----------------------------------------------------------------------
 */

static int32_t add_operands(struct plan *p, struct block_operands o)
{
    if (p->n_operands == p->cap_operands) {
        p->cap_operands = p->cap_operands ? 2 * p->cap_operands : 64;
        p->operands = xrealloc(p->operands, (size_t)p->cap_operands * sizeof *p->operands);
    }
    p->operands[p->n_operands] = o;
    return (int32_t)p->n_operands++;
}

/* How many blocks before `block` use this chunk: the block's gradient slot. */
static int64_t chunk_use_index(const struct plan *p, int64_t chunk, int64_t block)
{
    const struct model *m = p->in.model;
    int64_t tensor = p->chunks.chunks[chunk].members[0].tensor;
    int64_t use = 0;
    for (int64_t b = 0; b < block; b++)
        for (int64_t i = 0; i < m->blocks[b].n_tensors; i++)
            use += m->blocks[b].tensors[i] == tensor;
    return use;
}

static struct block_operands block_chunks(const struct plan *p, int64_t block)
{
    const struct block_desc *b = &p->in.model->blocks[block];
    struct block_operands o = {.x = NO_PLACE,
                               .y = NO_PLACE,
                               .dy = NO_PLACE,
                               .dx = NO_PLACE,
                               .saved = NO_PLACE,
                               .scratch = NO_PLACE};
    for (int64_t i = 0; i < b->n_tensors; i++) {
        int32_t c = (int32_t)p->chunks.tensors[b->tensors[i]].chunk;
        int32_t k = 0;
        while (k < o.n_chunks && o.chunk[k] != c)
            k++;
        if (k < o.n_chunks)
            continue;
        assert(k < BLOCK_MAX_CHUNKS);
        o.chunk[k] = c;
        o.param[k] = p->chunk[c].param;
        o.grad[k] = p->chunks.chunks[c].uses > 1 ? p->chunk[c].grad[chunk_use_index(p, c, block)]
                                                 : p->chunk[c].grad[0];
        o.n_chunks++;
    }
    return o;
}

static size_t largest_scratch(const struct plan *p, enum plan_list list)
{
    size_t most = DEVICE_ALIGN;
    for (int64_t b = 0; b < p->in.model->n_blocks; b++) {
        struct block_bytes s = block_sizes(p->in.model, b, &p->shapes[list], p->in.ops);
        if (s.forward_scratch > most)
            most = s.forward_scratch;
        if (list == LIST_TRAIN && s.backward_scratch > most)
            most = s.backward_scratch;
    }
    return most;
}

static size_t boundary_bytes(const struct plan *p, enum plan_list list)
{
    const struct block_shape *s = &p->shapes[list];
    return (size_t)(s->B * s->T * p->in.model->config.hidden) * dtype_size(p->types.compute);
}

/* Operands of every block for one training micro-batch: all boundaries and saved tensors live until
 * backward. */
static int32_t train_operands(struct plan *p, struct layout *l)
{
    int64_t n = p->in.model->n_blocks;
    int32_t first = (int32_t)p->n_operands;
    size_t boundary = boundary_bytes(p, LIST_TRAIN);
    int32_t before = NO_PLACE;

    for (int64_t b = 0; b < n; b++) {
        struct block_operands o = block_chunks(p, b);
        size_t saved = block_sizes(p->in.model, b, &p->shapes[LIST_TRAIN], p->in.ops).saved;
        o.x = before;
        if (b < n - 1)
            o.y = layout_place(l, TIER_GPU, PURPOSE_ACTIVATIONS, boundary, false);
        if (saved > 0)
            o.saved = layout_place(l, TIER_GPU, PURPOSE_ACTIVATIONS, saved, false);
        before = o.y;
        add_operands(p, o);
    }
    /* One gradient boundary serves all: a block's dx may take the place of its dy. */
    int32_t d = layout_place(l, TIER_GPU, PURPOSE_ACTIVATIONS, boundary, false);
    int32_t scratch =
        layout_place(l, TIER_GPU, PURPOSE_WORKSPACE, largest_scratch(p, LIST_TRAIN), false);
    for (int64_t b = 0; b < n; b++) {
        struct block_operands *o = &p->operands[first + b];
        o->dy = b < n - 1 ? d : NO_PLACE;
        o->dx = b > 0 ? d : NO_PLACE;
        o->scratch = scratch;
    }
    return first;
}

/* Operands of every block for a forward pass alone: two boundaries take turns. */
static int32_t forward_operands(struct plan *p, struct layout *l, enum plan_list list)
{
    int64_t n = p->in.model->n_blocks;
    int32_t first = (int32_t)p->n_operands;
    int32_t turn[2];
    for (int i = 0; i < 2; i++)
        turn[i] = layout_place(l, TIER_GPU, PURPOSE_ACTIVATIONS, boundary_bytes(p, list), false);
    int32_t scratch = layout_place(l, TIER_GPU, PURPOSE_WORKSPACE, largest_scratch(p, list), false);

    for (int64_t b = 0; b < n; b++) {
        struct block_operands o = block_chunks(p, b);
        o.x = b > 0 ? turn[(b - 1) & 1] : NO_PLACE;
        o.y = b < n - 1 ? turn[b & 1] : NO_PLACE;
        o.scratch = scratch;
        add_operands(p, o);
    }
    return first;
}

static void add_block(struct plan *p, enum plan_list list, enum instr_op op, int64_t block,
                      int64_t micro, int32_t first_operands)
{
    struct instr i = instr_make(op, QUEUE_COMPUTE);
    i.block = (int32_t)block;
    i.micro = (int32_t)micro;
    i.operands = first_operands + (int32_t)block;
    if (op == INSTR_BACKWARD) {
        i.first_grad = micro == 0;
        i.last_grad = micro == p->in.micro_batches - 1;
    }
    instr_list_add(&p->lists[list], i);
}

/* Gradients of the chunks whose first use is `block` are complete behind its last backward. */
static void add_reduces(struct plan *p, int64_t block)
{
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        if (p->chunks.chunks[c].first_use != block || !p->chunks.chunks[c].trainable)
            continue;
        struct instr i = instr_make(INSTR_REDUCE, QUEUE_COMPUTE);
        i.chunk = (int32_t)c;
        i.payload = PAYLOAD_GRAD;
        i.src = i.dst = p->chunk[c].grad[0];
        instr_list_add(&p->lists[LIST_TRAIN], i);
    }
}

static void build_train(struct plan *p, struct layout l)
{
    int64_t n = p->in.model->n_blocks, bottom = model_first_trained(p->in.model);
    int32_t first = train_operands(p, &l);
    struct instr_list *list = &p->lists[LIST_TRAIN];

    for (int64_t micro = 0; micro < p->in.micro_batches; micro++) {
        /* The head's backward runs its own forward, slice by slice of rows. */
        for (int64_t b = 0; b < n - 1; b++)
            add_block(p, LIST_TRAIN, INSTR_FORWARD, b, micro, first);
        for (int64_t b = n - 1; b >= bottom; b--) {
            add_block(p, LIST_TRAIN, INSTR_BACKWARD, b, micro, first);
            if (micro == p->in.micro_batches - 1)
                add_reduces(p, b);
        }
    }
    instr_list_add(list, instr_make(INSTR_NORM, QUEUE_COMPUTE));
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        for (int64_t k = 0; k < p->chunk[c].n_slices; k++) {
            struct instr i = instr_make(INSTR_UPDATE, QUEUE_COMPUTE);
            i.chunk = (int32_t)c;
            i.slice = (int32_t)k;
            i.payload = PAYLOAD_STATE;
            i.src = p->chunk[c].grad[0];
            i.dst = p->chunk[c].param;
            i.state = p->chunk[c].slices[k].home;
            instr_list_add(list, i);
        }
    }
}

static void build_forward(struct plan *p, struct layout l, enum plan_list list)
{
    int32_t first = forward_operands(p, &l, list);
    if (list == LIST_SAMPLE)
        p->io.logits =
            layout_place(&l, TIER_GPU, PURPOSE_BUFFERS,
                         (size_t)p->in.model->config.vocab * dtype_size(p->types.compute), false);
    for (int64_t b = 0; b < p->in.model->n_blocks; b++)
        add_block(p, list, INSTR_FORWARD, b, 0, first);
}

/* ---- lists that move payloads -------------------------------------------------------------------
 */

static void add_transfer(struct plan *p, enum plan_list list, int64_t chunk, int64_t slice,
                         int32_t home)
{
    bool load = list == LIST_LOAD;
    struct instr i = load ? instr_make(INSTR_FETCH, QUEUE_H2D) : instr_make(INSTR_EVICT, QUEUE_D2H);
    i.chunk = (int32_t)chunk;
    i.slice = (int32_t)slice;
    i.payload = slice < 0 ? PAYLOAD_PARAM : PAYLOAD_STATE;
    i.src = load ? p->io.staging : home;
    i.dst = load ? home : p->io.staging;
    instr_list_add(&p->lists[list], i);
}

static void build_transfer(struct plan *p, enum plan_list list)
{
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        if (list == LIST_SAVE && !p->chunks.chunks[c].trainable)
            continue;
        add_transfer(p, list, c, -1, p->chunk[c].param);
        for (int64_t k = 0; k < p->chunk[c].n_slices; k++)
            add_transfer(p, list, c, k, p->chunk[c].slices[k].home);
    }
}

/* ---- the whole ----------------------------------------------------------------------------------
 */

static int check_input(const struct plan_input *in, struct err *err)
{
    if (in->policy == PLACE_CPU)
        return err_set(err, ERR_UNSUPPORTED,
                       "placement.policy \"cpu\" is not built yet; use \"auto\" or \"cuda\"");
    if (mesh_ranks(&in->mesh) != 1)
        return err_set(err, ERR_UNSUPPORTED,
                       "parallelism over %lld ranks is not built yet; use one rank",
                       (long long)mesh_ranks(&in->mesh));
    assert(!in->bf16_master || in->ops->compute == DT_BF16);
    assert(in->micro_batch > 0 && in->micro_batches > 0 && in->seq_length > 1 && in->head_rows > 0);
    return 0;
}

static int check_budgets(const struct plan *p, struct err *err)
{
    for (int t = 0; t < TIER_COUNT; t++) {
        size_t limit = p->in.limit[t];
        if (limit == 0 || p->claim[t] <= limit)
            continue;
        int rc =
            err_set(err, ERR_DEVICE_OOM,
                    "the job needs %.1f MiB of %s memory and may use %.1f MiB, %.1f MiB short; "
                    "a smaller optimization.micro_batch_size or dataset.max_seq_length needs "
                    "less, or raise the limit",
                    (double)p->claim[t] / 1048576.0, plan_tier_name(t), (double)limit / 1048576.0,
                    (double)(p->claim[t] - limit) / 1048576.0);
        return err_set_reason(err, rc, "insufficient_memory");
    }
    return 0;
}

static void set_shapes(struct plan *p)
{
    const struct plan_input *in = &p->in;
    p->shapes[LIST_TRAIN] = (struct block_shape){.B = in->micro_batch,
                                                 .T = in->seq_length,
                                                 .head_rows = in->head_rows,
                                                 .train = true,
                                                 .keep_cheap = p->chosen.cheap != 0,
                                                 .embed_dropout = in->embed_dropout,
                                                 .hidden_dropout = in->hidden_dropout,
                                                 .attn_dropout = in->attn_dropout,
                                                 .lora_dropout = in->model->adapters.dropout};
    p->shapes[LIST_EVAL] =
        (struct block_shape){.B = in->micro_batch, .T = in->seq_length, .head_rows = in->head_rows};
    p->shapes[LIST_SAMPLE] =
        (struct block_shape){.B = 1, .T = in->seq_length, .head_rows = in->head_rows};
}

static int build(const struct plan_input *in, bool cheap, struct plan **out, struct err *err)
{
    struct plan *p = xcalloc(1, sizeof *p);
    int rc = 0;

    p->in = *in;
    p->types = (struct chunk_types){.compute = in->ops->compute,
                                    .grad = in->ops->grad,
                                    .master = in->bf16_master ? DT_BF16 : in->ops->master,
                                    .moment = in->bf16_moments ? DT_BF16 : in->ops->master};
    p->chosen.cheap = cheap;
    set_shapes(p);
    pack_chunks(p);

    struct layout l = {.plan = p};
    place_chunks(p, &l);
    place_io(p, &l);
    build_train(p, l);
    build_forward(p, l, LIST_EVAL);
    build_forward(p, l, LIST_SAMPLE);
    build_transfer(p, LIST_LOAD);
    build_transfer(p, LIST_SAVE);
    TRY(check_budgets(p, err));
    for (int list = 0; list < LIST_COUNT; list++) {
        struct plan_simulation sim;
        TRY(plan_simulate(p, list, &sim, err));
    }
    *out = p;
    p = NULL;
out:
    plan_destroy(p);
    return rc;
}

/* Keep what backward would make again, if there is room for it: that is faster, and nothing else.
 */
int plan_build(const struct plan_input *in, struct plan **out, struct err *err)
{
    bool choose = in->force.cheap == PLAN_AUTO;
    int rc = check_input(in, err);

    if (rc == 0)
        rc = build(in, in->force.cheap != 0, out, err);
    if (rc == ERR_DEVICE_OOM && choose) {
        err_clear(err);
        rc = build(in, false, out, err);
    }
    return rc;
}
