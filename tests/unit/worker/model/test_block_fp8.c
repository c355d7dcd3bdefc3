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

static void open_rig(struct rig *r, bool fp8)
{
    struct decoder_config config = small_opt();

    cr_assert(config.layers == LAYERS && config.vocab == VOCAB);
    rig_open(r, &config, DT_F64, true, 4, 6);
    rig_random_weights(r, 0.5);
    rig_random_batch(r);
    r->fp8 = fp8;
}

Test(block_fp8, layers_round_and_head_and_embedding_do_not)
{
    struct rig r;

    open_rig(&r, true);
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
 * many by a few hundredths. */
Test(block_fp8, gradients_stay_near)
{
    struct rig exact, rounded;
    double difference = 0, size = 0;

    open_rig(&exact, false);
    open_rig(&rounded, true);
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
    cr_assert(relative > 1e-3 && relative < 0.2, "%g", relative);
    rig_close(&exact);
    rig_close(&rounded);
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
 * what it saved and makes it again. */
Test(block_fp8, what_is_held_changes_no_bit)
{
    struct rig plain, held, again;

    open_rig(&plain, true);
    open_rig(&held, true);
    open_rig(&again, true);
    held.held_copies = true;
    again.recompute = true;
    rig_train(&plain, 2, ACCUM_ASSIGN);
    rig_train(&held, 2, ACCUM_ASSIGN);
    rig_train(&again, 2, ACCUM_ASSIGN);
    cr_expect(same_gradients(&plain, &held));
    cr_expect(same_gradients(&plain, &again));
    rig_close(&plain);
    rig_close(&held);
    rig_close(&again);
}
