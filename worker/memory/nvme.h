/*
 * The third tier: one preallocated file on a fast disk, which a plan carves as it carves memory. It
 * has no name, so it is gone when the process is, however that ends.
 *
 * Reads and writes go past the page cache (O_DIRECT) through io_uring (Axboe, "Efficient IO with
 * io_uring", 2019), cut into pieces of NVME_PIECE bytes of which NVME_DEPTH are under way at a
 * time: a single request leaves a fast disk idle. A file system without O_DIRECT is used through
 * the page cache, and a kernel without io_uring by plain reads and writes; the log tells.
 *
 * Offsets, sizes and host addresses are multiples of NVME_ALIGN. Threads: one may read while
 * another one writes, each through a ring of its own.
 */
#ifndef CASTOR_WORKER_MEMORY_NVME_H
#define CASTOR_WORKER_MEMORY_NVME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

enum { NVME_ALIGN = 4096, NVME_PIECE = 1 << 20, NVME_DEPTH = 32 };

struct nvme_file;

/* Reserves `bytes` in `directory`, so that running out of space is an error here and not in the
 * middle of a step: ERR_NOSPACE names what was asked and what is free. */
int nvme_file_create(const char *directory, size_t bytes, struct nvme_file **out, struct err *err);
void nvme_file_destroy(struct nvme_file *f);

/* Bytes moved since it was created (counted when they set out), and bytes reserved. From any
 * thread. */
struct nvme_counters {
    uint64_t read, written;
    size_t reserved;
};
struct nvme_counters nvme_file_counters(const struct nvme_file *f);

/* Blocking. A short or failed transfer is ERR_IO with the offset. */
int nvme_file_read(struct nvme_file *f, void *to, size_t bytes, size_t offset, struct err *err);
int nvme_file_write(struct nvme_file *f, const void *from, size_t bytes, size_t offset,
                    struct err *err);

#endif
