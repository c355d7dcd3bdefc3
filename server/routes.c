#include "server/routes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "server/auth.h"

static const struct route table[] = {
    {"GET", "/healthz", health_live, ROLE_PUBLIC, BODY_NONE},
    {"GET", "/readyz", health_ready, ROLE_PUBLIC, BODY_NONE},
    {"GET", "/health", health_ready, ROLE_PUBLIC, BODY_NONE},
    {"GET", "/version", health_version, ROLE_PUBLIC, BODY_NONE},
    {"GET", "/openapi.json", health_openapi, ROLE_PUBLIC, BODY_NONE},
    {"POST", "/v1/files", files_create, ROLE_SUBMIT, BODY_MULTIPART},
    {"GET", "/v1/files", files_list, ROLE_READ, BODY_NONE},
    {"GET", "/v1/files/{id}", files_get, ROLE_READ, BODY_NONE},
    {"DELETE", "/v1/files/{id}", files_delete, ROLE_SUBMIT, BODY_NONE},
    {"GET", "/v1/files/{id}/content", files_content, ROLE_READ, BODY_NONE},
    {"POST", "/v1/fine_tuning/estimate", jobs_estimate, ROLE_SUBMIT, BODY_JSON},
    {"POST", "/v1/fine_tuning/jobs", jobs_create, ROLE_SUBMIT, BODY_JSON},
    {"GET", "/v1/fine_tuning/jobs", jobs_list, ROLE_READ, BODY_NONE},
    {"GET", "/v1/fine_tuning/jobs/{id}", jobs_get, ROLE_READ, BODY_NONE},
    {"POST", "/v1/fine_tuning/jobs/{id}/cancel", jobs_cancel, ROLE_SUBMIT, BODY_NONE},
    {"POST", "/v1/fine_tuning/jobs/{id}/pause", jobs_pause, ROLE_SUBMIT, BODY_NONE},
    {"POST", "/v1/fine_tuning/jobs/{id}/resume", jobs_resume, ROLE_SUBMIT, BODY_NONE},
    {"GET", "/v1/fine_tuning/jobs/{id}/events", jobs_events, ROLE_READ, BODY_NONE},
    {"GET", "/v1/fine_tuning/jobs/{id}/checkpoints", jobs_checkpoints, ROLE_READ, BODY_NONE},
    {"GET", "/v1/models", models_list, ROLE_READ, BODY_NONE},
    {"GET", "/v1/models/{id*}", models_get, ROLE_READ, BODY_NONE},
    {"DELETE", "/v1/models/{id*}", models_delete, ROLE_ADMIN, BODY_NONE},
};
enum { TABLE_ROWS = sizeof(table) / sizeof(table[0]) };

const struct route *route_table(int *n)
{
    *n = TABLE_ROWS;
    return table;
}

/* The segments from `first` on, with the slashes between them: a model's id. */
static char *join_segments(const struct request *req, int first)
{
    struct buf text = {0};

    for (int i = first; i < req->n_segments; i++) {
        if (i > first)
            buf_add_char(&text, '/');
        buf_add_str(&text, req->segments[i]);
    }
    return buf_take(&text);
}

/* Does the path fit the pattern? *object is the index of the {id} segment, -1 = none. */
static bool pattern_fits(const char *pattern, const struct request *req, int *object)
{
    *object = -1;
    for (int i = 0; i < req->n_segments; i++) {
        if (*pattern != '/')
            return false;
        pattern++;
        size_t n = strcspn(pattern, "/");
        if (n == 5 && strncmp(pattern, "{id*}", 5) == 0) {
            *object = i;
            return req->segments[req->n_segments - 1][0] != '\0';
        }
        if (n == 4 && strncmp(pattern, "{id}", 4) == 0) {
            *object = i;
            if (req->segments[i][0] == '\0')
                return false;
        } else if (strlen(req->segments[i]) != n || strncmp(pattern, req->segments[i], n) != 0) {
            return false;
        }
        pattern += n;
    }
    return *pattern == '\0';
}

static const struct route *route_find(struct request *req, struct reply *rep)
{
    const char *method = strcmp(req->method, "HEAD") == 0 ? "GET" : req->method;
    char allowed[64] = "";
    int object;

    for (int i = 0; i < TABLE_ROWS; i++) {
        if (!pattern_fits(table[i].pattern, req, &object))
            continue;
        if (strcmp(table[i].method, method) == 0) {
            if (object >= 0)
                req->object = strchr(table[i].pattern, '*') ? join_segments(req, object)
                                                            : xstrdup(req->segments[object]);
            return &table[i];
        }
        size_t n = strlen(allowed);
        snprintf(allowed + n, sizeof(allowed) - n, "%s%s%s", n > 0 ? ", " : "", table[i].method,
                 strcmp(table[i].method, "GET") == 0 ? ", HEAD" : "");
    }
    if (allowed[0]) {
        reply_error(rep, 405, NULL, "method_not_allowed", "%s is not possible at %.200s; use %s",
                    req->method, req->path, allowed);
        reply_header(rep, "Allow", allowed);
    } else {
        reply_error(rep, 404, NULL, "unknown_url",
                    "Invalid URL (%s %.200s); GET /openapi.json lists the valid ones", req->method,
                    req->path);
    }
    return NULL;
}

/* Two readings of where a body ends are how requests get smuggled past a proxy. */
static bool body_is_framed(const struct request *req, struct reply *rep)
{
    int lengths = request_count_header(req, "Content-Length");
    int encodings = request_count_header(req, "Transfer-Encoding");
    const char *encoding = request_header(req, "Transfer-Encoding");
    const char *length = request_header(req, "Content-Length");

    if (lengths + encodings > 1) {
        reply_error(rep, 400, NULL, "invalid_framing",
                    "send Content-Length or Transfer-Encoding, and only one of them");
    } else if (encoding && strcasecmp(encoding, "chunked") != 0) {
        reply_error(rep, 400, NULL, "invalid_framing",
                    "the only Transfer-Encoding understood is chunked");
    } else if (length && (!*length || strspn(length, "0123456789") != strlen(length))) {
        reply_error(rep, 400, NULL, "invalid_framing", "Content-Length must be a decimal number");
    } else if (request_header(req, "Content-Encoding") &&
               strcasecmp(request_header(req, "Content-Encoding"), "identity") != 0) {
        reply_error(rep, 415, NULL, "unsupported_encoding",
                    "compressed bodies are not understood; send it as it is");
    } else {
        return true;
    }
    return false;
}

static bool content_type_is(const char *type, const char *wanted)
{
    size_t n = strlen(wanted);

    return strncasecmp(type, wanted, n) == 0 &&
           (type[n] == '\0' || type[n] == ';' || type[n] == ' ');
}

static bool body_is_acceptable(const struct server_config *config, const struct route *route,
                               const struct request *req, struct reply *rep)
{
    enum { FORM_OVERHEAD = 64 * 1024 };
    const char *type = request_header(req, "Content-Type");
    const char *length = request_header(req, "Content-Length");
    int64_t max = route->body == BODY_MULTIPART ? config->limits.file_bytes + FORM_OVERHEAD
                                                : config->limits.body_bytes;

    if (length && (strlen(length) > 18 || strtoll(length, NULL, 10) > max)) {
        reply_error(rep, 413, route->body == BODY_MULTIPART ? "file" : NULL,
                    route->body == BODY_MULTIPART ? "file_too_large" : "body_too_large",
                    "the body is larger than the %" PRId64 " bytes allowed here", max);
        return false;
    }
    if (route->body == BODY_MULTIPART && (!type || !content_type_is(type, "multipart/form-data"))) {
        reply_error(rep, 415, NULL, "unsupported_media_type",
                    "send multipart/form-data with the parts 'file' and 'purpose'");
        return false;
    }
    /* Without a type it is taken as JSON; a wrong one is how a web page would post here. */
    if (route->body == BODY_JSON && type && !content_type_is(type, "application/json")) {
        reply_error(rep, 415, NULL, "unsupported_media_type",
                    "send JSON with the header 'Content-Type: application/json'");
        return false;
    }
    return true;
}

const struct route *route_admit(const struct server_config *config, struct request *req,
                                struct reply *rep)
{
    const struct route *route;

    if (!body_is_framed(req, rep))
        return NULL;
    route = route_find(req, rep);
    if (!route || !auth_allow(config, route->role, req, rep) ||
        !body_is_acceptable(config, route, req, rep))
        return NULL;
    return route;
}

/* Texts of the server's own troubles may hold paths: they go to the log. */
static bool is_private(const struct err *err)
{
    switch (err->code) {
    case ERR_IO:
    case ERR_CORRUPT:
    case ERR_INTERNAL:
    case ERR_DEVICE:
    case ERR_PERMISSION:
        return err->reason[0] == '\0';
    default:
        return false;
    }
}

void route_run(const struct route *route, struct ctx *ctx, const struct request *req,
               struct reply *rep)
{
    struct err err = {0};
    int rc = route->handler(ctx, req, rep, &err);

    if (rc == 0)
        return;
    if (err.code == 0)
        err_set(&err, (enum err_code)rc, "the request failed without saying why: %s",
                err_code_name((enum err_code)rc));
    reply_fini(rep);
    if (is_private(&err)) {
        log_error("http", "request=%s %s %s: %s", req->id, req->method, req->path, err.msg);
        reply_error(rep, 500, NULL, NULL,
                    "The server had an error while processing your request. Its log says more "
                    "under %s.",
                    req->id);
        return;
    }
    reply_err(rep, &err);
}

void route_finish(const struct server_config *config, const struct request *req, double started,
                  struct reply *rep)
{
    char ms[32];

    snprintf(ms, sizeof(ms), "%.0f", (clock_monotonic() - started) * 1000);
    reply_header(rep, "x-request-id", req->id);
    reply_header(rep, "openai-processing-ms", ms);
    reply_header(rep, "openai-version", "2020-10-01");
    reply_header(rep, "openai-organization", config->organization);
}

bool slow_enter(struct ctx *ctx, struct reply *rep)
{
    if (atomic_fetch_sub(ctx->slow_left, 1) > 0)
        return true;
    atomic_fetch_add(ctx->slow_left, 1);
    reply_error(rep, 503, NULL, "server_busy",
                "too many uploads and plans are being checked at the moment; try again");
    reply_header(rep, "retry-after", "2");
    return false;
}

void slow_leave(struct ctx *ctx)
{
    atomic_fetch_add(ctx->slow_left, 1);
}
