/*
 * cuBLASLt, loaded when a GPU is opened and not with the program. The library is half a gigabyte,
 * and loading it takes every process 0.1 s and 200 MB, which only what computes on a GPU has a use
 * for; and so the program runs where the library is not installed.
 *
 * The types are those of NVIDIA's header, and the library's file is that of the header's version.
 */
#ifndef CASTOR_KERNELS_CUDA_BLASLT_H
#define CASTOR_KERNELS_CUDA_BLASLT_H

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes" /* the library's header has one `()` */
#include <cublasLt.h>
#pragma GCC diagnostic pop

#include "core/err.h"

/* What is used of it, without the prefix cublasLt. */
#define BLASLT_FUNCTIONS(F)                                                                        \
    F(Create)                                                                                      \
    F(Destroy)                                                                                     \
    F(GetStatusString)                                                                             \
    F(GetVersion)                                                                                  \
    F(Matmul)                                                                                      \
    F(MatmulAlgoGetHeuristic)                                                                      \
    F(MatmulDescCreate)                                                                            \
    F(MatmulDescDestroy)                                                                           \
    F(MatmulDescSetAttribute)                                                                      \
    F(MatmulPreferenceCreate)                                                                      \
    F(MatmulPreferenceDestroy)                                                                     \
    F(MatmulPreferenceSetAttribute)                                                                \
    F(MatrixLayoutCreate)                                                                          \
    F(MatrixLayoutDestroy)

struct blaslt {
#define BLASLT_MEMBER(name) __typeof__(cublasLt##name) *name;
    BLASLT_FUNCTIONS(BLASLT_MEMBER)
#undef BLASLT_MEMBER
};

/* Fill the table. The library then stays until the process ends, however often it is asked for; any
 * thread. ERR_DEVICE, with what to install, where there is none or not all of it. */
int blaslt_load(struct blaslt *out, struct err *err);

#endif
