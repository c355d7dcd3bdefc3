/* Floors of ops, against counts by hand. */
#include <criterion/criterion.h>

#include "kernels/op_cost.h"

static const struct op_table f32 = {
    .compute = DT_F32, .grad = DT_F32, .stat = DT_F32, .master = DT_F32};
static const struct op_table bf16 = {
    .compute = DT_BF16, .grad = DT_F32, .stat = DT_F32, .master = DT_F32};

static void expect(const struct op_table *t, enum op op, const void *args, double flops,
                   double bytes)
{
    struct op_cost c = op_cost(t, op, args);
    cr_expect(c.flops == flops && c.bytes == bytes, "%s: %g flops and %g bytes, not %g and %g",
              op_name(op), c.flops, c.bytes, flops, bytes);
}

Test(op_cost, of_products)
{
    char some[4];
    struct linear_args a = {.N = 2, .I = 3, .O = 5, .dw = some};

    expect(&f32, OP_LINEAR_FWD, &a, 60, 4 * (6 + 15 + 10));
    expect(&f32, OP_LINEAR_BWD_DATA, &a, 60, 4 * (10 + 15 + 6));
    expect(&bf16, OP_LINEAR_BWD_WEIGHT, &a, 60, 2 * (6 + 10) + 4 * 15);
    struct linear_args nf4 = {.N = 2, .I = 64, .O = 5, .quant = {.format = QUANT_NF4}};
    expect(&bf16, OP_LINEAR_FWD, &nf4, 1280, 2 * (128 + 10) + 160 + 4 * 5);
    expect(&bf16, OP_LINEAR_BWD_DATA, &nf4, 1280, 2 * (128 + 10) + 160 + 4 * 5);
    a.residual = a.pre = some;
    a.dw_accum = ACCUM_ADD;
    a.act_x = ACT_RELU;
    a.narrow.on = true;
    expect(&f32, OP_LINEAR_FWD, &a, 60, 4 * (6 + 15 + 30));
    expect(&f32, OP_LINEAR_BWD_DATA, &a, 60, 4 * (10 + 15 + 12));
    expect(&bf16, OP_LINEAR_BWD_WEIGHT, &a, 60, 2 * (6 + 10) + 2 * 2 * 15);
    a.dw = NULL; /* a bias alone */
    expect(&bf16, OP_LINEAR_BWD_WEIGHT, &a, 0, 2 * (6 + 10));
}

Test(op_cost, of_8_bits)
{
    char some[4];
    struct linear_args a = {.N = 2, .I = 3, .O = 5, .fp8 = true, .dw = some};
    struct round8_args r = {.N = 4, .C = 6, .rows = some, .cols = some};

    expect(&bf16, OP_LINEAR_FWD, &a, 30, 6 + 15 + 2 * 10);
    expect(&bf16, OP_LINEAR_BWD_DATA, &a, 30, 10 + 15 + 2 * 6);
    expect(&bf16, OP_LINEAR_BWD_WEIGHT, &a, 30, 6 + 10 + 4 * 15);
    expect(&bf16, OP_ROUND8, &r, 0, 2 * 2 * 24 + 2 * 24);
    r.known = true;
    r.cols = NULL;
    expect(&bf16, OP_ROUND8, &r, 0, 2 * 24 + 24);
    r.gated = true;
    r.of = ROUND8_ACT;
    expect(&bf16, OP_ROUND8, &r, 0, 2 * 2 * 24 + 24);
    r.of = ROUND8_ACT_GRAD;
    expect(&bf16, OP_ROUND8, &r, 0, 2 * 24 + 2 * 12 + 24);
    r.x8 = some; /* read instead of x; beside an activation written */
    expect(&bf16, OP_ROUND8, &r, 0, 24 + 2 * 12 + 24);
    r.of = ROUND8_ACT;
    expect(&bf16, OP_ROUND8, &r, 0, 2 * 2 * 24 + 24 + 2 * 24);
}

/* Of four queries the last sees four keys, or no more than the window. */
Test(op_cost, of_attention)
{
    struct attn_args a = {.B = 1, .T = 4, .S = 4, .H = 2, .KV = 1, .D = 8};
    double q = 4 * 2 * 8, kv = 4 * 8;

    expect(&bf16, OP_ATTN_FWD, &a, 2 * 2 * 2 * 8 * 10, 2 * (2 * q + 2 * kv));
    expect(&bf16, OP_ATTN_BWD, &a, 5 * 2 * 2 * 8 * 10, 2 * (4 * q + 4 * kv));
    a.window = 2;
    expect(&bf16, OP_ATTN_FWD, &a, 2 * 2 * 2 * 8 * 7, 2 * (2 * q + 2 * kv));
    a.window = 9;
    expect(&bf16, OP_ATTN_FWD, &a, 2 * 2 * 2 * 8 * 10, 2 * (2 * q + 2 * kv));
}

Test(op_cost, of_passes)
{
    char some[4];
    struct adamw_args adamw = {.n = 10,
                               .grad_type = DT_BF16,
                               .master_type = DT_F32,
                               .moment_type = DT_F32,
                               .param_type = DT_BF16,
                               .param = some};
    struct norm_args norm = {.N = 2, .C = 8, .dresidual = some};
    struct sumsq_args sumsq = {.n = 10};
    struct loss_args loss = {.N = 2, .V = 7};

    expect(&bf16, OP_ADAMW, &adamw, 0, 10 * (2 + 8 + 16 + 2));
    expect(&bf16, OP_NORM_FWD, &norm, 0, 2 * 16 * 2);
    expect(&bf16, OP_NORM_BWD, &norm, 0, 4 * 16 * 2);
    expect(&bf16, OP_SUMSQ, &sumsq, 0, 40);
    sumsq.narrow = true;
    expect(&bf16, OP_SUMSQ, &sumsq, 0, 20);
    expect(&bf16, OP_LOSS, &loss, 0, 28);
}

/* By hand: 4,096 by 1,600 is 416 tiles of 128 by 128, four waves of 132; by 160, which forward has,
 * it is 320, three waves. 1,600 by 1,600 is 117 tiles of 128 by 192. */
Test(op_cost, of_waves_that_are_not_full)
{
    cr_expect_float_eq(op_busy_share(OP_LINEAR_BWD_DATA, 4096, 1600, 132),
                       4096.0 * 1600 / (4 * 132 * 128 * 128), 1e-9);
    cr_expect_float_eq(op_busy_share(OP_LINEAR_FWD, 4096, 1600, 132),
                       4096.0 * 1600 / (3 * 132 * 128 * 160), 1e-9);
    cr_expect_float_eq(op_busy_share(OP_LINEAR_BWD_WEIGHT, 1600, 1600, 132),
                       1600.0 * 1600 / (132 * 128 * 192), 1e-9);
    cr_expect_gt(op_busy_share(OP_LINEAR_FWD, 65536, 16384, 132), 0.99);
    cr_expect_eq(op_busy_share(OP_LINEAR_FWD, 1, 1, 0), 1);
}

Test(op_cost, says_in_what_a_weight_lies)
{
    struct linear_args a = {.N = 8, .I = 64, .O = 5, .quant = {.format = QUANT_NF4}};
    char text[64];

    op_describe(OP_LINEAR_FWD, &a, text, sizeof text);
    cr_expect_str_eq(text, "8x64x5 nf4");
    a.quant.format = QUANT_INT8;
    op_describe(OP_LINEAR_BWD_DATA, &a, text, sizeof text);
    cr_expect_str_eq(text, "8x64x5 int8");
    op_describe(OP_LINEAR_BWD_WEIGHT, &a, text, sizeof text);
    cr_expect_str_eq(text, "8x64x5");
}
