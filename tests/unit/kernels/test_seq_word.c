/* Sequence words: what waits for them wakes when, and only when, the value is reached. */
#include <criterion/criterion.h>
#include <pthread.h>

#include "core/clock.h"
#include "kernels/device.h"

struct waiter {
    struct seq_word *word;
    uint32_t value;
    int *done;
};

static void *wait_on_host(void *ud)
{
    struct waiter *w = ud;
    device_word_sync(w->word, w->value);
    __atomic_store_n(w->done, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static struct seq_word *make_word(struct device **d)
{
    struct seq_word *w = NULL;
    struct err err = {0};
    cr_assert_eq(device_open(DEVICE_CPU, 0, NULL, d, &err), 0, "%s", err.msg);
    cr_assert_eq(device_word_create(*d, &w, &err), 0, "%s", err.msg);
    return w;
}

Test(seq_word, wakes_each_waiter_at_its_value)
{
    struct device *d = NULL;
    struct seq_word *w = make_word(&d);
    enum { N = 3 };
    pthread_t threads[N];
    struct waiter waiters[N];
    int done[N] = {0};

    for (int i = 0; i < N; i++) {
        waiters[i] = (struct waiter){.word = w, .value = (uint32_t)i + 1, .done = &done[i]};
        cr_assert_eq(pthread_create(&threads[i], NULL, wait_on_host, &waiters[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        clock_sleep(0.01);
        for (int later = i; later < N; later++)
            cr_assert_eq(__atomic_load_n(&done[later], __ATOMIC_SEQ_CST), 0);
        device_word_advance(w, (uint32_t)i + 1);
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    }
    device_word_destroy(d, w);
    device_close(d);
}

Test(seq_word, goes_on_behind_the_largest_number)
{
    struct device *d = NULL;
    struct seq_word *w = make_word(&d);
    struct stream *s = NULL;

    cr_assert_eq(device_stream_create(d, 0, &s, NULL), 0);
    device_word_advance(w, 1u << 30);
    device_word_advance(w, UINT32_MAX);
    device_word_sync(w, UINT32_MAX - 5);
    device_word_advance(w, 3); /* six further */
    device_word_sync(w, UINT32_MAX);
    cr_assert_eq(device_word_stream_wait(d, w, 2, s, NULL), 0);
    device_stream_destroy(d, s);
    device_word_destroy(d, w);
    device_close(d);
}
