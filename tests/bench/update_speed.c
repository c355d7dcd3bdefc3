/*
 * Speed of the CPU's updates, in every layout of states that offload uses, where the states lie in
 * the second cache (what arithmetic takes) and in memory (what a job has). A line a case: bytes an
 * element that are read and written, elements a second, their bytes a second, cycles of a core an
 * element. Cycles are counted by a chain of dependent additions that runs before: virtual machines
 * do not always show counters.
 *
 * update_speed [THREADS [MILLIONS of elements in memory]]: 1 and 64.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "kernels/device.h"
#include "kernels/moment_math.h"
#include "kernels/op_table.h"

enum {
    NEAR = 16 << 10, /* elements a thread: at most 448 KiB of states */
    RUNS = 100,
    LEAST_RUN = 1, /* milliseconds: short ones find moments in which nothing else runs */
    MOST = 1000
};

struct layout {
    const char *name;
    enum dtype master, moment;
    int bytes; /* an element: gradient and state in, state and parameter out */
};
static const struct layout LAYOUTS[] = {
    {"float masters, float moments", DT_F32, DT_F32, 28},
    {"split masters, float moments", DT_I16, DT_F32, 26},
    {"float masters, 8-bit moments", DT_F32, DT_U8, 16},
    {"split masters, 8-bit moments", DT_I16, DT_U8, 14},
};

struct states {
    uint16_t *grad, *param;
    void *master, *m, *v;
    uint8_t *m_exponent, *v_exponent;
};

static void *lines(size_t bytes)
{
    void *p = aligned_alloc(DEVICE_ALIGN, (bytes + DEVICE_ALIGN) & ~(size_t)(DEVICE_ALIGN - 1));
    if (!p)
        abort();
    memset(p, 0, bytes);
    return p;
}

/* Gradients over many binades, as those of a layer are. */
static struct states states_make(int64_t n)
{
    size_t count = (size_t)n;
    struct states s = {.grad = lines(2 * count),
                       .param = lines(2 * count),
                       .master = lines(4 * count),
                       .m = lines(4 * count),
                       .v = lines(4 * count),
                       .m_exponent = lines(count / MOMENT_BLOCK),
                       .v_exponent = lines(count / MOMENT_BLOCK)};
    for (int64_t i = 0; i < n; i++) {
        uint32_t r = (uint32_t)i * 2654435761u;
        float x = ldexpf((float)(int32_t)r, -44 - (int)(r >> 7 & 7));
        s.grad[i] = (uint16_t)(moment_bits(x) >> 16);
    }
    return s;
}

static void states_free(struct states *s)
{
    void *all[] = {s->grad, s->param, s->master, s->m, s->v, s->m_exponent, s->v_exponent};
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
        free(all[k]);
}

/* Cycles a second: an addition that waits for the one before it takes one. */
static double clock_rate(void)
{
    double best = 0;
    for (int run = 0; run < 10 * RUNS; run++) {
        uint64_t x = 1;
        double start = clock_monotonic();
        for (int i = 0; i < 100 * 1000; i++) {
            x += (uint64_t)i;
            __asm__ volatile("" : "+r"(x));
        }
        best = fmax(best, 1e5 / (clock_monotonic() - start));
    }
    return best;
}

/* Seconds an update, the least of several runs. */
static double seconds(const struct op_table *t, struct stream *s, const struct adamw_args *a)
{
    double best = INFINITY, begin = clock_monotonic();
    for (int run = 0; run < RUNS && (run < 3 || clock_monotonic() - begin < 1e-3 * MOST); run++) {
        double start = clock_monotonic(), spent = 0;
        int calls = 0;
        while (spent < 1e-3 * LEAST_RUN) {
            if (t->adamw(s, a) != 0)
                abort();
            calls++;
            spent = clock_monotonic() - start;
        }
        best = fmin(best, spent / calls);
    }
    return best;
}

static void measure(const struct op_table *t, struct stream *s, double cycles, int64_t n,
                    const struct layout *l, const char *where)
{
    static const struct adamw_step STEP = {.lr = 1e-4f, .bias1 = 0.9f, .bias2 = 0.5f, .step = 2};
    static const struct clip_result CLIP = {.coef = 1, .finite = 1};
    struct states x = states_make(n);
    struct adamw_args a = {.n = n,
                           .n_decay = n,
                           .beta1 = 0.9f,
                           .beta2 = 0.95f,
                           .eps = 1e-8f,
                           .weight_decay = 0.1f,
                           .step = &STEP,
                           .clip = &CLIP,
                           .grad_type = DT_BF16,
                           .master_type = l->master,
                           .moment_type = l->moment,
                           .param_type = DT_BF16,
                           .grad = x.grad,
                           .master = x.master,
                           .m = x.m,
                           .v = x.v,
                           .m_exponent = x.m_exponent,
                           .v_exponent = x.v_exponent,
                           .param = x.param};
    double rate = (double)n / seconds(t, s, &a);

    printf("%s, %-7s %2d bytes %7.3f G/s %7.1f GB/s %6.2f cycles\n", l->name, where, l->bytes,
           rate / 1e9, rate * l->bytes / 1e9, cycles / rate);
    states_free(&x);
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 1;
    int64_t far = (argc > 2 ? strtol(argv[2], NULL, 10) : 64) << 20;
    struct device_options options = {.threads = threads};
    struct device *device = NULL;
    struct stream *stream = NULL;
    struct err err = {0};

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (device_open(DEVICE_CPU, 0, &options, &device, &err) != 0 ||
        device_stream_create(device, 0, &stream, &err) != 0) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    double cycles = clock_rate() * threads;
    printf("%s, %.2f GHz\n", device->name, cycles / threads / 1e9);
    for (size_t i = 0; i < sizeof LAYOUTS / sizeof LAYOUTS[0]; i++) {
        const struct op_table *table = device_ops(device, DT_BF16);
        measure(table, stream, cycles, NEAR * threads, &LAYOUTS[i], "cache");
        measure(table, stream, cycles, far, &LAYOUTS[i], "memory");
    }
    device_stream_destroy(device, stream);
    device_close(device);
    return 0;
}
