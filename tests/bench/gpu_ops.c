/*
 * Times of the GPU's ops at the shapes of real models, beside their floors: bytes over the device's
 * copy rate and flops over its rate in a large matrix product, both measured first, in the same
 * run. A floor counts each input read once and each output written once.
 *
 * usage: gpu_ops [-t] [NAME]: only the lines whose name contains NAME. With -t the algorithms of
 * matrix products are chosen by timing.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"
#include "kernels/moment_math.h"
#include "kernels/op_table.h"
#include "tests/bench/gpu_arena.h"
#include "tests/ops/harness_op.h"

enum { GROUPS = 9, CALLS = 4 };

static struct device *device;
static struct stream *stream;
static const struct op_table *ops;
static struct event_mark *from, *to;
static double copy_rate, gemm_rate; /* bytes, flops a second */
static const char *only;

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of one call; 0 when the table does not do it. */
static double seconds_of(enum op op, const void *args)
{
    struct err err = {0};
    double t[GROUPS];

    for (int i = 0; i < 3; i++)
        if (op_call(ops, stream, op, args) != 0)
            return 0;
    for (int g = 0; g < GROUPS; g++) {
        must(device_mark_record(device, from, stream, &err), &err);
        for (int i = 0; i < CALLS; i++)
            (void)op_call(ops, stream, op, args);
        must(device_mark_record(device, to, stream, &err), &err);
        must(device_mark_sync(device, to, &err), &err);
        must(device_mark_elapsed(device, from, to, &t[g], &err), &err);
    }
    qsort(t, GROUPS, sizeof t[0], by_size);
    return t[GROUPS / 2] / CALLS;
}

static bool wanted(const char *name)
{
    arena_clear();
    return !only || strstr(name, only);
}

static void report(const char *name, enum op op, const void *args, double bytes, double flops)
{
    double t = seconds_of(op, args);
    double floor_bytes = bytes / copy_rate, floor_flops = flops / gemm_rate;
    double floor = fmax(floor_bytes, floor_flops);

    if (t == 0) {
        printf("%-44s not done\n", name);
        return;
    }
    printf("%-44s %9.1f us  floor %9.1f us  %5.1f%%  %7.0f GB/s %7.1f TFLOP/s\n", name, t * 1e6,
           floor * 1e6, 100 * floor / t, bytes / t * 1e-9, flops / t * 1e-12);
}

static void ceilings(void)
{
    struct err err = {0};
    const size_t bytes = (size_t)2 << 30;
    double t;
    struct linear_args a = {.N = 8192, .I = 8192, .O = 8192};
    void *to_copy = take(bytes), *from_copy = take(bytes);

    for (int i = 0; i < 4; i++) {
        if (i == 1)
            must(device_mark_record(device, from, stream, &err), &err);
        must(device_copy(device, stream, COPY_D2D, to_copy, from_copy, bytes, &err), &err);
    }
    must(device_mark_record(device, to, stream, &err), &err);
    must(device_mark_sync(device, to, &err), &err);
    must(device_mark_elapsed(device, from, to, &t, &err), &err);
    copy_rate = 3 * 2 * (double)bytes / t;
    arena_clear();
    a.x = take((size_t)8192 * 8192 * 2);
    a.w = take((size_t)8192 * 8192 * 2);
    a.y = take((size_t)8192 * 8192 * 2);
    a.workspace = take(ops->workspace(OP_LINEAR_FWD, &a));
    gemm_rate = 2.0 * 8192 * 8192 * 8192 / seconds_of(OP_LINEAR_FWD, &a);
    printf("%s: copy %.0f GB/s read and written, product 8192^3 %.0f TFLOP/s\n", device->name,
           copy_rate * 1e-9, gemm_rate * 1e-12);
}

static void bench_norm(int64_t N, int64_t C, enum norm_kind kind)
{
    char name[80];
    double x = (double)N * (double)C * 2;
    size_t bytes = (size_t)(N * C) * 2;
    bool layer = kind == NORM_LAYER;

    snprintf(name, sizeof name, "norm_fwd %s %ldx%ld + residual", layer ? "layer" : "rms", (long)N,
             (long)C);
    if (wanted(name)) {
        struct norm_args a = {.kind = kind, .N = N, .C = C, .eps = 1e-5f};
        a.x = take(bytes);
        a.residual = take(bytes);
        a.sum = take(bytes);
        a.y = take(bytes);
        a.weight = take((size_t)C * 2);
        a.bias = layer ? take((size_t)C * 2) : NULL;
        a.mean = layer ? take((size_t)N * 4) : NULL;
        a.rstd = take((size_t)N * 4);
        report(name, OP_NORM_FWD, &a, 4 * x, 0);
    }
    snprintf(name, sizeof name, "norm_bwd %s %ldx%ld + residual", layer ? "layer" : "rms", (long)N,
             (long)C);
    if (wanted(name)) {
        struct norm_args a = {.kind = kind, .N = N, .C = C, .eps = 1e-5f};
        a.x = take(bytes);
        a.dy = take(bytes);
        a.dresidual = take(bytes);
        a.dx = take(bytes);
        a.weight = take((size_t)C * 2);
        a.mean = layer ? take((size_t)N * 4) : NULL;
        a.rstd = take((size_t)N * 4);
        a.dweight = take((size_t)C * 4);
        a.dbias = layer ? take((size_t)C * 4) : NULL;
        a.workspace = take(ops->workspace(OP_NORM_BWD, &a));
        report(name, OP_NORM_BWD, &a, 4 * x, 0);
    }
}

/* A rounded matrix, and its scale. */
static const void *take_rounded(int64_t rows, int64_t cols, enum fp8_format format,
                                const struct fp8_scale **scale)
{
    struct round8_args a = {.format = format, .N = rows, .C = cols};

    a.x = take((size_t)(rows * cols) * 2);
    a.rows = take((size_t)(rows * cols));
    *scale = a.scale = take_floats((const float[4]){0}, 4);
    must(ops->round8(stream, &a), &(struct err){0});
    return a.rows;
}

/* The passes of round8: the largest magnitude, the copies, or one behind the other. */
enum passes { PASS_LARGEST = 1, PASS_COPIES = 2, PASS_BOTH = 3 };

/* What gate and up are rounded to goes out beside the activation, and the gradient is made of it;
 * the largest magnitude alone is that of the activation without it. */
static void bench_round8(int64_t N, int64_t C, enum round8_of of, enum passes passes, bool both)
{
    static const char *const OF[] = {"", " silu", " silu gradient"};
    static const char *const PASSES[] = {"", " largest", " known", ""};
    const double in[] = {2, 4, 2}, n = (double)N * (double)C;
    bool gated = of != ROUND8_X, copies = (passes & PASS_COPIES) != 0;
    struct round8_args a = {.of = of,
                            .format = of == ROUND8_ACT_GRAD ? FP8_E5M2 : FP8_E4M3,
                            .act = ACT_SILU,
                            .gated = gated,
                            .N = N,
                            .C = C,
                            .known = passes == PASS_COPIES};
    char name[80];

    snprintf(name, sizeof name, "round8%s %ldx%ld%s%s", OF[of], (long)N, (long)C, PASSES[passes],
             both ? " both ways" : "");
    if (!wanted(name))
        return;
    a.x = take((size_t)(N * C) * (of == ROUND8_ACT ? 4 : 2));
    a.dy = take((size_t)(N * C));
    if (of == ROUND8_ACT_GRAD || (of == ROUND8_ACT && copies))
        a.x8 = take((size_t)(N * C) * (of == ROUND8_ACT ? 2 : 1));
    a.scale = take_floats((const float[4]){1, 1}, 4);
    a.x_scale = take_floats((const float[4]){1, 1}, 4);
    a.rows = both ? take((size_t)(N * C)) : NULL;
    a.cols = copies ? take((size_t)(N * C)) : NULL;
    double out = copies ? (both ? 2 : 1) + (of == ROUND8_ACT ? 2 : 0) : 0;
    report(name, OP_ROUND8, &a, n * (in[of] * (passes == PASS_BOTH ? 2 : 1) + out), 0);
}

/* fp8: the floor is that of 16 bits; what is rounded is not counted. */
static void bench_linear(int64_t N, int64_t I, int64_t O, enum act_kind act, bool fp8)
{
    const char *bits = fp8 ? " fp8" : "";
    static const char *const ACTS[] = {"", " relu", " gelu-erf", " gelu-tanh", " silu"};
    char name[80];
    double flops = 2.0 * (double)N * (double)I * (double)O;
    double io = 2.0 * ((double)N * (double)(I + O) + (double)I * (double)O);
    size_t x = (size_t)(N * I) * 2, y = (size_t)(N * O) * 2, w = (size_t)(I * O) * 2;

    snprintf(name, sizeof name, "linear_fwd %ldx%ldx%ld bias%s%s", (long)N, (long)I, (long)O,
             ACTS[act], bits);
    if (wanted(name)) {
        struct linear_args a = {.N = N, .I = I, .O = O, .fp8 = fp8, .act = act};
        a.x = take(x);
        a.w = take(w);
        a.bias = take((size_t)O * 2);
        a.y = take(y);
        a.pre = act == ACT_GELU_TANH ? take(y) : NULL;
        a.x8 = fp8 ? take_rounded(N, I, FP8_E4M3, &a.x_scale) : NULL;
        a.w8 = fp8 ? take_rounded(O, I, FP8_E4M3, &a.w_scale) : NULL;
        a.workspace = take(ops->workspace(OP_LINEAR_FWD, &a));
        report(name, OP_LINEAR_FWD, &a, io, flops);
    }
    snprintf(name, sizeof name, "linear_bwd_data %ldx%ldx%ld%s%s", (long)N, (long)O, (long)I,
             ACTS[act], bits);
    if (wanted(name)) {
        /* The activation belongs to the input of the layer that maps O back to I. */
        struct linear_args a = {.N = N, .I = O, .O = I, .fp8 = fp8, .act_x = act};
        a.dy = take(x);
        a.w = take(w);
        a.dx = take(y);
        a.pre_x = act ? take(y) : NULL;
        a.dy8 = fp8 ? take_rounded(N, I, FP8_E5M2, &a.dy_scale) : NULL;
        a.w8 = fp8 ? take_rounded(O, I, FP8_E4M3, &a.w_scale) : NULL;
        a.workspace = take(ops->workspace(OP_LINEAR_BWD_DATA, &a));
        report(name, OP_LINEAR_BWD_DATA, &a, io, flops);
    }
    if (act)
        return;
    for (int bias = 0; bias < 2; bias++) {
        snprintf(name, sizeof name, "linear_bwd_weight %ldx%ldx%ld%s%s", (long)N, (long)I, (long)O,
                 bias ? " bias" : "", bits);
        if (!wanted(name))
            continue;
        struct linear_args a = {.N = N, .I = I, .O = O, .fp8 = fp8, .dw_accum = ACCUM_ADD};
        a.x = take(x);
        a.dy = take(y);
        a.dw = take(2 * w);
        a.dbias = bias ? take((size_t)O * 4) : NULL;
        a.x8 = fp8 ? take_rounded(I, N, FP8_E4M3, &a.x_scale) : NULL;
        a.dy8 = fp8 ? take_rounded(O, N, FP8_E5M2, &a.dy_scale) : NULL;
        a.workspace = take(ops->workspace(OP_LINEAR_BWD_WEIGHT, &a));
        report(name, OP_LINEAR_BWD_WEIGHT, &a, io + 6.0 * (double)I * (double)O, flops);
    }
}

/* A weight that lies quantised. The floor: its codes read, the decoded matrix written and read.
 * With few rows it is that of decoding. */
static void bench_quantised(int64_t N, int64_t I, int64_t O, enum quant_format format)
{
    const char *bits = format == QUANT_NF4 ? "nf4" : "int8";
    size_t bytes = quant_bytes(format, I * O);
    double io = (double)bytes + 2.0 * (double)N * (double)(I + O) + 4.0 * (double)I * (double)O;
    double flops = 2.0 * (double)N * (double)I * (double)O;
    char name[80];

    for (int op = OP_LINEAR_FWD; op <= OP_LINEAR_BWD_DATA; op++) {
        snprintf(name, sizeof name, "%s %ldx%ldx%ld %s", op_name((enum op)op), (long)N, (long)I,
                 (long)O, bits);
        if (!wanted(name))
            continue;
        struct linear_args a = {.N = N, .I = I, .O = O, .quant = {.format = format}};
        a.w = take(bytes);
        a.quant.scales =
            (const float *)(const void *)((const char *)a.w + quant_scales_at(format, I * O));
        a.x = a.dx = take((size_t)(N * I) * 2);
        a.y = take((size_t)(N * O) * 2);
        a.dy = a.y;
        a.workspace = take(ops->workspace((enum op)op, &a));
        report(name, (enum op)op, &a, io, flops);
    }
}

/* Rows packed with documents of `document` tokens; 0: rows of one. */
static void bench_attention(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D, float dropout,
                            int64_t document)
{
    char name[80], packed[24] = "";
    struct attn_args a = {.B = B, .T = T, .S = T, .H = H, .KV = KV, .D = D};
    size_t q = (size_t)(B * T * H * D) * 2, kv = (size_t)(B * T * KV * D) * 2;
    double pairs = (double)B * (double)H * (double)T * (double)(document ? document : T) / 2;

    if (document)
        snprintf(packed, sizeof packed, " packed %ld", (long)document);
    a.scale = 1 / sqrtf((float)D);
    a.dropout.p = dropout;
    a.dropout.stream.use = RNG_USE_DROPOUT;
    snprintf(name, sizeof name, "attn_fwd B%ld T%ld H%ld/%ld D%ld%s%s", (long)B, (long)T, (long)H,
             (long)KV, (long)D, dropout > 0 ? " dropout" : "", packed);
    a.q = take(q);
    a.k = take(kv);
    a.v = take(kv);
    a.o = take(q);
    a.lse = take((size_t)(B * H * T) * 4);
    a.first_key = document ? take_starts(B, T, document) : NULL;
    if (!only || strstr(name, only))
        report(name, OP_ATTN_FWD, &a, (double)(2 * q + 2 * kv), 4 * pairs * (double)D);
    name[5] = 'b';
    name[6] = 'w';
    name[7] = 'd';
    a.dout = take(q);
    a.dq = take(q);
    a.dk = take(kv);
    a.dv = take(kv);
    a.workspace = take(ops->workspace(OP_ATTN_BWD, &a));
    if (!only || strstr(name, only)) {
        (void)op_call(ops, stream, OP_ATTN_FWD, &a);
        report(name, OP_ATTN_BWD, &a, (double)(4 * q + 4 * kv), 10 * pairs * (double)D);
    }
    arena_clear();
}

static void bench_embed(int64_t N, int64_t C, int64_t V)
{
    char name[80];
    double x = (double)N * (double)C * 2;
    struct embed_args a = {.N = N, .C = C, .V = V, .P = 1024, .scale = 1};

    arena_clear();
    a.tokens = take_ints(N, V, 0);
    a.positions = take_ints(N, 1024, 1);
    a.wte = take((size_t)(V * C) * 2);
    a.wpe = take((size_t)(1024 * C) * 2);
    a.out = take((size_t)(N * C) * 2);
    a.dout = take((size_t)(N * C) * 2);
    a.dwte = take((size_t)(V * C) * 4);
    a.dwpe = take((size_t)(1024 * C) * 4);
    a.workspace = take(ops->workspace(OP_EMBED_BWD, &a));
    snprintf(name, sizeof name, "embed_fwd %ldx%ld", (long)N, (long)C);
    if (!only || strstr(name, only))
        report(name, OP_EMBED_FWD, &a, 2 * x, 0);
    snprintf(name, sizeof name, "embed_bwd %ldx%ld", (long)N, (long)C);
    double rows = (double)V * (1 - exp(-(double)N / (double)V)); /* distinct tokens */
    if (!only || strstr(name, only))
        report(name, OP_EMBED_BWD, &a, 2 * x + 8 * (rows + 1024) * (double)C, 0);
}

static void bench_loss(int64_t N, int64_t V, int64_t ldl)
{
    const float scale = 1;
    char name[80];
    struct loss_args a = {.N = N, .V = V, .ldl = ldl, .logit_scale = 1};

    snprintf(name, sizeof name, "loss %ldx%ld rows of %ld", (long)N, (long)V, (long)ldl);
    if (!wanted(name))
        return;
    a.targets = take_ints(N, V, 0);
    a.logits = take((size_t)(N * ldl) * 2);
    a.grad_scale = take_floats(&scale, 1);
    a.row_loss = take((size_t)N * 4);
    a.row_correct = take((size_t)N * 4);
    report(name, OP_LOSS, &a, (double)N * (double)V * 4, 0);
}

static void bench_elementwise(void)
{
    const int64_t N = 32768;
    const double n = (double)N * 3072;
    size_t bytes = (size_t)(N * 3072) * 2;

    for (int gated = 0; gated < 2; gated++) {
        struct act_args a = {.act = gated ? ACT_SILU : ACT_GELU_TANH, .gated = gated, .N = N};
        a.F = 3072;
        if (wanted(gated ? "act_fwd gated silu 32768x3072" : "act_fwd gelu-tanh 32768x3072")) {
            a.x = take(bytes * 2);
            a.y = take(bytes);
            report(gated ? "act_fwd gated silu 32768x3072" : "act_fwd gelu-tanh 32768x3072",
                   OP_ACT_FWD, &a, n * (gated ? 6 : 4), 0);
        }
        if (wanted(gated ? "act_bwd gated silu 32768x3072" : "act_bwd gelu-tanh 32768x3072")) {
            a.x = take(bytes * 2);
            a.dy = take(bytes);
            a.dx = take(bytes * 2);
            report(gated ? "act_bwd gated silu 32768x3072" : "act_bwd gelu-tanh 32768x3072",
                   OP_ACT_BWD, &a, n * (gated ? 10 : 6), 0);
        }
    }
    if (wanted("rope 32768x12x64")) {
        struct rope_args a = {.N = N, .heads = 12, .head_dim = 64, .rope_dim = 64};
        a.positions = take_ints(N, 1024, 1);
        a.cos_table = take(1024 * 32 * 4);
        a.sin_table = take(1024 * 32 * 4);
        a.x = take(bytes / 4);
        report("rope 32768x12x64", OP_ROPE, &a, n, 0);
    }
    if (wanted("dropout_fwd 32768x768 + residual")) {
        struct dropout_args a = {.n = N * 768, .dropout = {.p = 0.1f}};
        a.x = take(bytes / 4);
        a.residual = take(bytes / 4);
        a.y = take(bytes / 4);
        report("dropout_fwd 32768x768 + residual", OP_DROPOUT_FWD, &a, n / 4 * 6, 0);
    }
}

static void bench_adamw(const char *name, int64_t n, enum dtype grad, enum dtype master,
                        enum dtype moment, double bytes)
{
    const float step[4] = {1e-4f, 0.1f, 0.01f, 0};
    struct adamw_args a = {.n = n, .n_decay = n, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f};
    struct clip_args c = {.n = 64, .max_norm = 1};
    double ones[64];
    struct err err = {0};

    if (!wanted(name))
        return;
    for (int i = 0; i < 64; i++)
        ones[i] = 1;
    void *partial = take(sizeof ones);
    must(device_copy(device, stream, COPY_H2D, partial, ones, sizeof ones, &err), &err);
    c.partial = partial;
    c.result = take(sizeof(struct clip_result));
    (void)op_call(ops, stream, OP_CLIP, &c);
    a.weight_decay = 0.1f;
    a.grad_type = grad;
    a.master_type = master;
    a.moment_type = moment;
    a.param_type = DT_BF16;
    a.step = take_floats(step, 4);
    a.clip = c.result;
    a.grad = take((size_t)n * dtype_size(grad));
    a.master = take((size_t)n * dtype_size(master));
    a.m = take((size_t)n * dtype_size(moment));
    a.v = take((size_t)n * dtype_size(moment));
    a.param = master == DT_BF16 ? NULL : take((size_t)n * 2);
    a.m_exponent = take((size_t)n / MOMENT_BLOCK);
    a.v_exponent = take((size_t)n / MOMENT_BLOCK);
    must(device_zero(device, stream, a.v, (size_t)n * dtype_size(moment), &err), &err);
    report(name, OP_ADAMW, &a, bytes * (double)n, 0);
}

static void bench_optimizer(void)
{
    const int64_t n = (int64_t)124 << 20;
    size_t f32 = (size_t)n * 4;

    bench_adamw("adamw 124Mi", n, DT_F32, DT_F32, DT_F32, 30);
    bench_adamw("adamw 124Mi bf16 gradients", n, DT_BF16, DT_F32, DT_F32, 28);
    bench_adamw("adamw 124Mi all bf16", n, DT_BF16, DT_BF16, DT_BF16, 14);
    bench_adamw("adamw 124Mi split", n, DT_BF16, DT_I16, DT_F32, 26);
    bench_adamw("adamw 124Mi bf16 moments", n, DT_BF16, DT_F32, DT_BF16, 20);
    bench_adamw("adamw 124Mi fp8 moments", n, DT_BF16, DT_F32, DT_U8, 16 + 4.0 / MOMENT_BLOCK);
    bench_adamw("adamw 124Mi split, fp8 moments", n, DT_BF16, DT_I16, DT_U8,
                14 + 4.0 / MOMENT_BLOCK);
    if (wanted("sumsq 124Mi")) {
        struct sumsq_args a = {.n = n, .x = take(f32), .partial = take(1 << 20)};
        report("sumsq 124Mi", OP_SUMSQ, &a, 4.0 * (double)n, 0);
    }
    if (wanted("clip of 107,000 partials (7B)")) {
        struct clip_args a = {.n = 107000, .max_norm = 1};
        a.partial = take(107000 * 8);
        a.result = take(sizeof(struct clip_result));
        report("clip of 107,000 partials (7B)", OP_CLIP, &a, 8.0 * 107000, 0);
    }
    if (wanted("cast f32 to bf16 124Mi")) {
        struct cast_args a = {.n = n, .from = DT_F32, .to = DT_BF16};
        a.src = take(f32);
        a.dst = take(f32 / 2);
        report("cast f32 to bf16 124Mi", OP_CAST, &a, 6.0 * (double)n, 0);
    }
    if (wanted("add 124Mi")) {
        struct add_args a = {.n = n, .x = take(f32), .y = take(f32)};
        report("add 124Mi", OP_ADD, &a, 12.0 * (double)n, 0);
    }
}

static void bench_linears(void)
{
    bench_linear(32768, 768, 2304, ACT_NONE, false);
    bench_linear(32768, 768, 768, ACT_NONE, false);
    bench_linear(32768, 768, 3072, ACT_GELU_TANH, false);
    bench_linear(32768, 768, 3072, ACT_RELU, false);
    bench_linear(32768, 3072, 768, ACT_NONE, false);
    bench_linear(32768, 768, 50304, ACT_NONE, false);
    bench_linear(8192, 4096, 11008, ACT_NONE, false);
    for (int fp8 = 0; fp8 < 2; fp8++) { /* Qwen2.5-7B's layer */
        bench_linear(16384, 3584, 4608, ACT_NONE, fp8);
        bench_linear(16384, 3584, 3584, ACT_NONE, fp8);
        bench_linear(16384, 3584, 37888, ACT_NONE, fp8);
        bench_linear(16384, 18944, 3584, ACT_NONE, fp8);
    }
    for (enum passes passes = PASS_LARGEST; passes <= PASS_BOTH; passes++) {
        bool copies = (passes & PASS_COPIES) != 0;
        bench_round8(16384, 3584, ROUND8_X, passes, passes == PASS_BOTH);
        bench_round8(37888, 3584, ROUND8_X, passes, false);
        for (int64_t N = 4096; N <= 16384; N *= 4) {
            bench_round8(N, 18944, ROUND8_ACT, passes, copies);
            bench_round8(N, 37888, ROUND8_ACT_GRAD, passes, copies);
        }
    }
    for (int format = QUANT_NF4; format <= QUANT_INT8; format++) { /* Llama 3 8B's widest */
        bench_quantised(16, 4096, 28672, (enum quant_format)format);
        bench_quantised(8192, 4096, 28672, (enum quant_format)format);
    }
    bench_linear(16, 4096, 28672, ACT_NONE, false);
    bench_linear(8192, 4096, 28672, ACT_NONE, false);
}

int main(int argc, char **argv)
{
    struct err err = {0};
    bool tune = argc > 1 && strcmp(argv[1], "-t") == 0;
    only = argc > 1 + tune ? argv[1 + tune] : NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (device_count(DEVICE_CUDA) == 0) {
        printf("gpu_ops: no GPU here\n");
        return 0;
    }
    must(device_open(DEVICE_CUDA, 0, NULL, &device, &err), &err);
    must(device_stream_create(device, 0, &stream, &err), &err);
    must(device_mark_create(device, &from, &err), &err);
    must(device_mark_create(device, &to, &err), &err);
    arena_open(device, stream);
    ops = device_ops(device, DT_BF16);
    device_tune(device, tune);
    ceilings();
    bench_attention(32, 1024, 12, 12, 64, 0, 0);
    bench_attention(8, 1024, 32, 32, 64, 0, 0);
    bench_attention(4, 4096, 32, 32, 128, 0, 0);
    bench_attention(4, 4096, 32, 8, 128, 0, 0);
    bench_attention(4, 4096, 16, 8, 256, 0, 0); /* Gemma 2 9B */
    bench_attention(32, 1024, 12, 12, 64, 0, 128);
    bench_attention(4, 4096, 32, 8, 128, 0, 512);
    bench_attention(32, 1024, 12, 12, 64, 0.1f, 0);
    bench_norm(32768, 768, NORM_LAYER);
    bench_norm(8192, 2048, NORM_LAYER);
    bench_norm(16384, 4096, NORM_RMS);
    bench_linears();
    bench_embed(32768, 768, 50257);
    bench_loss(32768, 50257, 50304);
    bench_loss(32768, 50257, 50257);
    bench_loss(4096, 151936, 151936);
    bench_elementwise();
    bench_optimizer();
    arena_close();
    device_mark_destroy(device, from);
    device_mark_destroy(device, to);
    device_stream_destroy(device, stream);
    device_close(device);
    return 0;
}
