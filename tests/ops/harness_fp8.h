/*
 * Rounding to 8 bits by hand, told apart from the tables' own code: all values of a format
 * (Micikevicius et al., "FP8 formats for deep learning", 2022), and a search for the nearest.
 */
#ifndef CASTOR_TESTS_OPS_HARNESS_FP8_H
#define CASTOR_TESTS_OPS_HARNESS_FP8_H

#include <stdint.h>

#include "kernels/fp8_scale.h"

/* Each of x[0 .. n) becomes the nearest value of the format, of two as near the one whose code is
 * even, under the largest power of two that leaves all of them in its range. */
void fp8_round_by_hand(enum fp8_format format, double *x, int64_t n);

#endif
