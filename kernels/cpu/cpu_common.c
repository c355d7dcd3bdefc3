#include "kernels/cpu/cpu_common.h"

#include <math.h>
#include <string.h>

#include "kernels/master.h"

int cpu_clip(struct stream *s, const struct clip_args *a)
{
    struct clip_result r = {0};
    float inv_scale = a->loss_scale ? 1.0f / a->loss_scale->scale : 1.0f;
    double sum = 0;

    for (int64_t first = 0; first < a->n; first += CLIP_GROUP) {
        double group = 0;
        for (int64_t i = first; i < a->n && i < first + CLIP_GROUP; i++)
            group += a->partial[i];
        sum += group;
    }
    r.norm = sqrt(sum) * (double)inv_scale;
    r.finite = isfinite(r.norm) ? 1 : 0;
    if (r.finite) {
        double ratio = a->max_norm > 0 ? (double)a->max_norm / (r.norm + 1e-6) : 1;
        r.clipped = ratio < 1;
        r.coef = r.clipped ? (float)((double)inv_scale * ratio) : inv_scale;
    }
    *a->result = r;
    if (a->loss_scale)
        *a->loss_scale = loss_scale_after(*a->loss_scale, r.finite);
    return 0;
}

float cpu_loss_factor(const struct loss_args *a)
{
    return *a->grad_scale * (a->loss_scale ? a->loss_scale->scale : 1.0f);
}

int cpu_cast(struct stream *s, const struct cast_args *a)
{
    dtype_convert(a->to, a->dst, a->from, a->src, a->n);
    return 0;
}

struct adamw_consts cpu_adamw_consts(const struct adamw_args *a, bool decay)
{
    return adamw_consts_make(a->beta1, a->beta2, a->eps, decay ? a->weight_decay : 0.0f,
                             a->step->lr, a->step->bias1, a->step->bias2, a->clip->coef);
}

static float load(enum dtype t, const void *p, int64_t i)
{
    float x;
    dtype_convert(DT_F32, &x, t, (const char *)p + (size_t)i * dtype_size(t), 1);
    return x;
}

static float load_master(const struct adamw_args *a, int64_t i)
{
    if (a->master_type == DT_I16)
        return adamw_join(((const uint16_t *)a->param)[i], ((const int16_t *)a->master)[i]);
    return load(a->master_type, a->master, i);
}

static void store_rounded(enum dtype t, void *p, int64_t i, float x, uint32_t random)
{
    if (t == DT_BF16)
        ((uint16_t *)p)[i] = adamw_round_bf16(x, random);
    else if (t == DT_I16)
        ((int16_t *)p)[i] = adamw_remainder(x);
    else
        ((float *)p)[i] = x;
}

bool cpu_adamw_types_known(const struct adamw_args *a)
{
    bool codes = a->moment_type == DT_U8 && a->m_exponent && a->v_exponent &&
                 a->first % MOMENT_BLOCK == 0 &&
                 (a->n_decay % MOMENT_BLOCK == 0 || a->n_decay == a->n);
    bool split = a->master_type == DT_I16 && a->param_type == DT_BF16 && a->param;
    return (a->master_type == DT_F32 || a->master_type == DT_BF16 || split) &&
           (a->moment_type == DT_F32 || a->moment_type == DT_BF16 || codes) &&
           dtype_size(a->param_type) <= 4 && dtype_size(a->grad_type) <= 4;
}

static float load_gradient(const struct adamw_args *a, int64_t i)
{
    float g = load(a->grad_type, a->grad, i), rounded = g;
    if (a->grad_type == DT_F32 && a->param_type != DT_F32) {
        char narrow[4];
        dtype_convert(a->param_type, narrow, DT_F32, &g, 1);
        dtype_convert(DT_F32, &rounded, a->param_type, narrow, 1);
    }
    return rounded;
}

static void store_master(const struct adamw_args *a, int64_t i, float w, uint32_t random)
{
    store_rounded(a->master_type, a->master, i, w, random);
    if (a->master_type == DT_BF16)
        w = load_master(a, i);
    if (a->param)
        master_round(a->param_type, (char *)a->param + (size_t)i * dtype_size(a->param_type), &w,
                     1);
}

static void load_codes(const struct adamw_args *a, int64_t i0, int64_t n, float *m, float *v)
{
    uint32_t m_low = moment_low(a->m_exponent[i0 / MOMENT_BLOCK], MOMENT_M_BINADES);
    uint32_t v_low = moment_low(a->v_exponent[i0 / MOMENT_BLOCK], MOMENT_V_BINADES);
    for (int64_t i = 0; i < n; i++) {
        m[i] = moment_m(((const uint8_t *)a->m)[i0 + i], m_low);
        v[i] = moment_v(((const uint8_t *)a->v)[i0 + i], v_low);
    }
}

static uint32_t exponent_of(const float *x, int64_t n)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = moment_bits(x[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return moment_exponent(most);
}

static void store_codes(const struct adamw_args *a, int64_t i0, int64_t n, const float *m,
                        const float *v)
{
    struct moment_random r =
        moment_draw(a->seed, a->step->step, a->site, (uint64_t)(a->first + i0) / MOMENT_BLOCK);
    uint32_t m_exponent = exponent_of(m, n), v_exponent = exponent_of(v, n);
    uint32_t m_low = moment_low(m_exponent, MOMENT_M_BINADES);
    uint32_t v_low = moment_low(v_exponent, MOMENT_V_BINADES);

    a->m_exponent[i0 / MOMENT_BLOCK] = (uint8_t)m_exponent;
    a->v_exponent[i0 / MOMENT_BLOCK] = (uint8_t)v_exponent;
    for (int64_t i = 0; i < n; i++) {
        ((uint8_t *)a->m)[i0 + i] = moment_m_code(m[i], m_low, r.m + (uint32_t)i * r.m_step);
        ((uint8_t *)a->v)[i0 + i] = moment_v_code(v[i], v_low, r.v + (uint32_t)i * r.v_step);
    }
}

void cpu_adamw_block(const struct adamw_args *a, const struct adamw_consts *decayed,
                     const struct adamw_consts *plain, int64_t i0)
{
    struct rng_stream stream = adamw_stream(a->seed, a->step->step, a->site);
    int64_t n = a->n - i0 < MOMENT_BLOCK ? a->n - i0 : MOMENT_BLOCK;
    float m[MOMENT_BLOCK], v[MOMENT_BLOCK];
    bool codes = a->moment_type == DT_U8;

    if (codes)
        load_codes(a, i0, n, m, v);
    for (int64_t k = 0; k < n; k++) {
        int64_t i = i0 + k;
        struct adamw_bits bits = adamw_bits_of(rng_draw(stream, (uint64_t)(a->first + i)));
        float w = load_master(a, i);
        if (!codes) {
            m[k] = load(a->moment_type, a->m, i);
            v[k] = load(a->moment_type, a->v, i);
        }
        adamw_element(i < a->n_decay ? decayed : plain, load_gradient(a, i), &w, &m[k], &v[k]);
        store_master(a, i, w, bits.master);
        if (!codes) {
            store_rounded(a->moment_type, a->m, i, m[k], bits.m);
            store_rounded(a->moment_type, a->v, i, v[k], bits.v);
        }
    }
    if (codes)
        store_codes(a, i0, n, m, v);
}
