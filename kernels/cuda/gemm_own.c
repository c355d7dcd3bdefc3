/* BLAS order has d transposed: its n are our rows, its m our columns, its b our x and its a our w.
 */
#include "kernels/cuda/gemm_own.h"

static bool aligned(const void *p, int64_t ld)
{
    return ((uintptr_t)p & 15) == 0 && ld % 8 == 0;
}

/* -1: none of ours. */
static int epilogue_of(const struct gemm *g)
{
    switch ((int)g->epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_BIAS:
        return PRODUCT_PLAIN;
    case GEMM_EPILOGUE_GELU:
        return PRODUCT_GELU;
    case GEMM_EPILOGUE_DRELU:
        return PRODUCT_RELU_SLOPE;
    case CUBLASLT_EPILOGUE_DGELU:
        return PRODUCT_GELU_SLOPE;
    default:
        return -1;
    }
}

static enum product_layout layout_of(int epilogue)
{
    return epilogue == PRODUCT_PLAIN || epilogue == PRODUCT_GELU ? PRODUCT_FORWARD : PRODUCT_DATA;
}

bool gemm_own_can(const struct cuda_state *state, const struct gemm *g)
{
    const int64_t most = INT32_MAX;
    const void *c = g->c ? g->c : g->d;
    int64_t ldc = g->c ? g->ldc : g->ldd;
    int epilogue = epilogue_of(g);

    return state->capability == 90 && state->tensor_map && g->type_in == CUDA_R_16BF &&
           g->type_out == CUDA_R_16BF && g->type_b == 0 && !g->trans_b && epilogue >= 0 &&
           g->trans_a == (layout_of(epilogue) == PRODUCT_FORWARD) && aligned(g->a, g->lda) &&
           aligned(g->b, g->ldb) && aligned(g->d, g->ldd) && aligned(c, ldc) &&
           aligned(g->bias, 0) && aligned(g->aux, g->ld_aux) && g->m % 8 == 0 && g->m > 0 &&
           g->n > 0 && g->k > 0 && g->m < most && g->n < most && g->k < most;
}

/* A matrix whose rows of `width` lie ld apart, in boxes of so many rows. */
static bool make_map(const struct cuda_state *state, CUtensorMap *map, const void *base,
                     int64_t width, int64_t height, int64_t ld, uint32_t box_rows)
{
    const cuuint64_t sides[2] = {(cuuint64_t)width, (cuuint64_t)height};
    const cuuint64_t strides[1] = {(cuuint64_t)ld * 2};
    const cuuint32_t box[2] = {PRODUCT_DEPTH, box_rows}, steps[2] = {1, 1};

    return state->tensor_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)base,
                             sides, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

int gemm_own_run(const struct cuda_state *state, cudaStream_t stream, const struct gemm *g)
{
    enum product_epilogue epilogue = (enum product_epilogue)epilogue_of(g);
    bool forward = layout_of(epilogue) == PRODUCT_FORWARD;
    bool sum = epilogue == PRODUCT_PLAIN && g->beta != 0;
    struct product p = {
        .rows = (int)g->n,
        .cols = (int)g->m,
        .k = (int)g->k,
        .alpha = g->alpha,
        .d = g->d,
        .ldd = g->ldd,
        .bias = g->bias,
        .c = !sum   ? NULL
             : g->c ? g->c
                    : g->d,
        .ldc = g->c ? g->ldc : g->ldd,
        .aux = g->aux,
        .ld_aux = g->ld_aux,
        .sums = g->sums,
    };

    if (!make_map(state, &p.x, g->b, g->k, g->n, g->ldb, PRODUCT_X_BOX))
        return ERR_DEVICE;
    if (!forward) {
        return make_map(state, &p.w, g->a, g->m, g->k, g->lda, PRODUCT_W_BOX_ACROSS)
                   ? launch_product_data(stream, epilogue, &p)
                   : ERR_DEVICE;
    }
    return make_map(state, &p.w, g->a, g->k, g->m, g->lda, PRODUCT_W_BOX)
               ? launch_product_forward(stream, epilogue, &p)
               : ERR_DEVICE;
}
