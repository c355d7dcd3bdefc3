/*
 * The file of matrix products' plans: which algorithm each shape has (kernels/cuda/gemm.h). Text:
 * what it is and for which GPU model and library version it holds, then a line a plan: shape,
 * kernel and algorithm in hexadecimal. The library documents its algorithms as plain data for the
 * same version of the library.
 */
#ifndef CASTOR_KERNELS_GEMM_FILE_H
#define CASTOR_KERNELS_GEMM_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

/* Everything that the choice of an algorithm may depend on. Compared as bytes: zero it first. */
struct gemm_key {
    int64_t m, n, k, lda, ldb, ldc, ldd, ld_aux;
    int32_t trans_a, trans_b, type_in, type_out, epilogue;
    int32_t align_a, align_b, align_c, align_d;
    int32_t type_b; /* 0: as type_in */
};

struct gemm_file_plan {
    struct gemm_key key;
    int32_t own; /* 0: the library's algorithm; 1: our kernel; -1: several ops instead of one */
    unsigned char algo[64];
};

/* Whom a file is for. */
struct gemm_file_owner {
    const char *gpu; /* below 80 characters */
    size_t version;  /* of the library      */
};

int gemm_file_save(const char *path, const struct gemm_file_owner *owner,
                   const struct gemm_file_plan *plans, int64_t n, struct err *err);
/* *plans: free(). ERR_CORRUPT where a line is not what save writes, ERR_CONFLICT where the file is
 * for another owner. */
int gemm_file_load(const char *path, const struct gemm_file_owner *owner,
                   struct gemm_file_plan **plans, int64_t *n, struct err *err);

#endif
