/* Device memory of the GPU benchmark's cases: one block of 16 GiB of random values, of which each
 * case takes its tensors from the start. */
#ifndef CASTOR_TESTS_BENCH_GPU_ARENA_H
#define CASTOR_TESTS_BENCH_GPU_ARENA_H

#include "kernels/device.h"

/* Ends the program where rc is not 0, with the error's text. */
void must(int rc, const struct err *err);

void arena_open(struct device *d, struct stream *s);
void arena_close(void);
void arena_clear(void); /* nothing is taken any more */

/* Tensors, DEVICE_ALIGN-aligned. bytes of random values: */
void *take(size_t bytes);
/* (n) int32 in [0, below): i % below where skew is not 0, else random. */
void *take_ints(int64_t n, int64_t below, int64_t skew);
/* (B, T) int32: first keys of rows packed with documents of `document` tokens. */
void *take_starts(int64_t B, int64_t T, int64_t document);
void *take_floats(const float *values, size_t n);

#endif
