#include "kernels/cuda/fp8.h"

#include "kernels/cuda/launch.h"

enum { SIDE = 16, ALIGN = 256 };

static bool sides_fit(int64_t m, int64_t n, int64_t k)
{
    return m % SIDE == 0 && n % SIDE == 0 && k % SIDE == 0;
}

static size_t spread_bytes(int64_t rows, int64_t k)
{
    return ((size_t)(rows * k) * 2 + ALIGN - 1) / ALIGN * ALIGN;
}

size_t fp8_workspace(int64_t m, int64_t n, int64_t k)
{
    return sides_fit(m, n, k) ? 0 : spread_bytes(m, k) + spread_bytes(n, k);
}

/* What the library reads and writes 16 bytes at a time. */
static bool aligned(const struct gemm *g)
{
    uintptr_t pointers = (uintptr_t)g->a | (uintptr_t)g->b | (uintptr_t)g->d | (uintptr_t)g->c;

    return pointers % 16 == 0 && g->ldd % 8 == 0 && (!g->c || g->ldc % 8 == 0);
}

int fp8_operands(struct stream *s, struct fp8_operand a, enum fp8_format format_b,
                 struct fp8_operand b, struct gemm *g)
{
    char *room = (char *)g->workspace + GEMM_WORKSPACE;
    int rc;

    if (s->state->capability < 89)
        return ERR_UNSUPPORTED;
    g->trans_a = true;
    g->trans_b = false;
    g->lda = g->ldb = g->k;
    g->a = a.p;
    g->b = b.p;
    if (sides_fit(g->m, g->n, g->k)) {
        g->type_in = CUDA_R_8F_E4M3;
        g->type_b = format_b == FP8_E4M3 ? CUDA_R_8F_E4M3 : CUDA_R_8F_E5M2;
        g->scale_a = &a.scale->back;
        g->scale_b = &b.scale->back;
        return aligned(g) ? 0 : ERR_UNSUPPORTED; /* there is no room to spread them out */
    }
    g->a = room;
    g->b = room + spread_bytes(g->m, g->k);
    rc = launch_fp8_spread(s->handle, FP8_E4M3, g->m * g->k, a.p, a.scale, (void *)g->a);
    return rc ? rc
              : launch_fp8_spread(s->handle, format_b, g->n * g->k, b.p, b.scale, (void *)g->b);
}
