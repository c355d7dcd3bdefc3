/*
 * The CPU as a device. Its "device memory" is aligned heap memory, counted apart from its "pinned"
 * host memory; its streams execute at once in the calling thread; marks hold the clock's time.
 */
#ifndef CASTOR_KERNELS_CPU_DEVICE_CPU_H
#define CASTOR_KERNELS_CPU_DEVICE_CPU_H

#include "kernels/device.h"
#include "kernels/op_table.h"

/* What an op knows of its device. */
struct stream {
    int threads; /* that an op may use, at least 1 */
};

int device_cpu_open(int index, const struct device_options *options, struct device *d,
                    struct err *err);

/* The tables. The reference ops do their arithmetic in double and store float or double; the fast
 * tables are kernels/cpu/fast.h and kernels/cpu/bf16.h. */
extern const struct op_table cpu_ref_f32, cpu_ref_f64, cpu_fast_f32, cpu_fast_bf16;

#endif
