/*
 * Matrix products of our own on Hopper (sm_90a), for bfloat16 operands and results, with epilogues
 * that the library lacks or that hold up its products, and with tiles of 128 by 160, which fill the
 * multiprocessors where the library's leave many idle (widths of 1,600).
 *
 * Row-major: d (rows, cols) = epilogue(alpha sum over k of x and w), float32 sums in ascending k.
 * What x and w look like in memory is the layout: of a linear layer's forward, x (rows, k) and w
 * (cols, k); of its data gradient, x (rows, k) and w (k, cols).
 */
#ifndef CASTOR_KERNELS_CUDA_PRODUCT_H
#define CASTOR_KERNELS_CUDA_PRODUCT_H

#include <stdint.h>

#include <cuda.h>
#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum product_layout { PRODUCT_FORWARD, PRODUCT_DATA };

enum product_epilogue {
    PRODUCT_PLAIN,      /* forward: d = product + bias + c                              */
    PRODUCT_GELU,       /* forward: aux = product + bias; d = tanh-GELU of aux, rounded */
    PRODUCT_RELU_SLOPE, /* data: d = product times the slope at aux; sums of d's columns */
    PRODUCT_GELU_SLOPE
};

enum { PRODUCT_ROWS = 128, PRODUCT_COLS = 160, PRODUCT_DEPTH = 64 };
static inline int64_t product_row_tiles(int64_t rows)
{
    return (rows + PRODUCT_ROWS - 1) / PRODUCT_ROWS;
}

/* All pointers and rows 16-byte aligned; cols a multiple of 8. */
struct product {
    int rows, cols, k;
    float alpha;
    void *d; /* (rows, cols), rows ldd apart */
    int64_t ldd;
    const void *bias; /* (cols) or NULL                 */
    const void *c;    /* (rows, cols) or NULL; may be d */
    int64_t ldc;
    void *aux; /* (rows, cols); NULL with an activation: not wanted */
    int64_t ld_aux;
    float *sums;      /* (row tiles, cols) =, or NULL: of d's columns in each tile, with a slope */
    CUtensorMap x, w; /* of the operands, in the boxes below */
};

/* Boxes that x and w are fetched in, all 64 elements wide, swizzled by 128 bytes: rows of a box of
 * x, of w where k lies together, and of w where it does not. */
enum { PRODUCT_X_BOX = 64, PRODUCT_W_BOX = 80, PRODUCT_W_BOX_ACROSS = 32 };

/* ERR_UNSUPPORTED for an epilogue of the other layout. */
int launch_product_forward(cudaStream_t s, enum product_epilogue epilogue, const struct product *p);
int launch_product_data(cudaStream_t s, enum product_epilogue epilogue, const struct product *p);

#ifdef __cplusplus
}
#endif

#endif
