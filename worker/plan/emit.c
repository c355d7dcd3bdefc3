/*
 * The training list. Groups of micro-batches pass the blocks one visit after the other, forward and
 * back; around the visits stand the moves of parameters, gradients and boundary activations, and
 * behind each chunk's last gradient its update.
 */
#include "worker/plan/build.h"

#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "kernels/device.h"

struct emit {
    struct plan *p;
    struct instr_list *list;
    struct itinerary it;
    int64_t n_blocks, bottom;
    int32_t *param_at;                /* by chunk: where its parameters are now               */
    int32_t *grad_at;                 /* by chunk and use: the gradient so far, gpu           */
    int32_t *sum_at;                  /* likewise in host memory, between groups              */
    int32_t *spilled;                 /* by chunk: the rounded gradient, host, or of its first
                                         piece, disk                                          */
    int32_t *x_at;                    /* by block and micro-batch: its input, gpu             */
    int32_t *x_host;                  /* likewise in host memory, NO_PLACE = it stays         */
    int32_t *saved_at;                /* likewise: saved tensors kept for backward            */
    int32_t *saved_host;              /* while they wait in host memory                       */
    int32_t *held_at;                 /* by block: what is held through the step              */
    int32_t *d_at;                    /* by micro-batch: the gradient on its way down         */
    int32_t scratch, remade;          /* that a visit's micro-batches share: work space, and  */
                                      /* saved tensors that are made again                    */
    bool *updated;                    /* by chunk                                             */
    struct instr staged[PLAN_STAGES]; /* updates that wait for what is read from the disk */
    int64_t n_staged;
    struct stages states, grads, params; /* of those; */
    struct stages passing;               /* of fetches and spills */
};

static int32_t *no_places(int64_t n)
{
    int32_t *at = xcalloc((size_t)n, sizeof *at);
    for (int64_t k = 0; k < n; k++)
        at[k] = NO_PLACE;
    return at;
}

static void emit_init(struct emit *e, struct plan *p)
{
    int64_t chunks = p->chunks.n_chunks, n = p->in.model->n_blocks;
    *e = (struct emit){.p = p,
                       .list = &p->lists[LIST_TRAIN],
                       .n_blocks = n,
                       .bottom = model_first_trained(p->in.model),
                       .param_at = no_places(chunks),
                       .grad_at = no_places(chunks * CHUNK_MAX_USES),
                       .sum_at = no_places(chunks * CHUNK_MAX_USES),
                       .spilled = no_places(chunks),
                       .x_at = no_places(n * p->in.micro_batches),
                       .x_host = no_places(n * p->in.micro_batches),
                       .saved_at = no_places(n * p->in.micro_batches),
                       .saved_host = no_places(n * p->in.micro_batches),
                       .d_at = no_places(p->in.micro_batches),
                       .held_at = no_places(n),
                       .states = {.payload = PAYLOAD_STATE},
                       .grads = {.payload = PAYLOAD_GRAD},
                       .params = {.payload = PAYLOAD_PARAM},
                       .passing = {.payload = PAYLOAD_PARAM},
                       .updated = xcalloc((size_t)chunks, sizeof(bool))};
    plan_train_itinerary(p, &e->it);
}

static void emit_fini(struct emit *e)
{
    int32_t *all[] = {e->param_at, e->grad_at,  e->sum_at,     e->spilled, e->x_at,
                      e->x_host,   e->saved_at, e->saved_host, e->d_at,    e->held_at};
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
        free(all[k]);
    free(e->updated);
    plan_itinerary_fini(&e->it);
}

static void add_move(struct emit *e, enum instr_op op, enum queue queue, int32_t src, int32_t dst)
{
    struct instr i = instr_make(op, queue);
    i.src = src;
    i.dst = dst;
    instr_list_add(e->list, i);
}

/* piece: -1 = all of it */
static void add_gradient_move(struct emit *e, enum instr_op op, enum queue queue, int64_t chunk,
                              int64_t piece, int32_t src, int32_t dst)
{
    struct instr i = instr_make(op, queue);
    i.chunk = (int32_t)chunk;
    i.slice = (int32_t)piece;
    i.payload = PAYLOAD_GRAD;
    i.src = src;
    i.dst = dst;
    instr_list_add(e->list, i);
}

/* --- activations --- */

/* Layers of the lower part recompute their saved tensors; the embedding cannot. */
static bool keeps_saved(const struct emit *e, int64_t block)
{
    const struct block_desc *b = &e->p->in.model->blocks[block];
    return b->kind != BLOCK_LAYER || b->layer >= e->p->in.model->config.layers - e->p->chosen.keep;
}

/* Of the layers that keep them, those whose saved tensors wait in host memory. The embedding's are
 * of a boundary's size and wait where boundaries do. */
static bool offloads_saved(const struct emit *e, int64_t block)
{
    const struct block_desc *b = &e->p->in.model->blocks[block];
    int64_t keep = e->p->chosen.keep, n = e->p->chosen.offload_saved;
    if (b->kind == BLOCK_EMBED)
        return e->p->chosen.offload_boundaries && block >= e->bottom;
    if (b->kind != BLOCK_LAYER || !keeps_saved(e, block) || block < e->bottom)
        return false;
    int64_t nth = b->layer - (e->p->in.model->config.layers - keep);
    return nth * n % keep < n;
}

static int32_t add_saved(struct emit *e, int64_t block, enum plan_tier tier)
{
    size_t bytes = e->p->sizes[LIST_TRAIN][block].saved;
    return bytes > 0 ? plan_add_place(e->p, tier, PURPOSE_ACTIVATIONS, bytes, false) : NO_PLACE;
}

static int32_t add_held(struct emit *e, int64_t block)
{
    const struct block_bytes *s = &e->p->sizes[LIST_TRAIN][block];
    size_t bytes = plan_holds_copies(e->p, block) ? s->held_copies : s->held;
    return bytes > 0 ? plan_add_place(e->p, TIER_GPU, PURPOSE_WEIGHTS, bytes, false) : NO_PLACE;
}

/* What the micro-batches of a visit use one after the other. */
static void share_places(struct emit *e, const struct visit *v)
{
    const struct block_bytes *s = &e->p->sizes[LIST_TRAIN][v->block];
    bool head = v->block == e->n_blocks - 1; /* its forward is part of its backward */
    bool remake = head || !keeps_saved(e, v->block);
    size_t scratch = v->backward ? s->backward_scratch : s->forward_scratch;

    if (v->backward && remake && !head && scratch < s->forward_scratch)
        scratch = s->forward_scratch;
    e->scratch =
        scratch > 0 ? plan_add_place(e->p, TIER_GPU, PURPOSE_WORKSPACE, scratch, false) : NO_PLACE;
    e->remade = remake ? add_saved(e, v->block, TIER_GPU) : NO_PLACE;
}

static int32_t add_boundary(struct emit *e, enum plan_tier tier)
{
    return plan_add_place(e->p, tier, PURPOSE_ACTIVATIONS, plan_boundary_bytes(e->p, LIST_TRAIN),
                          false);
}

/* The input of `block`, just made, leaves for host memory if it is to wait there for backward. The
 * head's backward comes at once. */
static void save_boundary(struct emit *e, int64_t block, int64_t micro)
{
    int64_t at = block * e->p->in.micro_batches + micro;
    if (!e->p->chosen.offload_boundaries || block < e->bottom || block == e->n_blocks - 1)
        return;
    e->x_host[at] = add_boundary(e, TIER_HOST);
    add_move(e, INSTR_SAVE_ACT, QUEUE_D2H, e->x_at[at], e->x_host[at]);
}

static void load_boundary(struct emit *e, int64_t block, int64_t micro)
{
    int64_t at = block * e->p->in.micro_batches + micro;
    if (e->x_host[at] == NO_PLACE)
        return;
    e->x_at[at] = add_boundary(e, TIER_GPU);
    add_move(e, INSTR_LOAD_ACT, QUEUE_H2D, e->x_host[at], e->x_at[at]);
}

static void move_saved(struct emit *e, int64_t block, int64_t micro, enum instr_op op, int32_t src,
                       int32_t dst)
{
    struct instr i = instr_make(op, op == INSTR_SAVE_ACT ? QUEUE_D2H : QUEUE_H2D);
    i.block = (int32_t)block;
    i.micro = (int32_t)micro;
    i.src = src;
    i.dst = dst;
    instr_list_add(e->list, i);
}

static void save_saved(struct emit *e, int64_t block, int64_t micro)
{
    int64_t at = block * e->p->in.micro_batches + micro;
    if (!offloads_saved(e, block) || e->saved_at[at] == NO_PLACE)
        return;
    e->saved_host[at] = add_saved(e, block, TIER_HOST);
    move_saved(e, block, micro, INSTR_SAVE_ACT, e->saved_at[at], e->saved_host[at]);
}

/* If they are not on their way already. */
static void load_saved(struct emit *e, int64_t block, int64_t micro)
{
    int64_t at = block * e->p->in.micro_batches + micro;
    if (e->saved_host[at] == NO_PLACE)
        return;
    e->saved_at[at] = add_saved(e, block, TIER_GPU);
    move_saved(e, block, micro, INSTR_LOAD_ACT, e->saved_host[at], e->saved_at[at]);
    e->saved_host[at] = NO_PLACE;
}

/* What comes behind `micro` of visit v: the next micro-batch, in this visit or the next one. */
static bool go_on(const struct emit *e, int64_t *v, int64_t *micro)
{
    const struct visit *now = &e->it.visits[*v];
    if (*micro + 1 < now->first_micro + now->n_micro) {
        ++*micro;
        return true;
    }
    if (++*v == e->it.n_visits)
        return false;
    *micro = e->it.visits[*v].first_micro;
    return true;
}

/* Ahead of their backward: the input of what comes next, and the saved tensors of what comes behind
 * that, which take longer to come than a block runs. */
static void load_ahead(struct emit *e, int64_t v, int64_t micro)
{
    if (!go_on(e, &v, &micro))
        return;
    if (e->it.visits[v].backward)
        load_boundary(e, e->it.visits[v].block, micro);
    if (go_on(e, &v, &micro) && e->it.visits[v].backward)
        load_saved(e, e->it.visits[v].block, micro);
}

/* --- blocks --- */

static void add_block(struct emit *e, enum instr_op op, int64_t block, int64_t micro,
                      struct block_operands o, bool first_forward)
{
    struct instr i = instr_make(op, QUEUE_COMPUTE);
    o.scratch = e->scratch;
    o.held = e->held_at[block];
    i.block = (int32_t)block;
    i.micro = (int32_t)micro;
    i.operands = plan_add_operands(e->p, o);
    if (op == INSTR_BACKWARD) {
        i.first_grad = micro == 0;
        i.last_grad = micro == e->p->in.micro_batches - 1;
    }
    i.first_forward = first_forward;
    instr_list_add(e->list, i);
}

static void forward(struct emit *e, int64_t block, int64_t micro)
{
    int64_t at = block * e->p->in.micro_batches + micro, above = at + e->p->in.micro_batches;
    struct block_operands o = plan_operands(e->p, block, e->param_at);
    o.x = e->x_at[at];
    o.y = e->x_at[above] = add_boundary(e, TIER_GPU);
    o.saved = keeps_saved(e, block) ? (e->saved_at[at] = add_saved(e, block, TIER_GPU)) : e->remade;
    if (micro == 0)
        e->held_at[block] = add_held(e, block);
    add_block(e, INSTR_FORWARD, block, micro, o, micro == 0);
    save_boundary(e, block + 1, micro);
    save_saved(e, block, micro);
}

static void backward(struct emit *e, int64_t block, int64_t micro)
{
    struct plan *p = e->p;
    int64_t at = block * p->in.micro_batches + micro;
    struct block_operands o = plan_operands(p, block, e->param_at);

    load_saved(e, block, micro);
    o.x = e->x_at[at];
    o.saved = keeps_saved(e, block) && block < e->n_blocks - 1 ? e->saved_at[at] : e->remade;
    if (!keeps_saved(e, block))
        add_block(e, INSTR_FORWARD, block, micro, o, false);
    for (int32_t k = 0; k < o.n_chunks; k++)
        if (p->chunks.chunks[o.chunk[k]].trainable)
            o.grad[k] =
                e->grad_at[o.chunk[k] * CHUNK_MAX_USES + plan_use_index(p, o.chunk[k], block)];
    /* One gradient boundary a micro-batch: a block's dx may take the place of its dy. */
    if (block == e->n_blocks - 1)
        e->d_at[micro] = add_boundary(e, TIER_GPU);
    else
        o.dy = e->d_at[micro];
    if (block > 0)
        o.dx = e->d_at[micro];
    for (int32_t k = 0; k < o.n_chunks; k++)
        if (!plan_needs_params(p, block, o.chunk[k], true))
            o.param[k] = NO_PLACE;
    add_block(e, INSTR_BACKWARD, block, micro, o, false);
}

/* --- gradients and updates --- */

static int32_t add_gradient(struct emit *e, int64_t chunk, enum plan_tier tier, enum dtype type)
{
    size_t bytes = (size_t)e->p->chunks.chunks[chunk].n * dtype_size(type);
    return plan_add_place(e->p, tier, PURPOSE_GRADIENTS, bytes, false);
}

static enum dtype gradient_type(const struct emit *e, int64_t chunk)
{
    return chunk_grad_type(&e->p->chunks.chunks[chunk], e->p->types);
}

/* Places for what visit v's backward adds to; in later groups with the sum of the earlier ones. */
static void begin_gradients(struct emit *e, int64_t v)
{
    const struct visit *visit = &e->it.visits[v];
    int64_t chunks[BLOCK_MAX_CHUNKS];

    if (v >= e->it.n_visits || !visit->backward)
        return;
    int64_t n = plan_block_chunks(e->p, visit->block, chunks);
    for (int64_t k = 0; k < n; k++) {
        int64_t c = chunks[k], u = c * CHUNK_MAX_USES + plan_use_index(e->p, c, visit->block);
        if (!e->p->chunks.chunks[c].trainable || e->grad_at[u] != NO_PLACE)
            continue;
        e->grad_at[u] = add_gradient(e, c, TIER_GPU, gradient_type(e, c));
        if (e->sum_at[u] != NO_PLACE)
            add_gradient_move(e, INSTR_FETCH, QUEUE_H2D, c, -1, e->sum_at[u], e->grad_at[u]);
    }
}

/* Between groups the unfinished sum waits where the chunk lives. */
static void put_gradients_away(struct emit *e, const struct visit *visit)
{
    int64_t chunks[BLOCK_MAX_CHUNKS];
    int64_t n = plan_block_chunks(e->p, visit->block, chunks);
    for (int64_t k = 0; k < n; k++) {
        int64_t c = chunks[k], u = c * CHUNK_MAX_USES + plan_use_index(e->p, c, visit->block);
        if (!e->p->chunks.chunks[c].trainable || plan_is_resident(e->p, c))
            continue;
        if (e->sum_at[u] == NO_PLACE)
            e->sum_at[u] = add_gradient(e, c, TIER_HOST, gradient_type(e, c));
        add_gradient_move(e, INSTR_EVICT, QUEUE_D2H, c, -1, e->grad_at[u], e->sum_at[u]);
        e->grad_at[u] = NO_PLACE;
    }
}

static struct instr update_of(const struct emit *e, int64_t chunk, int64_t slice)
{
    const struct plan_chunk *pc = &e->p->chunk[chunk];
    bool gpu = plan_is_resident(e->p, chunk);
    struct instr i = instr_make(INSTR_UPDATE, gpu ? QUEUE_COMPUTE : QUEUE_CPU);
    i.chunk = (int32_t)chunk;
    i.slice = (int32_t)slice;
    i.payload = PAYLOAD_STATE;
    i.src = gpu ? pc->grad[0] : e->spilled[chunk];
    i.dst = pc->param;
    i.state = pc->slices[slice].home;
    i.shadow = pc->slices[slice].shadow;
    return i;
}

/* The slice or piece in a stage, from the disk where its update is not in host memory yet. */
static int32_t stage(struct emit *e, struct stages *stages, const struct instr *update,
                     int32_t home)
{
    int32_t at = plan_next_stage(e->p, stages);
    plan_add_disk_move(e->p, LIST_TRAIN, INSTR_STAGE, update->chunk, update->slice, stages->payload,
                       home, at);
    return at;
}

static bool on_disk(const struct emit *e, int32_t place)
{
    return e->p->places[place].tier == TIER_NVME;
}

static void finish_oldest_staged(struct emit *e)
{
    struct instr i = e->staged[0];
    const struct plan_chunk *pc = &e->p->chunk[i.chunk];
    int32_t home = pc->slices[i.slice].home;

    instr_list_add(e->list, i);
    if (on_disk(e, home))
        plan_add_disk_move(e->p, LIST_TRAIN, INSTR_UNSTAGE, i.chunk, i.slice, PAYLOAD_STATE,
                           i.state, home);
    if (i.piece)
        plan_add_disk_move(e->p, LIST_TRAIN, INSTR_UNSTAGE, i.chunk, i.slice, PAYLOAD_PARAM, i.dst,
                           pc->param + i.slice);
    e->n_staged--;
    for (int64_t k = 0; k < e->n_staged; k++)
        e->staged[k] = e->staged[k + 1];
}

/* All slices of a chunk. What of them lies on the disk is read some slices ahead. */
static void update(struct emit *e, int64_t chunk)
{
    struct plan *p = e->p;
    bool pages = plan_pages(p, chunk);

    e->updated[chunk] = true;
    for (int64_t k = 0; k < p->chunk[chunk].n_slices; k++) {
        struct instr i = update_of(e, chunk, k);
        if (!on_disk(e, i.state) && !pages) {
            instr_list_add(e->list, i);
            continue;
        }
        if (e->n_staged == PLAN_STAGES)
            finish_oldest_staged(e);
        if (on_disk(e, i.state))
            i.state = stage(e, &e->states, &i, i.state);
        if (pages) {
            bool same = i.src == i.dst;
            i.piece = true;
            i.src = stage(e, &e->grads, &i, i.src + i.slice);
            i.dst = same ? i.src : stage(e, &e->params, &i, i.dst + i.slice);
        }
        e->staged[e->n_staged++] = i;
    }
}

/* Behind the norm, of an update that ran before it. */
static void confirm(struct emit *e, int64_t chunk)
{
    for (int64_t k = 0; k < e->p->chunk[chunk].n_slices; k++) {
        struct instr i = update_of(e, chunk, k);
        i.op = INSTR_CONFIRM;
        instr_list_add(e->list, i);
    }
}

/* Where a rounded gradient waits for the update: in host memory, or in pieces on the disk. */
static int32_t spill_place(struct emit *e, int64_t chunk)
{
    struct plan *p = e->p;
    const struct plan_chunk *pc = &p->chunk[chunk];
    if (plan_grad_waits_in_param(p, chunk))
        return pc->param;
    if (pc->grad_home != NO_PLACE)
        return pc->grad_home;
    if (!plan_pages(p, chunk))
        return add_gradient(e, chunk, TIER_HOST, p->types.compute);
    int32_t first = (int32_t)p->n_places;
    for (int64_t k = 0; k < pc->n_pieces; k++)
        plan_add_place(p, TIER_NVME, PURPOSE_GRADIENTS, plan_piece_bytes(p, chunk, k), false);
    return first;
}

static void spill(struct emit *e, int64_t chunk, int32_t from)
{
    int32_t to = e->spilled[chunk] = spill_place(e, chunk);
    if (!plan_pages(e->p, chunk)) {
        add_gradient_move(e, INSTR_SPILL, QUEUE_D2H, chunk, -1, from, to);
        return;
    }
    for (int64_t k = 0; k < e->p->chunk[chunk].n_pieces; k++) {
        int32_t at = plan_next_stage(e->p, &e->passing);
        add_gradient_move(e, INSTR_SPILL, QUEUE_D2H, chunk, k, from, at);
        plan_add_disk_move(e->p, LIST_TRAIN, INSTR_UNSTAGE, chunk, k, PAYLOAD_GRAD, at,
                           to + (int32_t)k);
    }
}

/* A chunk's gradient is complete: sum of its uses, norm partials, and off to where it is used. */
static void reduce(struct emit *e, int64_t chunk)
{
    struct plan *p = e->p;
    bool gpu = plan_is_resident(p, chunk);
    struct instr i = instr_make(INSTR_REDUCE, QUEUE_COMPUTE);

    for (int64_t u = 0; u < p->chunks.chunks[chunk].uses; u++)
        p->chunk[chunk].grad[u] = e->grad_at[chunk * CHUNK_MAX_USES + u];
    i.chunk = (int32_t)chunk;
    i.payload = PAYLOAD_GRAD;
    i.src = p->chunk[chunk].grad[0];
    if (!gpu && gradient_type(e, chunk) != p->types.compute)
        i.dst = add_gradient(e, chunk, TIER_GPU, p->types.compute);
    instr_list_add(e->list, i);
    if (!gpu)
        spill(e, chunk, i.dst != NO_PLACE ? i.dst : i.src);
    if (p->in.clip ? plan_speculates(p, chunk) : gpu || p->chunk[chunk].early)
        update(e, chunk);
}

static void finish_gradients(struct emit *e, const struct visit *visit)
{
    if (visit->first_micro + visit->n_micro < e->p->in.micro_batches) {
        put_gradients_away(e, visit);
        return;
    }
    for (int64_t c = 0; c < e->p->chunks.n_chunks; c++)
        if (e->p->chunks.chunks[c].first_use == visit->block && e->p->chunks.chunks[c].trainable)
            reduce(e, c);
}

/* What waits for the norm, or for more urgent updates: in the order of the next forward. */
static void finish_step(struct emit *e)
{
    struct plan *p = e->p;
    instr_list_add(e->list, instr_make(INSTR_NORM, QUEUE_COMPUTE));
    if (p->io.clip != NO_PLACE)
        add_move(e, INSTR_EVICT, QUEUE_D2H, p->io.scalars, p->io.clip);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        if (p->chunks.chunks[c].trainable && !e->updated[c])
            update(e, c);
        else if (plan_speculates(p, c))
            confirm(e, c);
    }
    while (e->n_staged > 0)
        finish_oldest_staged(e);
}

/* --- the whole --- */

static void visit(struct emit *e, int64_t v)
{
    const struct visit *now = &e->it.visits[v];
    plan_emit_fetches(e->p, LIST_TRAIN, &e->it, v, &e->passing, e->param_at);
    begin_gradients(e, v);
    share_places(e, now);
    for (int64_t m = now->first_micro; m < now->first_micro + now->n_micro; m++) {
        load_ahead(e, v, m);
        if (now->backward)
            backward(e, now->block, m);
        else
            forward(e, now->block, m);
    }
    if (now->backward)
        finish_gradients(e, now);
    plan_emit_drops(e->p, LIST_TRAIN, &e->it, v, e->param_at);
}

void plan_emit_train(struct plan *p)
{
    struct emit e;
    emit_init(&e, p);
    for (int64_t v = 0; v < e.it.n_visits; v++)
        visit(&e, v);
    finish_step(&e);
    emit_fini(&e);
}
