/*
 * Large blocks of pinned host memory. Pinning takes most of a second a GiB when the driver is left
 * to fetch one small page after the other, so a block is mapped with large pages where the system
 * gives them, and threads of its own fetch and register it in segments, the last one first, while
 * its owner already writes to it. A copy waits for the segments that it touches, and is cut where
 * two of them meet, since the driver copies within one registered range.
 *
 * Threads: any thread may ask for a reach; one thread creates and destroys.
 */
#ifndef CASTOR_KERNELS_CUDA_PINNED_H
#define CASTOR_KERNELS_CUDA_PINNED_H

#include <stdbool.h>
#include <stddef.h>

#include "core/err.h"

enum {
    PINNED_PAGE = 4096,     /* disks read and write whole pages of it directly */
    PINNED_LEAST = 64 << 20 /* bytes from which a block is worth threads */
};

struct pinned_block;

/* For the driver's current device `index`. */
int pinned_create(int index, size_t bytes, struct pinned_block **out, struct err *err);
void pinned_destroy(struct pinned_block *b);
void *pinned_base(const struct pinned_block *b);
bool pinned_holds(const struct pinned_block *b, const void *at);

/* Wait until the segment that holds `at` is registered: how many of the `bytes` from there it
 * holds. ERR_NOMEM when it could not be. */
int pinned_reach(struct pinned_block *b, const void *at, size_t bytes, size_t *reach,
                 struct err *err);

#endif
