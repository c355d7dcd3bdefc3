/* Which of a model's products round their operands to 8 bits, and how far that moves gradients. */
#include <criterion/criterion.h>
#include <math.h>

#include "tests/unit/worker/model/rig.h"
#include "tests/unit/worker/model/small.h"

enum { LAYERS = 2, PRODUCTS = 4 /* qkv, out, up, down */, VOCAB = 29 };

/* What was asked of the table behind: forward, data, weight. */
static const struct op_table *behind;
static int narrow[3], wide[3];

static void count(int op, const struct linear_args *a)
{
    cr_assert(!a->fp8 || a->O != VOCAB, "the head's product rounds to 8 bits");
    (a->fp8 ? narrow : wide)[op]++;
}

static int count_fwd(struct stream *s, const struct linear_args *a)
{
    count(0, a);
    return behind->linear_fwd(s, a);
}

static int count_data(struct stream *s, const struct linear_args *a)
{
    count(1, a);
    return behind->linear_bwd_data(s, a);
}

static int count_weight(struct stream *s, const struct linear_args *a)
{
    count(2, a);
    return behind->linear_bwd_weight(s, a);
}

static void open_rig(struct rig *r, small_config make, bool fp8)
{
    struct decoder_config config = make();

    cr_assert(config.layers == LAYERS && config.vocab == VOCAB);
    rig_open(r, &config, DT_F64, true, 4, 6);
    rig_random_weights(r, 0.5);
    rig_random_batch(r);
    r->fp8 = fp8;
}

Test(block_fp8, layers_round_and_head_and_embedding_do_not)
{
    struct rig r;

    open_rig(&r, small_opt, true);
    struct op_table counting = *(behind = r.ops);
    counting.linear_fwd = count_fwd;
    counting.linear_bwd_data = count_data;
    counting.linear_bwd_weight = count_weight;
    r.ops = &counting;
    rig_train(&r, 4, ACCUM_ASSIGN);
    for (int op = 0; op < 3; op++) {
        cr_assert_eq(narrow[op], LAYERS * PRODUCTS, "op %d: %d", op, narrow[op]);
        cr_assert_gt(wide[op], 0);
    }
    r.ops = behind;
    rig_close(&r);
}

/* An operand keeps 3 or 2 bits behind its first one: single products are off by up to 1/8, sums of
 * many by a few hundredths. A gated layer has a product of two such sums, whose gate and up are
 * rounded once more: some 5 % of the norm, beside a fifth by all else. */
static void gradients_stay_near(small_config make, double most)
{
    struct rig exact, rounded;
    double difference = 0, size = 0;

    open_rig(&exact, make, false);
    open_rig(&rounded, make, true);
    rig_train(&exact, 4, ACCUM_ASSIGN);
    rig_train(&rounded, 4, ACCUM_ASSIGN);
    for (int64_t t = 0; t < exact.m.n_tensors; t++)
        for (int64_t i = 0; i < tensor_elements(&exact.m.tensors[t]); i++) {
            double a = rig_grad(&exact, t, i), b = rig_grad(&rounded, t, i);
            difference += (a - b) * (a - b);
            size += a * a;
        }
    double relative = sqrt(difference / size);
    fprintf(stderr, "gradients: %.3g of their norm away\n", relative);
    cr_assert(relative > 1e-3 && relative < most, "%g", relative);
    rig_close(&exact);
    rig_close(&rounded);
}

Test(block_fp8, gradients_stay_near)
{
    gradients_stay_near(small_opt, 0.2);
    gradients_stay_near(small_llama, 0.25);
}

static bool same_gradients(const struct rig *a, const struct rig *b)
{
    for (int64_t t = 0; t < a->m.n_tensors; t++)
        for (int64_t i = 0; i < tensor_elements(&a->m.tensors[t]); i++)
            if (rig_grad(a, t, i) != rig_grad(b, t, i))
                return false;
    return true;
}

/* Held or made again, the copies of weights are the same; and so they are where a layer forgets
 * what it saved and makes it again, or keeps what is cheap to make. */
static void what_is_held_changes_no_bit(small_config make)
{
    enum { PLAIN, HELD, AGAIN, CHEAP, RIGS };
    struct rig r[RIGS];

    for (int i = 0; i < RIGS; i++) {
        open_rig(&r[i], make, true);
        r[i].held_copies = i == HELD;
        r[i].recompute = i == AGAIN;
        r[i].keep_cheap = i == CHEAP;
        rig_train(&r[i], 2, ACCUM_ASSIGN);
        cr_expect(same_gradients(&r[PLAIN], &r[i]), "%d", i);
    }
    for (int i = 0; i < RIGS; i++)
        rig_close(&r[i]);
}

Test(block_fp8, what_is_held_changes_no_bit)
{
    what_is_held_changes_no_bit(small_opt);
    what_is_held_changes_no_bit(small_llama);
}

/* Of a gated activation 3 bytes a column, its inputs and its output, instead of two inputs of 16
 * bits; and five scales of 16 bytes. */
Test(block_fp8, gate_and_up_are_kept_in_8_bits)
{
    struct block_shape shape = {.B = 4, .T = 64, .head_rows = 16, .train = true};
    struct rig r;

    open_rig(&r, small_llama, true);
    const struct op_table *ops = device_ops(r.device, DT_BF16);
    size_t F = (size_t)r.m.config.ffn, full = block_sizes(&r.m, 1, &shape, ops).saved;
    shape.fp8 = true;
    size_t eight = block_sizes(&r.m, 1, &shape, ops).saved;
    cr_expect_eq(full - eight, 4 * 64 * F - DEVICE_ALIGN, "%zu, %zu", full, eight);
    rig_close(&r);
}
