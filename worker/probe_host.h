/*
 * The part of the probe that is about host memory: what it carries, AdamW on the CPU, and how
 * updates and copies of both directions slow each other down. Each rate is the median of
 * PROBE_RUNS runs.
 */
#ifndef CASTOR_WORKER_PROBE_HOST_H
#define CASTOR_WORKER_PROBE_HOST_H

#include "core/err.h"
#include "kernels/device.h"
#include "worker/plan/profile.h"

enum { PROBE_RUNS = 5 };

double probe_median(double times[PROBE_RUNS]);

/* Fills host_memory_rate, h2d_both_rate, d2h_both_rate, cpu_update_rate and cpu_update_copy_rate.
 * `on_device` and `pinned` are `bytes` each, in device memory and pinned; what is in them is lost.
 */
int probe_host(struct device *d, void *on_device, void *pinned, size_t bytes,
               struct device_profile *out, struct err *err);

#endif
