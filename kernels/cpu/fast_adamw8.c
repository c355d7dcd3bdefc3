/* Updates whose moments are 8-bit codes (kernels/moment_math.h). */
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/fast_adamw.h"
#include "kernels/moment_math.h"

enum {
    AHEAD = 2048, /* elements that are fetched ahead */
    DRAWS = 16
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

FAST_INLINE void decode_block(const struct codes *c, int64_t n, float *restrict m,
                              float *restrict v)
{
    uint32_t m_low = moment_low(*c->m_exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(*c->v_exponent, MOMENT_V_BINADES);
    const uint8_t *restrict mc = c->m, *restrict vc = c->v;
    for (int64_t i = 0; i < n; i++) {
        m[i] = moment_m(mc[i], m_low);
        v[i] = moment_v(vc[i], v_low);
    }
}

FAST_INLINE uint32_t largest(const float *restrict x, int64_t n)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = moment_bits(x[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

FAST_INLINE void encode_block(const struct codes *c, int64_t n, const float *restrict m,
                              const float *restrict v, struct moment_random r)
{
    uint32_t m_exponent = moment_exponent(largest(m, n)),
             v_exponent = moment_exponent(largest(v, n));
    uint32_t m_low = moment_low(m_exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(v_exponent, MOMENT_V_BINADES);
    uint8_t *restrict mc = c->m, *restrict vc = c->v;

    for (int64_t i = 0; i < n; i++)
        mc[i] = moment_m_code(m[i], m_low, r.m + (uint32_t)i * r.m_step);
    for (int64_t i = 0; i < n; i++)
        vc[i] = moment_v_code(v[i], v_low, r.v + (uint32_t)i * r.v_step);
    *c->m_exponent = (uint8_t)m_exponent;
    *c->v_exponent = (uint8_t)v_exponent;
}

FAST_INLINE struct moment_random draw_at(const struct adamw_args *a, int64_t i0)
{
    return moment_draw(a->seed, a->step->step, a->site, (uint64_t)(a->first + i0) / MOMENT_BLOCK);
}

/* --- beside anything, through floats --- */

FAST_CLONES void fast_moments_load(const struct adamw_args *a, int64_t i0, int64_t n, float *m,
                                   float *v)
{
    for (int64_t i = 0; i < n; i += MOMENT_BLOCK) {
        struct codes c = codes_at(a, i0 + i);
        decode_block(&c, n - i < MOMENT_BLOCK ? n - i : MOMENT_BLOCK, m + i, v + i);
    }
}

FAST_CLONES void fast_moments_store(const struct adamw_args *a, int64_t i0, int64_t n,
                                    const float *m, const float *v)
{
    for (int64_t i = 0; i < n; i += MOMENT_BLOCK) {
        struct codes c = codes_at(a, i0 + i);
        encode_block(&c, n - i < MOMENT_BLOCK ? n - i : MOMENT_BLOCK, m + i, v + i,
                     draw_at(a, i0 + i));
    }
}

/* --- beside bfloat16 gradients and parameters --- */

/* The gradient's place may be the parameter's. */
FAST_INLINE void update_block(const struct adamw_consts *c, int64_t n, bool split,
                              const uint16_t *grad, float *restrict master,
                              int16_t *restrict remainder, uint16_t *restrict param,
                              const struct codes *codes, struct moment_random random)
{
    uint32_t m_low = moment_low(*codes->m_exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(*codes->v_exponent, MOMENT_V_BINADES);
    const uint8_t *restrict mc = codes->m, *restrict vc = codes->v;
    float m[MOMENT_BLOCK], v[MOMENT_BLOCK];
    uint16_t g[MOMENT_BLOCK];

    memcpy(g, grad, (size_t)n * sizeof *g);
    for (int64_t i = 0; i < n; i++) {
        float mi = moment_m(mc[i], m_low), vi = moment_v(vc[i], v_low);
        fast_adamw_element(c, split, g[i], split ? NULL : master + i, split ? remainder + i : NULL,
                           param + i, &mi, &vi);
        m[i] = mi;
        v[i] = vi;
    }
    encode_block(codes, n, m, v, random);
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
                           int64_t n, bool split, struct moment_random random)
{
    struct codes codes = codes_at(a, i);
    update_block(c, n, split, (const uint16_t *)a->grad + i, split ? NULL : (float *)a->master + i,
                 split ? (int16_t *)a->master + i : NULL, (uint16_t *)a->param + i, &codes, random);
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
        update_at(a, &c, i, MOMENT_BLOCK, split, random[k]);
    }
    if (i < end)
        update_at(a, &c, i, end - i, split, draw_at(a, i));
}

FAST_CLONES void fast_adamw8_span(const struct adamw_args *a, const struct adamw_consts *consts,
                                  int64_t i0, int64_t n)
{
    if (a->master_type == DT_I16)
        update_span(a, consts, i0, n, true);
    else
        update_span(a, consts, i0, n, false);
}
