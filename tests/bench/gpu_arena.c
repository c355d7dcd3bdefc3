#include "tests/bench/gpu_arena.h"

#include <stdio.h>
#include <stdlib.h>

#include "core/alloc.h"

static const size_t ARENA = (size_t)16 << 30;

static struct device *arena_device;
static struct stream *arena_stream;
static char *arena;
static size_t arena_used;

void must(int rc, const struct err *err)
{
    if (rc != 0) {
        fprintf(stderr, "gpu_ops: %s\n", err->msg);
        exit(2);
    }
}

/* Random bf16 values in (-1, 1), which read as float32 in pairs are random in (-1, 1) too. */
static void fill_arena(void)
{
    struct err err = {0};
    const size_t chunk = (size_t)64 << 20;
    void *host = NULL;
    uint64_t x = 88172645463325252u;

    must(device_host_alloc(arena_device, chunk, "random values", &host, &err), &err);
    for (size_t i = 0; i < chunk / 2; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        float v = (float)(int32_t)(x >> 32) * (1.0f / 2147483648.0f);
        dtype_convert(DT_BF16, (char *)host + i * 2, DT_F32, &v, 1);
    }
    for (size_t at = 0; at < ARENA; at += chunk)
        must(device_copy(arena_device, arena_stream, COPY_H2D, arena + at, host, chunk, &err),
             &err);
    must(device_stream_sync(arena_device, arena_stream, &err), &err);
    device_host_free(arena_device, host, chunk);
}

void arena_open(struct device *d, struct stream *s)
{
    struct err err = {0};
    void *p = NULL;

    arena_device = d;
    arena_stream = s;
    must(device_alloc(d, ARENA, "the arena of the benchmark", &p, &err), &err);
    arena = p;
    fill_arena();
}

void arena_close(void)
{
    device_free(arena_device, arena, ARENA);
}

void arena_clear(void)
{
    arena_used = 0;
}

void *take(size_t bytes)
{
    void *p = arena + arena_used;
    arena_used += (bytes + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
    if (arena_used > ARENA) {
        fprintf(stderr, "gpu_ops: a case is larger than the arena\n");
        exit(2);
    }
    return p;
}

void *take_ints(int64_t n, int64_t below, int64_t skew)
{
    struct err err = {0};
    int32_t *host = xcalloc((size_t)n, sizeof *host);
    uint64_t x = 1234567;
    void *p = take((size_t)n * 4);

    for (int64_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        host[i] = skew ? (int32_t)(i % below)
                       : (int32_t)((double)(x >> 33) / 2147483648.0 * (double)below);
    }
    must(device_copy(arena_device, arena_stream, COPY_H2D, p, host, (size_t)n * 4, &err), &err);
    must(device_stream_sync(arena_device, arena_stream, &err), &err);
    free(host);
    return p;
}

void *take_starts(int64_t B, int64_t T, int64_t document)
{
    struct err err = {0};
    int32_t *host = xcalloc((size_t)(B * T), sizeof *host);
    void *p = take((size_t)(B * T) * 4);

    for (int64_t i = 0; i < B * T; i++)
        host[i] = (int32_t)(i % T - i % T % document);
    must(device_copy(arena_device, arena_stream, COPY_H2D, p, host, (size_t)(B * T) * 4, &err),
         &err);
    must(device_stream_sync(arena_device, arena_stream, &err), &err);
    free(host);
    return p;
}

void *take_floats(const float *values, size_t n)
{
    struct err err = {0};
    void *p = take(n * sizeof *values);
    must(device_copy(arena_device, arena_stream, COPY_H2D, p, values, n * sizeof *values, &err),
         &err);
    must(device_stream_sync(arena_device, arena_stream, &err), &err);
    return p;
}
