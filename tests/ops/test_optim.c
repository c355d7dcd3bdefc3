/* Gradient norm, clipping and casts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/harness.h"

static void sumsq(int64_t n, bool narrow)
{
    struct sumsq_args a = {.n = n, .narrow = narrow};
    int64_t blocks = (n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;
    struct op_case c;

    case_init(&c, OP_SUMSQ, &a, sizeof a, "n=%ld%s", (long)n, narrow ? " narrow" : "");
    BIND(&c, sumsq_args, x, narrow ? EL_REAL : EL_GRAD, ROLE_IN, 1, n, 0);
    BIND(&c, sumsq_args, partial, DT_F64, ROLE_ASSIGN, 1, blocks, 0);
    check_tables(&c);
    case_fini(&c);
}

/* --- clip: its result is a struct, read as bytes --- */

static struct clip_result run_clip(const struct target *t, const double *partial, int64_t n,
                                   float max_norm, struct loss_scale *scale)
{
    struct clip_args a = {.n = n, .max_norm = max_norm};
    struct clip_result result;
    struct op_case c;
    struct result r;

    case_init(&c, OP_CLIP, &a, sizeof a, "n=%ld max=%g scale=%g", (long)n, (double)max_norm,
              (double)(scale ? scale->scale : 1));
    memcpy(BIND(&c, clip_args, partial, DT_F64, ROLE_IN, 1, n, 0), partial,
           (size_t)n * sizeof *partial);
    BIND(&c, clip_args, result, DT_I32, ROLE_ASSIGN, 1, sizeof result / 4, 0);
    if (scale)
        words_set(BIND(&c, clip_args, loss_scale, DT_I32, ROLE_INOUT, 1, sizeof *scale / 4, 0),
                  scale, sizeof *scale);
    case_run(&c, t, t->table, 1, &r);
    words_get(&result, r.v[case_index(&c, "result")], sizeof result);
    if (scale)
        words_get(scale, r.v[case_index(&c, "loss_scale")], sizeof *scale);
    result_fini(&r);
    case_fini(&c);
    return result;
}

static void expect_clip(const double *partial, int64_t n, float max_norm, float scale, double norm,
                        double coef, int clipped, int finite)
{
    for (int i = 0; i < targets_count(); i++) {
        struct loss_scale s = {.scale = scale, .interval = 9};
        struct clip_result r =
            run_clip(targets_get(i), partial, n, max_norm, scale == 1 ? NULL : &s);
        bool ok = (isfinite(norm) ? fabs(r.norm - norm) <= 1e-12 * norm : !isfinite(r.norm)) &&
                  fabs((double)r.coef - coef) <= 1e-7 * coef && r.clipped == clipped &&
                  r.finite == finite;
        expect(ok, "clip on %s: norm %g coef %g clipped %d finite %d, expected %g %g %d %d",
               targets_get(i)->table->name, r.norm, (double)r.coef, r.clipped, r.finite, norm, coef,
               clipped, finite);
    }
}

static void clip(void)
{
    static const double P[] = {4, 9, 12}; /* norm 5 */
    static const double WITH_NAN[] = {1, NAN, 2}, WITH_INF[] = {1, INFINITY, 2};

    expect_clip(P, 3, 10, 1, 5, 1, 0, 1);
    expect_clip(P, 3, 0, 1, 5, 1, 0, 1);
    expect_clip(P, 3, 1, 1, 5, 1 / (5 + 1e-6), 1, 1);
    expect_clip(P, 3, 1, 8, 0.625, 0.125, 0, 1);
    expect_clip(P, 3, 0.5f, 8, 0.625, 0.125 * 0.5 / (0.625 + 1e-6), 1, 1);
    expect_clip(WITH_NAN, 3, 1, 1, NAN, 0, 0, 0);
    expect_clip(WITH_INF, 3, 1, 1, INFINITY, 0, 0, 0);
}

/* More partials than a group, than a block of threads, than a whole grid step: the order of
 * additions is the same everywhere, so the bits are. */
static void clip_of_many(void)
{
    enum { MANY = 300 * CLIP_GROUP + 77 };
    double *partial = malloc(MANY * sizeof *partial);

    random_start("clip of many");
    for (int64_t i = 0; i < MANY; i++)
        partial[i] = ldexp(1 + random_unit(), (int)(i % 30));
    for (int64_t n = MANY; n > 0; n = n > CLIP_GROUP ? n / 7 : n - 85) {
        double sum = 0, norm = 0;
        for (int64_t g = 0; g < n; g += CLIP_GROUP) {
            double group = 0;
            for (int64_t i = g; i < n && i < g + CLIP_GROUP; i++)
                group += partial[i];
            sum += group;
        }
        norm = sqrt(sum);
        for (int i = 0; i < targets_count(); i++) {
            struct clip_result r = run_clip(targets_get(i), partial, n, 1, NULL);
            expect(memcmp(&r.norm, &norm, sizeof norm) == 0, "clip of %ld on %s: %a, not %a",
                   (long)n, targets_get(i)->table->name, r.norm, norm);
        }
    }
    free(partial);
}

/* The scale halves where a step is skipped and doubles behind `interval` good ones, within bounds.
 */
static void loss_scale_moves(void)
{
    static const double GOOD[] = {1}, BAD[] = {INFINITY};
    static const struct {
        const double *partial;
        struct loss_scale before, after;
    } MOVES[] = {
        {GOOD, {64, 0, 3, 2}, {64, 1, 3, 2}},
        {GOOD, {64, 1, 3, 2}, {128, 0, 3, 2}},
        {BAD, {64, 1, 3, 2}, {32, 0, 4, 2}},
        {GOOD, {0x1p24f, 1, 0, 2}, {0x1p24f, 0, 0, 2}},
        {BAD, {0x1p-14f, 1, 0, 2}, {0x1p-14f, 0, 1, 2}},
    };

    for (size_t m = 0; m < sizeof MOVES / sizeof MOVES[0]; m++)
        for (int i = 0; i < targets_count(); i++) {
            struct loss_scale s = MOVES[m].before;
            run_clip(targets_get(i), MOVES[m].partial, 1, 0, &s);
            expect(memcmp(&s, &MOVES[m].after, sizeof s) == 0,
                   "loss scale on %s, move %zu: %g good %d skipped %d", targets_get(i)->table->name,
                   m, (double)s.scale, s.good, s.skipped);
        }
}

/* --- casts --- */

static void casts(void)
{
    static const enum dtype TYPES[] = {DT_F32, DT_F16, DT_BF16};
    struct op_case c;

    for (int from = 0; from < 3; from++)
        for (int to = 0; to < 3; to++) {
            struct cast_args a = {.n = 1003, .from = TYPES[from], .to = TYPES[to]};
            case_init(&c, OP_CAST, &a, sizeof a, "%s to %s", dtype_name(a.from), dtype_name(a.to));
            double *src = BIND(&c, cast_args, src, (int)a.from, ROLE_IN, 1, a.n, 0);
            for (int64_t i = 0; i < a.n; i++) /* from far below to far above float16's range */
                src[i] = ldexp(src[i], (int)(i % 64) - 40);
            src[0] = 1 + 0x1p-8; /* half way in bfloat16: to even, down */
            src[1] = 1 + 3 * 0x1p-8;
            src[2] = -0.0;
            src[3] = INFINITY;
            BIND(&c, cast_args, dst, (int)a.to, ROLE_ASSIGN, 1, a.n, 0);
            check_exact(&c);
            case_fini(&c);
        }
}

int main(int argc, char **argv)
{
    harness_open(argc, argv);
    for (int narrow = 0; narrow < 2; narrow++) {
        sumsq(1, narrow);
        sumsq(SUMSQ_BLOCK, narrow);
        sumsq(3 * SUMSQ_BLOCK + 17, narrow);
    }
    clip();
    clip_of_many();
    loss_scale_moves();
    casts();
    return harness_close();
}
