/* Making a plan: the steps that build.h lists, one after the other. */
#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "worker/plan/build.h"

static int check_input(const struct plan_input *in, struct err *err)
{
    if (mesh_ranks(&in->mesh) != 1)
        return err_set(err, ERR_UNSUPPORTED,
                       "parallelism over %lld ranks is not built yet; use one rank",
                       (long long)mesh_ranks(&in->mesh));
    assert((in->master == MASTER_FP32 && !in->bf16_grads && !in->bf16_alone) ||
           in->ops->compute == DT_BF16);
    assert(in->micro_batch > 0 && in->micro_batches > 0 && in->seq_length > 1 && in->head_rows > 0);
    return 0;
}

bool plan_narrow_grads(const struct plan_input *in)
{
    return in->bf16_grads || (in->bf16_alone && in->micro_batches == 1);
}

void plan_cut_step(struct plan_input *in, int64_t rows)
{
    int64_t all = in->step_rows > 0 ? in->step_rows : in->micro_batch * in->micro_batches;
    in->micro_batch = rows < all ? rows : all;
    in->micro_batches = (all + in->micro_batch - 1) / in->micro_batch;
}

static void set_shapes(struct plan *p)
{
    const struct plan_input *in = &p->in;
    int64_t rows = in->micro_batch * in->seq_length;
    int64_t head_rows = in->head_rows < rows ? in->head_rows : rows;
    p->shapes[LIST_TRAIN] = (struct block_shape){.B = in->micro_batch,
                                                 .T = in->seq_length,
                                                 .head_rows = head_rows,
                                                 .train = true,
                                                 .keep_cheap = p->chosen.cheap != 0,
                                                 .fp8 = in->fp8,
                                                 .narrow_grads = plan_narrow_grads(in),
                                                 .embed_dropout = in->embed_dropout,
                                                 .hidden_dropout = in->hidden_dropout,
                                                 .attn_dropout = in->attn_dropout,
                                                 .lora_dropout = in->model->adapters.dropout};
    p->shapes[LIST_EVAL] =
        (struct block_shape){.B = in->micro_batch, .T = in->seq_length, .head_rows = head_rows};
    p->shapes[LIST_SAMPLE] =
        (struct block_shape){.B = 1, .T = in->seq_length, .head_rows = head_rows};
}

/* Layers of equal tensors and windows have equal sizes, but for the lowest that trains, whose
 * backward ends there. */
static bool alike(const struct model *m, int64_t a, int64_t b, int64_t lowest)
{
    const struct block_desc *x = &m->blocks[a], *y = &m->blocks[b];
    const int64_t *window = m->config.window;

    if (x->kind != BLOCK_LAYER || y->kind != BLOCK_LAYER || x->n_tensors != y->n_tensors ||
        (window && window[x->layer] != window[y->layer]) || (a == lowest) != (b == lowest))
        return false;
    for (int64_t k = 0; k < x->n_tensors; k++) {
        const struct tensor_desc *t = &m->tensors[x->tensors[k]], *u = &m->tensors[y->tensors[k]];
        if (t->role != u->role || t->rows != u->rows || t->cols != u->cols ||
            t->trainable != u->trainable || t->quant != u->quant)
            return false;
    }
    return true;
}

static void measure_blocks(struct plan *p, enum plan_list list)
{
    const struct model *m = p->in.model;
    struct block_bytes *sizes = xcalloc((size_t)m->n_blocks, sizeof *sizes);
    int64_t lowest = model_first_trained(m);
    p->sizes[list] = sizes;
    for (int64_t b = 0; b < m->n_blocks; b++) {
        int64_t like = b - 1;
        while (like >= 0 && !alike(m, like, b, lowest))
            like--;
        sizes[b] = like >= 0 ? sizes[like] : block_sizes(m, b, &p->shapes[list], p->in.ops);
    }
}

static enum dtype master_type(const struct plan_input *in)
{
    static const enum dtype narrow[] = {[MASTER_BF16] = DT_BF16, [MASTER_SPLIT] = DT_I16};
    return in->master == MASTER_FP32 ? in->ops->master : narrow[in->master];
}

bool plan_may_split_masters(const struct plan_input *in)
{
    return master_type(in) == DT_F32 && in->ops->compute == DT_BF16;
}

static enum dtype moment_type(const struct plan_input *in)
{
    static const enum dtype narrow[] = {[MOMENTS_BF16] = DT_BF16, [MOMENTS_FP8] = DT_U8};
    return in->moments == MOMENTS_FP32 ? in->ops->master : narrow[in->moments];
}

struct plan *plan_draft(const struct plan_input *in, const struct plan_choices *choices)
{
    struct plan *p = xcalloc(1, sizeof *p);
    assert(!choices->split_masters || plan_may_split_masters(in));
    p->in = *in;
    p->chosen = *choices;
    p->types = (struct chunk_types){.compute = in->ops->compute,
                                    .grad = in->ops->grad,
                                    .master = choices->split_masters ? DT_I16 : master_type(in),
                                    .moment = moment_type(in)};
    set_shapes(p);
    for (int list = LIST_TRAIN; list <= LIST_SAMPLE; list++)
        measure_blocks(p, list);
    plan_pack_chunks(p);
    plan_place_homes(p);
    plan_place_io(p);
    plan_emit_train(p);
    plan_emit_forward(p, LIST_EVAL);
    plan_emit_forward(p, LIST_SAMPLE);
    for (int list = LIST_TRAIN; list <= LIST_SAMPLE; list++)
        plan_claim_floor(p, list);
    return p;
}

void plan_draft_moves(struct plan *p)
{
    for (int list = LIST_LOAD; list <= LIST_SAVE; list++) {
        plan_emit_moves(p, list);
        plan_claim_floor(p, list);
    }
}

struct plan *plan_make(const struct plan_input *in, const struct plan_choices *choices)
{
    struct plan *p = plan_draft(in, choices);
    plan_draft_moves(p);
    for (int list = 0; list < LIST_COUNT; list++)
        for (int tier = 0; tier < TIER_COUNT; tier++)
            plan_lay_out(p, list, tier);
    return p;
}

int plan_build(const struct plan_input *in, struct plan **out, struct err *err)
{
    struct plan *p = NULL;
    int rc = 0;

    TRY(check_input(in, err));
    TRY(plan_choose(in, &p, err));
    for (int list = 0; list < LIST_COUNT; list++) {
        struct plan_simulation sim;
        plan_insert_waits(p, list);
        TRY(plan_simulate(p, list, &sim, err));
    }
    *out = p;
    p = NULL;
out:
    plan_destroy(p);
    return rc;
}
