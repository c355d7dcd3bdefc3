#include "worker/memory/arena.h"

#include <assert.h>

int arena_init(struct arena *a, struct device *device, enum arena_kind kind, size_t bytes,
               struct err *err)
{
    void *base = NULL;
    int rc = 0;

    if (bytes > 0) {
        if (kind == ARENA_DEVICE)
            TRY(device_alloc(device, bytes, "the job's device arena", &base, err));
        else
            TRY(device_host_alloc(device, bytes, "the job's pinned host arena", &base, err));
    }
    *a = (struct arena){.device = device, .kind = kind, .base = base, .bytes = bytes};
out:
    return rc;
}

void arena_fini(struct arena *a)
{
    if (a->base) {
        if (a->kind == ARENA_DEVICE)
            device_free(a->device, a->base, a->bytes);
        else
            device_host_free(a->device, a->base, a->bytes);
    }
    *a = (struct arena){0};
}

void *arena_at(const struct arena *a, size_t offset, size_t bytes)
{
    assert(offset <= a->bytes && bytes <= a->bytes - offset);
    return a->base + offset;
}
