/* Causal attention with every option: grouped queries, window, packed rows, softcap, position
 * biases, dropout, strides, and more keys than queries. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/ops/harness.h"

struct variant {
    const char *name;
    int64_t B, T, S, H, KV, D;
    float softcap;
    int64_t window;
    bool packed, alibi;
    int strided; /* rows of q, k and v as parts of one; of o, this many elements apart */
    float dropout;
    float alibi_scale; /* of rounded biases */
};

static const struct variant SMALL[] = {
    {"plain", 2, 4, 4, 2, 2, 3},
    {"gqa", 1, 4, 4, 4, 2, 3},
    {"softcap", 1, 4, 4, 2, 1, 3, .softcap = 1.5f},
    {"window", 1, 6, 6, 2, 2, 2, .window = 3},
    {"packed", 2, 6, 6, 2, 2, 2, .packed = true},
    {"alibi", 1, 5, 5, 3, 3, 2, .alibi = true},
    {"dropout", 2, 5, 5, 2, 1, 2, .dropout = 0.4f},
    {"all", 2, 6, 6, 4, 2, 2, 2.0f, 4, true, true, 4, 0.3f},
    {"all, rounded alibi", 2, 6, 6, 4, 2, 2, 2.0f, 4, true, true, 4, 0.3f, 0.7f},
};

static const struct variant TABLES[] = {
    {"one", 1, 1, 1, 1, 1, 1},
    {"odd", 2, 19, 19, 3, 3, 5},
    {"opt", 2, 67, 67, 4, 4, 48},
    {"gqa 64", 2, 130, 130, 6, 2, 64},
    {"mqa 128", 1, 65, 65, 4, 1, 128},
    {"d 80 strided", 2, 33, 33, 2, 2, 80, .strided = 4},
    {"d 96", 1, 70, 70, 2, 1, 96, .window = 20},
    {"d 128, window", 1, 70, 70, 2, 1, 128, .window = 40},
    {"d 256", 1, 40, 40, 2, 1, 256},
    {"d 256, softcap", 1, 40, 40, 2, 1, 256, .softcap = 5.0f},
    {"window", 1, 150, 150, 2, 2, 32, .window = 37},
    {"packed", 3, 140, 140, 2, 1, 64, .packed = true},
    {"alibi", 2, 77, 77, 5, 5, 16, .alibi = true},
    {"rounded alibi", 1, 400, 400, 3, 3, 64, .alibi = true, .alibi_scale = 0.03f},
    {"rounded alibi, packed", 2, 140, 140, 2, 1, 96, 0, 50, true, true, 0, 0.1f, 0.1f},
    {"rounded alibi 128", 2, 150, 150, 2, 2, 128, 3.0f, 0, true, true, 4, 0, 0.088f},
    {"rounded alibi 192", 1, 70, 70, 2, 2, 192, .alibi = true, .alibi_scale = 0.07f},
    {"dropout", 2, 66, 66, 2, 2, 32, .dropout = 0.25f},
    {"all", 2, 129, 129, 4, 2, 64, 3.0f, 50, true, true, 4, 0.1f},
    {"gqa 64 of many tiles", 1, 451, 451, 4, 2, 64},
    {"packed 64 of many tiles", 2, 400, 400, 2, 1, 64, .packed = true},
    {"window 64 of many tiles", 1, 333, 333, 2, 2, 64, .window = 100},
    {"more heads than multiprocessors", 6, 70, 70, 30, 30, 16},
    {"128 of many tiles", 1, 389, 389, 2, 1, 128},
    {"packed 128, window", 2, 300, 300, 2, 1, 128, .window = 70, .packed = true},
    {"d 80 packed", 2, 200, 200, 2, 2, 80, .packed = true, .strided = 4},
    {"dropout 64", 1, 264, 264, 4, 2, 64, .dropout = 0.1f, .packed = true},
    {"dropout 128", 2, 136, 136, 2, 1, 128, .dropout = 0.1f},
    {"d 256 of many tiles", 1, 300, 300, 2, 1, 256},
    {"d 192 packed", 2, 200, 200, 2, 2, 192, .packed = true, .strided = 4},
    {"d 256 softcap, window", 1, 200, 200, 2, 1, 256, .softcap = 5.0f, .window = 60},
    {"d 256 dropout", 1, 136, 136, 2, 1, 256, .dropout = 0.1f},
    {"dropout of keys in fours", 1, 132, 132, 2, 1, 64, .dropout = 0.1f},
    {"dropout 64 of many tiles", 1, 456, 456, 2, 2, 64, .dropout = 0.2f},
    {"dropout 128 of many tiles", 1, 200, 200, 2, 2, 128, .dropout = 0.2f},
    {"all 64", 2, 136, 136, 4, 2, 64, 3.0f, 50, true, true, 0, 0.1f},
    {"all 128", 2, 136, 136, 4, 2, 128, 3.0f, 50, true, true, 0, 0.1f},
    {"64 strided", 2, 210, 210, 4, 2, 64, .strided = 8},
    {"rounded alibi 96", 1, 70, 70, 2, 1, 96, .alibi = true, .alibi_scale = 0.1f},
    {"rounded alibi 128, short", 1, 70, 70, 2, 1, 128, .alibi = true, .alibi_scale = 0.1f},
    {"rounded alibi 192, short", 1, 36, 36, 1, 1, 192, .alibi = true, .alibi_scale = 0.1f},
    {"dropout 128, short", 1, 70, 70, 1, 1, 128, .dropout = 0.1f},
    {"dropout 128 of keys in eights", 1, 72, 72, 1, 1, 128, .dropout = 0.1f},
    /* A scale without slopes means nothing, but Hopper's kernels leave such args to Ampere's. */
    {"no slopes 64", 1, 130, 130, 2, 1, 64, .alibi_scale = 1},
    {"no slopes 96", 1, 100, 100, 2, 1, 96, .window = 40, .alibi_scale = 1},
    {"no slopes 128", 1, 90, 90, 2, 1, 128, .packed = true, .alibi_scale = 1},
    {"no slopes 256", 1, 70, 70, 1, 1, 256, .alibi_scale = 1},
    {"no slopes 256, window", 1, 36, 36, 1, 1, 256, .window = 20, .alibi_scale = 1},
};

/* Forward only: T < S, as in generation. */
static const struct variant CACHED[] = {
    {"cached one", 2, 1, 37, 4, 2, 64},
    {"cached 64, tiles", 1, 70, 300, 4, 2, 64, .packed = true},
    {"cached 128, tiles", 1, 3, 517, 4, 2, 128},
    {"cached 256, tiles", 1, 70, 300, 2, 1, 256},
    {"cached", 2, 5, 70, 3, 3, 48, .window = 30, .softcap = 4.0f},
    {"cached alibi", 1, 9, 65, 4, 2, 32, .alibi = true, .strided = 4},
    {"cached rounded alibi", 1, 9, 365, 4, 2, 32, .alibi = true, .alibi_scale = 0.03f},
};

static struct attn_args variant_args(const struct variant *v)
{
    struct attn_args a = {.B = v->B, .T = v->T, .S = v->S, .H = v->H, .KV = v->KV, .D = v->D};

    a.scale = 1 / sqrtf((float)v->D);
    if (v->D < 8)
        a.scale = 1.7f; /* scores far enough apart for options to matter */
    a.softcap = v->softcap;
    a.window = v->window;
    a.alibi_scale = v->alibi_scale;
    if (v->dropout > 0) {
        a.dropout.p = v->dropout;
        a.dropout.stream = (struct rng_stream){.seed = 77, .step = 3, .site = 5, .use = 1};
        a.dropout.first = 5 * v->H * v->T * v->S;
    }
    if (v->strided) {
        a.ldq = a.ldk = a.ldv = (v->H + 2 * v->KV) * v->D;
        a.ldo = v->H * v->D + v->strided;
    }
    return a;
}

static void bind_options(struct op_case *c, const struct variant *v)
{
    if (v->packed) {
        double *first = BIND(c, attn_args, first_key, DT_I32, ROLE_IN, v->B, v->T, 0);
        for (int64_t b = 0; b < v->B; b++) /* documents of some T / 3 tokens, cut differently */
            for (int64_t i = 0, start = 0; i < v->T; i++) {
                if ((i + 2 * b) % (v->T / 3 + 1) == 0)
                    start = i;
                first[b * v->T + i] = (double)start;
            }
    }
    if (v->alibi) {
        double *slopes = BIND(c, attn_args, alibi_slopes, DT_F32, ROLE_IN, 1, v->H, 0);
        for (int64_t h = 0; h < v->H; h++)
            slopes[h] = v->alibi_scale != 0 ? 181 * pow(2, -(double)(h + 8)) /* of 8 bits */
                                            : pow(2, -(double)(h + 1));
    }
}

static void bind_tokens(struct op_case *c, const char *name, size_t slot, enum role role,
                        int64_t tokens, int64_t width, int64_t ld)
{
    case_bind(c, name, slot, EL_REAL, role, tokens, width, ld);
}

#define TOKENS(c, field, role, tokens, width, ld)                                                  \
    bind_tokens(c, #field, offsetof(struct attn_args, field), role, tokens, width, ld)

static void forward_case(struct op_case *c, const struct variant *v)
{
    struct attn_args a = variant_args(v);
    int64_t q = v->H * v->D, kv = v->KV * v->D;

    case_init(c, OP_ATTN_FWD, &a, sizeof a, "%s", v->name);
    TOKENS(c, q, ROLE_IN, v->B * v->T, q, a.ldq);
    TOKENS(c, k, ROLE_IN, v->B * v->S, kv, a.ldk);
    TOKENS(c, v, ROLE_IN, v->B * v->S, kv, a.ldv);
    bind_options(c, v);
    TOKENS(c, o, ROLE_ASSIGN, v->B * v->T, q, a.ldo);
    BIND(c, attn_args, lse, EL_STAT, ROLE_ASSIGN, v->B * v->H, v->T, 0);
}

static void backward_case(struct op_case *c, const struct variant *v)
{
    struct attn_args a = variant_args(v);
    int64_t q = v->H * v->D, kv = v->KV * v->D, n = v->B * v->T;

    case_init(c, OP_ATTN_BWD, &a, sizeof a, "%s", v->name);
    TOKENS(c, q, ROLE_IN, n, q, a.ldq);
    TOKENS(c, k, ROLE_IN, n, kv, a.ldk);
    TOKENS(c, v, ROLE_IN, n, kv, a.ldv);
    bind_options(c, v);
    TOKENS(c, o, ROLE_IN, n, q, a.ldo);
    BIND(c, attn_args, lse, EL_STAT, ROLE_IN, v->B * v->H, v->T, 0);
    TOKENS(c, dout, ROLE_IN, n, q, a.ldo);
    TOKENS(c, dq, ROLE_ASSIGN, n, q, a.ldq);
    TOKENS(c, dk, ROLE_ASSIGN, n, kv, a.ldk);
    TOKENS(c, dv, ROLE_ASSIGN, n, kv, a.ldv);
}

static const struct flow FLOW[] = {
    {FLOW_SAVE, "q", "q", 0},  {FLOW_SAVE, "k", "k", 0},     {FLOW_SAVE, "v", "v", 0},
    {FLOW_SAVE, "o", "o", 0},  {FLOW_SAVE, "lse", "lse", 0}, {FLOW_SEED, "o", "dout", 0},
    {FLOW_GRAD, "q", "dq", 0}, {FLOW_GRAD, "k", "dk", 0},    {FLOW_GRAD, "v", "dv", 0},
};
enum { FLOW_SAVES = 6, FLOW_ALL = 9 };

static void one_variant(const struct variant *v, bool gradients)
{
    struct op_case f, b;

    forward_case(&f, v);
    check_tables(&f);
    if (v->T == v->S) {
        backward_case(&b, v);
        /* With the saves alone this only fills in what backward needs from forward. */
        check_gradients(&f, &b, FLOW, gradients ? FLOW_ALL : FLOW_SAVES);
        check_tables(&b);
        case_fini(&b);
    }
    case_fini(&f);
}

/* Against PyTorch: where q is zero scores are biases, and lse log sum exp of what
 * torch.tensor(2 ** -0.5).bfloat16() * torch.arange(n) / 8 is in bfloat16, here of a text of 288
 * keys and one of 12. Were positions not rounded before products are, the first would be 27.8387.
 */
static void rounded_alibi_as_pytorch(void)
{
    enum { T = 300, FIRST = 288, D = 64 };
    struct variant v = {"rounded alibi as PyTorch", 1, T, T, 1, 1, D, .alibi = true, .packed = true,
                        .alibi_scale = 0.125f};
    struct op_case c;

    forward_case(&c, &v);
    memset(case_data(&c, "q"), 0, sizeof(double) * T * D);
    double *first = case_data(&c, "first_key");
    for (int i = 0; i < T; i++)
        first[i] = i < FIRST ? 0 : FIRST;
    *case_data(&c, "alibi_slopes") = 0.70703125;
    for (int t = 0; t < targets_count(); t++) {
        const struct target *target = targets_get(t);
        struct result r;
        case_run(&c, target, target->table, 1, &r);
        const double *lse = r.v[case_index(&c, "lse")];
        expect(
            fabs(lse[FIRST - 1] - 27.8434297604) < 1e-4 && fabs(lse[T - 1] - 3.0171473899) < 1e-4,
            "%s: rounded biases: %.7f and %.7f", target->table->name, lse[FIRST - 1], lse[T - 1]);
        result_fini(&r);
    }
    case_fini(&c);
}

int main(int argc, char **argv)
{
    harness_open(argc, argv);
    rounded_alibi_as_pytorch();
    for (size_t i = 0; i < sizeof SMALL / sizeof SMALL[0]; i++)
        one_variant(&SMALL[i], true);
    for (size_t i = 0; i < sizeof TABLES / sizeof TABLES[0]; i++)
        one_variant(&TABLES[i], false);
    for (size_t i = 0; i < sizeof CACHED / sizeof CACHED[0]; i++)
        one_variant(&CACHED[i], false);
    return harness_close();
}
