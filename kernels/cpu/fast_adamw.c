/* Updates whose moments are floats, in place and aside. */
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/adamw_aside.h"
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/fast_adamw.h"

enum {
    BLOCK = 64,   /* elements: whole cache lines of every array                             */
    AHEAD = 1024, /* elements that are fetched ahead: one core waits some 100 ns for memory */
};

/* A block's gradient has been copied: its place may be the parameter's. `split` is a constant where
 * this is inlined: of master and remainder one is used. */
FAST_INLINE void update(const struct adamw_consts *c, int64_t n, bool split,
                        const uint16_t *restrict grad, float *restrict master,
                        int16_t *restrict remainder, float *restrict m, float *restrict v,
                        uint16_t *restrict param)
{
    for (int64_t i = 0; i < n; i++) {
        float w = split ? adamw_join(param[i], remainder[i]) : master[i], mi = m[i], vi = v[i];
        adamw_element(c, fast_widen(grad[i]), &w, &mi, &vi);
        if (split)
            remainder[i] = adamw_remainder(w);
        else
            master[i] = w;
        param[i] = adamw_param_bf16(w);
        m[i] = mi;
        v[i] = vi;
    }
}

FAST_CLONES void fast_adamw_bf16_span(const struct adamw_consts *consts, int64_t n,
                                      const uint16_t *grad, float *master, float *m, float *v,
                                      uint16_t *param)
{
    struct adamw_consts c = *consts;
    uint16_t g[BLOCK];
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        fast_fetch(grad + i + AHEAD, BLOCK * sizeof *grad);
        fast_fetch(master + i + AHEAD, BLOCK * sizeof *master);
        fast_fetch(m + i + AHEAD, BLOCK * sizeof *m);
        fast_fetch(v + i + AHEAD, BLOCK * sizeof *v);
        memcpy(g, grad + i, sizeof g);
        update(&c, BLOCK, false, g, master + i, NULL, m + i, v + i, param + i);
    }
    memcpy(g, grad + i, (size_t)(n - i) * sizeof *g);
    update(&c, n - i, false, g, master + i, NULL, m + i, v + i, param + i);
}

FAST_CLONES void fast_adamw_split_span(const struct adamw_consts *consts, int64_t n,
                                       const uint16_t *grad, int16_t *remainder, float *m, float *v,
                                       uint16_t *param)
{
    struct adamw_consts c = *consts;
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        fast_fetch(grad + i + AHEAD, BLOCK * sizeof *grad);
        fast_fetch(param + i + AHEAD, BLOCK * sizeof *param);
        fast_fetch(remainder + i + AHEAD, BLOCK * sizeof *remainder);
        fast_fetch(m + i + AHEAD, BLOCK * sizeof *m);
        fast_fetch(v + i + AHEAD, BLOCK * sizeof *v);
        update(&c, BLOCK, true, grad + i, NULL, remainder + i, m + i, v + i, param + i);
    }
    update(&c, n - i, true, grad + i, NULL, remainder + i, m + i, v + i, param + i);
}

/* --- aside --- */

/* Past the caches. `from` is aligned to a line. */
FAST_INLINE void store_block(float *to, const float *from)
{
#if defined(__x86_64__)
    for (int k = 0; k < BLOCK; k += 4)
        _mm_stream_ps(to + k, _mm_load_ps(from + k));
#else
    memcpy(to, from, BLOCK * sizeof *from);
#endif
}

/* A block's new state, in buffers; its gradient may lie in the parameter's place. */
FAST_INLINE void update_aside(const struct adamw_consts *c, int64_t n,
                              const uint16_t *restrict grad, const float *restrict master,
                              const float *restrict m, const float *restrict v,
                              float (*restrict new)[BLOCK], uint16_t *restrict param)
{
    for (int64_t i = 0; i < n; i++) {
        float w = master[i], mi = m[i], vi = v[i];
        adamw_element(c, fast_widen(grad[i]), &w, &mi, &vi);
        new[0][i] = w;
        new[1][i] = mi;
        new[2][i] = vi;
        param[i] = adamw_param_bf16(w);
    }
}

FAST_CLONES static void aside_span(const struct adamw_consts *consts, int64_t n,
                                   const uint16_t *grad, const float *const old[3],
                                   float *const new[3], uint16_t *param)
{
    struct adamw_consts c = *consts;
    _Alignas(FAST_LINE) float s[3][BLOCK];
    _Alignas(FAST_LINE) uint16_t g[BLOCK];
    const float *master = old[0], *m = old[1], *v = old[2];
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        fast_fetch_once(grad + i + AHEAD, BLOCK * sizeof *grad);
        fast_fetch(param + i + AHEAD, BLOCK * sizeof *param);
        fast_fetch_once(master + i + AHEAD, BLOCK * sizeof *master);
        fast_fetch_once(m + i + AHEAD, BLOCK * sizeof *m);
        fast_fetch_once(v + i + AHEAD, BLOCK * sizeof *v);
        memcpy(g, grad + i, sizeof g);
        update_aside(&c, BLOCK, g, master + i, m + i, v + i, s, param + i);
        for (int k = 0; k < 3; k++)
            store_block(new[k] + i, s[k]);
    }
    memcpy(g, grad + i, (size_t)(n - i) * sizeof *g);
    update_aside(&c, n - i, g, master + i, m + i, v + i, s, param + i);
    for (int k = 0; k < 3; k++)
        memcpy(new[k] + i, s[k], (size_t)(n - i) * sizeof *s[k]);
}

bool adamw_goes_aside(enum dtype grad, enum dtype param, enum dtype master, enum dtype moment)
{
    return grad == DT_BF16 && param == DT_BF16 && master == DT_F32 && moment == DT_F32;
}

void adamw_aside(const struct adamw_args *a, void *master, void *m, void *v)
{
    struct adamw_consts decayed = cpu_adamw_consts(a, true), plain = cpu_adamw_consts(a, false);
    int64_t cut = a->n_decay < a->n ? a->n_decay : a->n;
    const float *old[3] = {a->master, a->m, a->v}, *old_plain[3];
    float *new[3] = {master, m, v}, *new_plain[3];

    for (int k = 0; k < 3; k++) {
        old_plain[k] = old[k] + cut;
        new_plain[k] = new[k] + cut;
    }
    aside_span(&decayed, cut, a->grad, old, new, a->param);
    aside_span(&plain, a->n - cut, (const uint16_t *)a->grad + cut, old_plain, new_plain,
               (uint16_t *)a->param + cut);
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
