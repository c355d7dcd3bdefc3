/*
 * The zip container of PyTorch's .bin files (torch >= 1.6): members that are stored, never
 * compressed, so that each is a range of the file. Everything in it is untrusted: the directory is
 * held against the file's size and against each member's own header, names must be different, and
 * ranges must not overlap. Format: PKWARE's APPNOTE 6.3, with its zip64 fields.
 */
#ifndef CASTOR_WORKER_MODEL_TORCH_ZIP_H
#define CASTOR_WORKER_MODEL_TORCH_ZIP_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

struct torch_zip_member {
    char *name;
    size_t header;       /* where its own header lies */
    size_t begin, bytes; /* its data: absolute position in the file, length */
};

struct torch_zip {
    int fd;
    char *path;
    struct torch_zip_member *members; /* sorted by name */
    int64_t n_members;
};

int torch_zip_open(const char *path, struct torch_zip *out, struct err *err);
void torch_zip_close(struct torch_zip *z); /* a zeroed one is fine */
/* NULL when there is none. */
const struct torch_zip_member *torch_zip_find(const struct torch_zip *z, const char *name);

#endif
