#include "kernels/cpu/device_cpu.h"

#include <assert.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "kernels/cpu/fast.h"
#include "kernels/host_pages.h"
#include "kernels/registry.h"

struct event_mark {
    double time;
    bool recorded;
};

struct cpu_state {
    int threads;
    bool reference_ops;
};

static void cpu_close(struct device *d)
{
    free(d->state);
}

enum { HOST_PAGE = 4096 };

/* aligned_alloc wants a multiple of the alignment; an empty allocation still gets an address. */
static int alloc_aligned(size_t align, size_t bytes, void **out, struct err *err)
{
    size_t rounded = bytes == 0 ? align : (bytes + align - 1) & ~(align - 1);
    void *p = rounded < bytes ? NULL : aligned_alloc(align, rounded);
    if (!p)
        return err_set(err, ERR_NOMEM, "the system has no %zu bytes left", bytes);
    *out = p;
    return 0;
}

static int cpu_alloc(struct device *d, size_t bytes, void **out, struct err *err)
{
    return alloc_aligned(DEVICE_ALIGN, bytes, out, err);
}

/* Pinned memory begins at a page, as a driver's does: disks read and write it directly. And it is
 * there: no other process can take it any more. */
static int cpu_host_alloc(struct device *d, size_t bytes, void **out, struct err *err)
{
    bool large = bytes >= HOST_PAGE_LARGE;
    int rc = alloc_aligned(large ? HOST_PAGE_LARGE : HOST_PAGE, bytes, out, err);
    if (rc == 0 && large)
        host_pages_wish_large(*out, bytes);
    if (rc == 0)
        host_pages_fetch(*out, bytes);
    return rc;
}

static void cpu_free(struct device *d, void *p)
{
    free(p);
}

static size_t physical_bytes(int pages_name)
{
    long pages = sysconf(pages_name), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (size_t)pages * (size_t)page : 0;
}

static int cpu_memory_free(struct device *d, size_t *bytes, struct err *err)
{
    *bytes = physical_bytes(_SC_AVPHYS_PAGES);
    return 0;
}

static int cpu_stream_create(struct device *d, int priority, struct stream **out, struct err *err)
{
    const struct cpu_state *state = d->state;
    struct stream *s = xcalloc(1, sizeof *s);
    s->threads = state->threads;
    *out = s;
    return 0;
}

static void cpu_stream_destroy(struct device *d, struct stream *s)
{
    free(s);
}

static int cpu_stream_sync(struct device *d, struct stream *s, struct err *err)
{
    return 0;
}

static int cpu_copy(struct device *d, struct stream *s, enum copy_kind kind, void *dst,
                    const void *src, size_t bytes, struct err *err)
{
    if (bytes > 0)
        memcpy(dst, src, bytes);
    return 0;
}

static int cpu_zero(struct device *d, struct stream *s, void *dst, size_t bytes, struct err *err)
{
    if (bytes > 0)
        memset(dst, 0, bytes);
    return 0;
}

static int cpu_mark_create(struct device *d, struct event_mark **out, struct err *err)
{
    *out = xcalloc(1, sizeof **out);
    return 0;
}

static void cpu_mark_destroy(struct device *d, struct event_mark *m)
{
    free(m);
}

static int cpu_mark_record(struct device *d, struct event_mark *m, struct stream *s,
                           struct err *err)
{
    m->time = clock_monotonic();
    m->recorded = true;
    return 0;
}

/* Streams execute at once, so what a mark waits for has always happened. */
static int cpu_mark_stream_wait(struct device *d, struct event_mark *m, struct stream *s,
                                struct err *err)
{
    return 0;
}

static int cpu_mark_sync(struct device *d, struct event_mark *m, struct err *err)
{
    return 0;
}

static int cpu_mark_elapsed(struct device *d, struct event_mark *from, struct event_mark *to,
                            double *seconds, struct err *err)
{
    assert(from->recorded && to->recorded);
    *seconds = to->time - from->time;
    return 0;
}

static int cpu_word_stream_wait(struct device *d, struct seq_word *w, uint32_t value,
                                struct stream *s, struct err *err)
{
    device_word_sync(w, value);
    return 0;
}

static int cpu_word_stream_set(struct device *d, struct seq_word *w, uint32_t value,
                               struct stream *s, struct err *err)
{
    device_word_advance(w, value);
    return 0;
}

static const struct op_table *cpu_ops(struct device *d, enum dtype compute)
{
    const struct cpu_state *state = d->state;
    if (compute == DT_F32 && state->reference_ops)
        return &cpu_ref_f32;
    return device_kind_ops(DEVICE_CPU, compute);
}

static const struct device_impl IMPL = {
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_free,
    .memory_free = cpu_memory_free,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_sync = cpu_stream_sync,
    .copy = cpu_copy,
    .zero = cpu_zero,
    .mark_create = cpu_mark_create,
    .mark_destroy = cpu_mark_destroy,
    .mark_record = cpu_mark_record,
    .mark_stream_wait = cpu_mark_stream_wait,
    .mark_sync = cpu_mark_sync,
    .mark_elapsed = cpu_mark_elapsed,
    .word_stream_wait = cpu_word_stream_wait,
    .word_stream_set = cpu_word_stream_set,
    .ops = cpu_ops,
};

static const char *simd_name(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return ", AVX-512";
    if (__builtin_cpu_supports("avx2"))
        return ", AVX2";
#endif
    return "";
}

/* That this process may use: a container or taskset may leave it few of many. */
static int processors(void)
{
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
    return online > 0 ? (int)online : 1;
}

int device_cpu_open(int index, const struct device_options *options, struct device *d,
                    struct err *err)
{
    struct cpu_state *state;

    if (options->threads < 0)
        return err_set(err, ERR_INVALID, "threads must be 0 (one per core) or more, not %d",
                       options->threads);
    state = xcalloc(1, sizeof *state);
    state->threads = options->threads > 0 ? options->threads : processors();
    state->reference_ops = options->reference_ops;
    d->state = state;
    d->impl = &IMPL;
    d->memory_total = physical_bytes(_SC_PHYS_PAGES);
    snprintf(d->name, sizeof d->name, "CPU (%d threads%s)", state->threads, simd_name());
    return 0;
}
