/*
 * A multipart upload on its way to disk: the file goes to STATE/spool while it arrives, whatever
 * the order of the parts (some clients send the file before its purpose), small fields are kept in
 * memory. Nothing is judged before the end but sizes. upload_fini removes the spooled file unless
 * it was renamed away, so that no failure leaves a leftover.
 *
 * The first fault is kept in `error` (with an HTTP status where no err_code has it); later bytes
 * are dropped. One thread at a time.
 */
#ifndef CASTOR_SERVER_UPLOAD_H
#define CASTOR_SERVER_UPLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"

enum { UPLOAD_MAX_FIELDS = 8, UPLOAD_MAX_FIELD_BYTES = 1024 };

struct upload {
    char *path; /* of the spooled file, NULL before the first byte of the file part */
    int fd;     /* open for writing until upload_finish */
    bool has_file;
    char *filename; /* the client's, without directories, valid UTF-8 */
    int64_t bytes, max_bytes;
    struct {
        char name[64];
        struct buf value;
    } fields[UPLOAD_MAX_FIELDS];
    int n_fields;
    bool closed; /* the final boundary came */
    struct err error;
    unsigned error_status; /* 0: that of error.code */
    const char *spool_dir; /* borrowed */
};

void upload_init(struct upload *u, const char *spool_dir, int64_t max_bytes);
void upload_fini(struct upload *u);
/* A piece of part `name`; offset 0 begins the part. */
void upload_add(struct upload *u, const char *name, const char *filename, const char *bytes,
                int64_t offset, size_t n);
/* All parts came: flush to disk. Returns the first fault. */
int upload_finish(struct upload *u, struct err *err);
/* A field's value, or NULL. */
const char *upload_field(const struct upload *u, const char *name);

/* ERR_NOSPACE when `bytes` more would leave less than keep_free on the spool's disk: the database
 * lies there too, and must go on. */
int upload_check_room(const char *spool_dir, int64_t bytes, int64_t keep_free, struct err *err);
/* STATE/spool, emptied: what an earlier castord was receiving when it died. */
int upload_prepare_spool(const char *state_dir, char **spool_dir, struct err *err);

#endif
