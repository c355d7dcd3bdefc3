#include "kernels/cuda/pinned.h"

#include <cuda_runtime_api.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/alloc.h"
#include "kernels/host_pages.h"

enum { SEGMENT = 1 << 30, MOST_THREADS = 8 };

enum segment_state { WAITING, REGISTERED, REFUSED };

struct pinned_block {
    int index;
    char *mapped, *base; /* base: aligned to large pages */
    size_t mapped_bytes, bytes;
    int64_t n_segments;
    int64_t next; /* segments below it are nobody's yet */
    enum segment_state *state;
    cudaError_t code; /* of the first refusal */
    bool closing;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t threads[MOST_THREADS];
    int n_threads;
};

static size_t segment_bytes(const struct pinned_block *b, int64_t k)
{
    size_t left = b->bytes - (size_t)k * SEGMENT;
    return left < SEGMENT ? left : SEGMENT;
}

/* The pages are fetched by many threads: registering would do it one by one. */
static cudaError_t register_segment(const struct pinned_block *b, int64_t k)
{
    char *at = b->base + (size_t)k * SEGMENT;
    host_pages_fetch(at, segment_bytes(b, k));
    return cudaHostRegister(at, segment_bytes(b, k), cudaHostRegisterPortable);
}

static void *run_thread(void *ud)
{
    struct pinned_block *b = ud;
    cudaSetDevice(b->index);
    pthread_mutex_lock(&b->lock);
    while (b->next > 0 && !b->closing && b->code == cudaSuccess) {
        int64_t k = --b->next;
        pthread_mutex_unlock(&b->lock);
        cudaError_t code = register_segment(b, k);
        pthread_mutex_lock(&b->lock);
        b->state[k] = code == cudaSuccess ? REGISTERED : REFUSED;
        if (code != cudaSuccess && b->code == cudaSuccess)
            b->code = code;
        pthread_cond_broadcast(&b->changed);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

static int map(struct pinned_block *b, struct err *err)
{
    b->mapped_bytes = b->bytes + HOST_PAGE_LARGE;
    b->mapped = mmap(NULL, b->mapped_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b->mapped == MAP_FAILED) {
        b->mapped = NULL;
        return err_set_errno(err, errno, "cannot map %zu bytes of host memory", b->bytes);
    }
    size_t past = (uintptr_t)b->mapped % HOST_PAGE_LARGE;
    b->base = b->mapped + (past > 0 ? HOST_PAGE_LARGE - past : 0);
    host_pages_wish_large(b->base, b->bytes);
    return 0;
}

/* Signals are the main thread's business. */
static int start_threads(struct pinned_block *b, struct err *err)
{
    sigset_t all, before;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n = cores > 2 * MOST_THREADS ? MOST_THREADS : cores > 2 ? (int)cores / 2 : 1;
    int code = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (b->n_threads < n && code == 0) {
        code = pthread_create(&b->threads[b->n_threads], NULL, run_thread, b);
        b->n_threads += code == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return b->n_threads == 0 ? err_set_errno(err, code, "cannot start a thread that pins memory")
                             : 0;
}

int pinned_create(int index, size_t bytes, struct pinned_block **out, struct err *err)
{
    struct pinned_block *b = xcalloc(1, sizeof *b);
    int rc = 0;

    b->index = index;
    b->bytes = bytes;
    b->n_segments = b->next = (int64_t)((bytes + SEGMENT - 1) / SEGMENT);
    b->state = xcalloc((size_t)b->n_segments + 1, sizeof *b->state);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    TRY(map(b, err));
    TRY(start_threads(b, err));
    *out = b;
    b = NULL;
out:
    pinned_destroy(b);
    return rc;
}

void pinned_destroy(struct pinned_block *b)
{
    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->closing = true;
    pthread_mutex_unlock(&b->lock);
    for (int k = 0; k < b->n_threads; k++)
        pthread_join(b->threads[k], NULL);
    for (int64_t k = 0; k < b->n_segments; k++)
        if (b->state[k] == REGISTERED)
            cudaHostUnregister(b->base + (size_t)k * SEGMENT);
    if (b->mapped)
        munmap(b->mapped, b->mapped_bytes);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
    free(b->state);
    free(b);
}

void *pinned_base(const struct pinned_block *b)
{
    return b->base;
}

bool pinned_holds(const struct pinned_block *b, const void *at)
{
    const char *p = at;
    return p >= b->base && p < b->base + b->bytes;
}

int pinned_reach(struct pinned_block *b, const void *at, size_t bytes, size_t *reach,
                 struct err *err)
{
    size_t offset = (size_t)((const char *)at - b->base);
    int64_t k = (int64_t)(offset / SEGMENT);
    size_t left = (size_t)k * SEGMENT + segment_bytes(b, k) - offset;

    pthread_mutex_lock(&b->lock);
    while (b->state[k] == WAITING && b->code == cudaSuccess)
        pthread_cond_wait(&b->changed, &b->lock);
    bool fine = b->state[k] == REGISTERED;
    cudaError_t code = b->code;
    pthread_mutex_unlock(&b->lock);
    if (!fine)
        return err_set(err, code == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_DEVICE,
                       "cudaHostRegister failed: %s (%s); lower the job's host memory budget, or "
                       "raise the limit on locked memory",
                       cudaGetErrorString(code), cudaGetErrorName(code));
    *reach = bytes < left ? bytes : left;
    return 0;
}
