/*
 * Op tables without a device: enough to plan with, since the workspace that an op needs follows
 * from shapes alone. Nothing may be launched through them.
 */
#ifndef CASTOR_KERNELS_REGISTRY_H
#define CASTOR_KERNELS_REGISTRY_H

#include "kernels/device.h"

/* NULL where the kind has none that computes in that type, or this build does not have the kind. */
const struct op_table *device_kind_ops(enum device_kind kind, enum dtype compute);

#endif
