/* castor-worker --devices: how many devices there are, and nothing else, so that castord need not
 * load a driver into itself. */
#include <stdio.h>

#include "kernels/device.h"
#include "worker/worker.h"

int worker_devices(void)
{
    printf("{\"cuda\":%d}\n", device_count(DEVICE_CUDA));
    return fflush(stdout) == 0 ? 0 : 1;
}
