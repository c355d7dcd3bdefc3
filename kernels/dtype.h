/* Element types of tensors, in memory and in files. */
#ifndef CASTOR_KERNELS_DTYPE_H
#define CASTOR_KERNELS_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DT_F64,
    DT_F32,
    DT_F16,
    DT_BF16,
    DT_E4M3,
    DT_E5M2,
    DT_I64,
    DT_I32,
    DT_I16,
    DT_I8,
    DT_U8,
    DT_BOOL
};

size_t dtype_size(enum dtype t);      /* bytes an element                           */
const char *dtype_name(enum dtype t); /* "f32", "bf16", ...                         */
bool dtype_is_float(enum dtype t);

/* Convert n elements between floating types, rounding to nearest even; src and dst must not
 * overlap. Host memory. */
void dtype_convert(enum dtype to, void *dst, enum dtype from, const void *src, int64_t n);

#endif
