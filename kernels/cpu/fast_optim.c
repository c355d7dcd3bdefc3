/* Passes over parameters: sums, norm, AdamW, casts. All are bound by memory. */
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fast.h"
#include "kernels/cpu/fast_adamw.h"
#include "kernels/master.h"

enum { SPAN = 1 << 14 }; /* elements of one task */

static int64_t span_count(int64_t n, int64_t i0)
{
    return n - i0 < SPAN ? n - i0 : SPAN;
}

FAST_CLONES static void add_span(const float *x, int64_t n, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

int fast_add(struct stream *s, const struct add_args *a)
{
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->n > SPAN)
    for (int64_t i0 = 0; i0 < a->n; i0 += SPAN)
        add_span((const float *)a->x + i0, span_count(a->n, i0), (float *)a->y + i0);
    return 0;
}

/* Thirty-two sums side by side, the same on every instruction set. */
FAST_CLONES double fast_sumsq_block(const float *x, int64_t n)
{
    typedef float floats __attribute__((vector_size(32), aligned(4)));
    typedef double doubles __attribute__((vector_size(64)));
    doubles sum[4] = {{0}};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 4; k++) {
            doubles d = __builtin_convertvector(*(const floats *)(x + i + 8 * k), doubles);
            sum[k] += d * d;
        }
    doubles all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (; i < n; i++)
        all[0] += (double)x[i] * (double)x[i];
    return ((all[0] + all[1]) + (all[2] + all[3])) + ((all[4] + all[5]) + (all[6] + all[7]));
}

int fast_sumsq(struct stream *s, const struct sumsq_args *a)
{
    int64_t blocks = (a->n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;

#pragma omp parallel for num_threads(s->threads) schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * SUMSQ_BLOCK, left = a->n - first;
        a->partial[b] =
            fast_sumsq_block((const float *)a->x + first, left < SUMSQ_BLOCK ? left : SUMSQ_BLOCK);
    }
    return 0;
}

/* kernels/adamw_math.h, whose operations are all correctly rounded: vectors give its bits. */
FAST_CLONES static void adamw_span(const struct adamw_consts *consts, int64_t n,
                                   const float *restrict grad, float *restrict master,
                                   float *restrict m, float *restrict v)
{
    struct adamw_consts c = *consts;
    for (int64_t i = 0; i < n; i++) {
        float w = master[i], mi = m[i], vi = v[i];
        adamw_element(&c, grad[i], &w, &mi, &vi);
        master[i] = w;
        m[i] = mi;
        v[i] = vi;
    }
}

/* Updates whose arrays are not all float go through buffers that the first cache level holds. */
enum { MIX = 512 };

static void widen(enum dtype t, const void *from, int64_t n, float *to)
{
    if (t == DT_BF16)
        bf16_load(to, from, n);
    else
        dtype_convert(DT_F32, to, t, from, n);
}

/* Gradients as they would have travelled. NaN may lose its payload. */
FAST_CLONES static void round_to_bf16(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        uint32_t near = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
        bits = x[i] == x[i] ? near : 0x7fc00000;
        memcpy(&x[i], &bits, sizeof bits);
    }
}

static void round_gradient(enum dtype to, float *x, int64_t n)
{
    uint16_t narrow[MIX];
    if (to == DT_BF16) {
        round_to_bf16(x, n);
    } else if (to == DT_F16) {
        dtype_convert(to, narrow, DT_F32, x, n);
        dtype_convert(DT_F32, x, to, narrow, n);
    }
}

FAST_CLONES static void draw_words(struct rng_stream stream, uint64_t group, int64_t groups,
                                   uint32_t *restrict words)
{
    for (int64_t g = 0; g < groups; g++) {
        struct rng_block b = rng_draw4(stream, group + (uint64_t)g);
        for (int k = 0; k < 4; k++)
            words[4 * g + k] = b.v[k];
    }
}

FAST_CLONES static void narrow_rounded(const float *restrict x, const uint32_t *restrict words,
                                       int shift, int64_t n, uint16_t *restrict to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = adamw_round_bf16(x[i], words[i] >> shift);
}

/* Put n floats back where they came from, rounded by the bits of `words` above `shift`. */
static void store_state(enum dtype t, float *x, const uint32_t *words, int shift, int64_t n,
                        char *to)
{
    if (t == DT_BF16)
        narrow_rounded(x, words, shift, n, (uint16_t *)to);
    else if (t == DT_I16)
        master_remainders((int16_t *)to, x, n);
    else
        memcpy(to, x, (size_t)n * sizeof *x);
}

/* Elements [i0, i0 + n) of an update, n at most MIX, i0 a multiple of it. */
static void adamw_mixed(const struct adamw_args *a, const struct adamw_consts *decayed,
                        const struct adamw_consts *plain, int64_t i0, int64_t n)
{
    float grad[MIX], w[MIX], m[MIX], v[MIX];
    uint32_t words[MIX];
    size_t master_size = dtype_size(a->master_type), moment_size = dtype_size(a->moment_type);
    char *master = (char *)a->master + (size_t)i0 * master_size;
    char *am = (char *)a->m + (size_t)i0 * moment_size,
         *av = (char *)a->v + (size_t)i0 * moment_size;
    int64_t cut = a->n_decay - i0;

    cut = cut < 0 ? 0 : cut > n ? n : cut;
    widen(a->grad_type, (const char *)a->grad + (size_t)i0 * dtype_size(a->grad_type), n, grad);
    if (a->grad_type == DT_F32)
        round_gradient(a->param_type, grad, n);
    if (a->master_type == DT_I16)
        master_join(w, (const uint16_t *)a->param + i0, (const int16_t *)master, n);
    else
        widen(a->master_type, master, n, w);
    if (a->moment_type == DT_U8) {
        fast_moments_load(a, i0, n, m, v);
    } else {
        widen(a->moment_type, am, n, m);
        widen(a->moment_type, av, n, v);
    }
    adamw_span(decayed, cut, grad, w, m, v);
    adamw_span(plain, n - cut, grad + cut, w + cut, m + cut, v + cut);
    if (a->master_type == DT_BF16 || a->moment_type == DT_BF16)
        draw_words(adamw_stream(a->seed, a->step->step, a->site), (uint64_t)(a->first + i0) / 4,
                   (n + 3) / 4, words);
    store_state(a->master_type, w, words, 16, n, master);
    if (a->moment_type == DT_U8) {
        fast_moments_store(a, i0, n, m, v);
    } else {
        store_state(a->moment_type, m, words, 8, n, am);
        store_state(a->moment_type, v, words, 0, n, av);
    }
    if (!a->param)
        return;
    if (a->master_type == DT_BF16)
        widen(a->master_type, master, n, w);
    master_round(a->param_type, (char *)a->param + (size_t)i0 * dtype_size(a->param_type), w, n);
}

static bool is_bf16_beside_float(const struct adamw_args *a)
{
    return a->param && a->grad_type == DT_BF16 && a->param_type == DT_BF16 &&
           (a->master_type == DT_F32 || a->master_type == DT_I16) &&
           (a->moment_type == DT_F32 || a->moment_type == DT_U8);
}

static void adamw_bf16(const struct adamw_args *a, const struct adamw_consts *consts, int64_t i0,
                       int64_t n)
{
    const uint16_t *grad = (const uint16_t *)a->grad + i0;
    uint16_t *param = (uint16_t *)a->param + i0;
    float *m = (float *)a->m + i0, *v = (float *)a->v + i0;
    if (a->moment_type == DT_U8)
        fast_adamw8_span(a, consts, i0, n);
    else if (a->master_type == DT_I16)
        fast_adamw_split_span(consts, n, grad, (int16_t *)a->master + i0, m, v, param);
    else
        fast_adamw_bf16_span(consts, n, grad, (float *)a->master + i0, m, v, param);
}

static int adamw_all_bf16(struct stream *s, const struct adamw_args *a)
{
    struct adamw_consts decayed = cpu_adamw_consts(a, true), plain = cpu_adamw_consts(a, false);

    if (!cpu_adamw_types_known(a))
        return ERR_UNSUPPORTED;
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->n > SPAN)
    for (int64_t i0 = 0; i0 < a->n; i0 += SPAN) {
        int64_t n = span_count(a->n, i0), cut = a->n_decay - i0;
        cut = cut < 0 ? 0 : cut > n ? n : cut;
        adamw_bf16(a, &decayed, i0, cut);
        adamw_bf16(a, &plain, i0 + cut, n - cut);
    }
    return 0;
}

static int adamw_all_mixed(struct stream *s, const struct adamw_args *a)
{
    struct adamw_consts decayed = cpu_adamw_consts(a, true), plain = cpu_adamw_consts(a, false);

    if (!cpu_adamw_types_known(a))
        return ERR_UNSUPPORTED;
#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->n > SPAN)
    for (int64_t i0 = 0; i0 < a->n; i0 += MIX)
        adamw_mixed(a, &decayed, &plain, i0, a->n - i0 < MIX ? a->n - i0 : MIX);
    return 0;
}

int fast_adamw(struct stream *s, const struct adamw_args *a)
{
    if (!a->clip->finite)
        return 0;
    if (is_bf16_beside_float(a))
        return adamw_all_bf16(s, a);
    if (a->grad_type != DT_F32 || a->master_type != DT_F32 || a->moment_type != DT_F32 ||
        a->param_type != DT_F32)
        return adamw_all_mixed(s, a);
    struct adamw_consts decayed = cpu_adamw_consts(a, true), plain = cpu_adamw_consts(a, false);

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->n > SPAN)
    for (int64_t i0 = 0; i0 < a->n; i0 += SPAN) {
        int64_t n = span_count(a->n, i0), cut = a->n_decay - i0;
        const float *grad = (const float *)a->grad + i0;
        float *master = (float *)a->master + i0, *m = (float *)a->m + i0, *v = (float *)a->v + i0;
        cut = cut < 0 ? 0 : cut > n ? n : cut;
        adamw_span(&decayed, cut, grad, master, m, v);
        adamw_span(&plain, n - cut, grad + cut, master + cut, m + cut, v + cut);
        if (a->param)
            memcpy((float *)a->param + i0, master, (size_t)n * sizeof *master);
    }
    return 0;
}

int fast_cast(struct stream *s, const struct cast_args *a)
{
    size_t from = dtype_size(a->from), to = dtype_size(a->to);

#pragma omp parallel for num_threads(s->threads) schedule(static) if (a->n > SPAN)
    for (int64_t i0 = 0; i0 < a->n; i0 += SPAN)
        dtype_convert(a->to, (char *)a->dst + (size_t)i0 * to, a->from,
                      (const char *)a->src + (size_t)i0 * from, span_count(a->n, i0));
    return 0;
}
