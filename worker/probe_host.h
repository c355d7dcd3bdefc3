/*
 * The parts of the probe that are about the host. probe_host.c: what its memory carries, AdamW on
 * the CPU, and how updates and copies of both directions slow each other down; each rate is the
 * median of PROBE_RUNS runs over far more memory than caches hold, that of memory, which is a
 * ceiling, the best of them. probe_disk.c: a disk.
 */
#ifndef CASTOR_WORKER_PROBE_HOST_H
#define CASTOR_WORKER_PROBE_HOST_H

#include "core/err.h"
#include "kernels/device.h"
#include "worker/plan/profile.h"

enum { PROBE_RUNS = 5 };

double probe_median(double times[PROBE_RUNS]);

/* Fills host_memory_rate, h2d_both_rate, d2h_both_rate and the rates of updates and of copies
 * beside them. `on_device` and `pinned` are `bytes` each, in device memory and pinned; what is in
 * them is lost.
 */
int probe_host(struct device *d, void *on_device, void *pinned, size_t bytes,
               struct device_profile *out, struct err *err);

/* Fills the rates of the disk that a directory lies on. */
int probe_disk(const char *directory, struct device_profile *out, struct err *err);

#endif
