/*
 * One request as handlers see it, free of sockets: everything is decoded and checked, and owned by
 * the struct. Filled by the HTTP glue (or a test) on one thread, then handed to a handler on
 * another; never shared.
 *
 * URIs are taken raw and decoded here, a segment at a time, because an encoded slash is part of a
 * segment (model ids contain "/"): refused are bad escapes, %00 and other control characters,
 * bytes that are not UTF-8, and "." or ".." segments in any spelling.
 */
#ifndef CASTOR_SERVER_REQUEST_H
#define CASTOR_SERVER_REQUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"

struct api_key;
struct upload;

enum {
    REQUEST_MAX_URI = 8192,
    REQUEST_MAX_HEADER_BYTES = 32768,
    REQUEST_MAX_HEADERS = 100,
    REQUEST_MAX_SEGMENTS = 16,
    REQUEST_MAX_QUERY = 64,
};

struct request_pair {
    char *name, *value;
};

struct request {
    char id[40];                          /* "req_" + 32 hex digits: x-request-id */
    char method[16];                      /* upper case as sent; "?" when longer  */
    char *path;                           /* raw, without the query: for messages and logs */
    char *segments[REQUEST_MAX_SEGMENTS]; /* decoded, between the slashes */
    int n_segments;
    struct request_pair query[REQUEST_MAX_QUERY]; /* decoded, in order */
    int n_query;
    struct request_pair headers[REQUEST_MAX_HEADERS];
    int n_headers;
    struct buf body;           /* JSON bodies                            */
    struct upload *upload;     /* multipart bodies; borrowed             */
    char *object;              /* the route's {id}, decoded; or NULL     */
    const struct api_key *key; /* who asks; NULL where no keys are set up */
};

void request_init(struct request *req, const char *method); /* draws the id */
void request_fini(struct request *req);

/* Split and decode "/path?query". ERR_INVALID names what is wrong. */
int request_set_uri(struct request *req, const char *raw, struct err *err);
/* ERR_INVALID when there are too many. */
int request_add_header(struct request *req, const char *name, const char *value, struct err *err);
/* Case-insensitive; the first one, or NULL. */
const char *request_header(const struct request *req, const char *name);
int request_count_header(const struct request *req, const char *name);
/* The value of a query parameter, or NULL. */
const char *request_query(const struct request *req, const char *name);
/* ERR_INVALID for a parameter that is given twice or is not in the NULL-terminated list; a name
 * that ends in "[]" stands for name[anything]. `api-version`, which Azure's clients add, passes. */
int request_check_query(const struct request *req, const char *const *known, struct err *err);
/* Whole number in min..max; *out is left alone when the parameter is absent. */
int request_query_int(const struct request *req, const char *name, int64_t min, int64_t max,
                      int64_t *out, struct err *err);
/* The body as a JSON object; ERR_INVALID otherwise. */
int request_json(const struct request *req, json_t **out, struct err *err);
/* A body is not needed: none, or an empty object. */
int request_no_body(const struct request *req, struct err *err);

bool text_is_utf8(const char *bytes, size_t n);

#endif
