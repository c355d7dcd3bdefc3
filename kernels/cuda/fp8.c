#include "kernels/cuda/fp8.h"

#include "kernels/cuda/launch.h"

/* Behind GEMM_WORKSPACE: the scales, then the copies. */
enum { SCALES = 256, SIDE = 16 };

/* Device memory; [0] of A, [1] of B. The library reads its scales at addresses of whole 16 bytes.
 */
struct scales {
    uint32_t amax[4]; /* the first two count */
    float back[2][4]; /* the first of four counts */
};

static size_t aligned(size_t bytes)
{
    return (bytes + SCALES - 1) / SCALES * SCALES;
}

static bool sides_fit(int64_t m, int64_t n, int64_t k)
{
    return m % SIDE == 0 && n % SIDE == 0 && k % SIDE == 0;
}

static size_t copy_bytes(int64_t m, int64_t n, int64_t k, int64_t rows)
{
    return aligned((size_t)(rows * k) * (sides_fit(m, n, k) ? 1 : 2));
}

size_t fp8_workspace(int64_t m, int64_t n, int64_t k)
{
    return SCALES + copy_bytes(m, n, k, m) + copy_bytes(m, n, k, n);
}

/* Whether the copies can be of 8 bits, read 16 bytes at a time. */
static bool narrow_fits(const struct gemm *g)
{
    uintptr_t pointers = (uintptr_t)g->a | (uintptr_t)g->b | (uintptr_t)g->d | (uintptr_t)g->c;

    return sides_fit(g->m, g->n, g->k) && pointers % 16 == 0 && g->lda % 8 == 0 &&
           g->ldb % 8 == 0 && g->ldd % 8 == 0 && (!g->c || g->ldc % 8 == 0);
}

/* One operand: `rows` is its side that is not summed over. */
static int round_operand(struct stream *s, bool narrow, enum fp8_format format, int64_t rows,
                         int64_t k, bool k_inner, int64_t ld, const void *x, struct scales *scales,
                         int which, void *to)
{
    struct fp8_cast c = {
        .format = format,
        .rows = k_inner ? rows : k,
        .cols = k_inner ? k : rows,
        .ld = ld,
        .x = x,
        .amax = &scales->amax[which],
        .back = scales->back[which],
        .out = to,
    };
    int rc = launch_fp8_amax(s->handle, &c);

    if (rc != 0)
        return rc;
    if (!narrow)
        return launch_fp8_round(s->handle, &c);
    return k_inner ? launch_fp8_cast(s->handle, &c) : launch_fp8_cast_transposed(s->handle, &c);
}

int fp8_round_operands(struct stream *s, enum fp8_format format_b, struct gemm *g)
{
    char *room = (char *)g->workspace + GEMM_WORKSPACE;
    struct scales *scales = (struct scales *)(void *)room;
    void *a = room + SCALES, *b = room + SCALES + copy_bytes(g->m, g->n, g->k, g->m);
    bool narrow = narrow_fits(g);
    int rc;

    if (s->state->capability < 89)
        return ERR_UNSUPPORTED;
    if (!narrow && sides_fit(g->m, g->n, g->k))
        return ERR_UNSUPPORTED; /* the room is for copies of 8 bits */
    if (cudaMemsetAsync(scales->amax, 0, sizeof scales->amax, s->handle) != cudaSuccess)
        return ERR_DEVICE;
    rc = round_operand(s, narrow, FP8_E4M3, g->m, g->k, g->trans_a, g->lda, g->a, scales, 0, a);
    if (rc == 0)
        rc =
            round_operand(s, narrow, format_b, g->n, g->k, !g->trans_b, g->ldb, g->b, scales, 1, b);
    if (rc != 0)
        return rc;
    g->a = a;
    g->b = b;
    if (!narrow) { /* dense, as they lay */
        g->lda = g->trans_a ? g->k : g->m;
        g->ldb = g->trans_b ? g->n : g->k;
        return 0;
    }
    g->trans_a = true;
    g->trans_b = false;
    g->lda = g->ldb = g->k;
    g->type_in = CUDA_R_8F_E4M3;
    g->type_b = format_b == FP8_E4M3 ? CUDA_R_8F_E4M3 : CUDA_R_8F_E5M2;
    g->scale_a = scales->back[0];
    g->scale_b = scales->back[1];
    return 0;
}
