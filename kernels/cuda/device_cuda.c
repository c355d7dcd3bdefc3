#include "kernels/cuda/device_cuda.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/pinned.h"
#include "kernels/cuda/state.h"
#include "kernels/registry.h"
#include "kernels/seq_word.h"

struct event_mark {
    cudaEvent_t handle;
};

static int cuda_fail(const struct device *d, const char *call, cudaError_t code, struct err *err)
{
    enum err_code kind = code == cudaErrorMemoryAllocation ? ERR_DEVICE_OOM : ERR_DEVICE;
    return err_set(err, kind, "%s failed on cuda:%d (%s): %s (%s)", call, d->index,
                   d->name[0] ? d->name : "not opened", cudaGetErrorString(code),
                   cudaGetErrorName(code));
}

/* Make the call on the device; leave through `out` with a text that names both. */
#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t try_code = (call);                                                             \
        if (try_code != cudaSuccess) {                                                             \
            (void)cudaGetLastError(); /* a failed call must not look like a failed launch later */ \
            rc = cuda_fail(d, #call, try_code, err);                                               \
            goto out;                                                                              \
        }                                                                                          \
    } while (0)

int device_cuda_count(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return n;
}

bool device_cuda_has_bf16(int index)
{
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess)
        (void)cudaGetLastError();
    return major >= 8;
}

static void cuda_close(struct device *d)
{
    struct cuda_state *state = d->state;
    cudaSetDevice(d->index);
    gemm_cache_destroy(state->gemms);
    if (state->blas)
        state->lt.Destroy(state->blas);
    free(state);
    d->state = NULL;
}

static int cuda_alloc(struct device *d, size_t bytes, void **out_p, struct err *err)
{
    void *p = NULL;
    int rc = 0;

    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaMalloc(&p, bytes ? bytes : DEVICE_ALIGN));
    *out_p = p;
out:
    return rc;
}

static void cuda_free(struct device *d, void *p)
{
    cudaSetDevice(d->index);
    cudaFree(p);
}

/* The large block that holds an address, or starts there; an empty slot for NULL. */
static struct pinned_block **find_pinned(struct device *d, const void *at)
{
    struct cuda_state *state = d->state;
    for (int k = 0; k < CUDA_MAX_PINNED; k++)
        if (at ? state->pinned[k] && pinned_holds(state->pinned[k], at) : !state->pinned[k])
            return &state->pinned[k];
    return NULL;
}

static int alloc_large(struct device *d, struct pinned_block **slot, size_t bytes, void **out_p,
                       struct err *err)
{
    int rc = pinned_create(d->index, bytes, slot, err);
    if (rc == 0)
        *out_p = pinned_base(*slot);
    return rc;
}

static int cuda_host_alloc(struct device *d, size_t bytes, void **out_p, struct err *err)
{
    struct pinned_block **slot = bytes >= PINNED_LEAST ? find_pinned(d, NULL) : NULL;
    size_t rounded = (bytes / PINNED_PAGE + 1) * PINNED_PAGE; /* whole pages, of nobody else's */
    void *p = NULL;
    int rc = 0;

    if (slot)
        return alloc_large(d, slot, bytes, out_p, err);
    TRY_CUDA(cudaSetDevice(d->index));
    p = aligned_alloc(PINNED_PAGE, rounded);
    cudaError_t code =
        p ? cudaHostRegister(p, rounded, cudaHostRegisterPortable) : cudaErrorMemoryAllocation;
    if (code != cudaSuccess) {
        (void)cudaGetLastError();
        rc = err_set(err, code == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_DEVICE,
                     "cudaHostRegister failed for cuda:%d (%s): %s; lower the job's host memory "
                     "budget, or raise the limit on locked memory",
                     d->index, d->name, cudaGetErrorString(code));
        goto out;
    }
    *out_p = p;
    p = NULL;
out:
    free(p);
    return rc;
}

static void cuda_host_free(struct device *d, void *p)
{
    struct pinned_block **block = find_pinned(d, p);
    cudaSetDevice(d->index);
    if (!block) {
        cudaHostUnregister(p);
        free(p);
        return;
    }
    pinned_destroy(*block);
    *block = NULL;
}

static int cuda_memory_free(struct device *d, size_t *bytes, struct err *err)
{
    size_t left = 0, total = 0;
    int rc = 0;

    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaMemGetInfo(&left, &total));
    *bytes = left;
out:
    return rc;
}

/* `priority` 0 is normal, larger runs first, as far as the device knows degrees (H100: 6). */
static int cuda_stream_create(struct device *d, int priority, struct stream **out_s,
                              struct err *err)
{
    int least = 0, greatest = 0, rc = 0;
    cudaStream_t handle = NULL;

    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    int wanted = -priority;
    if (wanted < greatest)
        wanted = greatest;
    if (wanted > least)
        wanted = least;
    TRY_CUDA(cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, wanted));
    struct stream *s = xcalloc(1, sizeof *s);
    s->handle = handle;
    s->state = d->state;
    *out_s = s;
out:
    return rc;
}

static void cuda_stream_destroy(struct device *d, struct stream *s)
{
    cudaSetDevice(d->index);
    cudaStreamDestroy(s->handle);
    free(s);
}

static int cuda_stream_sync(struct device *d, struct stream *s, struct err *err)
{
    int rc = 0;
    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaStreamSynchronize(s->handle));
out:
    return rc;
}

static int cuda_copy(struct device *d, struct stream *s, enum copy_kind kind, void *dst,
                     const void *src, size_t bytes, struct err *err)
{
    static const enum cudaMemcpyKind KINDS[] = {
        [COPY_H2D] = cudaMemcpyHostToDevice,
        [COPY_D2H] = cudaMemcpyDeviceToHost,
        [COPY_D2D] = cudaMemcpyDeviceToDevice,
        [COPY_H2H] = cudaMemcpyHostToHost,
    };
    bool up = kind == COPY_H2D, link = up || kind == COPY_D2H;
    struct pinned_block **block = link ? find_pinned(d, up ? src : dst) : NULL;
    int rc = 0;

    TRY_CUDA(cudaSetDevice(d->index));
    while (bytes > 0) {
        size_t n = bytes;
        if (block)
            TRY(pinned_reach(*block, up ? src : dst, bytes, &n, err));
        TRY_CUDA(cudaMemcpyAsync(dst, src, n, KINDS[kind], s->handle));
        dst = (char *)dst + n;
        src = (const char *)src + n;
        bytes -= n;
    }
out:
    return rc;
}

static int cuda_zero(struct device *d, struct stream *s, void *dst, size_t bytes, struct err *err)
{
    int rc = 0;
    if (bytes == 0)
        return 0;
    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaMemsetAsync(dst, 0, bytes, s->handle));
out:
    return rc;
}

static int cuda_mark_create(struct device *d, struct event_mark **out_m, struct err *err)
{
    cudaEvent_t handle = NULL;
    int rc = 0;

    TRY_CUDA(cudaSetDevice(d->index));
    /* A host thread that waits sleeps, instead of burning a core that updates could use. */
    TRY_CUDA(cudaEventCreateWithFlags(&handle, cudaEventBlockingSync));
    struct event_mark *m = xcalloc(1, sizeof *m);
    m->handle = handle;
    *out_m = m;
out:
    return rc;
}

static void cuda_mark_destroy(struct device *d, struct event_mark *m)
{
    cudaSetDevice(d->index);
    cudaEventDestroy(m->handle);
    free(m);
}

static int cuda_mark_record(struct device *d, struct event_mark *m, struct stream *s,
                            struct err *err)
{
    int rc = 0;
    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaEventRecord(m->handle, s->handle));
out:
    return rc;
}

static int cuda_mark_stream_wait(struct device *d, struct event_mark *m, struct stream *s,
                                 struct err *err)
{
    int rc = 0;
    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaStreamWaitEvent(s->handle, m->handle, 0));
out:
    return rc;
}

static int cuda_mark_sync(struct device *d, struct event_mark *m, struct err *err)
{
    int rc = 0;
    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaEventSynchronize(m->handle));
out:
    return rc;
}

static int cuda_mark_elapsed(struct device *d, struct event_mark *from, struct event_mark *to,
                             double *seconds, struct err *err)
{
    float ms = 0;
    int rc = 0;

    TRY_CUDA(cudaSetDevice(d->index));
    TRY_CUDA(cudaEventElapsedTime(&ms, from->handle, to->handle));
    *seconds = (double)ms * 1e-3;
out:
    return rc;
}

struct word_wait {
    struct seq_word *word;
    uint32_t value;
};

static void CUDART_CB wait_for_word(void *ud)
{
    struct word_wait *w = ud;
    device_word_sync(w->word, w->value);
    free(w);
}

/* The driver's stream memory operation, which costs the host nothing; where a device lacks it, a
 * host function that sleeps. */
static int cuda_word_stream_wait(struct device *d, struct seq_word *w, uint32_t value,
                                 struct stream *s, struct err *err)
{
    const struct cuda_state *state = d->state;
    int rc = 0;

    TRY_CUDA(cudaSetDevice(d->index));
    if (state->stream_wait_value) {
        CUresult code = state->stream_wait_value(s->handle, (CUdeviceptr)(uintptr_t)w->value, value,
                                                 CU_STREAM_WAIT_VALUE_GEQ);
        if (code != CUDA_SUCCESS)
            rc = err_set(err, ERR_DEVICE, "cuStreamWaitValue32 failed on cuda:%d (%s): error %d",
                         d->index, d->name, (int)code);
        goto out;
    }
    struct word_wait *ud = xcalloc(1, sizeof *ud);
    *ud = (struct word_wait){.word = w, .value = value};
    TRY_CUDA(cudaLaunchHostFunc(s->handle, wait_for_word, ud));
out:
    return rc;
}

static void CUDART_CB set_word(void *ud)
{
    struct word_wait *w = ud;
    device_word_advance(w->word, w->value);
    free(w);
}

static int cuda_word_stream_set(struct device *d, struct seq_word *w, uint32_t value,
                                struct stream *s, struct err *err)
{
    const struct cuda_state *state = d->state;
    int rc = 0;

    TRY_CUDA(cudaSetDevice(d->index));
    if (state->stream_write_value) {
        CUresult code = state->stream_write_value(s->handle, (CUdeviceptr)(uintptr_t)w->value,
                                                  value, CU_STREAM_WRITE_VALUE_DEFAULT);
        if (code != CUDA_SUCCESS)
            rc = err_set(err, ERR_DEVICE, "cuStreamWriteValue32 failed on cuda:%d (%s): error %d",
                         d->index, d->name, (int)code);
        goto out;
    }
    struct word_wait *ud = xcalloc(1, sizeof *ud);
    *ud = (struct word_wait){.word = w, .value = value};
    TRY_CUDA(cudaLaunchHostFunc(s->handle, set_word, ud));
out:
    return rc;
}

static const struct op_table *cuda_ops(struct device *d, enum dtype compute)
{
    if (compute == DT_BF16 && !device_cuda_has_bf16(d->index))
        return NULL;
    return device_kind_ops(DEVICE_CUDA, compute);
}

static void cuda_tune(struct device *d, bool on)
{
    struct cuda_state *state = d->state;
    gemm_cache_set_tuning(state->gemms, on);
}

static int cuda_plans_save(struct device *d, const char *path, struct err *err)
{
    const struct cuda_state *state = d->state;
    return gemm_cache_save(state->gemms, d->name, path, err);
}

static int cuda_plans_load(struct device *d, const char *path, struct err *err)
{
    struct cuda_state *state = d->state;
    return gemm_cache_load(state->gemms, d->name, path, err);
}

static const struct device_impl IMPL = {
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .memory_free = cuda_memory_free,
    .stream_create = cuda_stream_create,
    .stream_destroy = cuda_stream_destroy,
    .stream_sync = cuda_stream_sync,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .mark_create = cuda_mark_create,
    .mark_destroy = cuda_mark_destroy,
    .mark_record = cuda_mark_record,
    .mark_stream_wait = cuda_mark_stream_wait,
    .mark_sync = cuda_mark_sync,
    .mark_elapsed = cuda_mark_elapsed,
    .word_stream_wait = cuda_word_stream_wait,
    .word_stream_set = cuda_word_stream_set,
    .ops = cuda_ops,
    .tune = cuda_tune,
    .plans_save = cuda_plans_save,
    .plans_load = cuda_plans_load,
};

int device_cuda_open(int index, const struct device_options *options, struct device *d,
                     struct err *err)
{
    enum { SINCE = 12000 };
    struct cudaDeviceProp prop;
    struct cuda_state *state = NULL;
    int rc = 0;

    TRY_CUDA(cudaSetDevice(index));
    TRY_CUDA(cudaGetDeviceProperties(&prop, index));
    snprintf(d->name, sizeof d->name, "%.63s", prop.name);
    snprintf(d->address, sizeof d->address, "%04x:%02x:%02x.0", prop.pciDomainID, prop.pciBusID,
             prop.pciDeviceID);
    d->memory_total = prop.totalGlobalMem;
    d->multiprocessors = prop.multiProcessorCount;
    d->fp8 = prop.major * 10 + prop.minor >= 89;
    state = xcalloc(1, sizeof *state);
    state->index = index;
    state->stream_wait_value = (stream_value_fn)driver_call("cuStreamWaitValue32", SINCE);
    state->stream_write_value = (stream_value_fn)driver_call("cuStreamWriteValue32", SINCE);
    state->tensor_map = (tensor_map_fn)driver_call("cuTensorMapEncodeTiled", SINCE);
    state->capability = prop.major * 10 + prop.minor;
    kernels_load();
    TRY(blaslt_load(&state->lt, err));
    cublasStatus_t status = state->lt.Create(&state->blas);
    if (status != CUBLAS_STATUS_SUCCESS) {
        rc = err_set(err, ERR_DEVICE, "cublasLtCreate failed on cuda:%d (%s): %s", index, d->name,
                     state->lt.GetStatusString(status));
        goto out;
    }
    state->gemms = gemm_cache_create(state);
    d->state = state;
    d->impl = &IMPL;
    state = NULL;
out:
    free(state);
    return rc;
}
