#include "kernels/cpu/quant.h"

static size_t matrix_bytes(enum dtype real, const struct linear_args *a)
{
    enum { ALIGN = 256 };
    return ((size_t)(a->O * a->I) * dtype_size(real) + ALIGN - 1) / ALIGN * ALIGN;
}

size_t cpu_quant_workspace(enum op op, enum dtype real, const struct linear_args *a)
{
    bool decodes = a->quant.format != QUANT_NONE && op != OP_LINEAR_BWD_WEIGHT;
    return decodes ? matrix_bytes(real, a) : 0;
}

struct linear_args cpu_quant_decoded(struct stream *s, enum dtype real, bool fast,
                                     const struct linear_args *a)
{
    const struct op_quant *q = &a->quant;
    struct linear_args plain = *a;

    if (fast)
        fast_quant_decode(s, q, a->w, a->O * a->I, real, a->workspace);
    else
        quant_decode(q->format, a->w, q->scales, q->first, a->O * a->I, real, a->workspace);
    plain.quant = (struct op_quant){0};
    plain.w = a->workspace;
    plain.workspace = (char *)a->workspace + matrix_bytes(real, a);
    return plain;
}
