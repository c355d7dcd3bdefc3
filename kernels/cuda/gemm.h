/*
 * Matrix products through cuBLASLt or by kernels of our own (product.h), with one plan
 * (descriptors and algorithm) a shape.
 *
 * A plan is made the first time its shape is seen, which is during warm-up, so a training step
 * looks up and launches and asks the library nothing. Only deterministic algorithms are considered:
 * split-K partial sums that are reduced in place are excluded, those reduced from the workspace in
 * order are not. The workspace has one fixed size, and pointers count as 16-byte aligned or by what
 * they are, never better, so the choice depends on the shape alone.
 *
 * Without tuning a plan is the library's first proposal, or our kernel where the library has none.
 * While tuning is on, its proposals and ours are timed in turn on the operands of that first call
 * and the one with the least median is kept; timing may choose differently on another day, so what
 * was chosen is saved once and loaded before the next attempt: same algorithms, same bits. beta is
 * no part of a shape: a sum's first and later products have one algorithm. A saved plan holds for
 * one GPU model and one library version.
 */
#ifndef CASTOR_KERNELS_CUDA_GEMM_H
#define CASTOR_KERNELS_CUDA_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/state.h"

/* Bytes of workspace that every product is given. NVIDIA recommends 32 MiB on Hopper. */
#define GEMM_WORKSPACE ((size_t)32 << 20)

/* Ours alone. D times the slope of ReLU at aux: the library's reads a mask instead and runs at a
 * quarter of the product's speed. tanh-GELU of the product and bias, rounded as they are kept in
 * aux: the library's is of what it has not rounded, which no later pass over aux can give again. */
enum { GEMM_EPILOGUE_DRELU = 1 << 20, GEMM_EPILOGUE_GELU };

/* Column-major, as in BLAS: D (m, n) = epilogue(alpha op(A) op(B) + beta C), float32 accumulation.
 */
struct gemm {
    bool trans_a, trans_b;
    int64_t m, n, k;
    cudaDataType_t type_in, type_out; /* of A and B; of C, D, bias and aux */
    const void *a, *b, *c;            /* c: NULL = d                       */
    int64_t lda, ldb, ldc, ldd;
    void *d;
    float alpha, beta;
    /* 8-bit products alone, whose type_in is that of A: B's type, and what the operands are
     * multiplied by, a float each in device memory. trans_a and not trans_b. */
    cudaDataType_t type_b;
    const float *scale_a, *scale_b;
    cublasLtEpilogue_t epilogue;
    const void *bias; /* (m), with a BIAS epilogue or GELU, there NULL where there is none */
    void *aux;        /* (m, n), with a D epilogue; with GELU NULL where it is not wanted */
    int64_t ld_aux;
    float *sums; /* (ceil(n / PRODUCT_ROWS), m) =: sums of d's rows in each tile, with DRELU or
                    DGELU, by our kernels alone; or NULL */
    /* How the caller does without an epilogue that is ours alone, leaving the same in `d` and
     * nothing else behind: timed beside our kernels, and when it is faster the product counts as
     * unsupported. NULL: there is no other way. */
    int (*apart)(const void *how, void *d);
    const void *how;
    void *workspace; /* GEMM_WORKSPACE bytes */
};

/* The state is borrowed. */
struct gemm_cache *gemm_cache_create(const struct cuda_state *state);
void gemm_cache_destroy(struct gemm_cache *cache);

/* Time proposals for shapes not seen yet. Such a call allocates, waits for the device, and writes
 * its output several times (never one that it also reads). */
void gemm_cache_set_tuning(struct gemm_cache *cache, bool on);
/* Write all plans to, or take them from, a text file. Loading a file that was made for another GPU
 * or library is ERR_CONFLICT, a damaged one ERR_CORRUPT; plans in memory win over loaded ones. */
int gemm_cache_save(const struct gemm_cache *cache, const char *gpu, const char *path,
                    struct err *err);
int gemm_cache_load(struct gemm_cache *cache, const char *gpu, const char *path, struct err *err);

/* Whether the library can do this product with this epilogue; plans it as a side effect. */
bool gemm_supported(struct gemm_cache *cache, cudaStream_t stream, const struct gemm *g);
/* Queue the product. ERR_UNSUPPORTED when the library has no algorithm for it. */
int gemm_run(struct gemm_cache *cache, cudaStream_t stream, const struct gemm *g);

#endif
