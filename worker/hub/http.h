/*
 * Requests over libcurl: one request with its redirects, and the waits between tries.
 *
 * Redirects are followed here rather than by libcurl, for three reasons: the headers that matter
 * are on the hub's own answer and would be lost behind a redirect; the token may go to the
 * endpoint's own scheme, host and port only; and nothing but http and https may be followed, never
 * from https back to http.
 *
 * A request fails in two ways. The return value tells of transport errors, refused redirects, and
 * errors of the sink. A status such as 404 is not an error here: status.h says what it means.
 * response.may_retry tells whether trying again can help.
 */
#ifndef CASTOR_WORKER_HUB_HTTP_H
#define CASTOR_WORKER_HUB_HTTP_H

#include <curl/curl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"

/* Called a few times a second during requests and waits; non-zero cancels. */
typedef int (*http_poll_fn)(void *ud);

struct http {
    CURL *curl;
    char *endpoint; /* without a final slash */
    char *origin;   /* scheme://host:port of the endpoint */
    char *token;    /* NULL = none */
    double stall_timeout, wait_scale;
    http_poll_fn poll; /* may be NULL */
    void *poll_ud;
};

/* Copies its arguments. ERR_INVALID for an endpoint that is not an http(s) URL and for a token with
 * characters that no token has. */
int http_init(struct http *h, const char *endpoint, const char *token, struct err *err);
void http_fini(struct http *h);
/* Another connection with the same settings, for another thread; without poll. */
int http_clone(const struct http *from, struct http *out, struct err *err);

struct http_response;
/* A piece of the body of a 2xx answer; the response's headers are already filled in. */
typedef int (*http_sink_fn)(void *ud, const struct http_response *r, const void *bytes, size_t n,
                            struct err *err);

struct http_request {
    const char *url;
    bool head;         /* HEAD: stop at the first redirect to another place */
    int64_t from;      /* > 0: ask for the bytes from here on */
    http_sink_fn sink; /* NULL: the body goes to response.body */
    void *sink_ud;
    size_t max_body_bytes; /* of response.body; a longer one is ERR_CORRUPT */
};

struct http_response {
    long status;
    char *url;      /* of the last request made */
    char *location; /* where a HEAD stopped: an absolute URL; NULL where the answer came at once */
    /* Header values, NULL where absent. */
    char *commit, *linked_etag, *etag, *linked_size, *length, *content_range, *link;
    char *error_code, *error_message, *request_id;
    bool may_retry;
    double retry_after; /* seconds that the server asked to wait, < 0 = it did not say */
    struct buf body;    /* of a refusal at most the beginning */
};
void http_response_fini(struct http_response *r);

/* *r is set up here whether the call succeeds or not; finish it before the next use. */
int http_send(struct http *h, const struct http_request *q, struct http_response *r,
              struct err *err);

/* Where r->location leads, seen from r->url: an absolute URL, freed by the caller. ERR_CORRUPT for
 * what is not followed: no location, other schemes than http and https, names and passwords in the
 * address, and from https to http, where everybody on the way could read and change what comes. */
int http_redirect_target(const struct http_response *r, char **out, struct err *err);

/* Whether url lies on the endpoint's scheme, host and port. */
bool http_is_endpoint(const struct http *h, const char *url);

/* Tries in a row without progress: five, waiting 1, 2, 4, 8 seconds (times wait_scale) or what the
 * server asked for. Called after a failed try with its error: 0 = waited, the error is cleared, try
 * again; otherwise the error to give up with. */
struct http_retry {
    int failures;
};
int http_retry_wait(struct http *h, struct http_retry *retry, int rc, const struct http_response *r,
                    struct err *err);

#endif
