/* How long a block computes on the device while nothing else runs. */
#include <math.h>

#include "worker/plan/build.h"

/* Decoding of quantised weights in front of the products that read them: codes in, a matrix of the
 * compute type out, which the product reads as it would any. */
static double decode_seconds(const struct plan *p, int64_t block, const struct device_profile *d)
{
    const struct block_desc *b = &p->in.model->blocks[block];
    double bytes = 0;
    for (int64_t k = 0; k < b->n_tensors; k++) {
        const struct tensor_desc *t = &p->in.model->tensors[b->tensors[k]];
        int64_t n = tensor_elements(t);
        if (t->quant != QUANT_NONE)
            bytes +=
                (double)quant_bytes(t->quant, n) + (double)n * (double)dtype_size(p->types.compute);
    }
    return bytes / d->memory_rate;
}

/* What adapters pass over: their products are too thin to take time otherwise. Forward reads x, and
 * reads and writes y; backward reads dy twice and x, and reads and writes dx (block_adapter.c). */
static double adapter_seconds(const struct plan *p, enum plan_list list, int64_t block,
                              bool backward, const struct device_profile *d)
{
    const struct block_desc *b = &p->in.model->blocks[block];
    const struct block_shape *s = &p->shapes[list];
    double width = 0;
    for (int64_t k = 0; k + 1 < b->n_tensors; k++) {
        const struct tensor_desc *a = &p->in.model->tensors[b->tensors[k]];
        if (a->parts == 0) /* else B is behind it */
            continue;
        const struct tensor_desc *next = &p->in.model->tensors[b->tensors[++k]];
        double in = (double)a->cols, out = (double)next->rows;
        width += backward ? 3 * in + 2 * out : in + 2 * out;
    }
    return (double)(s->B * s->T) * width * (double)dtype_size(p->types.compute) / d->memory_rate;
}

/* The head works on so many of its micro-batch's rows at a time. */
static int64_t head_slices(const struct block_shape *s)
{
    int64_t rows = s->B * s->T;
    return (rows + s->head_rows - 1) / s->head_rows;
}

/* What a step's later micro-batches add to the gradients that are there: these are read by the
 * product, or, where sums are rounded stochastically, read and written in a pass of its own. The
 * head's later slices read and write them once more each. */
static double sum_seconds(const struct plan *p, const struct instr *i,
                          const struct device_profile *d)
{
    const struct block_operands *o = &p->operands[i->operands];
    enum block_kind kind = p->in.model->blocks[i->block].kind;
    double further = 8.0 * (double)(head_slices(&p->shapes[LIST_TRAIN]) - 1), bytes = 0;
    if (i->op != INSTR_BACKWARD || kind == BLOCK_EMBED)
        return 0;
    for (int32_t k = 0; k < o->n_chunks; k++) {
        const struct chunk *c = &p->chunks.chunks[o->chunk[k]];
        if (c->trainable && !i->first_grad)
            bytes += (double)c->n * (chunk_grad_type(c, p->types) == DT_F32 ? 4 : 8);
        if (c->trainable && kind == BLOCK_HEAD)
            bytes += (double)c->n * further;
    }
    return bytes / d->memory_rate;
}

/* The loss reads the logits, and in backward leaves their gradient in their place. */
static double loss_seconds(const struct plan *p, const struct block_shape *s, bool backward,
                           const struct device_profile *d)
{
    double logits = (double)(s->B * s->T) * (double)p->in.model->config.vocab;
    return logits * (double)dtype_size(p->types.compute) * (backward ? 2 : 1) / d->memory_rate;
}

/* Layers take the time of attention, and of their products and the passes over memory beside them:
 * of those of any layer a third in forward. The head takes that of products and loss, the embedding
 * next to none. At best, blocks take that of products alone, of which attention is some. */
double plan_block_seconds(const struct plan *p, enum plan_list list, const struct instr *i,
                          const struct device_profile *d, bool at_best)
{
    const struct model *m = p->in.model;
    const struct block_shape *s = &p->shapes[list];
    bool backward = i->op == INSTR_BACKWARD, layer = m->blocks[i->block].kind == BLOCK_LAYER;
    struct block_flops flops = block_flops(m, i->block, s, backward);
    double decode = at_best ? 0 : decode_seconds(p, i->block, d);
    if (p->types.compute == DT_F32)
        return (flops.products + flops.attention) / d->flops_f32 + decode;
    bool narrow = layer && s->fp8;
    if (at_best)
        return flops.products / (narrow ? d->flops_fp8 : d->flops_bf16) +
               flops.attention / d->flops_bf16;
    double sums = sum_seconds(p, i, d);
    if (m->blocks[i->block].kind == BLOCK_HEAD)
        sums += loss_seconds(p, s, backward, d);
    if (!layer)
        return flops.products / d->flops_bf16 + sums;
    struct block_passes of = {.backward = backward,
                              .first_forward = i->first_forward,
                              .held_copies = plan_holds_copies(p, i->block)};
    double pass = (double)(s->B * s->T * m->config.hidden) * (double)dtype_size(p->types.compute) /
                  d->memory_rate;
    double passes = pass * d->layer_passes * (backward ? 2.0 : 1.0) / 3.0;
    passes += block_pass_bytes(m, i->block, s, &of) / d->memory_rate;
    double busy = flops.products + block_idle_flops(m, i->block, s, backward, d->multiprocessors);
    double products = busy / (narrow ? d->flops_fp8 : d->flops_layer) + passes;
    if (!narrow)
        products = fmax(products, flops.products / d->flops_bf16);
    return decode + adapter_seconds(p, list, i->block, backward, d) + sums + products +
           flops.attention / device_profile_attention(d, m->config.head_dim, backward);
}
