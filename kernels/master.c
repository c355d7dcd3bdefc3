#include "kernels/master.h"

#include "kernels/adamw_math.h"

void master_round(enum dtype to, void *param, const float *master, int64_t n)
{
    uint16_t *narrow = param;
    if (to != DT_BF16) {
        dtype_convert(to, param, DT_F32, master, n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        narrow[i] = adamw_param_bf16(master[i]);
}

void master_remainders(int16_t *remainder, const float *master, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        remainder[i] = adamw_remainder(master[i]);
}

void master_join(float *master, const uint16_t *param, const int16_t *remainder, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        master[i] = adamw_join(param[i], remainder[i]);
}
