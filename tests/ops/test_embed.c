/* Embedding, rotary positions, dropout and adds. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/ops/harness.h"

static void bind_tokens(struct op_case *c, int64_t N, int64_t V, int64_t P, int64_t offset)
{
    double *tokens = BIND(c, embed_args, tokens, DT_I32, ROLE_IN, 1, N, 0);
    for (int64_t n = 0; n < N; n++)
        tokens[n] = (double)random_below(V);
    if (P == 0)
        return;
    double *positions = BIND(c, embed_args, positions, DT_I32, ROLE_IN, 1, N, 0);
    for (int64_t n = 0; n < N; n++)
        positions[n] = (double)random_below(P - offset);
}

static void embed_cases(struct op_case *f, struct op_case *b, int64_t N, int64_t C, int64_t V,
                        int64_t P)
{
    struct embed_args a = {.N = N, .C = C, .V = V, .P = P, .wpe_offset = P ? 2 : 0, .scale = 1.5f};

    case_init(f, OP_EMBED_FWD, &a, sizeof a, "N=%ld C=%ld V=%ld P=%ld", (long)N, (long)C, (long)V,
              (long)P);
    bind_tokens(f, N, V, P, a.wpe_offset);
    BIND(f, embed_args, wte, EL_REAL, ROLE_IN, V, C, 0);
    if (P)
        BIND(f, embed_args, wpe, EL_REAL, ROLE_IN, P, C, 0);
    BIND(f, embed_args, out, EL_REAL, ROLE_ASSIGN, N, C, 0);

    case_init(b, OP_EMBED_BWD, &a, sizeof a, "N=%ld C=%ld V=%ld P=%ld", (long)N, (long)C, (long)V,
              (long)P);
    bind_tokens(b, N, V, P, a.wpe_offset);
    memcpy(case_data(b, "tokens"), case_data(f, "tokens"), (size_t)N * sizeof(double));
    if (P)
        memcpy(case_data(b, "positions"), case_data(f, "positions"), (size_t)N * sizeof(double));
    BIND(b, embed_args, dout, EL_REAL, ROLE_IN, N, C, 0);
    BIND(b, embed_args, dwte, EL_GRAD, ROLE_ADD, V, C, 0);
    if (P)
        BIND(b, embed_args, dwpe, EL_GRAD, ROLE_ADD, P, C, 0);
}

static void embed(int64_t N, int64_t C, int64_t V, int64_t P, bool gradients)
{
    static const struct flow FLOW[] = {{FLOW_SEED, "out", "dout", 0},
                                       {FLOW_GRAD, "wte", "dwte", 0},
                                       {FLOW_GRAD, "wpe", "dwpe", 0}};
    struct op_case f, b;

    embed_cases(&f, &b, N, C, V, P);
    if (gradients)
        check_gradients(&f, &b, FLOW, P ? 3 : 2);
    check_tables(&f);
    check_tables(&b);
    case_fini(&f);
    case_fini(&b);
}

struct rope_shape {
    int64_t N, heads, head_dim, rope_dim, pad;
};

static void rope_case(struct op_case *c, const struct rope_shape *s, enum rope_style style,
                      bool inverse)
{
    enum { POSITIONS = 50 };
    struct rope_args a = {.style = style,
                          .inverse = inverse,
                          .N = s->N,
                          .heads = s->heads,
                          .head_dim = s->head_dim,
                          .rope_dim = s->rope_dim};
    int64_t half = s->rope_dim / 2;

    a.ldx = s->pad ? s->heads * s->head_dim + s->pad : 0;
    case_init(c, OP_ROPE, &a, sizeof a, "%s%s N=%ld heads=%ld D=%ld dim=%ld",
              style == ROPE_HALF ? "half" : "interleaved", inverse ? " inverse" : "", (long)s->N,
              (long)s->heads, (long)s->head_dim, (long)s->rope_dim);
    double *positions = BIND(c, rope_args, positions, DT_I32, ROLE_IN, 1, s->N, 0);
    for (int64_t n = 0; n < s->N; n++)
        positions[n] = (double)((7 * n + 3) % POSITIONS);
    double *cosine = BIND(c, rope_args, cos_table, DT_F32, ROLE_IN, POSITIONS, half, 0);
    double *sine = BIND(c, rope_args, sin_table, DT_F32, ROLE_IN, POSITIONS, half, 0);
    for (int64_t p = 0; p < POSITIONS; p++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)p * pow(10000, -2.0 * (double)i / (double)s->rope_dim);
            cosine[p * half + i] = cos(angle);
            sine[p * half + i] = sin(angle);
        }
    BIND(c, rope_args, x, EL_REAL, ROLE_INOUT, s->N, s->heads * s->head_dim, a.ldx);
}

/* The first pair of position 3 turned by 3 radians: a check by hand of direction and pairing. */
static void rope_by_hand(enum rope_style style)
{
    static const struct rope_shape SHAPE = {1, 1, 4, 4, 0};
    int second = style == ROPE_HALF ? 2 : 1;
    struct op_case c;
    struct result r;

    rope_case(&c, &SHAPE, style, false);
    double *x = case_data(&c, "x");
    for (int i = 0; i < 4; i++)
        x[i] = 0;
    x[0] = 1;
    case_run(&c, targets_get(0), targets_get(0)->table, 1, &r);
    const double *y = r.v[case_index(&c, "x")];
    expect(fabs(y[0] - cos(3)) < 1e-7 && fabs(y[second] - sin(3)) < 1e-7,
           "%s: (1, 0) turned to (%g, %g)", c.title, y[0], y[second]);
    result_fini(&r);
    case_fini(&c);
}

static void rope(const struct rope_shape *s, bool gradients)
{
    static const struct flow FLOW[] = {{FLOW_SEED, "x", "x", 0}, {FLOW_GRAD, "x", "x", 0}};
    struct op_case f, b;

    for (int style = 0; style < 2; style++) {
        rope_case(&f, s, (enum rope_style)style, false);
        rope_case(&b, s, (enum rope_style)style, true);
        check_tables(&f);
        check_tables(&b);
        if (gradients)
            check_gradients(&f, &b, FLOW, 2);
        case_fini(&f);
        case_fini(&b);
    }
}

static struct dropout_args dropout_args(int64_t n, float p)
{
    struct dropout_args a = {.n = n};
    a.dropout.p = p;
    a.dropout.first = 8 * 500 + (n % 2 ? 6 : 0); /* at the start of a group of eight or not */
    a.dropout.stream = (struct rng_stream){.seed = 5, .step = 9, .site = 2, .use = 1};
    return a;
}

static void dropout_cases(struct op_case *f, struct op_case *b, int64_t n, float p, bool residual,
                          const char *alias)
{
    struct dropout_args a = dropout_args(n, p);

    case_init(f, OP_DROPOUT_FWD, &a, sizeof a, "n=%ld p=%g%s %s", (long)n, (double)p,
              residual ? " residual" : "", alias ? alias : "");
    BIND(f, dropout_args, x, EL_REAL, ROLE_IN, 1, n, 0);
    if (residual)
        BIND(f, dropout_args, residual, EL_REAL, ROLE_IN, 1, n, 0);
    if (alias)
        ALIAS(f, dropout_args, y, alias);
    else
        BIND(f, dropout_args, y, EL_REAL, ROLE_ASSIGN, 1, n, 0);
    case_init(b, OP_DROPOUT_BWD, &a, sizeof a, "n=%ld p=%g%s", (long)n, (double)p,
              alias ? " in place" : "");
    BIND(b, dropout_args, dy, EL_REAL, ROLE_IN, 1, n, 0);
    if (alias)
        ALIAS(b, dropout_args, dx, "dy");
    else
        BIND(b, dropout_args, dx, EL_REAL, ROLE_ASSIGN, 1, n, 0);
}

static void dropout(int64_t n, float p, bool residual)
{
    static const char *const ALIASES[] = {NULL, "x", "residual"};
    static const struct flow FLOW[] = {{FLOW_SEED, "y", "dy", 0}, {FLOW_GRAD, "x", "dx", 0}};
    struct op_case f, b;

    for (int i = 0; i < (residual ? 3 : 2); i++) {
        dropout_cases(&f, &b, n, p, residual, ALIASES[i]);
        if (i == 0 && n < 100)
            check_gradients(&f, &b, FLOW, 2);
        check_tables(&f);
        check_tables(&b);
        case_fini(&f);
        case_fini(&b);
    }
}

/* About p of the elements are zero, the others grow by 1 / (1 - p), and the mask of a part of the
 * tensor is that part of the mask. */
static void dropout_rate(void)
{
    enum { N = 20000, PART = 1237 };
    struct op_case whole, part, unused;
    struct result rw, rp;
    const struct target *t = targets_get(0);
    int64_t dropped = 0;

    dropout_cases(&whole, &unused, N, 0.25f, false, NULL);
    case_fini(&unused);
    dropout_cases(&part, &unused, N - PART, 0.25f, false, NULL);
    case_fini(&unused);
    part.args.dropout.dropout.first = whole.args.dropout.dropout.first + PART;
    for (int64_t i = 0; i < N; i++)
        case_data(&whole, "x")[i] = 3;
    for (int64_t i = 0; i < N - PART; i++)
        case_data(&part, "x")[i] = 3;
    case_run(&whole, t, t->table, 1, &rw);
    case_run(&part, t, t->table, 1, &rp);
    const double *y = rw.v[case_index(&whole, "y")];
    bool values = true;
    for (int64_t i = 0; i < N; i++) {
        dropped += y[i] == 0;
        values = values && (y[i] == 0 || fabs(y[i] - 4) < 1e-12);
    }
    expect(values, "%s: kept values are not scaled by 1 / (1 - p)", whole.title);
    expect(dropped > 4750 && dropped < 5250, "%s: dropped %ld of %d", whole.title, (long)dropped,
           N);
    expect(memcmp(y + PART, rp.v[case_index(&part, "y")], (N - PART) * sizeof *y) == 0,
           "%s: the mask depends on where the tensor is cut", whole.title);
    result_fini(&rw);
    result_fini(&rp);
    case_fini(&whole);
    case_fini(&part);
}

static void add(int64_t n)
{
    struct add_args a = {.n = n};
    struct op_case c;

    case_init(&c, OP_ADD, &a, sizeof a, "n=%ld", (long)n);
    BIND(&c, add_args, x, EL_GRAD, ROLE_IN, 1, n, 0);
    BIND(&c, add_args, y, EL_GRAD, ROLE_ADD, 1, n, 0);
    check_tables(&c);
    case_fini(&c);
}

int main(int argc, char **argv)
{
    static const struct rope_shape ROPES[] = {
        {3, 2, 6, 4, 0}, {3, 2, 4, 4, 3}, {17, 9, 64, 64, 0}, {33, 3, 80, 20, 16}, {5, 1, 2, 2, 0}};

    harness_open(argc, argv);
    embed(5, 3, 4, 6, true);
    embed(6, 2, 3, 0, true);
    embed(1, 1, 1, 3, false);
    embed(77, 192, 31, 40, false);
    embed(300, 65, 1000, 0, false);
    for (size_t i = 0; i < sizeof ROPES / sizeof ROPES[0]; i++)
        rope(&ROPES[i], i < 2);
    rope_by_hand(ROPE_HALF);
    rope_by_hand(ROPE_INTERLEAVED);
    for (int residual = 0; residual < 2; residual++) {
        dropout(13, 0.5f, residual);
        dropout(13, 0.0f, residual);
        dropout(5003, 0.1f, residual);
        dropout(5012, 0.1f, residual);
    }
    dropout_rate();
    add(1);
    add(4099);
    return harness_close();
}
