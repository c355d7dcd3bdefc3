/* The thread of a host queue: what its jobs waited for, and how long. */
#include <criterion/criterion.h>
#include <unistd.h>

#include "worker/train/host_queue.h"

static int do_nothing(void *ud, const struct host_job *job, struct err *err)
{
    return 0;
}

/* A job waits for a fetch that is long there, then for the disk, then for a write that ended
 * meanwhile: all its time is the disk's. */
Test(host_queue, tells_whose_work_its_jobs_waited_for)
{
    enum { MICROSECONDS = 50000 };
    struct device *device = NULL;
    struct host_queue *q = NULL;
    struct seq_word *done = NULL, *disk = NULL;
    double busy, waited[QUEUE_COUNT];

    cr_assert_eq(device_open(DEVICE_CPU, 0, NULL, &device, NULL), 0);
    cr_assert_eq(device_word_create(device, &done, NULL), 0);
    cr_assert_eq(device_word_create(device, &disk, NULL), 0);
    cr_assert_eq(host_queue_create(device, "queue", 1, &q, NULL), 0);
    device_word_advance(done, 1);
    host_queue_push(q,
                    &(struct host_job){.run = do_nothing,
                                       .waits = {{.word = done, .value = 1, .from = QUEUE_H2D},
                                                 {.word = disk, .value = 1, .from = QUEUE_READ},
                                                 {.word = done, .value = 1, .from = QUEUE_WRITE}},
                                       .n_waits = 3});
    usleep(MICROSECONDS);
    device_word_advance(disk, 1);
    host_queue_drain(q);
    host_queue_times(q, &busy, waited);
    for (int k = 0; k < QUEUE_COUNT; k++) {
        if (k == QUEUE_READ)
            cr_expect_geq(waited[k], 0.5e-6 * MICROSECONDS); /* its thread starts when it can */
        else
            cr_expect_leq(waited[k], 0.1 * waited[QUEUE_READ], "queue %s waited %g s",
                          queue_name((enum queue)k), waited[k]);
    }
    host_queue_times(q, &busy, waited);
    for (int k = 0; k < QUEUE_COUNT; k++)
        cr_expect_eq(waited[k], 0);
    host_queue_destroy(q);
    device_word_destroy(device, done);
    device_word_destroy(device, disk);
    device_close(device);
}
