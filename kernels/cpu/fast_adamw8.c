/*
 * Updates whose moments are 8-bit codes (kernels/moment_math.h). A block is decoded, its moments
 * are updated, then its masters, and it is encoded: four loops over what stays in the first cache,
 * since a processor looks some 250 instructions ahead, and one loop of all of it would wait for its
 * square roots and divisions. Loops work on pairs of elements: two of bfloat16 are one word, whose
 * halves are the upper halves of floats where they lie, so that vectors need not be shuffled.
 */
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/fast_adamw.h"
#include "kernels/moment_math.h"

enum {
    AHEAD = 2048, /* elements that are fetched ahead */
    DRAWS = 16,
    PAIRS = MOMENT_BLOCK / 2
};

/* Two elements as they lie in memory, the first in the lower half. */
typedef uint32_t __attribute__((may_alias, aligned(2))) pair16;
typedef uint16_t __attribute__((may_alias, aligned(1))) pair8;

/* A block's moments, element 2 j + h at [h][j]; the bits of their largest magnitudes. */
struct moments {
    _Alignas(FAST_LINE) float m[2][PAIRS], v[2][PAIRS];
    uint32_t m_most, v_most;
};

struct codes {
    uint8_t *m, *v, *m_exponent, *v_exponent;
};

static struct codes codes_at(const struct adamw_args *a, int64_t i0)
{
    struct codes c = {(uint8_t *)a->m + i0, (uint8_t *)a->v + i0, a->m_exponent + i0 / MOMENT_BLOCK,
                      a->v_exponent + i0 / MOMENT_BLOCK};
    return c;
}

FAST_INLINE void decode_block(const struct codes *c, struct moments *s)
{
    uint32_t m_low = moment_low(*c->m_exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(*c->v_exponent, MOMENT_V_BINADES);
    const pair8 *m = (const pair8 *)c->m, *v = (const pair8 *)c->v;

    for (int j = 0; j < PAIRS; j++) {
        uint32_t pair = m[j];
        s->m[0][j] = moment_m_upper(pair << 24, m_low);
        s->m[1][j] = moment_m_upper(pair << 16, m_low);
    }
    for (int j = 0; j < PAIRS; j++) {
        uint32_t pair = v[j];
        s->v[0][j] = moment_decode(pair << 20 & 0x0ff00000u, v_low);
        s->v[1][j] = moment_decode(pair << 12 & 0x0ff00000u, v_low);
    }
}

FAST_INLINE uint32_t larger(uint32_t most, float x)
{
    uint32_t bits = moment_bits(x) & 0x7fffffffu;
    return bits > most ? bits : most;
}

/* From words, a pair in each. In 16 bits a compiler would pack and mask at every step before. */
FAST_INLINE void store_pairs(uint8_t *restrict codes, const uint32_t *restrict words)
{
    pair8 *pairs = (pair8 *)codes;
    for (int j = 0; j < PAIRS; j++)
        pairs[j] = (uint16_t)words[j];
}

FAST_INLINE void encode_block(const struct moments *s, struct moment_random r,
                              const struct codes *c)
{
    uint32_t m_exponent = moment_exponent(s->m_most), v_exponent = moment_exponent(s->v_most);
    uint32_t m_low = moment_low(m_exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(v_exponent, MOMENT_V_BINADES);
    uint32_t words[PAIRS];

    for (uint32_t j = 0; j < PAIRS; j++) {
        uint32_t random = r.m + 2 * j * r.m_step;
        words[j] = moment_m_code(s->m[0][j], m_low, random) |
                   moment_m_code(s->m[1][j], m_low, random + r.m_step) << 8;
    }
    store_pairs(c->m, words);
    for (uint32_t j = 0; j < PAIRS; j++) {
        uint32_t random = r.v + 2 * j * r.v_step;
        words[j] = moment_v_code(s->v[0][j], v_low, random) |
                   moment_v_code(s->v[1][j], v_low, random + r.v_step) << 8;
    }
    store_pairs(c->v, words);
    *c->m_exponent = (uint8_t)m_exponent;
    *c->v_exponent = (uint8_t)v_exponent;
}

FAST_INLINE struct moment_random draw_at(const struct adamw_args *a, int64_t i0)
{
    return moment_draw(a->seed, a->step->step, a->site, (uint64_t)(a->first + i0) / MOMENT_BLOCK);
}

/* --- beside anything, through floats --- */

FAST_INLINE void load_block(const struct codes *c, int64_t n, float *m, float *v)
{
    uint32_t m_low = moment_low(*c->m_exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(*c->v_exponent, MOMENT_V_BINADES);

    for (int64_t i = 0; i < n; i++) {
        m[i] = moment_m(c->m[i], m_low);
        v[i] = moment_v(c->v[i], v_low);
    }
}

FAST_CLONES void fast_moments_load(const struct adamw_args *a, int64_t i0, int64_t n, float *m,
                                   float *v)
{
    for (int64_t i = 0; i < n; i += MOMENT_BLOCK) {
        struct codes c = codes_at(a, i0 + i);
        load_block(&c, n - i < MOMENT_BLOCK ? n - i : MOMENT_BLOCK, m + i, v + i);
    }
}

/* Elements that a block lacks are 0. */
FAST_INLINE void store_block(const float *m, const float *v, int64_t n, struct moment_random r,
                             const struct codes *to)
{
    uint8_t mc[MOMENT_BLOCK], vc[MOMENT_BLOCK];
    struct codes c = {mc, vc, to->m_exponent, to->v_exponent};
    struct moments s = {0};

    for (int64_t i = 0; i < n; i++) {
        s.m[i % 2][i / 2] = m[i];
        s.v[i % 2][i / 2] = v[i];
        s.m_most = larger(s.m_most, m[i]);
        s.v_most = larger(s.v_most, v[i]);
    }
    encode_block(&s, r, &c);
    memcpy(to->m, mc, (size_t)n);
    memcpy(to->v, vc, (size_t)n);
}

FAST_CLONES void fast_moments_store(const struct adamw_args *a, int64_t i0, int64_t n,
                                    const float *m, const float *v)
{
    for (int64_t i = 0; i < n; i += MOMENT_BLOCK) {
        struct codes c = codes_at(a, i0 + i);
        store_block(m + i, v + i, n - i < MOMENT_BLOCK ? n - i : MOMENT_BLOCK, draw_at(a, i0 + i),
                    &c);
    }
}

/* --- beside bfloat16 gradients and parameters --- */

FAST_INLINE void update_moments(const struct adamw_consts *c, const pair16 *restrict grad,
                                struct moments *restrict s)
{
    uint32_t m_most = 0, v_most = 0;

    for (int j = 0; j < PAIRS; j++) {
        float m0 = s->m[0][j], m1 = s->m[1][j], v0 = s->v[0][j], v1 = s->v[1][j];
        adamw_moments(c, moment_float(grad[j] << 16), &m0, &v0);
        adamw_moments(c, moment_float(grad[j] & 0xffff0000u), &m1, &v1);
        s->m[0][j] = m0;
        s->m[1][j] = m1;
        s->v[0][j] = v0;
        s->v[1][j] = v1;
        m_most = larger(larger(m_most, m0), m1);
        v_most = larger(larger(v_most, v0), v1);
    }
    s->m_most = m_most;
    s->v_most = v_most;
}

/* `split` is a constant where this is inlined: of master and remainder one is used. */
FAST_INLINE void update_masters(const struct adamw_consts *c, bool split,
                                const struct moments *restrict s, float *restrict master,
                                pair16 *restrict remainder, pair16 *restrict param)
{
    for (int j = 0; j < PAIRS; j++) {
        uint32_t p = split ? param[j] : 0, r = split ? remainder[j] : 0;
        float w0 = split ? adamw_join_words(p << 16, r) : master[2 * j];
        float w1 = split ? adamw_join_words(p, r >> 16) : master[2 * j + 1];
        w0 = adamw_master(c, s->m[0][j], s->v[0][j], w0);
        w1 = adamw_master(c, s->m[1][j], s->v[1][j], w1);
        uint32_t b0 = adamw_master_bits(w0), b1 = adamw_master_bits(w1);
        if (split) {
            remainder[j] = (b0 & 0xffffu) | b1 << 16;
        } else {
            master[2 * j] = w0;
            master[2 * j + 1] = w1;
        }
        param[j] = adamw_param_word(b0) >> 16 | (adamw_param_word(b1) & 0xffff0000u);
    }
}

/* The gradient's place may be the parameter's. */
FAST_INLINE void update_block(const struct adamw_consts *c, bool split, const uint16_t *grad,
                              void *master, uint16_t *param, const struct codes *codes,
                              struct moment_random random)
{
    struct moments s;

    decode_block(codes, &s);
    update_moments(c, (const pair16 *)grad, &s);
    update_masters(c, split, &s, split ? NULL : (float *)master, split ? (pair16 *)master : NULL,
                   (pair16 *)param);
    encode_block(&s, random, codes);
}

FAST_INLINE void fetch_ahead(const struct adamw_args *a, int64_t i, size_t master)
{
    i += AHEAD;
    fast_fetch((const uint16_t *)a->grad + i, MOMENT_BLOCK * sizeof(uint16_t));
    fast_fetch((const uint16_t *)a->param + i, MOMENT_BLOCK * sizeof(uint16_t));
    fast_fetch((const char *)a->master + (size_t)i * master, MOMENT_BLOCK * master);
    fast_fetch((const uint8_t *)a->m + i, MOMENT_BLOCK);
    fast_fetch((const uint8_t *)a->v + i, MOMENT_BLOCK);
}

FAST_INLINE void update_at(const struct adamw_args *a, const struct adamw_consts *c, int64_t i,
                           bool split, struct moment_random random)
{
    struct codes codes = codes_at(a, i);
    size_t at = (size_t)i * (split ? sizeof(int16_t) : sizeof(float));
    update_block(c, split, (const uint16_t *)a->grad + i, (char *)a->master + at,
                 (uint16_t *)a->param + i, &codes, random);
}

/* Fewer elements than a block's, by way of a whole one, in which the others are 0. */
FAST_INLINE void update_rest(const struct adamw_args *a, const struct adamw_consts *c, int64_t i,
                             int64_t n, bool split)
{
    size_t each = split ? sizeof(int16_t) : sizeof(float), wide = (size_t)n * sizeof(uint16_t);
    uint16_t grad[MOMENT_BLOCK] = {0}, param[MOMENT_BLOCK] = {0};
    uint8_t m[MOMENT_BLOCK] = {0}, v[MOMENT_BLOCK] = {0};
    float master[MOMENT_BLOCK] = {0};
    char *masters = (char *)a->master + (size_t)i * each;
    struct codes at = codes_at(a, i), codes = {m, v, at.m_exponent, at.v_exponent};

    memcpy(grad, (const uint16_t *)a->grad + i, wide);
    memcpy(param, (uint16_t *)a->param + i, wide);
    memcpy(master, masters, (size_t)n * each);
    memcpy(m, at.m, (size_t)n);
    memcpy(v, at.v, (size_t)n);
    update_block(c, split, grad, master, param, &codes, draw_at(a, i));
    memcpy((uint16_t *)a->param + i, param, wide);
    memcpy(masters, master, (size_t)n * each);
    memcpy(at.m, m, (size_t)n);
    memcpy(at.v, v, (size_t)n);
}

/* The draws of DRAWS blocks side by side are vector code, too. */
FAST_INLINE void update_span(const struct adamw_args *a, const struct adamw_consts *consts,
                             int64_t i0, int64_t n, bool split)
{
    struct adamw_consts c = *consts;
    struct moment_random random[DRAWS];
    int64_t i = i0, end = i0 + n;

    for (int64_t k = DRAWS; i + MOMENT_BLOCK <= end; i += MOMENT_BLOCK, k++) {
        if (k == DRAWS) {
            for (k = 0; k < DRAWS; k++)
                random[k] = draw_at(a, i + k * MOMENT_BLOCK);
            k = 0;
        }
        fetch_ahead(a, i, split ? sizeof(int16_t) : sizeof(float));
        update_at(a, &c, i, split, random[k]);
    }
    if (i < end)
        update_rest(a, &c, i, end - i, split);
}

FAST_CLONES void fast_adamw8_span(const struct adamw_args *a, const struct adamw_consts *consts,
                                  int64_t i0, int64_t n)
{
    if (a->master_type == DT_I16)
        update_span(a, consts, i0, n, true);
    else
        update_span(a, consts, i0, n, false);
}
