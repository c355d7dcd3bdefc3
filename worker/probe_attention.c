/* How fast causal attention is: 8 rows of 1,024 tokens, heads of two sizes, as wide together as a
 * model of one or two billion parameters has them. */
#include <stdlib.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "kernels/op_table.h"
#include "worker/probe.h"

enum {
    ROWS = 8,
    LENGTH = 1024,
    WIDTH = 2048,
    CALLS = 20,   /* a run: some milliseconds */
    WARM_UP = 20, /* runs */
    TENSORS = 8,  /* q, k, v, o and their gradients */
};

struct attention {
    struct device *device;
    struct stream *stream;
    const struct op_table *ops;
    struct attn_args args;
    char *memory;
    size_t tensor, bytes; /* of one, of all and of what else is in memory */
};

/* Normal numbers of small size in any type of 16 bits. */
static int fill(struct attention *a, struct err *err)
{
    uint16_t *host = xmalloc(a->tensor);
    uint64_t state = 88172645463325252u;
    int rc = 0;

    for (size_t k = 0; k < a->tensor / sizeof *host; k++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        host[k] = (uint16_t)((state & 0x807f) | 0x3c80);
    }
    for (int k = 0; k < TENSORS; k++)
        TRY(device_copy(a->device, a->stream, COPY_H2D, a->memory + (size_t)k * a->tensor, host,
                        a->tensor, err));
    TRY(device_stream_sync(a->device, a->stream, err));
out:
    free(host);
    return rc;
}

static int start(struct attention *a, int64_t head_dim, struct err *err)
{
    int64_t heads = WIDTH / head_dim;
    size_t lse = (size_t)(ROWS * heads * LENGTH) * dtype_size(a->ops->stat);
    struct attn_args *args = &a->args;
    int rc = 0;

    *args = (struct attn_args){
        .B = ROWS, .T = LENGTH, .S = LENGTH, .H = heads, .KV = heads, .D = head_dim, .scale = 0.1f};
    size_t workspace = a->ops->workspace(OP_ATTN_FWD, args);
    if (a->ops->workspace(OP_ATTN_BWD, args) > workspace)
        workspace = a->ops->workspace(OP_ATTN_BWD, args);
    a->bytes = TENSORS * a->tensor + lse + workspace;
    TRY(device_alloc(a->device, a->bytes, "a probe buffer", (void **)&a->memory, err));
    TRY(fill(a, err));
    char *at = a->memory;
    args->q = at;
    args->k = at += a->tensor;
    args->v = at += a->tensor;
    args->o = at += a->tensor;
    args->dout = at += a->tensor;
    args->dq = at += a->tensor;
    args->dk = at += a->tensor;
    args->dv = at += a->tensor;
    args->lse = at += a->tensor;
    args->workspace = at + lse;
out:
    return rc;
}

/* Operations a second, counted as worker/model/block.c does. */
static int rate(struct attention *a, bool backward, double *out, struct err *err)
{
    int (*op)(struct stream *, const struct attn_args *) =
        backward ? a->ops->attn_bwd : a->ops->attn_fwd;
    double times[PROBE_RUNS];
    int rc = 0;

    for (int run = -WARM_UP; run < PROBE_RUNS; run++) {
        double begun = clock_monotonic();
        for (int k = 0; k < CALLS; k++) {
            int code = op(a->stream, &a->args);
            if (code != 0)
                return err_set(err, code, "attention with heads of %lld", (long long)a->args.D);
        }
        TRY(device_stream_sync(a->device, a->stream, err));
        if (run >= 0)
            times[run] = clock_monotonic() - begun;
    }
    double forward = 2.0 * ROWS * LENGTH * (LENGTH + 1) * WIDTH;
    *out = CALLS * forward * (backward ? 2.5 : 1) / probe_median(times, PROBE_RUNS);
out:
    return rc;
}

static int rates(struct attention *a, int64_t head_dim, double *forward, double *backward,
                 struct err *err)
{
    int rc = 0;
    TRY(start(a, head_dim, err));
    TRY(rate(a, false, forward, err));
    TRY(rate(a, true, backward, err));
out:
    if (a->memory)
        device_free(a->device, a->memory, a->bytes);
    a->memory = NULL;
    return rc;
}

int probe_attention(struct device *d, struct device_profile *out, struct err *err)
{
    struct attention a = {.device = d,
                          .ops = device_ops(d, device_half_type(d->kind, d->index)),
                          .tensor = (size_t)ROWS * LENGTH * WIDTH * sizeof(uint16_t)};
    int rc = 0;

    TRY(device_stream_create(d, 0, &a.stream, err));
    TRY(rates(&a, 64, &out->attn64_fwd, &out->attn64_bwd, err));
    TRY(rates(&a, 128, &out->attn128_fwd, &out->attn128_bwd, err));
out:
    if (a.stream)
        device_stream_destroy(d, a.stream);
    return rc;
}
