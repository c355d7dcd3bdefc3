/* Linear layers' gradients of several tiles, with what is done behind their products: an
 * activation's slope and the sums of the bias in front of it, the sum of a narrow gradient. The
 * last shape has more tiles than a GPU has multiprocessors, so that each works through several. */
#include <stddef.h>

#include "tests/ops/harness.h"

static const struct op_narrow NARROW = {
    true, {.seed = 5, .step = 2, .site = 12, .use = RNG_USE_GRADIENT}};

static void slopes(int64_t N, int64_t I, int64_t O, int64_t pad, enum act_kind act,
                   enum accum accum, bool narrow)
{
    struct linear_args a = {.N = N, .I = I, .O = O, .ldx = I + pad, .act_x = act};
    struct op_case c;

    a.dw_accum = accum;
    if (narrow)
        a.narrow = NARROW;
    case_init(&c, OP_LINEAR_BWD_DATA, &a, sizeof a, "%ld %ld %ld act %d accum %d%s", (long)N,
              (long)I, (long)O, act, accum, narrow ? " narrow" : "");
    BIND(&c, linear_args, dy, EL_REAL, ROLE_IN, N, O, 0);
    BIND(&c, linear_args, w, EL_REAL, ROLE_IN, O, I, 0);
    BIND(&c, linear_args, pre_x, EL_REAL, ROLE_IN, N, I, I + pad);
    BIND(&c, linear_args, dx, EL_REAL, ROLE_ASSIGN, N, I, I + pad);
    BIND(&c, linear_args, dbias_x, narrow ? EL_REAL : EL_GRAD,
         accum == ACCUM_ADD ? ROLE_ADD : ROLE_ASSIGN, 1, I, 0);
    check_tables(&c);
    case_fini(&c);
}

static void sums(int64_t N, int64_t I, int64_t O, float alpha)
{
    struct linear_args a = {.N = N, .I = I, .O = O, .alpha = alpha, .dw_accum = ACCUM_ADD};
    struct op_case c;

    a.narrow = NARROW;
    case_init(&c, OP_LINEAR_BWD_WEIGHT, &a, sizeof a, "%ld %ld %ld narrow", (long)N, (long)I,
              (long)O);
    BIND(&c, linear_args, x, EL_REAL, ROLE_IN, N, I, 0);
    BIND(&c, linear_args, dy, EL_REAL, ROLE_IN, N, O, 0);
    BIND(&c, linear_args, dw, EL_REAL, ROLE_ADD, O, I, 0);
    BIND(&c, linear_args, dbias, EL_REAL, ROLE_ADD, 1, O, 0);
    check_tables(&c);
    case_fini(&c);
}

int main(int argc, char **argv)
{
    harness_open(argc, argv);
    for (int o = 0; o < 8; o++)
        slopes(139, 168, 136, o / 4 * 8, o / 4 ? ACT_GELU_TANH : ACT_RELU, (enum accum)(o % 2),
               o / 2 % 2);
    slopes(300, 488, 72, 0, ACT_SILU, ACCUM_ADD, false);
    slopes(2220, 1640, 24, 0, ACT_RELU, ACCUM_ASSIGN, true);
    sums(139, 168, 136, 1);
    sums(70, 488, 300, 1.25f);
    sums(20, 1640, 2220, 1);
    return harness_close();
}
