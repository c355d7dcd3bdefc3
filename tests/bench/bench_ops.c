/*
 * Time of every op of the fast CPU table against the reference table, at the shapes of an OPT of 3
 * million parameters and of a SmolLM2-135M, 512 tokens in two rows. One line a case: `bench: CASE
 * ours X peer Y unit ms ratio R`, peer being the reference table, preceded by rates (GFLOP/s, or
 * GB/s moved at least) for people. Times are the least of several runs.
 *
 * bench_ops [THREADS]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "kernels/device.h"
#include "kernels/op_table.h"

struct shape {
    const char *name;
    int64_t B, T, C, H, KV, D, F, V;
    bool gated, rms;
};
static const struct shape SHAPES[] = {
    {"opt3m", 2, 256, 192, 4, 4, 48, 768, 4096, false, false},
    {"smollm2", 2, 256, 576, 9, 3, 64, 1536, 49152, true, true},
};

struct bench {
    struct device *device[2]; /* fast, reference */
    struct stream *stream[2];
    const struct op_table *table[2];
    const struct shape *shape;
};

/* Filled with small values; lives until the program ends. */
static float *tensor(int64_t n)
{
    float *x = aligned_alloc(DEVICE_ALIGN,
                             ((size_t)n * sizeof *x + DEVICE_ALIGN) & ~(size_t)(DEVICE_ALIGN - 1));
    if (!x)
        abort();
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((i * 7919) % 1009 - 504) / 1009.0f;
    return x;
}

typedef int (*op_call)(const struct op_table *t, struct stream *s, const void *args);

static double seconds(const struct bench *b, int which, op_call call, const void *args)
{
    double best = INFINITY, spent = 0;
    for (int i = 0; i < 200 && (i < 1 || spent < (which == 0 ? 0.3 : 0.02)); i++) {
        double start = clock_monotonic();
        if (call(b->table[which], b->stream[which], args) != 0)
            abort();
        double t = clock_monotonic() - start;
        best = t < best && (which == 1 || i > 0) ? t : best;
        spent += t;
    }
    return best;
}

static void measure(const struct bench *b, const char *op, op_call call, const void *args,
                    double flops, double bytes)
{
    double fast = seconds(b, 0, call, args), slow = seconds(b, 1, call, args);
    if (flops > 0)
        printf("%-10s %-22s %8.1f GFLOP/s\n", b->shape->name, op, flops / fast / 1e9);
    else
        printf("%-10s %-22s %8.1f GB/s\n", b->shape->name, op, bytes / fast / 1e9);
    printf("bench: %s/%s ours %.4f peer %.4f unit ms ratio %.1f\n", b->shape->name, op, 1e3 * fast,
           1e3 * slow, slow / fast);
}

#define CALL(op, type)                                                                             \
    static int call_##op(const struct op_table *t, struct stream *s, const void *args)             \
    {                                                                                              \
        return t->op(s, (const struct type *)args);                                                \
    }
CALL(embed_fwd, embed_args)
CALL(embed_bwd, embed_args)
CALL(norm_fwd, norm_args)
CALL(norm_bwd, norm_args)
CALL(linear_fwd, linear_args)
CALL(linear_bwd_data, linear_args)
CALL(linear_bwd_weight, linear_args)
CALL(act_fwd, act_args)
CALL(act_bwd, act_args)
CALL(rope, rope_args)
CALL(attn_fwd, attn_args)
CALL(attn_bwd, attn_args)
CALL(dropout_fwd, dropout_args)
CALL(loss, loss_args)
CALL(add, add_args)
CALL(sumsq, sumsq_args)
CALL(adamw, adamw_args)

static void bench_linear(const struct bench *b, const char *name, int64_t I, int64_t O)
{
    int64_t N = b->shape->B * b->shape->T;
    struct linear_args a = {.N = N, .I = I, .O = O, .x = tensor(N * I), .w = tensor(O * I)};
    double flops = 2.0 * (double)N * (double)I * (double)O;
    char label[64];

    a.y = tensor(N * O);
    a.bias = tensor(O);
    snprintf(label, sizeof label, "%s_fwd", name);
    measure(b, label, call_linear_fwd, &a, flops, 0);
    a.dy = a.y;
    a.dx = tensor(N * I);
    snprintf(label, sizeof label, "%s_data", name);
    measure(b, label, call_linear_bwd_data, &a, flops, 0);
    a.dw = tensor(O * I);
    a.dw_accum = ACCUM_ADD;
    snprintf(label, sizeof label, "%s_weight", name);
    measure(b, label, call_linear_bwd_weight, &a, flops, 0);
}

static void bench_attention(const struct bench *b)
{
    const struct shape *h = b->shape;
    int64_t N = h->B * h->T;
    struct attn_args a = {.B = h->B, .T = h->T, .S = h->T, .H = h->H, .KV = h->KV, .D = h->D};
    double flops = 4.0 * (double)(h->B * h->H * h->D) * (double)(h->T * (h->T + 1) / 2);

    a.scale = 1 / sqrtf((float)h->D);
    a.q = tensor(N * h->H * h->D);
    a.k = tensor(N * h->KV * h->D);
    a.v = tensor(N * h->KV * h->D);
    a.o = tensor(N * h->H * h->D);
    a.lse = tensor(h->B * h->H * h->T);
    a.dout = tensor(N * h->H * h->D);
    a.dq = tensor(N * h->H * h->D);
    a.dk = tensor(N * h->KV * h->D);
    a.dv = tensor(N * h->KV * h->D);
    size_t bytes = b->table[0]->workspace(OP_ATTN_BWD, &a) + 1;
    for (int i = 0; i < 2; i++)
        for (enum op op = OP_ATTN_FWD; op <= OP_ATTN_BWD; op++)
            bytes += b->table[i]->workspace(op, &a);
    a.workspace = tensor((int64_t)(bytes / sizeof(float)) + 1);
    measure(b, "attn_fwd", call_attn_fwd, &a, flops, 0);
    measure(b, "attn_bwd", call_attn_bwd, &a, 2.5 * flops, 0);
}

static void bench_rows(const struct bench *b)
{
    const struct shape *h = b->shape;
    int64_t N = h->B * h->T, wide = h->gated ? 2 * h->F : h->F;
    struct norm_args norm = {
        .kind = h->rms ? NORM_RMS : NORM_LAYER, .N = N, .C = h->C, .eps = 1e-5f};
    struct act_args act = {
        .act = h->gated ? ACT_SILU : ACT_GELU_ERF, .gated = h->gated, .N = N, .F = h->F};
    double row_bytes = 4.0 * (double)(N * h->C);

    norm.x = norm.dy = tensor(N * h->C);
    norm.residual = norm.dresidual = tensor(N * h->C);
    norm.weight = tensor(h->C);
    norm.sum = norm.dx = tensor(N * h->C);
    norm.y = tensor(N * h->C);
    norm.mean = tensor(N);
    norm.rstd = tensor(N);
    norm.dweight = tensor(h->C);
    measure(b, "norm_fwd", call_norm_fwd, &norm, 0, 4 * row_bytes);
    measure(b, "norm_bwd", call_norm_bwd, &norm, 0, 4 * row_bytes);
    act.x = tensor(N * wide);
    act.y = tensor(N * h->F);
    act.dy = tensor(N * h->F);
    act.dx = tensor(N * wide);
    measure(b, "act_fwd", call_act_fwd, &act, 0, 4.0 * (double)(N * (wide + h->F)));
    measure(b, "act_bwd", call_act_bwd, &act, 0, 4.0 * (double)(N * (2 * wide + h->F)));
    struct dropout_args dropout = {.n = N * h->C, .x = norm.x, .y = norm.y};
    dropout.dropout.p = 0.1f;
    measure(b, "dropout_fwd", call_dropout_fwd, &dropout, 0, 2 * row_bytes);
}

static void bench_tokens(const struct bench *b)
{
    const struct shape *h = b->shape;
    int64_t N = h->B * h->T;
    int32_t *tokens = xcalloc((size_t)N, sizeof *tokens), *rows = xcalloc((size_t)N, sizeof *rows);
    static const float ONE = 1;

    for (int64_t n = 0; n < N; n++) {
        tokens[n] = (int32_t)(n * 2654435761 % h->V);
        rows[n] = (int32_t)(n % h->T);
    }
    struct embed_args embed = {.N = N, .C = h->C, .V = h->V, .tokens = tokens, .scale = 1};
    embed.wte = tensor(h->V * h->C);
    embed.out = tensor(N * h->C);
    embed.dout = tensor(N * h->C);
    embed.dwte = tensor(h->V * h->C);
    measure(b, "embed_fwd", call_embed_fwd, &embed, 0, 8.0 * (double)(N * h->C));
    measure(b, "embed_bwd", call_embed_bwd, &embed, 0, 12.0 * (double)(N * h->C));
    struct rope_args rope = {.N = N, .heads = h->H, .head_dim = h->D, .rope_dim = h->D};
    rope.positions = rows;
    rope.cos_table = rope.sin_table = tensor(h->T * h->D / 2);
    rope.x = tensor(N * h->H * h->D);
    measure(b, "rope", call_rope, &rope, 0, 8.0 * (double)(N * h->H * h->D));
    struct loss_args loss = {
        .N = N, .V = h->V, .logit_scale = 1, .targets = tokens, .grad_scale = &ONE};
    int32_t *correct = xcalloc((size_t)N, sizeof *correct);
    loss.logits = tensor(N * h->V);
    loss.row_loss = tensor(N);
    loss.row_correct = correct;
    measure(b, "loss", call_loss, &loss, 0, 12.0 * (double)(N * h->V));
    free(correct);
    free(tokens);
    free(rows);
}

static void bench_parameters(const struct bench *b)
{
    static const struct adamw_step STEP = {.lr = 1e-4f, .bias1 = 0.9f, .bias2 = 0.5f};
    static const struct clip_result CLIP = {.coef = 1, .finite = 1};
    int64_t n = 1 << 24;
    struct adamw_args a = {.n = n,
                           .n_decay = n,
                           .beta1 = 0.9f,
                           .beta2 = 0.95f,
                           .eps = 1e-8f,
                           .weight_decay = 0.1f,
                           .step = &STEP,
                           .clip = &CLIP,
                           .grad_type = DT_F32,
                           .master_type = DT_F32,
                           .moment_type = DT_F32,
                           .param_type = DT_F32};
    double bytes = 4.0 * (double)n;

    a.grad = tensor(n);
    a.master = tensor(n);
    a.m = tensor(n);
    float *v = tensor(n);
    for (int64_t i = 0; i < n; i++)
        v[i] *= v[i];
    a.v = v;
    measure(b, "adamw_16M", call_adamw, &a, 0, 7 * bytes);
    double *partial = xcalloc((size_t)(n / SUMSQ_BLOCK), sizeof *partial);
    struct sumsq_args sumsq = {.n = n, .x = a.grad, .partial = partial};
    measure(b, "sumsq_16M", call_sumsq, &sumsq, 0, bytes);
    struct add_args add = {.n = n, .x = a.grad, .y = a.master};
    measure(b, "add_16M", call_add, &add, 0, 3 * bytes);
    free(partial);
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct err err = {0};

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < 2; i++) {
        struct device_options options = {.threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0,
                                         .reference_ops = i == 1};
        if (device_open(DEVICE_CPU, 0, &options, &b.device[i], &err) != 0 ||
            device_stream_create(b.device[i], 0, &b.stream[i], &err) != 0) {
            fprintf(stderr, "%s\n", err.msg);
            return 1;
        }
        b.table[i] = device_ops(b.device[i], DT_F32);
    }
    printf("%s\n", b.device[0]->name);
    for (size_t i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; i++) {
        const struct shape *h = &SHAPES[i];
        b.shape = h;
        bench_linear(&b, "qkv", h->C, (h->H + 2 * h->KV) * h->D);
        bench_linear(&b, "mlp_up", h->C, h->gated ? 2 * h->F : h->F);
        bench_linear(&b, "mlp_down", h->F, h->C);
        bench_linear(&b, "head", h->C, h->V < 8192 ? h->V : 8192);
        bench_attention(&b);
        bench_rows(&b);
        bench_tokens(&b);
    }
    bench_parameters(&b);
    for (int i = 0; i < 2; i++) {
        device_stream_destroy(b.device[i], b.stream[i]);
        device_close(b.device[i]);
    }
    return 0;
}
