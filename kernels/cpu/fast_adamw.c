/* Updates whose moments are floats, in place and aside. */
#include <assert.h>
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

/* Past the caches. `from` is aligned to a line, and `to` to what one store takes. */
FAST_INLINE void store_past(void *to, const void *from, size_t bytes)
{
#if defined(__x86_64__)
    for (size_t k = 0; k < bytes; k += sizeof(__m128))
        _mm_stream_ps((float *)((char *)to + k),
                      _mm_load_ps((const float *)((const char *)from + k)));
#else
    memcpy(to, from, bytes);
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

/* Where an update's arrays begin, the old ones and the new. Of a split master `master` is the
 * remainder, and the parameters are kept. */
struct aside {
    const uint16_t *grad;
    const void *master;
    const float *m, *v;
    uint16_t *param, *kept;
    void *new_master;
    float *new_m, *new_v;
};

static struct aside aside_from(const struct aside *a, int64_t first, size_t master_size)
{
    struct aside b = *a;
    b.grad += first;
    b.master = (const char *)a->master + (size_t)first * master_size;
    b.m += first;
    b.v += first;
    b.param += first;
    if (a->kept)
        b.kept += first;
    b.new_master = (char *)a->new_master + (size_t)first * master_size;
    b.new_m += first;
    b.new_v += first;
    return b;
}

FAST_CLONES static void whole_span(const struct adamw_consts *consts, int64_t n,
                                   const struct aside *a)
{
    struct adamw_consts c = *consts;
    _Alignas(FAST_LINE) float s[3][BLOCK];
    _Alignas(FAST_LINE) uint16_t g[BLOCK];
    const float *master = a->master, *m = a->m, *v = a->v;
    float *const new[3] = {a->new_master, a->new_m, a->new_v};
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        fast_fetch_once(a->grad + i + AHEAD, sizeof g);
        fast_fetch(a->param + i + AHEAD, sizeof g);
        fast_fetch_once(master + i + AHEAD, sizeof s[0]);
        fast_fetch_once(m + i + AHEAD, sizeof s[0]);
        fast_fetch_once(v + i + AHEAD, sizeof s[0]);
        memcpy(g, a->grad + i, sizeof g);
        update_aside(&c, BLOCK, g, master + i, m + i, v + i, s, a->param + i);
        for (int k = 0; k < 3; k++)
            store_past(new[k] + i, s[k], sizeof s[k]);
    }
    memcpy(g, a->grad + i, (size_t)(n - i) * sizeof *g);
    update_aside(&c, n - i, g, master + i, m + i, v + i, s, a->param + i);
    for (int k = 0; k < 3; k++)
        memcpy(new[k] + i, s[k], (size_t)(n - i) * sizeof *s[k]);
}

/* In copies of a block's old state and parameters. */
FAST_CLONES static void split_span(const struct adamw_consts *consts, int64_t n,
                                   const struct aside *a)
{
    struct adamw_consts c = *consts;
    _Alignas(FAST_LINE) float m[BLOCK], v[BLOCK];
    _Alignas(FAST_LINE) int16_t r[BLOCK];
    _Alignas(FAST_LINE) uint16_t p[BLOCK];
    const int16_t *remainder = a->master;
    int16_t *new_remainder = a->new_master;
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        fast_fetch_once(a->grad + i + AHEAD, sizeof p);
        fast_fetch(a->param + i + AHEAD, sizeof p);
        fast_fetch_once(remainder + i + AHEAD, sizeof r);
        fast_fetch_once(a->m + i + AHEAD, sizeof m);
        fast_fetch_once(a->v + i + AHEAD, sizeof v);
        memcpy(p, a->param + i, sizeof p);
        memcpy(r, remainder + i, sizeof r);
        memcpy(m, a->m + i, sizeof m);
        memcpy(v, a->v + i, sizeof v);
        store_past(a->kept + i, p, sizeof p);
        update(&c, BLOCK, true, a->grad + i, NULL, r, m, v, p);
        store_past(new_remainder + i, r, sizeof r);
        store_past(a->new_m + i, m, sizeof m);
        store_past(a->new_v + i, v, sizeof v);
        memcpy(a->param + i, p, sizeof p);
    }
    size_t rest = (size_t)(n - i);
    memcpy(a->kept + i, a->param + i, rest * sizeof *p);
    memcpy(new_remainder + i, remainder + i, rest * sizeof *r);
    memcpy(a->new_m + i, a->m + i, rest * sizeof *m);
    memcpy(a->new_v + i, a->v + i, rest * sizeof *v);
    update(&c, n - i, true, a->grad + i, NULL, new_remainder + i, a->new_m + i, a->new_v + i,
           a->param + i);
}

bool adamw_goes_aside(enum dtype grad, enum dtype param, enum dtype master, enum dtype moment)
{
    return grad == DT_BF16 && param == DT_BF16 && (master == DT_F32 || master == DT_I16) &&
           moment == DT_F32;
}

void adamw_aside(const struct adamw_args *a, void *master, void *m, void *v, void *kept)
{
    struct adamw_consts decayed = cpu_adamw_consts(a, true), plain = cpu_adamw_consts(a, false);
    int64_t cut = a->n_decay < a->n ? a->n_decay : a->n;
    struct aside all = {a->grad, a->master, a->m, a->v, a->param, kept, master, m, v};
    struct aside rest = aside_from(&all, cut, dtype_size(a->master_type));
    bool split = a->master_type == DT_I16;

    assert(split == (kept != NULL));
    (split ? split_span : whole_span)(&decayed, cut, &all);
    (split ? split_span : whole_span)(&plain, a->n - cut, &rest);
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
