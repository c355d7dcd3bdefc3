/* The sizes of real models: wide rows, long columns, hot tokens, large vocabularies, every shape of
 * attention tile. What small cases cannot reach: the vectorised and tensor-core paths of a GPU's
 * tables, and the boundaries between them. */
#include <math.h>
#include <stddef.h>

#include "tests/ops/harness.h"

static void norms(enum norm_kind kind, int64_t N, int64_t C)
{
    struct norm_args a = {.kind = kind, .N = N, .C = C, .eps = 1e-5f};
    struct op_case c;

    case_init(&c, OP_NORM_FWD, &a, sizeof a, "wide %d N=%ld C=%ld", kind, (long)N, (long)C);
    BIND(&c, norm_args, x, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, norm_args, residual, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, norm_args, weight, EL_REAL, ROLE_IN, 1, C, 0);
    BIND(&c, norm_args, sum, EL_REAL, ROLE_ASSIGN, N, C, 0);
    BIND(&c, norm_args, y, EL_REAL, ROLE_ASSIGN, N, C, 0);
    if (kind == NORM_LAYER) {
        BIND(&c, norm_args, bias, EL_REAL, ROLE_IN, 1, C, 0);
        BIND(&c, norm_args, mean, EL_STAT, ROLE_ASSIGN, 1, N, 0);
    }
    BIND(&c, norm_args, rstd, EL_STAT, ROLE_ASSIGN, 1, N, 0);
    check_tables(&c);
    case_fini(&c);

    case_init(&c, OP_NORM_BWD, &a, sizeof a, "wide %d N=%ld C=%ld", kind, (long)N, (long)C);
    BIND(&c, norm_args, x, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, norm_args, weight, EL_REAL, ROLE_IN, 1, C, 0);
    BIND(&c, norm_args, dweight, EL_GRAD, ROLE_ADD, 1, C, 0);
    if (kind == NORM_LAYER) {
        BIND(&c, norm_args, dbias, EL_GRAD, ROLE_ADD, 1, C, 0);
        BIND(&c, norm_args, mean, EL_STAT, ROLE_IN, 1, N, 0);
    }
    double *rstd = BIND(&c, norm_args, rstd, EL_STAT, ROLE_IN, 1, N, 0);
    for (int64_t n = 0; n < N; n++)
        rstd[n] += 1.5;
    BIND(&c, norm_args, dy, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, norm_args, dresidual, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, norm_args, dx, EL_REAL, ROLE_ASSIGN, N, C, 0);
    check_tables(&c);
    case_fini(&c);
}

static void linears(int64_t N, int64_t I, int64_t O)
{
    static const enum act_kind ACTS[] = {ACT_NONE, ACT_RELU, ACT_GELU_ERF, ACT_GELU_TANH};
    struct op_case c;

    for (int o = 0; o < 8; o++) { /* activation x kept input */
        struct linear_args a = {.N = N, .I = I, .O = O, .act = ACTS[o / 2]};
        case_init(&c, OP_LINEAR_FWD, &a, sizeof a, "wide %ld %ld %ld act %d pre %d", (long)N,
                  (long)I, (long)O, a.act, o % 2);
        BIND(&c, linear_args, x, EL_REAL, ROLE_IN, N, I, 0);
        BIND(&c, linear_args, w, EL_REAL, ROLE_IN, O, I, 0);
        BIND(&c, linear_args, bias, EL_REAL, ROLE_IN, 1, O, 0);
        if (o % 2)
            BIND(&c, linear_args, pre, EL_REAL, ROLE_ASSIGN, N, O, 0);
        BIND(&c, linear_args, y, EL_REAL, ROLE_ASSIGN, N, O, 0);
        check_tables(&c);
        case_fini(&c);
    }
    for (int o = 0; o < 4; o++) {
        struct linear_args a = {.N = N, .I = I, .O = O, .act_x = ACTS[o]};
        case_init(&c, OP_LINEAR_BWD_DATA, &a, sizeof a, "wide %ld %ld %ld act %d", (long)N, (long)I,
                  (long)O, a.act_x);
        BIND(&c, linear_args, dy, EL_REAL, ROLE_IN, N, O, 0);
        BIND(&c, linear_args, w, EL_REAL, ROLE_IN, O, I, 0);
        if (o > 0)
            BIND(&c, linear_args, pre_x, EL_REAL, ROLE_IN, N, I, 0);
        BIND(&c, linear_args, dx, EL_REAL, ROLE_ASSIGN, N, I, 0);
        check_tables(&c);
        case_fini(&c);
    }
    for (int accum = 0; accum < 2; accum++) {
        struct linear_args a = {.N = N, .I = I, .O = O, .dw_accum = (enum accum)accum};
        enum role role = accum == ACCUM_ADD ? ROLE_ADD : ROLE_ASSIGN;
        case_init(&c, OP_LINEAR_BWD_WEIGHT, &a, sizeof a, "wide %ld %ld %ld accum %d", (long)N,
                  (long)I, (long)O, accum);
        BIND(&c, linear_args, x, EL_REAL, ROLE_IN, N, I, 0);
        BIND(&c, linear_args, dy, EL_REAL, ROLE_IN, N, O, 0);
        BIND(&c, linear_args, dw, EL_GRAD, role, O, I, 0);
        BIND(&c, linear_args, dbias, EL_GRAD, role, 1, O, 0);
        check_tables(&c);
        case_fini(&c);
    }
}

/* Half of the rows are one token: a long ordered sum beside many short ones. */
static void hot_tokens(int64_t N, int64_t C, int64_t V)
{
    struct embed_args a = {.N = N, .C = C, .V = V, .P = 64, .wpe_offset = 2, .scale = 1.25f};
    struct op_case c;

    case_init(&c, OP_EMBED_BWD, &a, sizeof a, "hot N=%ld C=%ld V=%ld", (long)N, (long)C, (long)V);
    c.tol = 128; /* N / 2 terms, added one after another */
    double *tokens = BIND(&c, embed_args, tokens, DT_I32, ROLE_IN, 1, N, 0);
    double *positions = BIND(&c, embed_args, positions, DT_I32, ROLE_IN, 1, N, 0);
    for (int64_t n = 0; n < N; n++) {
        tokens[n] = (double)(n % 2 ? V - 1 : random_below(V));
        positions[n] = (double)(n % 60);
    }
    BIND(&c, embed_args, dout, EL_REAL, ROLE_IN, N, C, 0);
    BIND(&c, embed_args, dwte, EL_GRAD, ROLE_ADD, V, C, 0);
    BIND(&c, embed_args, dwpe, EL_GRAD, ROLE_ADD, 64, C, 0);
    check_tables(&c);
    case_fini(&c);
}

static void losses(int64_t N, int64_t V, int64_t ldl, float softcap)
{
    struct loss_args a = {.N = N, .V = V, .ldl = ldl, .logit_scale = 0.5f, .softcap = softcap};
    struct op_case c;

    case_init(&c, OP_LOSS, &a, sizeof a, "wide V=%ld ldl=%ld cap=%g", (long)V, (long)ldl,
              (double)softcap);
    double *targets = BIND(&c, loss_args, targets, DT_I32, ROLE_IN, 1, N, 0);
    double *logits = BIND(&c, loss_args, logits, EL_REAL, ROLE_INOUT, N, V, ldl);
    double *scale = BIND(&c, loss_args, grad_scale, DT_F32, ROLE_IN, 1, 1, 0);
    for (int64_t n = 0; n < N; n++) {
        targets[n] = (double)(n == 1 ? -100 : n == 2 ? V - 1 : random_below(V));
        for (int64_t v = 0; v < V; v++)
            logits[n * V + v] *= 8;
        if (n % 2 == 0)
            logits[n * V + (int64_t)targets[n]] = 20;
    }
    *scale = 64; /* so that gradients of rare words stay normal in f16 */
    BIND(&c, loss_args, row_loss, EL_STAT, ROLE_ASSIGN, 1, N, 0);
    BIND(&c, loss_args, row_correct, DT_I32, ROLE_ASSIGN, 1, N, 0);
    check_tables(&c);
    case_fini(&c);
}

struct heads {
    int64_t B, T, S, H, KV, D;
    bool all; /* softcap, window, packed rows, alibi, dropout */
    int64_t window;
    bool packed;
};

static const struct heads HEADS[] = {
    {1, 300, 300, 2, 2, 64, false, 0, false},   {2, 257, 257, 4, 2, 64, true, 90, true},
    {1, 300, 300, 2, 1, 64, false, 100, false}, {2, 200, 200, 2, 2, 64, false, 0, true},
    {1, 131, 131, 2, 2, 80, false, 0, false},   {1, 200, 200, 4, 2, 96, true, 70, true},
    {1, 300, 300, 2, 1, 128, false, 0, false},  {1, 261, 261, 4, 2, 128, true, 77, true},
    {2, 300, 300, 2, 2, 128, false, 130, true}, {1, 140, 140, 2, 2, 256, false, 0, false},
    {1, 170, 170, 4, 2, 256, true, 50, true},   {1, 129, 129, 2, 1, 32, false, 0, false},
    {2, 7, 300, 4, 2, 64, true, 0, false},      {1, 130, 333, 2, 1, 128, false, 200, false},
    {2, 1, 200, 4, 4, 128, false, 0, false},    {1, 64, 64, 1, 1, 64, false, 0, false},
    {1, 1024, 1024, 1, 1, 64, false, 0, false},
};

static struct attn_args heads_args(const struct heads *h)
{
    struct attn_args a = {.B = h->B, .T = h->T, .S = h->S, .H = h->H, .KV = h->KV, .D = h->D};
    a.scale = 3 / sqrtf((float)h->D);
    a.window = h->window;
    a.ldq = a.ldk = a.ldv = (h->H + 2 * h->KV) * h->D;
    a.ldo = h->H * h->D + 8;
    if (h->all) {
        a.softcap = 2.5f;
        a.dropout.p = 0.2f;
        a.dropout.stream = (struct rng_stream){.seed = 9, .step = 4, .site = 2, .use = 1};
        a.dropout.first = 3 * h->H * h->T * h->S;
    }
    return a;
}

static void bind_inputs(struct op_case *c, const struct heads *h, const struct attn_args *a)
{
    BIND(c, attn_args, q, EL_REAL, ROLE_IN, h->B * h->T, h->H * h->D, a->ldq);
    BIND(c, attn_args, k, EL_REAL, ROLE_IN, h->B * h->S, h->KV * h->D, a->ldk);
    BIND(c, attn_args, v, EL_REAL, ROLE_IN, h->B * h->S, h->KV * h->D, a->ldv);
    if (h->packed) {
        double *first = BIND(c, attn_args, first_key, DT_I32, ROLE_IN, h->B, h->T, 0);
        for (int64_t b = 0; b < h->B; b++)
            for (int64_t i = 0, start = 0; i < h->T; i++) {
                if ((i + 31 * b) % 97 == 0)
                    start = i;
                first[b * h->T + i] = (double)start;
            }
    }
    if (h->all) {
        double *slopes = BIND(c, attn_args, alibi_slopes, DT_F32, ROLE_IN, 1, h->H, 0);
        for (int64_t i = 0; i < h->H; i++)
            slopes[i] = pow(2, -(double)(i + 3));
    }
}

static void attention(const struct heads *h)
{
    static const struct flow SAVES[] = {
        {FLOW_SAVE, "q", "q", 0}, {FLOW_SAVE, "k", "k", 0},     {FLOW_SAVE, "v", "v", 0},
        {FLOW_SAVE, "o", "o", 0}, {FLOW_SAVE, "lse", "lse", 0},
    };
    struct attn_args a = heads_args(h);
    int64_t n = h->B * h->T, q = h->H * h->D, kv = h->KV * h->D;
    struct op_case f, b;

    case_init(&f, OP_ATTN_FWD, &a, sizeof a, "wide T=%ld S=%ld D=%ld%s%s window %ld", (long)h->T,
              (long)h->S, (long)h->D, h->all ? " all" : "", h->packed ? " packed" : "",
              (long)h->window);
    bind_inputs(&f, h, &a);
    BIND(&f, attn_args, o, EL_REAL, ROLE_ASSIGN, n, q, a.ldo);
    BIND(&f, attn_args, lse, EL_STAT, ROLE_ASSIGN, h->B * h->H, h->T, 0);
    check_tables(&f);
    if (h->T == h->S) {
        case_init(&b, OP_ATTN_BWD, &a, sizeof a, "wide T=%ld D=%ld%s%s window %ld", (long)h->T,
                  (long)h->D, h->all ? " all" : "", h->packed ? " packed" : "", (long)h->window);
        bind_inputs(&b, h, &a);
        BIND(&b, attn_args, o, EL_REAL, ROLE_IN, n, q, a.ldo);
        BIND(&b, attn_args, lse, EL_STAT, ROLE_IN, h->B * h->H, h->T, 0);
        BIND(&b, attn_args, dout, EL_REAL, ROLE_IN, n, q, a.ldo);
        BIND(&b, attn_args, dq, EL_REAL, ROLE_ASSIGN, n, q, a.ldq);
        BIND(&b, attn_args, dk, EL_REAL, ROLE_ASSIGN, n, kv, a.ldk);
        BIND(&b, attn_args, dv, EL_REAL, ROLE_ASSIGN, n, kv, a.ldv);
        check_gradients(&f, &b, SAVES, 5); /* only fills in what backward needs */
        check_tables(&b);
        case_fini(&b);
    }
    case_fini(&f);
}

int main(int argc, char **argv)
{
    static const int64_t WIDTHS[] = {64, 768, 1000, 1600, 2048, 2560, 4096, 8192, 8200};

    harness_open(argc, argv);
    for (size_t i = 0; i < sizeof WIDTHS / sizeof WIDTHS[0]; i++) {
        norms(NORM_LAYER, 11, WIDTHS[i]);
        norms(NORM_RMS, 3, WIDTHS[i]);
    }
    norms(NORM_LAYER, 1500, 64); /* more rows than a GPU has blocks */
    linears(96, 256, 320);
    linears(1100, 40, 24); /* long column sums */
    hot_tokens(1500, 96, 300);
    hot_tokens(700, 33, 50);
    losses(4, 50257, 0, 0);
    losses(4, 50257, 50304, 30);
    losses(3, 1003, 1005, 0);
    for (size_t i = 0; i < sizeof HEADS / sizeof HEADS[0]; i++)
        attention(&HEADS[i]);
    return harness_close();
}
