/*
 * Masters and their parameters, whole arrays of them in host memory: what an update does element by
 * element (kernels/adamw_math.h), for whoever loads, restores or exports. Arrays do not overlap.
 */
#ifndef CASTOR_KERNELS_MASTER_H
#define CASTOR_KERNELS_MASTER_H

#include <stdint.h>

#include "kernels/dtype.h"

/* Parameters of type `to`, as an update writes them: bfloat16 by adamw_param_bf16, other types
 * rounded to nearest even. */
void master_round(enum dtype to, void *param, const float *master, int64_t n);
/* The other half of split masters. */
void master_remainders(int16_t *remainder, const float *master, int64_t n);
void master_join(float *master, const uint16_t *param, const int16_t *remainder, int64_t n);

#endif
