/* What all devices share: limits, accounting, and the texts of memory errors. */
#include "kernels/device.h"

#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "kernels/device_impl.h"

static const double MIB = 1024.0 * 1024.0;

int device_open(enum device_kind kind, int index, const struct device_options *options,
                struct device **out, struct err *err)
{
    static const struct device_options DEFAULTS = {0};
    struct device *d = xcalloc(1, sizeof *d);
    int rc = 0;

    if (!options)
        options = &DEFAULTS;
    int count = device_count(kind);
    if (index < 0 || index >= count) {
        rc = err_set(err, ERR_NOT_FOUND, "no %s device %d: this machine and build have %d",
                     kind == DEVICE_CPU ? "CPU" : "CUDA", index, count);
        goto out;
    }
    d->kind = kind;
    d->index = index;
    d->memory_limit = options->memory_limit;
    TRY(device_open_kind(kind, index, options, d, err));
    assert(d->impl);
    *out = d;
    d = NULL;
out:
    free(d);
    return rc;
}

void device_close(struct device *d)
{
    if (!d)
        return;
    assert(d->counters.device_now == 0 && d->counters.host_now == 0);
    d->impl->close(d);
    free(d);
}

/* Counters have one writer, the driving thread, and readers anywhere: relaxed atomics suffice. */
static void counter_set(size_t *counter, size_t value)
{
    __atomic_store_n(counter, value, __ATOMIC_RELAXED);
}

static void count_bytes(size_t *now, size_t *peak, size_t bytes)
{
    counter_set(now, *now + bytes);
    if (*now > *peak)
        counter_set(peak, *now);
}

static size_t device_limit(const struct device *d)
{
    return d->memory_limit ? d->memory_limit : d->memory_total;
}

int device_memory_free(struct device *d, size_t *bytes, struct err *err)
{
    size_t physical = 0;
    int rc = d->impl->memory_free(d, &physical, err);
    if (rc != 0)
        return rc;
    size_t limit = device_limit(d);
    size_t within = limit > d->counters.device_now ? limit - d->counters.device_now : 0;
    *bytes = physical < within ? physical : within;
    return 0;
}

static int out_of_memory(struct device *d, size_t bytes, const char *what, struct err *err)
{
    size_t left = 0;
    if (device_memory_free(d, &left, NULL) != 0)
        left = 0;
    return err_set(
        err, ERR_DEVICE_OOM,
        "%s: %s needs %zu bytes (%.1f MiB) of device memory; %zu bytes (%.1f MiB) of the "
        "limit of %zu (%.1f MiB) are in use and %zu (%.1f MiB) are free",
        d->name, what, bytes, (double)bytes / MIB, d->counters.device_now,
        (double)d->counters.device_now / MIB, device_limit(d), (double)device_limit(d) / MIB, left,
        (double)left / MIB);
}

int device_alloc(struct device *d, size_t bytes, const char *what, void **out, struct err *err)
{
    size_t limit = device_limit(d), now = d->counters.device_now;
    void *p = NULL;

    if (now > limit || bytes > limit - now)
        return out_of_memory(d, bytes, what, err);
    struct err inner = {0};
    int rc = d->impl->alloc(d, bytes, &p, &inner);
    if (rc == ERR_DEVICE_OOM || rc == ERR_NOMEM)
        return out_of_memory(d, bytes, what, err);
    if (rc != 0)
        return err_set(err, inner.code, "%s: %s: %s", d->name, what, inner.msg);
    count_bytes(&d->counters.device_now, &d->counters.device_peak, bytes);
    *out = p;
    return 0;
}

void device_free(struct device *d, void *p, size_t bytes)
{
    if (!p)
        return;
    assert(bytes <= d->counters.device_now);
    d->impl->free(d, p);
    counter_set(&d->counters.device_now, d->counters.device_now - bytes);
}

int device_host_alloc(struct device *d, size_t bytes, const char *what, void **out, struct err *err)
{
    void *p = NULL;
    struct err inner = {0};
    int rc = d->impl->host_alloc(d, bytes, &p, &inner);

    if (rc != 0)
        return err_set(err, inner.code ? inner.code : (enum err_code)rc,
                       "%s: %s needs %zu bytes (%.1f MiB) of pinned host memory, %zu are held: %s",
                       d->name, what, bytes, (double)bytes / MIB, d->counters.host_now, inner.msg);
    count_bytes(&d->counters.host_now, &d->counters.host_peak, bytes);
    *out = p;
    return 0;
}

void device_host_free(struct device *d, void *p, size_t bytes)
{
    if (!p)
        return;
    assert(bytes <= d->counters.host_now);
    d->impl->host_free(d, p);
    counter_set(&d->counters.host_now, d->counters.host_now - bytes);
}

int device_stream_create(struct device *d, int priority, struct stream **out, struct err *err)
{
    return d->impl->stream_create(d, priority, out, err);
}

void device_stream_destroy(struct device *d, struct stream *s)
{
    if (s)
        d->impl->stream_destroy(d, s);
}

int device_stream_sync(struct device *d, struct stream *s, struct err *err)
{
    return d->impl->stream_sync(d, s, err);
}

int device_copy(struct device *d, struct stream *s, enum copy_kind kind, void *dst, const void *src,
                size_t bytes, struct err *err)
{
    int rc = d->impl->copy(d, s, kind, dst, src, bytes, err);
    if (rc != 0)
        return rc;
    if (kind == COPY_H2D)
        __atomic_fetch_add(&d->counters.h2d_bytes, bytes, __ATOMIC_RELAXED);
    else if (kind == COPY_D2H)
        __atomic_fetch_add(&d->counters.d2h_bytes, bytes, __ATOMIC_RELAXED);
    return 0;
}

int device_zero(struct device *d, struct stream *s, void *dst, size_t bytes, struct err *err)
{
    return d->impl->zero(d, s, dst, bytes, err);
}

int device_mark_create(struct device *d, struct event_mark **out, struct err *err)
{
    return d->impl->mark_create(d, out, err);
}

void device_mark_destroy(struct device *d, struct event_mark *m)
{
    if (m)
        d->impl->mark_destroy(d, m);
}

int device_mark_record(struct device *d, struct event_mark *m, struct stream *s, struct err *err)
{
    return d->impl->mark_record(d, m, s, err);
}

int device_mark_stream_wait(struct device *d, struct event_mark *m, struct stream *s,
                            struct err *err)
{
    return d->impl->mark_stream_wait(d, m, s, err);
}

int device_mark_sync(struct device *d, struct event_mark *m, struct err *err)
{
    return d->impl->mark_sync(d, m, err);
}

int device_mark_elapsed(struct device *d, struct event_mark *from, struct event_mark *to,
                        double *seconds, struct err *err)
{
    return d->impl->mark_elapsed(d, from, to, seconds, err);
}

const struct op_table *device_ops(struct device *d, enum dtype compute)
{
    return d->impl->ops(d, compute);
}

void device_tune(struct device *d, bool on)
{
    if (d->impl->tune)
        d->impl->tune(d, on);
}

int device_plans_save(struct device *d, const char *path, struct err *err)
{
    return d->impl->plans_save ? d->impl->plans_save(d, path, err) : 0;
}

int device_plans_load(struct device *d, const char *path, struct err *err)
{
    return d->impl->plans_load ? d->impl->plans_load(d, path, err) : 0;
}
