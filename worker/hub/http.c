#include "worker/hub/http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"

enum {
    MAX_HOPS = 8,
    MAX_TRIES = 5,
    MAX_REFUSAL_BYTES = 16384,
    CONNECT_SECONDS = 10,
    SLOW_BYTES_PER_SECOND = 1024, /* slower than this for SLOW_SECONDS is as good as dead */
    SLOW_SECONDS = 60,
    MAX_ASKED_WAIT = 600, /* the hub's rate limits have windows of 300 s */
};
#define USER_AGENT "castor/1"

/* scheme://host:port, or NULL for what is not a plain http(s) URL. */
static char *url_origin(const char *url)
{
    char *scheme = NULL, *host = NULL, *port = NULL, *user = NULL, *origin = NULL;
    CURLU *u = curl_url();

    if (u && curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK &&
        curl_url_get(u, CURLUPART_USER, &user, 0) == CURLUE_NO_USER &&
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
        (strcasecmp(scheme, "http") == 0 || strcasecmp(scheme, "https") == 0) &&
        curl_url_get(u, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
        curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK) {
        origin = xasprintf("%s://%s:%s", scheme, host, port);
        for (char *p = origin; *p; p++)
            if (*p >= 'A' && *p <= 'Z')
                *p = (char)(*p - 'A' + 'a');
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_free(user);
    curl_url_cleanup(u);
    return origin;
}

int http_init(struct http *h, const char *endpoint, const char *token, struct err *err)
{
    size_t n = strlen(endpoint);
    int rc = 0;

    *h = (struct http){.stall_timeout = 10, .wait_scale = 1};
    while (n > 0 && endpoint[n - 1] == '/')
        n--;
    h->endpoint = xstrndup(endpoint, n);
    h->origin = url_origin(h->endpoint);
    if (!h->origin || strpbrk(h->endpoint, "?#")) {
        rc = err_set(err, ERR_INVALID,
                     "'%.200s' is not a hub's address: HF_ENDPOINT must be like "
                     "https://huggingface.co",
                     endpoint);
        goto out;
    }
    for (const char *p = token; p && *p; p++) {
        if ((unsigned char)*p <= ' ' || (unsigned char)*p >= 0x7F) {
            rc = err_set(err, ERR_INVALID,
                         "the hub token holds characters that no token has; check HF_TOKEN or the "
                         "token file");
            goto out;
        }
    }
    h->token = token && *token ? xstrdup(token) : NULL;
    curl_global_init(CURL_GLOBAL_DEFAULT); /* stays for the life of the process */
    h->curl = curl_easy_init();
    if (!h->curl)
        rc = err_set(err, ERR_INTERNAL, "libcurl could not be initialised");
out:
    if (rc != 0)
        http_fini(h);
    return rc;
}

void http_fini(struct http *h)
{
    curl_easy_cleanup(h->curl);
    free(h->endpoint);
    free(h->origin);
    if (h->token)
        explicit_bzero(h->token, strlen(h->token));
    free(h->token);
    *h = (struct http){0};
}

int http_clone(const struct http *from, struct http *out, struct err *err)
{
    int rc = http_init(out, from->endpoint, from->token, err);

    if (rc == 0) {
        out->stall_timeout = from->stall_timeout;
        out->wait_scale = from->wait_scale;
    }
    return rc;
}

static void response_clear_headers(struct http_response *r)
{
    char **values[] = {&r->commit,        &r->linked_etag,   &r->etag,    &r->linked_size,
                       &r->length,        &r->content_range, &r->link,    &r->error_code,
                       &r->error_message, &r->request_id,    &r->location};

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        free(*values[i]);
        *values[i] = NULL;
    }
}

void http_response_fini(struct http_response *r)
{
    response_clear_headers(r);
    free(r->url);
    buf_fini(&r->body);
    *r = (struct http_response){0};
}

bool http_is_endpoint(const struct http *h, const char *url)
{
    char *origin = url_origin(url);
    bool same = origin && strcmp(origin, h->origin) == 0;

    free(origin);
    return same;
}

/* --- one request --- */

struct transfer {
    struct http *http;
    const struct http_request *request;
    struct http_response *response;
    struct err *err;
    double last_byte_at, polled_at;
    curl_off_t bytes_seen;
    bool has_headers, stalled, cancelled;
    int sink_rc;
};

static char *header_value(CURL *curl, const char *name)
{
    struct curl_header *header;

    if (curl_easy_header(curl, name, 0, CURLH_HEADER, -1, &header) != CURLHE_OK)
        return NULL;
    return xstrdup(header->value);
}

/* How much of a URL may be shown: what stands behind '?' can be a signature that gives access. */
static int shown(const char *url)
{
    size_t n = strcspn(url, "?");

    return n < 200 ? (int)n : 200;
}

/* A whole number of seconds at the start of text, or -1. */
static double seconds_of(const char *text)
{
    size_t digits = text ? strspn(text, "0123456789") : 0;

    return digits > 0 && digits < 10 ? strtod(text, NULL) : -1;
}

/* RateLimit: "resolvers";r=0;t=57 says more than Retry-After, but is sent with every answer: it is
 * the cause only when nothing is left (r=0). */
static double asked_wait(const char *rate_limit, const char *retry_after)
{
    const char *left = rate_limit ? strstr(rate_limit, ";r=") : NULL;
    const char *reset = rate_limit ? strstr(rate_limit, ";t=") : NULL;

    if (left && reset && seconds_of(left + 3) == 0 && seconds_of(reset + 3) >= 0)
        return seconds_of(reset + 3);
    return seconds_of(retry_after);
}

static void read_headers(CURL *curl, struct http_response *r)
{
    char *rate_limit = header_value(curl, "RateLimit");
    char *retry_after = header_value(curl, "Retry-After");

    response_clear_headers(r);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &r->status);
    r->commit = header_value(curl, "X-Repo-Commit");
    r->linked_etag = header_value(curl, "X-Linked-Etag");
    r->etag = header_value(curl, "ETag");
    r->linked_size = header_value(curl, "X-Linked-Size");
    r->length = header_value(curl, "Content-Length");
    r->content_range = header_value(curl, "Content-Range");
    r->link = header_value(curl, "Link");
    r->error_code = header_value(curl, "X-Error-Code");
    r->error_message = header_value(curl, "X-Error-Message");
    r->request_id = header_value(curl, "X-Request-Id");
    r->location = header_value(curl, "Location");
    r->retry_after = asked_wait(rate_limit, retry_after);
    free(rate_limit);
    free(retry_after);
}

static size_t on_body(char *bytes, size_t size, size_t count, void *ud)
{
    struct transfer *t = ud;
    struct http_response *r = t->response;
    size_t n = size * count;

    if (!t->has_headers) {
        read_headers(t->http->curl, r);
        t->has_headers = true;
    }
    if (r->status / 100 != 2) {
        if (r->body.len < MAX_REFUSAL_BYTES)
            buf_add(&r->body, bytes, n);
        return n;
    }
    if (t->request->sink) {
        t->sink_rc = t->request->sink(t->request->sink_ud, r, bytes, n, t->err);
        return t->sink_rc == 0 ? n : 0;
    }
    if (n > t->request->max_body_bytes - r->body.len) {
        err_set(t->err, ERR_CORRUPT, "%.*s answers with more than the %zu bytes allowed",
                shown(r->url), r->url, t->request->max_body_bytes);
        t->sink_rc = err_set_reason(t->err, ERR_CORRUPT, "hub_corrupt");
        return 0;
    }
    buf_add(&r->body, bytes, n);
    return n;
}

/* libcurl calls this for every piece and about once a second while nothing comes. Its own low-speed
 * limit works on a five-second average, so silence is measured here. */
static int on_progress(void *ud, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up_now)
{
    struct transfer *t = ud;
    double time = clock_monotonic();

    if (now != t->bytes_seen) {
        t->bytes_seen = now;
        t->last_byte_at = time;
    }
    if (time - t->last_byte_at > t->http->stall_timeout) {
        t->stalled = true;
        return 1;
    }
    if (t->http->poll && time - t->polled_at > 0.25) {
        t->polled_at = time;
        t->cancelled = t->http->poll(t->http->poll_ud) != 0;
    }
    return t->cancelled ? 1 : 0;
}

static struct curl_slist *request_headers(const struct http *h, const char *url)
{
    struct curl_slist *list = curl_slist_append(NULL, "Accept-Encoding: identity");

    if (h->token && http_is_endpoint(h, url)) {
        char *line = xasprintf("Authorization: Bearer %s", h->token);
        list = curl_slist_append(list, line);
        explicit_bzero(line, strlen(line));
        free(line);
    }
    return list;
}

static int transport_error(const struct transfer *t, CURLcode code, const char *detail)
{
    struct http_response *r = t->response;

    if (t->sink_rc != 0)
        return t->sink_rc;
    if (t->cancelled)
        return err_set(t->err, ERR_CANCELLED, "the download was cancelled");
    r->may_retry = true;
    if (t->stalled) {
        err_set(t->err, ERR_NET, "%s sent nothing for %.0f seconds", t->http->origin,
                t->http->stall_timeout);
        return err_set_reason(t->err, ERR_NET, "hub_unavailable");
    }
    /* A certificate that does not fit, or a URL that libcurl refuses, stays so. */
    r->may_retry = code != CURLE_PEER_FAILED_VERIFICATION && code != CURLE_URL_MALFORMAT &&
                   code != CURLE_UNSUPPORTED_PROTOCOL && code != CURLE_SSL_CACERT_BADFILE;
    err_set(t->err, ERR_NET,
            "%.*s cannot be reached: %.200s; check the network, HTTPS_PROXY and HF_ENDPOINT",
            shown(r->url), r->url, *detail ? detail : curl_easy_strerror(code));
    return err_set_reason(t->err, ERR_NET, "hub_unavailable");
}

/* One exchange with r->url, redirects not followed. */
static int send_once(struct http *h, const struct http_request *q, struct http_response *r,
                     struct err *err)
{
    struct transfer t = {.http = h, .request = q, .response = r, .err = err};
    struct curl_slist *headers = request_headers(h, r->url);
    char detail[CURL_ERROR_SIZE] = "";
    char range[32];

    t.last_byte_at = t.polled_at = clock_monotonic();
    buf_clear(&r->body);
    curl_easy_reset(h->curl); /* keeps the connections */
    curl_easy_setopt(h->curl, CURLOPT_URL, r->url);
    curl_easy_setopt(h->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h->curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(h->curl, CURLOPT_NOSIGNAL, 1L); /* several threads download */
    curl_easy_setopt(h->curl, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    curl_easy_setopt(h->curl, CURLOPT_USERAGENT, USER_AGENT);
    curl_easy_setopt(h->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(h->curl, CURLOPT_NOBODY, q->head ? 1L : 0L);
    curl_easy_setopt(h->curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS);
    curl_easy_setopt(h->curl, CURLOPT_LOW_SPEED_LIMIT, (long)SLOW_BYTES_PER_SECOND);
    curl_easy_setopt(h->curl, CURLOPT_LOW_SPEED_TIME, (long)SLOW_SECONDS);
    curl_easy_setopt(h->curl, CURLOPT_BUFFERSIZE, (long)CURL_MAX_READ_SIZE);
    curl_easy_setopt(h->curl, CURLOPT_ERRORBUFFER, detail);
    curl_easy_setopt(h->curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(h->curl, CURLOPT_WRITEDATA, &t);
    curl_easy_setopt(h->curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(h->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(h->curl, CURLOPT_XFERINFODATA, &t);
    if (q->from > 0) {
        snprintf(range, sizeof(range), "%lld-", (long long)q->from);
        curl_easy_setopt(h->curl, CURLOPT_RANGE, range);
    }
    CURLcode code = curl_easy_perform(h->curl);
    curl_slist_free_all(headers);
    if (code != CURLE_OK)
        return transport_error(&t, code, detail);
    if (!t.has_headers)
        read_headers(h->curl, r);
    log_debug("hub", "status=%ld method=%s url=%.*s", r->status, q->head ? "HEAD" : "GET",
              shown(r->url), r->url);
    return 0;
}

/* --- redirects --- */

static int refuse_redirect(const struct http_response *r, const char *why, struct err *err)
{
    const char *to = r->location ? r->location : "";

    err_set(err, ERR_CORRUPT, "refusing the redirect from %.*s to '%.*s': %s", shown(r->url),
            r->url, shown(to), to, why);
    return err_set_reason(err, ERR_CORRUPT, "hub_corrupt");
}

int http_redirect_target(const struct http_response *r, char **out, struct err *err)
{
    char *resolved = NULL, *origin = NULL;
    CURLU *u = curl_url();
    int rc = 0;

    if (!r->location) {
        rc = refuse_redirect(r, "it names no place", err);
        goto out;
    }
    if (curl_url_set(u, CURLUPART_URL, r->url, 0) != CURLUE_OK ||
        curl_url_set(u, CURLUPART_URL, r->location, CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK ||
        curl_url_get(u, CURLUPART_URL, &resolved, 0) != CURLUE_OK) {
        rc = refuse_redirect(r, "that is not a URL", err);
        goto out;
    }
    origin = url_origin(resolved);
    if (!origin)
        rc = refuse_redirect(r, "only plain http and https addresses are followed", err);
    else if (strncasecmp(r->url, "https:", 6) == 0 && strncmp(origin, "https:", 6) != 0)
        rc = refuse_redirect(r, "it leaves https for http", err);
    else
        *out = xstrdup(resolved);
out:
    curl_free(resolved);
    curl_url_cleanup(u);
    free(origin);
    return rc;
}

static bool is_redirect(long status)
{
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

int http_send(struct http *h, const struct http_request *q, struct http_response *r,
              struct err *err)
{
    int rc = 0;

    *r = (struct http_response){.retry_after = -1, .url = xstrdup(q->url)};
    for (int hop = 0;; hop++) {
        char *next = NULL;
        TRY(send_once(h, q, r, err));
        if (!is_redirect(r->status)) {
            free(r->location);
            r->location = NULL;
            break;
        }
        if (hop == MAX_HOPS) {
            rc = refuse_redirect(r, "it is one of too many in a row", err);
            goto out;
        }
        TRY(http_redirect_target(r, &next, err));
        /* "/path" stays with the hub, which is yet to say what the file is; anything else leaves
         * for a store whose headers say nothing about the repository. */
        bool stays = r->location[0] == '/' && r->location[1] != '/' && r->location[1] != '\\';
        if (q->head && !stays) {
            free(r->location);
            r->location = next;
            break;
        }
        free(r->url);
        r->url = next;
    }
out:
    return rc;
}

/* --- tries --- */

int http_retry_wait(struct http *h, struct http_retry *retry, int rc, const struct http_response *r,
                    struct err *err)
{
    double wait = (double)(1 << (retry->failures < 3 ? retry->failures : 3));

    if (!r->may_retry || rc == ERR_CANCELLED)
        return rc;
    if (++retry->failures >= MAX_TRIES)
        return err_wrap(err, rc, "gave up after %d tries", MAX_TRIES);
    if (r->retry_after > MAX_ASKED_WAIT)
        return err_wrap(err, rc, "the hub asks for a pause of %.0f seconds", r->retry_after);
    if (r->retry_after >= 0)
        wait = r->retry_after + 1;
    log_warn("hub", "try=%d wait_s=%.1f reason=%s", retry->failures, wait * h->wait_scale,
             err ? err->msg : "");
    double until = clock_monotonic() + wait * h->wait_scale;
    for (double left; (left = until - clock_monotonic()) > 0;) {
        if (h->poll && h->poll(h->poll_ud) != 0) {
            err_clear(err);
            return err_set(err, ERR_CANCELLED, "the download was cancelled");
        }
        clock_sleep(left < 0.25 ? left : 0.25);
    }
    err_clear(err);
    return 0;
}
