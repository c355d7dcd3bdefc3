/*
 * The parts of castor-worker --probe (probe.c). Each rate is the median of at least PROBE_RUNS runs
 * that are long enough to leave caches and start-up behind, but for that of host memory, which is a
 * ceiling.
 */
#ifndef CASTOR_WORKER_PROBE_H
#define CASTOR_WORKER_PROBE_H

#include <stdbool.h>

#include "core/err.h"
#include "kernels/device.h"
#include "worker/plan/profile.h"

enum { PROBE_RUNS = 5 };

double probe_median(double *times, int n);

/* probe_attention.c: attn64_fwd to attn128_bwd, of the type that the device computes in. */
int probe_attention(struct device *d, struct device_profile *out, struct err *err);

/* probe_layer.c: flops_layer, layer_passes and flops_fp8 of the GPU, which multiplies 8 bits or
 * does not, and whose other rates are known. */
int probe_layers(struct device_profile *profile, bool fp8, struct err *err);

/* probe_host.c: host_memory_rate, h2d_both_rate, d2h_both_rate, AdamW on the CPU, and how updates
 * and copies of both directions slow each other down. `on_device` and `pinned` are `bytes` each, in
 * device memory and pinned; what is in them is lost. */
int probe_host(struct device *d, void *on_device, void *pinned, size_t bytes,
               struct device_profile *out, struct err *err);

/* probe_memory.c: bytes a second that all processors of the job read and write in `memory`, the
 * best of about a second. What is in it is lost. */
int probe_memory(void *memory, size_t bytes, double *rate, struct err *err);

/* probe_disk.c: the rates of the disk that a directory lies on. */
int probe_disk(const char *directory, struct device_profile *out, struct err *err);

#endif
