/* Sequence words, the part that all devices share: a word in pinned memory, and the kernel's futex
 * for threads that wait on it. */
#include "kernels/seq_word.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/alloc.h"

int device_word_create(struct device *d, struct seq_word **out, struct err *err)
{
    void *value = NULL;
    /* Control state, like a mark: not counted as the job's pinned memory. */
    int rc = d->impl->host_alloc(d, DEVICE_ALIGN, &value, err);
    if (rc != 0)
        return rc;
    struct seq_word *w = xcalloc(1, sizeof *w);
    w->value = value;
    *w->value = 0;
    *out = w;
    return 0;
}

void device_word_destroy(struct device *d, struct seq_word *w)
{
    if (!w)
        return;
    d->impl->host_free(d, w->value);
    free(w);
}

static bool reached(uint32_t now, uint32_t value)
{
    return (int32_t)(now - value) >= 0;
}

void device_word_advance(struct seq_word *w, uint32_t value)
{
    __atomic_store_n(w->value, value, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&w->sleepers, __ATOMIC_SEQ_CST) > 0)
        syscall(SYS_futex, w->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void device_word_sync(struct seq_word *w, uint32_t value)
{
    uint32_t now = __atomic_load_n(w->value, __ATOMIC_ACQUIRE);
    if (reached(now, value))
        return;
    __atomic_fetch_add(&w->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!reached(now = __atomic_load_n(w->value, __ATOMIC_SEQ_CST), value))
        syscall(SYS_futex, w->value, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
    __atomic_fetch_sub(&w->sleepers, 1, __ATOMIC_SEQ_CST);
}

int device_word_stream_wait(struct device *d, struct seq_word *w, uint32_t value, struct stream *s,
                            struct err *err)
{
    return d->impl->word_stream_wait(d, w, value, s, err);
}

int device_word_stream_set(struct device *d, struct seq_word *w, uint32_t value, struct stream *s,
                           struct err *err)
{
    return d->impl->word_stream_set(d, w, value, s, err);
}

uint32_t device_word_value(const struct seq_word *w)
{
    return __atomic_load_n(w->value, __ATOMIC_ACQUIRE);
}
