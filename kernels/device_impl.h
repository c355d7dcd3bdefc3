/* Between kernels/device.c and kernels/registry.c: fill `d` (zeroed, but for kind, index and
 * memory_limit, which the caller sets) with an implementation of the kind. */
#ifndef CASTOR_KERNELS_DEVICE_IMPL_H
#define CASTOR_KERNELS_DEVICE_IMPL_H

#include "kernels/device.h"

int device_open_kind(enum device_kind kind, int index, const struct device_options *options,
                     struct device *d, struct err *err);

#endif
