/* Blocks without an oracle: finite differences, and what must not change the numbers. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/unit/worker/model/rig.h"
#include "tests/unit/worker/model/small.h"
#include "worker/model/block_impl.h"

static void open_rig(struct rig *r, struct decoder_config config, enum dtype compute, bool dropout)
{
    rig_open(r, &config, compute, true, 4, 6);
    rig_random_weights(r, 0.5);
    rig_random_batch(r);
    if (dropout) {
        r->embed_dropout = 0.2;
        r->hidden_dropout = 0.3;
        r->attn_dropout = 0.25;
    }
}

/* Two packed samples in each row: the second starts at key 2 with position 0. */
static void pack_rows(struct rig *r)
{
    r->first_key = xcalloc((size_t)(r->B * r->T), sizeof(int32_t));
    for (int64_t i = 0; i < r->B * r->T; i++) {
        int64_t t = i % r->T;

        r->first_key[i] = t < 2 ? 0 : 2;
        r->positions[i] = (int32_t)(t < 2 ? t : t - 2);
    }
}

static void check_gradients(struct decoder_config config)
{
    struct rig r;

    open_rig(&r, config, DT_F64, true);
    pack_rows(&r);
    rig_train(&r, 2, ACCUM_ASSIGN);
    rig_check_gradients(&r, 0);
    rig_close(&r);
}

Test(block, gradients_pre_norm)
{
    check_gradients(small_gpt2());
}

Test(block, gradients_post_norm)
{
    check_gradients(small_post_norm());
}

Test(block, gradients_gated_grouped)
{
    check_gradients(small_llama());
}

Test(block, gradients_partial_rope)
{
    check_gradients(small_partial_rope());
}

Test(block, gradients_norms_on_queries_and_keys)
{
    check_gradients(small_qwen3());
    check_gradients(small_command_r());
}

Test(block, gradients_sandwich)
{
    check_gradients(small_sandwich());
}

Test(block, gradients_parallel)
{
    check_gradients(small_parallel_2norm());
    check_gradients(small_parallel_1norm());
}

Test(block, gradients_alibi_and_norm_of_embedding)
{
    check_gradients(small_bloom());
    check_gradients(small_stream_norm());
}

/* ReLU has corners, but on random data none lies within h of 0. */
Test(block, gradients_relu)
{
    check_gradients(small_opt());
}

static void check_accumulation(struct decoder_config config)
{
    struct rig r;
    double *once, *twice, *again;

    open_rig(&r, config, DT_F64, true);
    rig_train(&r, 4, ACCUM_ASSIGN); /* over gradients full of NaN */
    once = rig_grads(&r, 0);
    rig_train(&r, 4, ACCUM_ADD);
    twice = rig_grads(&r, 0);
    rig_expect_near(twice, once, r.m.n_params, 2);
    rig_train(&r, 4, ACCUM_ASSIGN);
    again = rig_grads(&r, 0);
    cr_assert_arr_eq(again, once, (size_t)r.m.n_params * sizeof(double));
    free(once);
    free(twice);
    free(again);
    rig_close(&r);
}

Test(block, backward_adds_or_assigns)
{
    for (int i = 0; i < N_SMALL_CONFIGS; i++)
        check_accumulation(small_configs[i]());
}

/* Masks are keyed by the sequence's place in the step, so cuts do not show. */
static void check_cuts(struct decoder_config (*config)(void))
{
    struct rig whole, cut;
    double *a, *b;

    open_rig(&whole, config(), DT_F64, true);
    open_rig(&cut, config(), DT_F64, true);
    rig_train(&whole, 4, ACCUM_ASSIGN);
    rig_train(&cut, 1, ACCUM_ASSIGN);
    cr_assert_arr_eq(whole.row_loss, cut.row_loss, (size_t)(whole.B * whole.T) * sizeof(double));
    a = rig_grads(&whole, 0);
    b = rig_grads(&cut, 0);
    rig_expect_near(b, a, whole.m.n_params, 1);
    free(a);
    free(b);
    rig_close(&whole);
    rig_close(&cut);
}

Test(block, micro_batches_do_not_change_masks)
{
    for (int i = 0; i < N_SMALL_CONFIGS; i++)
        check_cuts(small_configs[i]);
}

Test(block, dropout_depends_on_seed_and_step)
{
    struct rig r;
    double first, other_step, other_seed;

    open_rig(&r, small_gpt2(), DT_F64, true);
    first = rig_evaluate(&r, 4);
    r.step++;
    other_step = rig_evaluate(&r, 4);
    r.step--;
    r.seed++;
    other_seed = rig_evaluate(&r, 4);
    r.seed--;
    cr_assert_neq(first, other_step);
    cr_assert_neq(first, other_seed);
    cr_assert_eq(first, rig_evaluate(&r, 4));
    rig_close(&r);
}

Test(block, no_two_places_share_masks)
{
    bool seen[4 * DROPOUT_PLACES] = {false};

    for (int64_t b = 0; b < 4; b++) {
        struct block_run r = {.block = b, .first_sequence = 3, .seed = 7, .step = 5};
        struct block_ctx c = {.r = &r};

        for (int place = DROPOUT_EMBED; place <= DROPOUT_MLP_OUT; place++) {
            struct op_dropout d = block_dropout(&c, (enum dropout_place)place, 0.5, 10);

            cr_assert_lt(d.stream.site, 4 * DROPOUT_PLACES);
            cr_assert(!seen[d.stream.site], "block %d, place %d", (int)b, place);
            seen[d.stream.site] = true;
            cr_assert_eq(d.first, 30);
            cr_assert_eq(d.stream.use, RNG_USE_DROPOUT);
        }
    }
}

/* Recomputed activations, frozen neighbours and another head slice. Bits, not tolerances. */
Test(block, recomputation_gives_the_same_bits)
{
    for (int i = 0; i < N_SMALL_CONFIGS; i++) {
        struct rig kept, again;
        double *a, *b;

        open_rig(&kept, small_configs[i](), DT_F32, true);
        open_rig(&again, small_configs[i](), DT_F32, true);
        again.recompute = true;
        rig_train(&kept, 2, ACCUM_ASSIGN);
        rig_train(&again, 2, ACCUM_ASSIGN);
        a = rig_grads(&kept, 0);
        b = rig_grads(&again, 0);
        cr_assert_arr_eq(a, b, (size_t)kept.m.n_params * sizeof(double));
        free(a);
        free(b);
        rig_close(&kept);
        rig_close(&again);
    }
}

Test(block, head_slices_agree)
{
    struct rig r;
    double *a, *b;

    open_rig(&r, small_post_norm(), DT_F64, false);
    r.head_rows = 1000;
    rig_train(&r, 4, ACCUM_ASSIGN);
    a = rig_grads(&r, 0);
    r.head_rows = 7;
    rig_train(&r, 4, ACCUM_ASSIGN);
    b = rig_grads(&r, 0);
    rig_expect_near(b, a, r.m.n_params, 1);
    free(a);
    free(b);
    rig_close(&r);
}

Test(block, frozen_tensors_are_left_alone)
{
    struct rig r, frozen;

    open_rig(&r, small_gpt2(), DT_F64, true);
    open_rig(&frozen, small_gpt2(), DT_F64, true);
    frozen.freeze_all_but_norms = true;
    rig_train(&r, 2, ACCUM_ASSIGN);
    rig_train(&frozen, 2, ACCUM_ASSIGN);
    for (int64_t t = 0; t < r.m.n_tensors; t++) {
        enum tensor_role role = r.m.tensors[t].role;
        bool norm = role == TENSOR_NORM1_W || role == TENSOR_NORM1_B || role == TENSOR_NORM2_W ||
                    role == TENSOR_NORM2_B || role == TENSOR_FINAL_NORM_W ||
                    role == TENSOR_FINAL_NORM_B;

        if (norm)
            cr_assert_eq(rig_grad(&r, t, 1), rig_grad(&frozen, t, 1));
        else if (role != TENSOR_EMBED && role != TENSOR_POSITIONS) /* the rig zeroes those */
            cr_assert(isnan(rig_grad(&frozen, t, 1)), "%s was written", tensor_role_name(role));
    }
    rig_close(&r);
    rig_close(&frozen);
}

Test(block, packed_samples_do_not_see_each_other)
{
    struct rig packed, alone;

    open_rig(&packed, small_gpt2(), DT_F64, false);
    open_rig(&alone, small_gpt2(), DT_F64, false);
    pack_rows(&packed);
    /* the second sample of each row, moved to the front */
    for (int64_t b = 0; b < alone.B; b++) {
        for (int64_t t = 0; t < alone.T; t++) {
            int64_t from = b * alone.T + (t + 2) % alone.T;

            alone.tokens[b * alone.T + t] = packed.tokens[from];
            alone.targets[b * alone.T + t] = packed.targets[from];
        }
    }
    rig_evaluate(&packed, 4);
    rig_evaluate(&alone, 4);
    for (int64_t b = 0; b < alone.B; b++) {
        for (int64_t t = 0; t + 2 < alone.T; t++)
            cr_assert_float_eq(packed.row_loss[b * alone.T + t + 2],
                               alone.row_loss[b * alone.T + t], 1e-12);
    }
    rig_close(&packed);
    rig_close(&alone);
}

/* With windows of one token nobody sees the first; without, the fourth does. */
Test(block, windows_hide_older_tokens)
{
    for (int windowed = 0; windowed < 2; windowed++) {
        struct decoder_config c = small_gpt2();
        struct rig r;
        double before;

        if (windowed) {
            c.window = xcalloc(2, sizeof(*c.window));
            c.window[0] = c.window[1] = 1;
        }
        open_rig(&r, c, DT_F64, false);
        r.targets[3] = 1;
        rig_evaluate(&r, 4);
        before = r.row_loss[3];
        r.tokens[0] = (r.tokens[0] + 1) % 29;
        rig_evaluate(&r, 4);
        cr_assert_eq(before == r.row_loss[3], windowed == 1);
        rig_close(&r);
    }
}

Test(block, some_rows_of_logits)
{
    struct rig r;
    double *all, *some;
    int64_t V;

    open_rig(&r, small_opt(), DT_F64, false);
    V = r.m.config.vocab;
    all = xcalloc((size_t)(r.B * r.T * V), sizeof(double));
    some = xcalloc((size_t)(9 * V), sizeof(double));
    rig_logits(&r, 0, r.B * r.T, all);
    rig_logits(&r, 11, 9, some);
    cr_assert_arr_eq(some, all + 11 * V, (size_t)(9 * V) * sizeof(double));
    free(all);
    free(some);
    rig_close(&r);
}

Test(block, sizes_follow_the_flags)
{
    struct rig r;
    struct block_shape shape = {.B = 3, .T = 5, .head_rows = 4, .train = true};
    struct block_bytes train, infer;
    size_t N = 15, stream = (15 * 16 * 8 + 255) / 256 * 256;

    open_rig(&r, small_opt(), DT_F64, false);
    train = block_sizes(&r.m, 1, &shape, r.ops);
    shape.train = false;
    infer = block_sizes(&r.m, 1, &shape, r.ops);
    /* mid, q k v, o, log-sums, ReLU's output: nothing else is kept */
    cr_assert_eq(train.saved, stream + (N * 48 * 8 + 255) / 256 * 256 + stream +
                                  (N * 4 * 8 + 255) / 256 * 256 + (N * 24 * 8 + 255) / 256 * 256);
    cr_assert_eq(infer.saved, 0);
    cr_assert_gt(infer.forward_scratch, train.forward_scratch);
    cr_assert_eq(block_sizes(&r.m, 0, &shape, r.ops).saved, 0);
    cr_assert_eq(block_sizes(&r.m, 3, &shape, r.ops).saved, 0);
    rig_close(&r);
}

Test(block, flops_count_the_products)
{
    struct rig r;
    struct block_shape shape = {.B = 1, .T = 1, .head_rows = 1, .train = true};

    open_rig(&r, small_opt(), DT_F64, false);
    /* one token: every weight of a matrix once, and one key */
    struct block_flops layer = block_flops(&r.m, 1, &shape, false);
    cr_assert_float_eq(layer.products, 2 * (16 * 48 + 16 * 16 + 2 * 16 * 24), 0.5);
    cr_assert_float_eq(layer.attention, 4 * 16, 0.5);
    layer = block_flops(&r.m, 1, &shape, true);
    cr_assert_float_eq(layer.products, 4 * (16 * 48 + 16 * 16 + 2 * 16 * 24), 0.5);
    cr_assert_float_eq(layer.attention, 10 * 16, 0.5);
    cr_assert_float_eq(block_flops(&r.m, 3, &shape, false).products, 2 * 16 * 29, 0.5);
    cr_assert_float_eq(block_flops(&r.m, 3, &shape, true).products, 6 * 16 * 29, 0.5);
    cr_assert_eq(block_flops(&r.m, 3, &shape, true).attention, 0);
    cr_assert_eq(block_flops(&r.m, 0, &shape, true).products, 0);
    rig_close(&r);
}
