/*
 * Arenas: one block of device memory and one of pinned host memory, claimed when a job starts and
 * carved by the plan. After the claim nothing is allocated, so an accepted plan does not run out of
 * memory.
 */
#ifndef CASTOR_WORKER_MEMORY_ARENA_H
#define CASTOR_WORKER_MEMORY_ARENA_H

#include <stddef.h>

#include "core/err.h"
#include "kernels/device.h"

enum arena_kind { ARENA_DEVICE, ARENA_PINNED };

struct arena {
    struct device *device; /* borrowed */
    enum arena_kind kind;
    char *base;
    size_t bytes;
};

/* bytes == 0 is an empty arena. */
int arena_init(struct arena *a, struct device *device, enum arena_kind kind, size_t bytes,
               struct err *err);
void arena_fini(struct arena *a);
/* Address of [offset, offset + bytes); asserts that it lies inside. */
void *arena_at(const struct arena *a, size_t offset, size_t bytes);

#endif
