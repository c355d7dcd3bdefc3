/*
 * What an answer that is not 2xx means: the hub's own error headers first, then the status. Sets
 * the error's code and reason (the list is in hub.h), and response.may_retry.
 */
#ifndef CASTOR_WORKER_HUB_STATUS_H
#define CASTOR_WORKER_HUB_STATUS_H

#include "core/err.h"
#include "worker/hub/http.h"

/* 0 for 2xx, and for a HEAD that stopped at a redirect. `revision` is for the texts. */
int status_check(const struct http *h, struct http_response *r, const char *repo,
                 const char *revision, struct err *err);

int status_disabled(const char *repo, struct err *err);

/* ERR_CORRUPT with reason hub_corrupt. */
int status_corrupt(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The request again and again until it is answered or fails for good. *r as in http_send. */
int status_request(struct http *h, const struct http_request *q, const char *repo,
                   const char *revision, struct http_response *r, struct err *err);

#endif
