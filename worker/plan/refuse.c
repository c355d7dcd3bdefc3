/* Why a job does not fit, and the nearest change with which it would. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/buf.h"
#include "core/units.h"
#include "worker/plan/build.h"

/* Would the input fit if it were changed? Quietly. */
static bool would_fit(const struct plan_input *in)
{
    struct plan *p = NULL;
    bool fits = plan_choose(in, &p, NULL) == 0;
    plan_destroy(p);
    return fits;
}

static void advise(const struct plan_input *in, char *out, size_t cap)
{
    struct plan_input other = *in;
    snprintf(out, cap, "a smaller dataset.max_seq_length needs less, or raise the limit");
    if (in->policy == PLACE_CUDA) {
        other.policy = PLACE_AUTO;
        if (would_fit(&other)) {
            snprintf(out, cap, "with placement.policy \"auto\" it fits");
            return;
        }
    }
    if (in->micro_batch > 1) {
        plan_cut_step(&other, 1);
        bool both = would_fit(&other);
        other.policy = in->policy;
        snprintf(out, cap, "%s",
                 !both ? "even optimization.micro_batch_size 1 does not fit; a smaller "
                         "dataset.max_seq_length needs less, or raise the limit"
                 : in->policy != PLACE_CUDA || would_fit(&other)
                     ? "with optimization.micro_batch_size 1 it fits"
                     : "with optimization.micro_batch_size 1 and placement.policy \"auto\" it "
                       "fits");
    }
}

/* When no limit breaks off its making. */
void plan_claims(const struct plan_input *of, const struct plan_choices *choices,
                 size_t out[TIER_COUNT])
{
    struct plan_input in = *of;
    for (int t = 0; t < TIER_COUNT; t++)
        in.limit[t] = SIZE_MAX;
    in.together = 0;
    struct plan *p = plan_make(&in, choices);
    memcpy(out, p->claim, sizeof p->claim);
    plan_destroy(p);
}

static void name_shortfall(size_t least, size_t limit, const char *kind, const char *part,
                           struct buf *out)
{
    buf_printf(out, "%s %.1f MiB of %s and may use %.1f MiB",
               out->len > 0 ? ", and" : "the job needs", mib((double)least), kind,
               mib((double)limit));
    if (part)
        buf_printf(out, " of %s", part);
    buf_printf(out, ", %.1f MiB short", mib((double)(least - limit)));
}

/* Of each tier that is too small: what is needed and what there is. */
static void name_shortfalls(const size_t least[TIER_COUNT], const struct plan_input *in,
                            struct buf *out)
{
    size_t both = least[TIER_GPU] + least[TIER_HOST];
    for (int t = 0; t < TIER_COUNT; t++) {
        char kind[32];
        snprintf(kind, sizeof kind, "%s memory", plan_tier_name(t));
        if ((in->limit[t] > 0 || t == TIER_NVME) && least[t] > in->limit[t])
            name_shortfall(least[t], in->limit[t], kind, in->part[t], out);
    }
    if (out->len == 0)
        name_shortfall(both, in->together, "host memory, the CPU's own included,",
                       in->together_part, out);
}

int plan_refuse(const struct plan_input *in, const struct plan_choices *nearest, struct err *err)
{
    char change[192] = "raise the limit";
    struct buf shortfalls = {0};
    size_t least[TIER_COUNT];
    plan_claims(in, nearest, least);
    name_shortfalls(least, in, &shortfalls);
    if (err) /* else it is this that asks */
        advise(in, change, sizeof change);
    int rc = err_set(err, ERR_DEVICE_OOM, "%s; %s", buf_str(&shortfalls), change);
    buf_fini(&shortfalls);
    return err_set_reason(err, rc, "insufficient_memory");
}
