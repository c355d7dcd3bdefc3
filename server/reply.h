/*
 * One answer, free of sockets: status, headers and either bytes in memory or an open file. Owned by
 * the struct. Errors have OpenAI's envelope {"error":{message,type,param,code}} whatever their
 * origin; texts say what to do next.
 */
#ifndef CASTOR_SERVER_REPLY_H
#define CASTOR_SERVER_REPLY_H

#include <jansson.h>
#include <stdint.h>

#include "api/fault.h"
#include "core/buf.h"
#include "core/err.h"

enum { REPLY_MAX_HEADERS = 8 };

struct reply {
    unsigned status; /* 0 = nothing said yet */
    const char *content_type;
    struct buf body;
    int fd; /* the body is this file's first fd_bytes, or -1 */
    int64_t fd_bytes;
    struct {
        const char *name; /* a literal */
        char *value;
    } headers[REPLY_MAX_HEADERS];
    int n_headers;
};

void reply_init(struct reply *rep);
void reply_fini(struct reply *rep);

/* Takes the reference to `value`. */
void reply_json(struct reply *rep, unsigned status, json_t *value);
/* Text that is JSON already; copied. */
void reply_text(struct reply *rep, unsigned status, const char *content_type, const char *bytes,
                size_t n);
void reply_header(struct reply *rep, const char *name, const char *value);
/* For statuses that have no err_code (401, 405, 413, ...). param and code may be NULL. */
void reply_error(struct reply *rep, unsigned status, const char *param, const char *code,
                 const char *fmt, ...) __attribute__((format(printf, 5, 6)));
void reply_err(struct reply *rep, const struct err *err);
void reply_faults(struct reply *rep, const struct fault_list *faults);
const char *reply_find_header(const struct reply *rep, const char *name);

#endif
