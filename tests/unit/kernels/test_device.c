#include <criterion/criterion.h>
#include <inttypes.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/device.h"
#include "kernels/host_pages.h"
#include "kernels/op_table.h"

static struct device *open_cpu(size_t limit, bool reference)
{
    struct device_options options = {
        .memory_limit = limit, .threads = 2, .reference_ops = reference};
    struct err err = {0};
    struct device *d = NULL;
    cr_assert_eq(device_open(DEVICE_CPU, 0, &options, &d, &err), 0, "%s", err.msg);
    return d;
}

Test(device, counts_and_limits_memory)
{
    struct device *d = open_cpu(1000, false);
    struct err err = {0};
    void *a = NULL, *b = NULL, *untouched = &err;
    size_t left;

    cr_assert_eq(device_alloc(d, 600, "a", &a, &err), 0);
    cr_assert_eq((uintptr_t)a % DEVICE_ALIGN, 0);
    cr_assert_eq(device_alloc(d, 400, "b", &b, &err), 0);
    cr_assert_eq(d->counters.device_now, 1000);
    cr_assert_eq(device_memory_free(d, &left, &err), 0);
    cr_assert_eq(left, 0);
    cr_assert_eq(device_alloc(d, 1, "one byte", &untouched, &err), ERR_DEVICE_OOM);
    cr_assert_eq(untouched, &err);
    cr_assert(strstr(err.msg, "one byte needs 1 bytes"), "%s", err.msg);
    cr_assert(strstr(err.msg, "1000 bytes"), "%s", err.msg);
    device_free(d, a, 600);
    cr_assert_eq(device_memory_free(d, &left, &err), 0);
    cr_assert_eq(left, 600);
    cr_assert_eq(d->counters.device_now, 400);
    cr_assert_eq(d->counters.device_peak, 1000);
    device_free(d, b, 400);
    device_close(d);
}

Test(device, an_overflowing_size_is_out_of_memory)
{
    struct device *d = open_cpu(0, false);
    struct err err = {0};
    void *p = NULL;
    cr_assert_eq(device_alloc(d, SIZE_MAX, "everything", &p, &err), ERR_DEVICE_OOM);
    cr_assert_null(p);
    err_clear(&err);
    cr_assert_eq(device_host_alloc(d, SIZE_MAX, "everything", &p, &err), ERR_NOMEM);
    cr_assert_eq(d->counters.host_now, 0);
    device_close(d);
}

/* Nobody else can have taken it when it is written to. */
Test(device, host_memory_is_there_when_it_is_allocated)
{
    enum { BYTES = 64 << 20, PAGE = 4096 };
    static unsigned char resident[BYTES / PAGE];
    struct device *d = open_cpu(0, false);
    struct err err = {0};
    void *p = NULL;
    cr_assert_eq(device_host_alloc(d, BYTES, "pages", &p, &err), 0, "%s", err.msg);
    cr_assert_eq(mincore(p, BYTES, resident), 0);
    for (int k = 0; k < BYTES / PAGE; k++)
        cr_assert(resident[k] & 1, "page %d", k);
    device_host_free(d, p, BYTES);
    device_close(d);
}

/* "hg" among the flags of the mapping that `at` lies in: large pages were asked for. */
static bool wants_large_pages(const void *at)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[512];
    bool inside = false, wants = false;
    cr_assert_not_null(f);
    while (fgets(line, sizeof line, f)) {
        uintptr_t from, to;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
            inside = from <= (uintptr_t)at && (uintptr_t)at < to;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            wants = strstr(line, " hg") != NULL;
    }
    fclose(f);
    return wants;
}

/* A disk is slower at small ones. */
Test(device, much_host_memory_lies_in_large_pages)
{
    if (access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK) != 0)
        cr_skip_test("this kernel has none");
    enum { BYTES = 3 * HOST_PAGE_LARGE + 4096 };
    struct device *d = open_cpu(0, false);
    struct err err = {0};
    char *p = NULL;
    cr_assert_eq(device_host_alloc(d, BYTES, "pages", (void **)&p, &err), 0, "%s", err.msg);
    cr_expect_eq((uintptr_t)p % HOST_PAGE_LARGE, 0);
    cr_expect(wants_large_pages(p) && wants_large_pages(p + BYTES - 1));
    device_host_free(d, p, BYTES);
    device_close(d);
}

Test(device, counts_link_traffic)
{
    struct device *d = open_cpu(0, false);
    struct stream *s = NULL;
    struct err err = {0};
    void *dev = NULL, *host = NULL;
    char back[8] = {0};

    cr_assert_eq(device_stream_create(d, 0, &s, &err), 0);
    cr_assert_eq(device_alloc(d, 8, "x", &dev, &err), 0);
    cr_assert_eq(device_host_alloc(d, 8, "y", &host, &err), 0);
    cr_assert_eq(d->counters.host_now, 8);
    memcpy(host, "castor!", 8);
    cr_assert_eq(device_copy(d, s, COPY_H2D, dev, host, 8, &err), 0);
    cr_assert_eq(device_copy(d, s, COPY_D2H, back, dev, 8, &err), 0);
    cr_assert_str_eq(back, "castor!");
    cr_assert_eq(device_copy(d, s, COPY_D2H, back, dev, 3, &err), 0);
    cr_assert_eq(device_copy(d, s, COPY_H2H, back, host, 8, &err), 0);
    cr_assert_eq(d->counters.h2d_bytes, 8);
    cr_assert_eq(d->counters.d2h_bytes, 11);
    cr_assert_eq(device_zero(d, s, dev, 4, &err), 0);
    cr_assert_eq(((char *)dev)[3], 0);
    cr_assert_eq(((char *)dev)[4], 'o');
    device_host_free(d, host, 8);
    device_free(d, dev, 8);
    device_stream_destroy(d, s);
    device_close(d);
}

Test(device, marks_measure_time)
{
    struct device *d = open_cpu(0, false);
    struct event_mark *from = NULL, *to = NULL;
    struct stream *s = NULL;
    double seconds = -1;

    cr_assert_eq(device_stream_create(d, 0, &s, NULL), 0);
    cr_assert_eq(device_mark_create(d, &from, NULL), 0);
    cr_assert_eq(device_mark_create(d, &to, NULL), 0);
    cr_assert_eq(device_mark_record(d, from, s, NULL), 0);
    cr_assert_eq(device_mark_record(d, to, s, NULL), 0);
    cr_assert_eq(device_mark_stream_wait(d, to, s, NULL), 0);
    cr_assert_eq(device_mark_sync(d, to, NULL), 0);
    cr_assert_eq(device_mark_elapsed(d, from, to, &seconds, NULL), 0);
    cr_assert(seconds >= 0 && seconds < 1);
    device_mark_destroy(d, from);
    device_mark_destroy(d, to);
    device_stream_destroy(d, s);
    device_close(d);
}

Test(device, offers_tables_by_type)
{
    struct device *d = open_cpu(0, false), *r = open_cpu(0, true);

    cr_assert_str_eq(device_ops(d, DT_F64)->name, "cpu-ref-f64");
    cr_assert_str_eq(device_ops(d, DT_F32)->name, "cpu-f32");
    cr_assert_str_eq(device_ops(r, DT_F32)->name, "cpu-ref-f32");
    cr_assert_str_eq(device_ops(d, DT_BF16)->name, "cpu-bf16");
    device_close(d);
    device_close(r);
}

Test(device, takes_as_many_threads_as_it_may_use)
{
    struct device *d = NULL;
    cpu_set_t usable, first;

    cr_assert_eq(sched_getaffinity(0, sizeof usable, &usable), 0);
    CPU_ZERO(&first);
    for (int k = 0; CPU_COUNT(&first) == 0; k++)
        if (CPU_ISSET(k, &usable))
            CPU_SET(k, &first);
    cr_assert_eq(sched_setaffinity(0, sizeof first, &first), 0);
    cr_assert_eq(device_open(DEVICE_CPU, 0, NULL, &d, NULL), 0);
    cr_expect(strncmp(d->name, "CPU (1 threads", 14) == 0, "%s", d->name);
    device_close(d);
}

Test(device, refuses_what_is_not_there)
{
    struct device *d = NULL;
    struct device_options options = {.threads = -1};
    struct err err = {0};

    cr_assert_eq(device_count(DEVICE_CPU), 1);
    cr_assert_eq(device_open(DEVICE_CPU, 1, NULL, &d, &err), ERR_NOT_FOUND);
    err_clear(&err);
    cr_assert_eq(device_open(DEVICE_CPU, 0, &options, &d, &err), ERR_INVALID);
    err_clear(&err);
    cr_assert_eq(device_open(DEVICE_CUDA, device_count(DEVICE_CUDA), NULL, &d, &err),
                 ERR_NOT_FOUND);
    cr_assert_null(d);
}

Test(op_table, every_op_has_a_name)
{
    for (int op = 0; op < OP_COUNT; op++)
        cr_assert(op_name((enum op)op) && op_name((enum op)op)[0]);
    cr_assert_str_eq(op_name(OP_LINEAR_BWD_WEIGHT), "linear_bwd_weight");
}
