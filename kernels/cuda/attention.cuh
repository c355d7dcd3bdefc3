/* What all attention kernels share: the arguments as kernels want them, and the score of one pair.
 */
#ifndef CASTOR_KERNELS_CUDA_ATTENTION_CUH
#define CASTOR_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/alibi.h"
#include "kernels/cuda/common.cuh"

struct attn_params {
    int B, T, S, H, KV, D, group; /* group: query heads a key head */
    int64_t ldq, ldk, ldv, ldo;
    float scale, cap, inv_cap; /* cap 0: none */
    int window;                /* 0: all      */
    const int32_t *first_key;
    const float *slopes;
    float alibi_scale;
    struct dropout_params dropout;
    const void *q, *k, *v, *dout;
    void *o, *dq, *dk, *dv;
    float *lse, *delta; /* (B, H, T) */
    int chunk;          /* heads at a time: attn_hopper.cuh */
    int *next;          /* the item that no block has taken yet, or NULL: attn_hopper.cuh */
    const int2 *spans;  /* least and greatest first_key of each tile of rows, or NULL */
};

static inline struct attn_params attn_resolve(const struct attn_args *a)
{
    struct attn_params p;
    p.B = (int)a->B;
    p.T = (int)a->T;
    p.S = (int)a->S;
    p.H = (int)a->H;
    p.KV = (int)a->KV;
    p.D = (int)a->D;
    p.group = (int)(a->H / a->KV);
    p.ldq = a->ldq ? a->ldq : a->H * a->D;
    p.ldk = a->ldk ? a->ldk : a->KV * a->D;
    p.ldv = a->ldv ? a->ldv : a->KV * a->D;
    p.ldo = a->ldo ? a->ldo : a->H * a->D;
    p.scale = a->scale;
    p.cap = a->softcap;
    p.inv_cap = a->softcap != 0 ? 1.0f / a->softcap : 0.0f;
    p.window = (int)(a->window < a->S ? a->window : 0);
    p.first_key = a->first_key;
    p.slopes = a->alibi_slopes;
    p.alibi_scale = a->alibi_scale;
    p.dropout = dropout_resolve(&a->dropout);
    p.q = a->q;
    p.k = a->k;
    p.v = a->v;
    p.dout = a->dout;
    p.o = a->o;
    p.dq = a->dq;
    p.dk = a->dk;
    p.dv = a->dv;
    p.lse = (float *)a->lse;
    p.delta = (float *)a->workspace;
    p.spans = NULL;
    p.next = NULL;
    p.chunk = p.B * p.H; /* all */
    return p;
}

/* First key that query i of row b sees; the last is i + S - T. */
static __device__ __forceinline__ int attn_first(const struct attn_params &p, int b, int i)
{
    int first = p.window > 0 ? i + p.S - p.T - p.window + 1 : 0;
    if (p.first_key)
        first = max(first, p.first_key[(int64_t)b * p.T + i]);
    return max(first, 0);
}

static __device__ __forceinline__ float attn_capped(const struct attn_params &p, float dot)
{
    float x = dot * p.scale;
    return p.cap != 0 ? p.cap * tanhf(x * p.inv_cap) : x;
}

/* Score from the dot product q k^T; *capped is the part before the position bias. Not for rounded
 * biases. */
static __device__ __forceinline__ float attn_score(const struct attn_params &p, float slope,
                                                   float dot, int key, int last, float *capped)
{
    *capped = attn_capped(p, dot);
    return *capped + slope * (float)(key - last);
}

/* The key that rounded biases of query i of row b count from. */
static __device__ __forceinline__ int attn_origin(const struct attn_params &p, int b, int i)
{
    return p.alibi_scale != 0 && p.first_key ? p.first_key[(int64_t)b * p.T + i] : 0;
}

/* As attn_score, for biases of both kinds. */
static __device__ __forceinline__ float attn_score_any(const struct attn_params &p, float slope,
                                                       float dot, int key, int last, int origin,
                                                       float *capped)
{
    if (p.alibi_scale == 0)
        return attn_score(p, slope, dot, key, last, capped);
    *capped = attn_capped(p, dot);
    return *capped + alibi_rounded(slope, p.alibi_scale, key - origin);
}

static __device__ __forceinline__ float attn_cap_slope(const struct attn_params &p, float capped)
{
    float t = capped * p.inv_cap;
    return p.cap != 0 ? 1.0f - t * t : 1.0f;
}

static __device__ __forceinline__ uint64_t attn_index(const struct attn_params &p, int b, int h,
                                                      int i, int key)
{
    return (uint64_t)p.dropout.first + (((uint64_t)b * p.H + h) * p.T + i) * (uint64_t)p.S +
           (uint64_t)key;
}

static __device__ __forceinline__ float attn_factor(const struct attn_params &p, int b, int h,
                                                    int i, int key)
{
    return p.dropout.on ? dropout_factor(p.dropout, attn_index(p, b, h, i, key)) : 1.0f;
}

/* Whether scores are more than scaled dot products. */
__host__ __device__ static inline bool attn_has_scores(const struct attn_params &p)
{
    return p.cap != 0 || p.slopes;
}

/* What kernels call EXTRA: scores are more than scaled dot products, or weights are dropped. */
__host__ __device__ static inline bool attn_is_extra(const struct attn_params &p)
{
    return attn_has_scores(p) || p.dropout.on;
}

static __device__ __forceinline__ float attn_slope(const struct attn_params &p, int h)
{
    return p.slopes ? p.slopes[h] : 0.0f;
}

#endif
