#include "worker/hub/status.h"

#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "worker/hub/reference.h"

int status_corrupt(struct err *err, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    err_setv(err, ERR_CORRUPT, fmt, args);
    va_end(args);
    return err_set_reason(err, ERR_CORRUPT, "hub_corrupt");
}

static bool is(const char *value, const char *expected)
{
    return value && strcmp(value, expected) == 0;
}

static int not_found(const struct http *h, const char *repo, struct err *err)
{
    err_set(err, ERR_NOT_FOUND,
            "%s has no %s '%s', or it is private or gated and %s; check the spelling, or set "
            "HF_TOKEN to a token that may read it",
            h->endpoint, reference_kind(repo), repo,
            h->token ? "the token may not read it" : "no token is set");
    return err_set_reason(err, ERR_NOT_FOUND,
                          reference_is_dataset(repo) ? "dataset_not_found" : "model_not_found");
}

static int gated(const struct http *h, const char *repo, struct err *err)
{
    err_set(err, ERR_PERMISSION,
            "%s '%s' is gated: accept its terms at %s/%s and set HF_TOKEN to a token of that "
            "account",
            reference_kind(repo), repo, h->endpoint, repo);
    return err_set_reason(err, ERR_PERMISSION,
                          reference_is_dataset(repo) ? "gated_dataset" : "gated_model");
}

int status_disabled(const char *repo, struct err *err)
{
    err_set(err, ERR_PERMISSION, "%s '%s' was disabled by the hub", reference_kind(repo), repo);
    return err_set_reason(err, ERR_PERMISSION,
                          reference_is_dataset(repo) ? "dataset_disabled" : "model_disabled");
}

static int unauthorized(const struct http *h, const struct http_response *r, const char *repo,
                        struct err *err)
{
    err_set(err, ERR_PERMISSION, "%s refuses access to '%s' (%ld: %.200s); check HF_TOKEN",
            h->endpoint, repo, r->status, r->error_message ? r->error_message : "no reason given");
    return err_set_reason(err, ERR_PERMISSION, "hub_unauthorized");
}

static int unavailable(const struct http *h, struct http_response *r, const char *repo,
                       struct err *err)
{
    bool store = !http_is_endpoint(h, r->url);

    /* A store's 403 is a signed address that expired: the next try asks the hub for a new one. */
    r->may_retry = r->status == 408 || r->status == 429 || r->status == 500 || r->status == 502 ||
                   r->status == 503 || r->status == 504 || (store && r->status == 403);
    err_set(err, ERR_NET, "%s answers %ld%s%.200s for '%s'%s%.80s; try again later",
            store ? "the hub's file store" : h->endpoint, r->status, r->error_message ? ", " : "",
            r->error_message ? r->error_message : "", repo, r->request_id ? ", request id " : "",
            r->request_id ? r->request_id : "");
    return err_set_reason(err, ERR_NET, "hub_unavailable");
}

int status_check(const struct http *h, struct http_response *r, const char *repo,
                 const char *revision, struct err *err)
{
    if (r->status / 100 == 2 || (r->status / 100 == 3 && r->location))
        return 0;
    r->may_retry = false;
    if (!http_is_endpoint(h, r->url))
        return unavailable(h, r, repo, err);
    if (is(r->error_code, "RevisionNotFound")) {
        err_set(err, ERR_NOT_FOUND, "%s '%s' has no revision '%s'", reference_kind(repo), repo,
                revision);
        return err_set_reason(err, ERR_NOT_FOUND, "revision_not_found");
    }
    if (is(r->error_code, "EntryNotFound"))
        return status_corrupt(err, "%s lists a file of '%s' at '%s' but does not have it",
                              h->endpoint, repo, revision);
    if (is(r->error_code, "GatedRepo"))
        return gated(h, repo, err);
    if (is(r->error_message, "Access to this resource is disabled."))
        return status_disabled(repo, err);
    if (is(r->error_code, "RepoNotFound") ||
        (r->status == 401 && !is(r->error_message, "Invalid credentials in Authorization header")))
        return not_found(h, repo, err);
    if (r->status == 401 || r->status == 403)
        return unauthorized(h, r, repo, err);
    if (r->status == 404)
        return not_found(h, repo, err);
    return unavailable(h, r, repo, err);
}

int status_request(struct http *h, const struct http_request *q, const char *repo,
                   const char *revision, struct http_response *r, struct err *err)
{
    struct http_retry retry = {0};
    struct err own = {0};
    int rc;

    for (;;) {
        rc = http_send(h, q, r, &own);
        if (rc == 0)
            rc = status_check(h, r, repo, revision, &own);
        if (rc == 0 || (rc = http_retry_wait(h, &retry, rc, r, &own)) != 0)
            break;
        http_response_fini(r);
    }
    if (rc != 0 && err)
        *err = own;
    return rc;
}
