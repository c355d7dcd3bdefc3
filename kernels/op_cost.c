#include "kernels/op_cost.h"

#include <math.h>
#include <stdio.h>

static double bytes_of(double elements, enum dtype t)
{
    return elements * (double)dtype_size(t);
}

static struct op_cost moved(double elements, enum dtype t)
{
    return (struct op_cost){0, bytes_of(elements, t)};
}

/* How many of these are there? */
static double given(const void *a, const void *b, const void *c)
{
    return (a != NULL) + (b != NULL) + (c != NULL);
}

static struct op_cost embed_cost(const struct op_table *t, const struct embed_args *a,
                                 bool backward)
{
    double n = (double)a->N * (double)a->C;
    if (!backward)
        return moved(n * (1 + given(a->wte, a->wpe, NULL)), t->compute);
    struct op_cost c = moved(n, t->compute);
    double rows = (double)(a->N < a->V ? a->N : a->V), places = (double)(a->N < a->P ? a->N : a->P);
    c.bytes += bytes_of(2 * (double)a->C * (rows * (a->dwte != NULL) + places * (a->dwpe != NULL)),
                        t->grad);
    return c;
}

static struct op_cost linear_cost(const struct op_table *t, const struct linear_args *a, enum op op)
{
    double N = (double)a->N, I = (double)a->I, O = (double)a->O;
    struct op_cost c = {2 * N * I * O, 0};
    double real = 0, x = N * I, w = I * O, dy = N * O;
    double weight = bytes_of(w, t->compute);
    enum dtype operand = a->fp8 ? DT_E4M3 : t->compute;

    if (a->fp8) { /* twice as many a second */
        c.flops /= 2;
        weight = bytes_of(w, operand);
    } else if (a->quant.format != QUANT_NONE) {
        weight = (double)quant_bytes(a->quant.format, a->I * a->O);
    }
    if (op == OP_LINEAR_FWD) {
        c.bytes = bytes_of(x, operand) + weight;
        real = N * O * (1 + given(a->residual, a->pre, NULL));
    } else if (op == OP_LINEAR_BWD_DATA) {
        c.bytes = bytes_of(dy, operand) + weight;
        real = N * I * (1 + (a->act_x != ACT_NONE) + (a->dx_accum == ACCUM_ADD));
    } else {
        c.bytes = bytes_of(x + dy, operand);
        c.bytes += bytes_of(w * (a->dw_accum == ACCUM_ADD ? 2 : 1) * (a->dw != NULL),
                            a->narrow.on ? t->compute : t->grad);
    }
    if (op == OP_LINEAR_BWD_WEIGHT && !a->dw)
        c.flops = 0;
    c.bytes += bytes_of(real, t->compute);
    return c;
}

/* The magnitude has to be known before the first element is rounded, so where it is not, what goes
 * in is read twice. */
static struct op_cost round8_cost(const struct op_table *t, const struct round8_args *a)
{
    double n = (double)a->N * (double)a->C, in = n, in8 = 0, passes = a->known ? 1 : 2;
    if (a->of == ROUND8_ACT)
        in = a->gated ? 2 * n : n;
    else if (a->of == ROUND8_ACT_GRAD)
        in = (a->gated ? n / 2 : n) + (a->x8 ? 0 : n);
    if (a->of == ROUND8_ACT_GRAD && a->x8)
        in8 = passes * n;
    else if (a->x8) /* written */
        in8 = in;
    struct op_cost c = moved(in * passes, t->compute);
    c.bytes += bytes_of(in8, DT_E4M3);
    if (a->quant.format != QUANT_NONE) /* decoded once, and written */
        c.bytes += (double)quant_bytes(a->quant.format, a->N * a->C) + bytes_of(n, t->compute);
    c.bytes += bytes_of(n, DT_E4M3) * given(a->rows, a->cols, NULL);
    return c;
}

/* Pairs of query and key that see each other. */
static double attn_pairs(const struct attn_args *a)
{
    double T = (double)a->T, S = (double)a->S, W = a->window > 0 ? (double)a->window : S;
    double all = T * (S - T) + T * (T + 1) / 2;
    double beyond = S > W ? S - W : 0;
    return all - (beyond < T ? beyond * (beyond + 1) / 2 : 0);
}

static struct op_cost attn_cost(const struct op_table *t, const struct attn_args *a, bool backward)
{
    double q = (double)a->B * (double)a->T * (double)a->H * (double)a->D;
    double kv = (double)a->B * (double)a->S * (double)a->KV * (double)a->D;
    double product = 2 * (double)a->B * (double)a->H * (double)a->D * attn_pairs(a);
    struct op_cost c = moved(backward ? 4 * q + 4 * kv : 2 * q + 2 * kv, t->compute);
    c.flops = (backward ? 5 : 2) * product;
    return c;
}

static struct op_cost adamw_cost(const struct adamw_args *a)
{
    double n = (double)a->n;
    struct op_cost c = moved(n, a->grad_type);
    c.bytes += 2 * bytes_of(n, a->master_type) + 4 * bytes_of(n, a->moment_type);
    c.bytes += a->param ? bytes_of(a->master_type == DT_I16 ? 2 * n : n, a->param_type) : 0;
    return c;
}

struct op_cost op_cost(const struct op_table *t, enum op op, const void *args)
{
    const struct norm_args *norm = args;
    const struct act_args *act = args;
    const struct rope_args *rope = args;
    const struct dropout_args *drop = args;
    const struct loss_args *loss = args;
    const struct sumsq_args *sumsq = args;
    const struct cast_args *cast = args;
    double rows;

    switch (op) {
    case OP_EMBED_FWD:
    case OP_EMBED_BWD:
        return embed_cost(t, args, op == OP_EMBED_BWD);
    case OP_NORM_FWD:
        rows = (double)norm->N * (double)norm->C;
        return moved(rows * (2 + 2 * given(norm->residual, NULL, NULL)), t->compute);
    case OP_NORM_BWD:
        rows = (double)norm->N * (double)norm->C;
        return moved(rows * (3 + given(norm->dresidual, NULL, NULL)), t->compute);
    case OP_LINEAR_FWD:
    case OP_LINEAR_BWD_DATA:
    case OP_LINEAR_BWD_WEIGHT:
        return linear_cost(t, args, op);
    case OP_ACT_FWD:
        return moved((double)act->N * (double)act->F * (act->gated ? 3 : 2), t->compute);
    case OP_ACT_BWD:
        return moved((double)act->N * (double)act->F * (act->gated ? 5 : 3), t->compute);
    case OP_ROPE:
        return moved(2 * (double)rope->N * (double)rope->heads * (double)rope->rope_dim,
                     t->compute);
    case OP_ATTN_FWD:
    case OP_ATTN_BWD:
        return attn_cost(t, args, op == OP_ATTN_BWD);
    case OP_DROPOUT_FWD:
    case OP_DROPOUT_BWD:
        return moved((double)drop->n * (2 + given(drop->residual, NULL, NULL)), t->compute);
    case OP_LOSS:
        return moved((double)loss->N * (double)loss->V * (loss->grad_scale ? 2 : 1), t->compute);
    case OP_ADD:
        return moved(3 * (double)((const struct add_args *)args)->n, t->grad);
    case OP_SUMSQ:
        return moved((double)sumsq->n, sumsq->narrow ? t->compute : t->grad);
    case OP_CLIP:
        return moved((double)((const struct clip_args *)args)->n, DT_F64);
    case OP_ADAMW:
        return adamw_cost(args);
    case OP_CAST:
        return (struct op_cost){0, bytes_of((double)cast->n, cast->from) +
                                       bytes_of((double)cast->n, cast->to)};
    case OP_ROUND8:
        return round8_cost(t, args);
    case OP_COUNT:
        break;
    }
    return (struct op_cost){0};
}

double op_busy_share(enum op op, int64_t rows, int64_t cols, int64_t multiprocessors)
{
    static const int64_t tiles[][2] = {{128, 128}, {128, 192}, {128, 256},
                                       {192, 128}, {256, 128}, {128, 160}};
    int n = (int)(sizeof tiles / sizeof tiles[0]) - (op != OP_LINEAR_FWD);
    double best = 0;

    if (multiprocessors == 0)
        return 1;
    for (int k = 0; k < n; k++) {
        int64_t down = (rows + tiles[k][0] - 1) / tiles[k][0];
        int64_t along = (cols + tiles[k][1] - 1) / tiles[k][1];
        int64_t waves = (down * along + multiprocessors - 1) / multiprocessors;
        double taken = (double)(waves * multiprocessors) * (double)(tiles[k][0] * tiles[k][1]);
        best = fmax(best, (double)rows * (double)cols / taken);
    }
    return best;
}

static void describe_linear(enum op op, const struct linear_args *a, char *out, size_t cap)
{
    const char *bias = a->bias || (op == OP_LINEAR_BWD_WEIGHT && a->dbias) ? " bias" : "";
    bool act = op == OP_LINEAR_FWD        ? a->act != ACT_NONE
               : op == OP_LINEAR_BWD_DATA ? a->act_x != ACT_NONE
                                          : false;
    static const char *const formats[] = {"", " nf4", " int8"};
    const char *weight = formats[op == OP_LINEAR_BWD_WEIGHT ? QUANT_NONE : a->quant.format];
    snprintf(out, cap, "%lldx%lldx%lld%s%s%s%s%s", (long long)a->N, (long long)a->I,
             (long long)a->O, weight, bias, op == OP_LINEAR_FWD && a->residual ? " residual" : "",
             act ? " act" : "",
             op == OP_LINEAR_BWD_WEIGHT && a->dw_accum == ACCUM_ADD ? " add" : "");
}

void op_describe(enum op op, const void *args, char *out, size_t cap)
{
    const struct attn_args *attn = args;
    int64_t n = -1, m = -1;

    switch (op) {
    case OP_LINEAR_FWD:
    case OP_LINEAR_BWD_DATA:
    case OP_LINEAR_BWD_WEIGHT:
        describe_linear(op, args, out, cap);
        return;
    case OP_ATTN_FWD:
    case OP_ATTN_BWD:
        snprintf(out, cap, "B%lld T%lld H%lld/%lld D%lld", (long long)attn->B, (long long)attn->T,
                 (long long)attn->H, (long long)attn->KV, (long long)attn->D);
        return;
    case OP_EMBED_FWD:
    case OP_EMBED_BWD:
        n = ((const struct embed_args *)args)->N;
        m = ((const struct embed_args *)args)->C;
        break;
    case OP_NORM_FWD:
    case OP_NORM_BWD:
        n = ((const struct norm_args *)args)->N;
        m = ((const struct norm_args *)args)->C;
        break;
    case OP_ACT_FWD:
    case OP_ACT_BWD:
        n = ((const struct act_args *)args)->N;
        m = ((const struct act_args *)args)->F;
        break;
    case OP_ROUND8:
        n = ((const struct round8_args *)args)->N;
        m = ((const struct round8_args *)args)->C;
        break;
    case OP_LOSS:
        n = ((const struct loss_args *)args)->N;
        m = ((const struct loss_args *)args)->V;
        break;
    default:
        break;
    }
    if (n >= 0)
        snprintf(out, cap, "%lldx%lld", (long long)n, (long long)m);
    else
        out[0] = 0;
}
