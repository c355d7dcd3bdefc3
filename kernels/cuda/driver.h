/* Calls of the CUDA driver, found at run time: nothing links its library. */
#ifndef CASTOR_KERNELS_CUDA_DRIVER_H
#define CASTOR_KERNELS_CUDA_DRIVER_H

/* As of version `since` of CUDA, 12040 = 12.4; NULL when the driver has no such call. */
void *driver_call(const char *name, unsigned int since);

#endif
