/*
 * Digests, by way of nettle: sha256 and git's blob sha1 for files from the hub, sha256 for keys and
 * ids. Incremental, so that a download is hashed while it is written. Hex is lower case.
 */
#ifndef CASTOR_CORE_HASH_H
#define CASTOR_CORE_HASH_H

#include <nettle/sha1.h>
#include <nettle/sha2.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

enum hash_kind { HASH_SHA256, HASH_GIT_BLOB_SHA1 };

struct hash {
    enum hash_kind kind;
    struct sha256_ctx sha256;
    struct sha1_ctx sha1;
};

/* total_bytes is needed for git's blob header ("blob <size>\0") only. */
void hash_init(struct hash *h, enum hash_kind kind, int64_t total_bytes);
void hash_update(struct hash *h, const void *bytes, size_t n);
void hash_final_hex(struct hash *h, char out[65]); /* 64 or 40 digits and a NUL */

/* n random bytes from the kernel, as 2n hex digits and a NUL: ids and keys. */
void hash_random_hex(char *out, size_t n_bytes);

#endif
