/*
 * Zip files and pickles by hand, to make what torch.save never would. A zip is a list of stored
 * members; each field that a check looks at can be bent.
 */
#ifndef CASTOR_TESTS_UNIT_WORKER_MODEL_TORCH_MAKER_H
#define CASTOR_TESTS_UNIT_WORKER_MODEL_TORCH_MAKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"

struct made_member {
    const char *name;
    const void *data;
    size_t bytes;
    const char *local_name; /* NULL: name */
    uint16_t method, flags; /* 0: stored, sizes in the header */
    size_t claimed;         /* 0: bytes, in the directory */
    size_t header;          /* 0: where it really is */
    uint16_t local_method;  /* 0 */
    bool zip64;             /* sizes and place in the directory's extra field */
};

/* Appends the whole archive, with a zip64 end record where asked for. */
void torch_make_zip(struct buf *out, const struct made_member *members, size_t n, bool zip64_end);

/* Pieces of a pickle. Open: protocol 2, an empty dictionary, a mark. Close: set items, stop. */
void torch_pickle_open(struct buf *p);
void torch_pickle_close(struct buf *p);
void torch_pickle_string(struct buf *p, const char *s);
void torch_pickle_int(struct buf *p, int64_t v);
/* "name": a tensor of `rank` dimensions in storage "0" of that type. */
void torch_pickle_tensor(struct buf *p, const char *name, const char *storage_type,
                         int64_t storage_elements, int64_t offset, int rank, const int64_t *shape,
                         const int64_t *stride);

#endif
