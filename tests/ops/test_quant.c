/* Linear layers whose weight lies quantised, and rounding of one to 8 bits: on every table, exactly
 * what the same op gives with the decoded weight, which is told here from the codes by the meaning
 * alone. */
#include <string.h>

#include "tests/ops/harness.h"

struct shape {
    int64_t N, I, O;
    int64_t first; /* elements of the tensor in front of the matrix */
    int64_t after; /* and behind it                                 */
};

struct options {
    enum quant_format format;
    bool bias, add;
    enum act_kind act; /* of forward; of backward the one that made x */
};

static int64_t elements(const struct shape *s)
{
    return s->first + s->I * s->O + s->after;
}

/* Random codes and scales; at: where the args have the pointer to the codes and the format. */
static void quantised(struct op_case *c, const struct shape *s, const struct options *o,
                      const char *name, size_t slot, size_t at)
{
    int64_t n = elements(s), blocks = (n + 63) / 64,
            bytes = o->format == QUANT_NF4 ? (n + 1) / 2 : n;
    double *codes = case_bind(c, name, slot, DT_U8, ROLE_IN, 1, bytes, 0), *scales;

    for (int64_t i = 0; i < bytes; i++)
        codes[i] = (double)random_below(256);
    scales = case_bind(c, "scales", at + offsetof(struct op_quant, scales), DT_F32, ROLE_IN, 1,
                       blocks, 0);
    for (int64_t i = 0; i < blocks; i++) { /* int8's are absmax / 127 */
        scales[i] = (1.5 + scales[i]) * (o->format == QUANT_NF4 ? 1 : 1.0 / 127);
        scales[i] = (double)(float)scales[i];
    }
}

static double level_of(enum quant_format format, const double *bytes, int64_t i)
{
    static const double levels[16] = {
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    };
    int byte = (int)bytes[format == QUANT_NF4 ? i / 2 : i];

    if (format == QUANT_INT8)
        return byte < 128 ? byte : byte - 256;
    return levels[i % 2 == 0 ? byte / 16 : byte % 16];
}

static struct linear_args args_of(const struct shape *s, const struct options *o)
{
    return (struct linear_args){
        .N = s->N, .I = s->I, .O = s->O, .quant = {.format = o->format, .first = s->first}};
}

static void forward_case(struct op_case *c, const struct shape *s, const struct options *o)
{
    struct linear_args a = args_of(s, o);

    a.act = o->act;
    case_init(c, OP_LINEAR_FWD, &a, sizeof a, "%s N=%ld I=%ld O=%ld first=%ld%s act=%d",
              o->format == QUANT_NF4 ? "nf4" : "int8", (long)s->N, (long)s->I, (long)s->O,
              (long)s->first, o->bias ? " bias" : "", (int)o->act);
    BIND(c, linear_args, x, EL_REAL, ROLE_IN, s->N, s->I, 0);
    quantised(c, s, o, "w", offsetof(struct linear_args, w), offsetof(struct linear_args, quant));
    if (o->bias)
        BIND(c, linear_args, bias, EL_REAL, ROLE_IN, 1, s->O, 0);
    if (o->add)
        BIND(c, linear_args, residual, EL_REAL, ROLE_IN, s->N, s->O, 0);
    BIND(c, linear_args, y, EL_REAL, ROLE_ASSIGN, s->N, s->O, 0);
}

static void data_case(struct op_case *c, const struct shape *s, const struct options *o)
{
    struct linear_args a = args_of(s, o);

    a.act_x = o->act;
    a.dx_accum = o->add ? ACCUM_ADD : ACCUM_ASSIGN;
    case_init(c, OP_LINEAR_BWD_DATA, &a, sizeof a, "%s N=%ld I=%ld O=%ld first=%ld%s act_x=%d",
              o->format == QUANT_NF4 ? "nf4" : "int8", (long)s->N, (long)s->I, (long)s->O,
              (long)s->first, o->add ? " add" : "", (int)o->act);
    BIND(c, linear_args, dy, EL_REAL, ROLE_IN, s->N, s->O, 0);
    quantised(c, s, o, "w", offsetof(struct linear_args, w), offsetof(struct linear_args, quant));
    if (o->act != ACT_NONE)
        BIND(c, linear_args, pre_x, EL_REAL, ROLE_IN, s->N, s->I, 0);
    BIND(c, linear_args, dx, EL_REAL, o->add ? ROLE_ADD : ROLE_ASSIGN, s->N, s->I, 0);
}

/* The gradient of the weight is none of its business. */
static void weight_case(struct op_case *c, const struct shape *s, const struct options *o)
{
    struct linear_args a = args_of(s, o);

    case_init(c, OP_LINEAR_BWD_WEIGHT, &a, sizeof a, "beside %s N=%ld I=%ld O=%ld",
              o->format == QUANT_NF4 ? "nf4" : "int8", (long)s->N, (long)s->I, (long)s->O);
    BIND(c, linear_args, x, EL_REAL, ROLE_IN, s->N, s->I, 0);
    BIND(c, linear_args, dy, EL_REAL, ROLE_IN, s->N, s->O, 0);
    BIND(c, linear_args, dw, EL_GRAD, ROLE_ASSIGN, s->O, s->I, 0);
}

static void round8_case(struct op_case *c, const struct shape *s, const struct options *o)
{
    struct round8_args a = {.of = ROUND8_X,
                            .format = FP8_E4M3,
                            .N = s->O,
                            .C = s->I,
                            .quant = {.format = o->format, .first = s->first}};
    double *scale;

    case_init(c, OP_ROUND8, &a, sizeof a, "%s N=%ld C=%ld first=%ld",
              o->format == QUANT_NF4 ? "nf4" : "int8", (long)s->O, (long)s->I, (long)s->first);
    quantised(c, s, o, "x", offsetof(struct round8_args, x), offsetof(struct round8_args, quant));
    scale = BIND(c, round8_args, scale, DT_F32, ROLE_INOUT, 1, 4, 0);
    memset(scale, 0, 4 * sizeof *scale);
    BIND(c, round8_args, rows, DT_E4M3, ROLE_ASSIGN, s->O, s->I, 0);
    BIND(c, round8_args, cols, DT_E4M3, ROLE_ASSIGN, s->I, s->O, 0);
}

/* The same case with the decoded matrix; `name`: its pointer's. */
static void decoded_case(struct op_case *to, const struct op_case *c, const struct shape *s,
                         enum quant_format format, const char *name)
{
    const double *codes = c->b[case_index(c, name)].init,
                 *scales = c->b[case_index(c, "scales")].init;

    case_init(to, c->op, &c->args, sizeof c->args, "decoded by hand");
    *(c->op == OP_ROUND8 ? &to->args.round8.quant : &to->args.linear.quant) = (struct op_quant){0};
    for (int i = 0; i < c->n; i++) {
        const struct bind *b = &c->b[i];
        if (strcmp(b->name, "scales") == 0)
            continue;
        bool w = strcmp(b->name, name) == 0;
        double *data = case_bind(to, b->name, b->slot, w ? EL_REAL : b->elem, b->role,
                                 w ? s->O : b->rows, w ? s->I : b->cols, w ? 0 : b->ld);
        if (!w)
            memcpy(data, b->init, (size_t)(b->rows * b->cols) * sizeof *data);
        for (int64_t k = 0; w && k < s->O * s->I; k++)
            data[k] = (double)((float)level_of(format, codes, s->first + k) *
                               (float)scales[(s->first + k) / 64]);
    }
}

/* In all outputs. */
static void compare(const struct op_case *c, const struct op_case *plain, const char *table,
                    const struct result *got, const struct result *want)
{
    for (int i = 0; i < c->n; i++) {
        const struct bind *b = &c->b[i];
        if (b->role == ROLE_IN)
            continue;
        size_t bytes = (size_t)(b->rows * b->cols) * sizeof(double);
        expect(memcmp(got->v[i], want->v[case_index(plain, b->name)], bytes) == 0,
               "%s on %s: %s is not that of the decoded matrix", c->title, table, b->name);
    }
}

static void same_as_decoded(const struct op_case *c, const struct shape *s,
                            enum quant_format format, const char *name)
{
    struct op_case plain;

    decoded_case(&plain, c, s, format, name);
    for (int ti = 0; ti < targets_count(); ti++) {
        const struct target *t = targets_get(ti);
        struct result got, want;
        case_run(c, t, t->table, 1, &got);
        case_run(&plain, t, t->table, 1, &want);
        if (expect(got.rc == want.rc, "%s on %s: error %d", c->title, t->table->name, got.rc) &&
            got.rc == 0)
            compare(c, &plain, t->table->name, &got, &want);
        result_fini(&got);
        result_fini(&want);
    }
    case_fini(&plain);
}

static void check_shape(const struct shape *s, const struct options *o)
{
    struct options back = *o;
    struct op_case c;

    forward_case(&c, s, o);
    same_as_decoded(&c, s, o->format, "w");
    check_tables(&c);
    case_fini(&c);
    back.act = o->add ? ACT_NONE : o->act;
    data_case(&c, s, &back);
    same_as_decoded(&c, s, o->format, "w");
    check_tables(&c);
    case_fini(&c);
    if (o->add)
        return;
    weight_case(&c, s, o);
    check_tables(&c);
    case_fini(&c);
    round8_case(&c, s, o);
    same_as_decoded(&c, s, o->format, "x");
    case_fini(&c);
}

int main(int argc, char **argv)
{
    static const struct shape SHAPES[] = {
        {16, 64, 32, 0, 0},      {33, 192, 80, 64 * 5, 128}, {5, 7, 3, 0, 0},
        {9, 24, 18, 24 * 7, 24}, {4, 11, 13, 33, 1},         {70, 96, 1100, 96 * 2, 0},
        {3, 64, 1027, 0, 0},
    };

    harness_open(argc, argv);
    for (size_t i = 0; i < sizeof SHAPES / sizeof SHAPES[0]; i++)
        for (int format = QUANT_NF4; format <= QUANT_INT8; format++) {
            check_shape(&SHAPES[i], &(struct options){.format = (enum quant_format)format,
                                                      .bias = true,
                                                      .act = ACT_GELU_TANH});
            check_shape(&SHAPES[i],
                        &(struct options){.format = (enum quant_format)format, .add = true});
        }
    return harness_close();
}
