/*
 * castor-worker --probe [DIRECTORY]: the device profiles of this machine. Each rate is the median
 * of PROBE_RUNS runs long enough to leave caches and start-up behind. Those of the disk, which is
 * the one of DIRECTORY, are of seconds; they are no device's, so all profiles share them. Those of
 * the host are a device's: it has its own processors (cores.h), pages and types of updates.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "kernels/device.h"
#include "kernels/op_table.h"
#include "worker/plan/profile.h"
#include "worker/probe.h"
#include "worker/train/cores.h"
#include "worker/worker.h"

enum {
    GEMM_CPU = 768,  /* square sizes: a second or less on two cores, ... */
    GEMM_GPU = 8192, /* ... and enough to fill a GPU */
    STREAM_BYTES = 256 << 20,
    HEAT_SECONDS = 1,
    LAYER_PASSES = 50, /* counted, of OPT, where they are not measured */
};

struct probe {
    struct device *device;
    struct stream *stream;
    void *a, *b, *c, *host; /* STREAM_BYTES each */
    void *workspace;
    size_t workspace_bytes;
    int64_t gemm;
};

typedef int (*work_fn)(struct probe *p, const void *ud, struct err *err);

/* Median seconds of the work, after one run that does not count. */
static int measure(struct probe *p, work_fn work, const void *ud, double *seconds, struct err *err)
{
    double t[PROBE_RUNS];
    int rc = 0;
    for (int k = -1; k < PROBE_RUNS; k++) {
        double start = clock_monotonic();
        TRY(work(p, ud, err));
        TRY(device_stream_sync(p->device, p->stream, err));
        if (k >= 0)
            t[k] = clock_monotonic() - start;
    }
    *seconds = probe_median(t, PROBE_RUNS);
out:
    return rc;
}

static struct linear_args gemm_args(const struct probe *p)
{
    return (struct linear_args){.N = p->gemm,
                                .I = p->gemm,
                                .O = p->gemm,
                                .x = p->a,
                                .w = p->b,
                                .y = p->c,
                                .workspace = p->workspace};
}

/* On a GPU for longer than the host takes to begin and to notice the end. */
static int gemms_at_a_time(const struct probe *p)
{
    return p->device->kind == DEVICE_CUDA ? 100 : 1;
}

static int do_gemm(struct probe *p, const void *ud, struct err *err)
{
    const struct op_table *ops = ud;
    struct linear_args a = gemm_args(p);
    int rc = ops->linear_fwd(p->stream, &a);
    return rc ? err_set(err, rc, "matrix product of size %lld", (long long)p->gemm) : 0;
}

static int do_copy(struct probe *p, const void *ud, struct err *err)
{
    enum copy_kind kind = *(const enum copy_kind *)ud;
    void *dst = kind == COPY_D2H ? p->host : p->a;
    void *src = kind == COPY_H2D ? p->host : p->b;
    return device_copy(p->device, p->stream, kind, dst, src, STREAM_BYTES, err);
}

/* A GPU that has been at work for a second has less power to spare than one that begins. */
static int heat(struct probe *p, const struct op_table *ops, struct err *err)
{
    double begun = clock_monotonic();
    int rc = 0;
    while (p->device->kind == DEVICE_CUDA && clock_monotonic() - begun < HEAT_SECONDS) {
        for (int k = 0; k < 100; k++)
            TRY(do_gemm(p, ops, err));
        TRY(device_stream_sync(p->device, p->stream, err));
    }
out:
    return rc;
}

static int do_gemms(struct probe *p, const void *ud, struct err *err)
{
    int rc = 0;
    for (int k = 0; k < gemms_at_a_time(p); k++)
        TRY(do_gemm(p, ud, err));
out:
    return rc;
}

static int gemm_rate(struct probe *p, enum dtype compute, double *rate, struct err *err)
{
    const struct op_table *ops = device_ops(p->device, compute);
    struct linear_args a = gemm_args(p);
    double seconds;
    int rc = 0;

    if (!ops) /* planned as if in float: such a job is refused anyway */
        return 0;
    p->workspace_bytes = ops->workspace(OP_LINEAR_FWD, &a);
    if (p->workspace_bytes > 0)
        TRY(device_alloc(p->device, p->workspace_bytes, "a workspace", &p->workspace, err));
    TRY(heat(p, ops, err));
    TRY(measure(p, do_gemms, ops, &seconds, err));
    *rate =
        gemms_at_a_time(p) * 2.0 * (double)p->gemm * (double)p->gemm * (double)p->gemm / seconds;
out:
    if (p->workspace)
        device_free(p->device, p->workspace, p->workspace_bytes);
    p->workspace = NULL;
    return rc;
}

static int copy_rate(struct probe *p, enum copy_kind kind, double *rate, struct err *err)
{
    double seconds;
    int rc = measure(p, do_copy, &kind, &seconds, err);
    if (rc == 0)
        *rate = (kind == COPY_D2D ? 2.0 : 1.0) * STREAM_BYTES / seconds;
    return rc;
}

static int alloc_buffers(struct probe *p, struct err *err)
{
    int rc = 0;
    TRY(device_alloc(p->device, STREAM_BYTES, "a probe buffer", &p->a, err));
    TRY(device_alloc(p->device, STREAM_BYTES, "a probe buffer", &p->b, err));
    TRY(device_alloc(p->device, STREAM_BYTES, "a probe buffer", &p->c, err));
    TRY(device_host_alloc(p->device, STREAM_BYTES, "a probe buffer", &p->host, err));
    /* Small numbers with many different bits: rates on zeros flatter. */
    for (int64_t i = 0; i < STREAM_BYTES / 4; i++)
        ((float *)p->host)[i] = (float)((i * 2654435761u) >> 8 & 0xffff) * 1e-5f;
    TRY(device_copy(p->device, p->stream, COPY_H2D, p->a, p->host, STREAM_BYTES, err));
    TRY(device_copy(p->device, p->stream, COPY_H2D, p->b, p->host, STREAM_BYTES, err));
out:
    return rc;
}

static void free_buffers(struct probe *p)
{
    void *device_buffers[] = {p->a, p->b, p->c};
    for (int k = 0; k < 3; k++)
        if (device_buffers[k])
            device_free(p->device, device_buffers[k], STREAM_BYTES);
    if (p->host)
        device_host_free(p->device, p->host, STREAM_BYTES);
    if (p->stream)
        device_stream_destroy(p->device, p->stream);
    if (p->device)
        device_close(p->device);
}

/* Before anything is allocated. A CPU's is the host's, which others use and give back. */
static int memory_free(struct device *d, struct device_profile *out, struct err *err)
{
    size_t bytes = d->memory_total;
    int rc = d->kind == DEVICE_CUDA ? device_memory_free(d, &bytes, err) : 0;
    out->memory_free = (int64_t)bytes;
    return rc;
}

static int probe_device(enum device_kind kind, struct device_profile *out, struct err *err)
{
    struct device_options o = {0};
    struct probe p = {.gemm = kind == DEVICE_CUDA ? GEMM_GPU : GEMM_CPU};
    int rc = 0;

    TRY(device_open(kind, 0, &o, &p.device, err));
    cores_take(p.device); /* as a job does */
    TRY(device_stream_create(p.device, 0, &p.stream, err));
    snprintf(out->device, sizeof out->device, "%s", p.device->name);
    snprintf(out->kind, sizeof out->kind, "%s", kind == DEVICE_CUDA ? "cuda" : "cpu");
    out->memory = (int64_t)p.device->memory_total;
    out->multiprocessors = p.device->multiprocessors;
    TRY(memory_free(p.device, out, err));
    TRY(alloc_buffers(&p, err));
    TRY(gemm_rate(&p, DT_F32, &out->flops_f32, err));
    out->flops_bf16 = out->flops_f32;
    TRY(gemm_rate(&p, device_half_type(p.device->kind, p.device->index), &out->flops_bf16, err));
    TRY(copy_rate(&p, COPY_D2D, &out->memory_rate, err));
    TRY(copy_rate(&p, COPY_H2D, &out->h2d_rate, err));
    TRY(copy_rate(&p, COPY_D2H, &out->d2h_rate, err));
    out->attn64_fwd = out->attn64_bwd = out->attn128_fwd = out->attn128_bwd = out->flops_bf16;
    if (kind == DEVICE_CUDA)
        TRY(probe_attention(p.device, out, err));
    TRY(probe_host(p.device, p.a, p.host, STREAM_BYTES, out, err));
    bool fp8 = p.device->fp8;
    free_buffers(&p); /* layers need the memory */
    p = (struct probe){0};
    out->flops_layer = out->flops_fp8 = out->flops_bf16;
    out->layer_passes = LAYER_PASSES;
    if (kind == DEVICE_CUDA) /* on a CPU a layer would take minutes */
        TRY(probe_layers(out, fp8, err));
out:
    free_buffers(&p);
    return rc;
}

/* `profile` holds the disk's rates. */
static int probe_kind(enum device_kind kind, struct device_profile profile, struct err *err)
{
    char *path = device_profile_path(kind == DEVICE_CUDA ? "cuda" : "cpu");
    struct buf text = {0};
    int rc = 0;

    TRY(probe_device(kind, &profile, err));
    TRY(device_profile_save(path, &profile, err));
    TRY(fs_read_file(path, 1 << 16, &text, err));
    puts(buf_str(&text));
out:
    buf_fini(&text);
    free(path);
    return rc;
}

static int probe_all(const char *disk, struct err *err)
{
    char *path = device_profile_path("cpu");
    char *dir = xstrndup(path, (size_t)(strrchr(path, '/') - path)); /* of all profiles */
    struct device_profile profile = {0};
    int rc = 0;

    TRY(fs_mkdir_p(dir, false, err));
    TRY(probe_disk(disk ? disk : dir, &profile, err));
    TRY(probe_kind(DEVICE_CPU, profile, err));
    if (device_count(DEVICE_CUDA) > 0)
        TRY(probe_kind(DEVICE_CUDA, profile, err));
out:
    free(dir);
    free(path);
    return rc;
}

int worker_probe(const char *disk)
{
    struct err err = {0};
    int rc = probe_all(disk, &err);
    if (rc)
        fprintf(stderr, "castor-worker --probe: %s\n", err.msg);
    return rc == 0 && fflush(stdout) == 0 ? 0 : 1;
}
