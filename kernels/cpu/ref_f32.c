/* The reference table that stores float. Arithmetic is in double (see ref_math.h), but for AdamW,
 * whose bits are the same in every float table. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/device_cpu.h"
#include "kernels/cpu/fp8.h"
#include "kernels/cpu/quant.h"
#include "kernels/cpu/ref_math.h"

#define real        float
#define TABLE       cpu_ref_f32
#define TABLE_NAME  "cpu-ref-f32"
#define TABLE_DTYPE DT_F32

struct adamw_real_consts {
    struct adamw_consts c;
};

static struct adamw_real_consts adamw_real_consts(const struct adamw_args *a, bool decay)
{
    struct adamw_real_consts k = {cpu_adamw_consts(a, decay)};
    return k;
}

static void adamw_real(const struct adamw_real_consts *k, float grad, float *master, float *m,
                       float *v)
{
    adamw_element(&k->c, grad, master, m, v);
}

static int adamw_mixed(const struct adamw_args *a)
{
    struct adamw_consts decayed = cpu_adamw_consts(a, true), plain = cpu_adamw_consts(a, false);

    if (!cpu_adamw_types_known(a))
        return ERR_UNSUPPORTED;
    for (int64_t i0 = 0; i0 < a->n; i0 += MOMENT_BLOCK)
        cpu_adamw_block(a, &decayed, &plain, i0);
    return 0;
}

#include "kernels/cpu/ref_attn.inc.h"
#include "kernels/cpu/ref_embed.inc.h"
#include "kernels/cpu/ref_linear.inc.h"
#include "kernels/cpu/ref_loss.inc.h"
#include "kernels/cpu/ref_norm.inc.h"
#include "kernels/cpu/ref_optim.inc.h"
