/*
 * One NVIDIA GPU as a device: streams, events, pinned memory and the op tables cuda-f32 (TF32 off),
 * cuda-bf16 and cuda-f16, all with float32 gradients, statistics and master weights.
 *
 * Nothing here needs a driver to be present: without one device_cuda_count() is 0.
 *
 * Threads: as kernels/device.h says, one thread drives a device; several devices may be driven by
 * one thread or by one thread each. Every entry point selects its device first.
 */
#ifndef CASTOR_KERNELS_CUDA_DEVICE_CUDA_H
#define CASTOR_KERNELS_CUDA_DEVICE_CUDA_H

#include "kernels/device.h"
#include "kernels/op_table.h"

/* GPUs that this process can use; 0 without a driver. Never fails. */
int device_cuda_count(void);
/* From compute capability 8.0 on. */
bool device_cuda_has_bf16(int index);
int device_cuda_open(int index, const struct device_options *options, struct device *d,
                     struct err *err);

extern const struct op_table cuda_f32, cuda_bf16, cuda_f16;

#endif
