/*
 * A device: memory, streams, events and op tables of one GPU, or of the CPU.
 *
 * The CPU device stands for a GPU in every respect that the layers above can see: it has "device
 * memory" of its own with an optional limit, copies between host and device memory are counted as
 * link traffic, and running out of memory is an error with numbers. So every placement policy is
 * tested without a GPU. Its streams execute at once, in the calling thread; ops use the device's
 * own threads.
 *
 * Threads: one thread drives a device, except that counters may be read, marks that have been
 * recorded waited for (device_mark_sync) and words advanced from anywhere. Nothing here
 * synchronises unless its name says so.
 *
 * Accounting: every byte of device memory goes through device_alloc, every byte of pinned memory
 * through device_host_alloc, every copy through device_copy; the counters are therefore exact, and
 * they are what plans are compared with.
 */
#ifndef CASTOR_KERNELS_DEVICE_H
#define CASTOR_KERNELS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/dtype.h"

enum device_kind { DEVICE_CPU, DEVICE_CUDA };
enum copy_kind { COPY_H2D, COPY_D2H, COPY_D2D, COPY_H2H };

enum { DEVICE_ALIGN = 256 }; /* every allocation and every planned address is a multiple of this */

struct stream;     /* a queue of device work, executed in order                      */
struct event_mark; /* a point in a stream that another stream or the host waits for */
struct seq_word;   /* a counter that the host advances and streams wait for         */
struct op_table;

struct device_counters {
    size_t device_now, device_peak; /* bytes allocated with device_alloc      */
    size_t host_now, host_peak;     /* bytes allocated with device_host_alloc */
    uint64_t h2d_bytes, d2h_bytes;  /* copied since the device was opened     */
};

struct device_options {
    size_t memory_limit; /* device bytes, 0 = what there is        */
    int threads;         /* CPU: op threads, 0 = one per core that the process may use */
    bool reference_ops;  /* CPU: the plain reference table for f32 */
};

struct device {
    enum device_kind kind;
    int index;
    char name[64];    /* "NVIDIA H100 80GB HBM3", "CPU (2 threads, AVX-512)" */
    char address[16]; /* on the PCI bus, "0000:3b:00.0"; "" of a CPU */
    size_t memory_total;
    size_t memory_limit; /* what device_alloc may hand out in all, 0 = memory_total */
    int multiprocessors; /* of a GPU; 0 of a CPU */
    bool fp8;            /* multiplies 8-bit operands at more than the speed of 16-bit ones */
    struct device_counters counters;
    const struct device_impl *impl;
    void *state; /* the implementation's own */
};

/* What an implementation provides (kernels/cpu/device_cpu.c, kernels/cuda/device_cuda.c). Callers
 * use the functions below, which add limits and accounting. */
struct device_impl {
    void (*close)(struct device *d);
    int (*alloc)(struct device *d, size_t bytes, void **out, struct err *err);
    void (*free)(struct device *d, void *p);
    int (*host_alloc)(struct device *d, size_t bytes, void **out, struct err *err); /* pinned */
    void (*host_free)(struct device *d, void *p);
    int (*memory_free)(struct device *d, size_t *bytes, struct err *err);
    int (*stream_create)(struct device *d, int priority, struct stream **out, struct err *err);
    void (*stream_destroy)(struct device *d, struct stream *s);
    int (*stream_sync)(struct device *d, struct stream *s, struct err *err);
    int (*copy)(struct device *d, struct stream *s, enum copy_kind kind, void *dst, const void *src,
                size_t bytes, struct err *err);
    int (*zero)(struct device *d, struct stream *s, void *dst, size_t bytes, struct err *err);
    int (*mark_create)(struct device *d, struct event_mark **out, struct err *err);
    void (*mark_destroy)(struct device *d, struct event_mark *m);
    int (*mark_record)(struct device *d, struct event_mark *m, struct stream *s, struct err *err);
    int (*mark_stream_wait)(struct device *d, struct event_mark *m, struct stream *s,
                            struct err *err);
    int (*mark_sync)(struct device *d, struct event_mark *m, struct err *err);
    int (*mark_elapsed)(struct device *d, struct event_mark *from, struct event_mark *to,
                        double *seconds, struct err *err);
    int (*word_stream_wait)(struct device *d, struct seq_word *w, uint32_t value, struct stream *s,
                            struct err *err);
    int (*word_stream_set)(struct device *d, struct seq_word *w, uint32_t value, struct stream *s,
                           struct err *err);
    const struct op_table *(*ops)(struct device *d, enum dtype compute); /* NULL = not supported */
    /* NULL where products are not planned */
    void (*tune)(struct device *d, bool on);
    int (*plans_save)(struct device *d, const char *path, struct err *err);
    int (*plans_load)(struct device *d, const char *path, struct err *err);
};

/* How many devices of a kind this build and machine have; 0 for CUDA without a driver. Never fails.
 */
int device_count(enum device_kind kind);
/* The 16-bit type that a device computes in: bfloat16, or float16 on a GPU that lacks it. Looks at
 * what the device is, and opens nothing. */
enum dtype device_half_type(enum device_kind kind, int index);
int device_open(enum device_kind kind, int index, const struct device_options *options,
                struct device **out, struct err *err);
void device_close(struct device *d); /* everything allocated must have been freed: asserted */

/* Device memory, DEVICE_ALIGN-aligned, contents undefined. ERR_DEVICE_OOM names bytes asked, in
 * use, limit and free. */
int device_alloc(struct device *d, size_t bytes, const char *what, void **out, struct err *err);
void device_free(struct device *d, void *p, size_t bytes);
/* Pinned host memory that copies reach at link speed. */
int device_host_alloc(struct device *d, size_t bytes, const char *what, void **out,
                      struct err *err);
void device_host_free(struct device *d, void *p, size_t bytes);
/* Free device memory as the driver (or the limit) sees it now. */
int device_memory_free(struct device *d, size_t *bytes, struct err *err);

int device_stream_create(struct device *d, int priority, struct stream **out, struct err *err);
void device_stream_destroy(struct device *d, struct stream *s);
/* Wait on the host until everything queued is done; asynchronous faults surface here. */
int device_stream_sync(struct device *d, struct stream *s, struct err *err);
/* Queue a copy or a fill with zero bytes. Host memory must be pinned to overlap. */
int device_copy(struct device *d, struct stream *s, enum copy_kind kind, void *dst, const void *src,
                size_t bytes, struct err *err);
int device_zero(struct device *d, struct stream *s, void *dst, size_t bytes, struct err *err);

int device_mark_create(struct device *d, struct event_mark **out, struct err *err);
void device_mark_destroy(struct device *d, struct event_mark *m);
int device_mark_record(struct device *d, struct event_mark *m, struct stream *s, struct err *err);
int device_mark_stream_wait(struct device *d, struct event_mark *m, struct stream *s,
                            struct err *err);
int device_mark_sync(struct device *d, struct event_mark *m, struct err *err);
/* Device time between two recorded marks that have completed. */
int device_mark_elapsed(struct device *d, struct event_mark *from, struct event_mark *to,
                        double *seconds, struct err *err);

/* Sequence words order the work of host threads before the work of streams (marks do the reverse).
 * A word starts at 0 and only grows; values compare as in serial number arithmetic (RFC 1982), so
 * it may wrap. On the CPU device, whose streams are the calling thread, a stream's wait blocks. */
int device_word_create(struct device *d, struct seq_word **out, struct err *err);
void device_word_destroy(struct device *d, struct seq_word *w);
/* What the caller wrote before is visible to whoever has waited. */
void device_word_advance(struct seq_word *w, uint32_t value);
/* Work queued on s from now on starts when the word has reached `value`. */
int device_word_stream_wait(struct device *d, struct seq_word *w, uint32_t value, struct stream *s,
                            struct err *err);
/* Block the calling thread until then. */
void device_word_sync(struct seq_word *w, uint32_t value);
/* The other way round, for words that nobody waits for: the stream sets the word when all that was
 * queued on it before is done, and device_word_value says how far it came, also after a fault. */
int device_word_stream_set(struct device *d, struct seq_word *w, uint32_t value, struct stream *s,
                           struct err *err);
uint32_t device_word_value(const struct seq_word *w);

/* Plans of matrix products: which algorithm each shape has, and so the roundings of its results.
 * While tuning is on, a product of a shape without a plan is planned by timing (the call then waits
 * for the device), else by rule. Timing may choose otherwise the next time, and then the last bits
 * of results differ: only who loads the same plans gets the same bits. Files are text and hold for
 * one device model and one version of its library: others are ERR_CONFLICT, damaged ones
 * ERR_CORRUPT; plans in memory win over loaded ones. Devices that do not plan accept all calls and
 * write no file. */
void device_tune(struct device *d, bool on);
int device_plans_save(struct device *d, const char *path, struct err *err);
int device_plans_load(struct device *d, const char *path, struct err *err);

/* The ops that compute in `compute`; NULL when this device has none. Borrowed, lives as long as the
 * device. */
const struct op_table *device_ops(struct device *d, enum dtype compute);

#endif
