#include "server/request.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/alloc.h"
#include "core/hash.h"
#include "core/json.h"

void request_init(struct request *req, const char *method)
{
    *req = (struct request){0};
    memcpy(req->id, "req_", 4);
    hash_random_hex(req->id + 4, 16);
    snprintf(req->method, sizeof(req->method), "%s",
             strlen(method) < sizeof(req->method) ? method : "?");
}

static void pairs_free(struct request_pair *pairs, int n)
{
    for (int i = 0; i < n; i++) {
        free(pairs[i].name);
        free(pairs[i].value);
    }
}

void request_fini(struct request *req)
{
    free(req->path);
    free(req->object);
    for (int i = 0; i < req->n_segments; i++)
        free(req->segments[i]);
    pairs_free(req->query, req->n_query);
    pairs_free(req->headers, req->n_headers);
    buf_fini(&req->body);
    *req = (struct request){0};
}

/* Length of the well-formed UTF-8 character at s (RFC 3629: shortest form, no surrogates), or 0. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    size_t len = s[0] < 0x80 ? 1 : s[0] < 0xC2 ? 0 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;

    if (len == 0 || len > n || s[0] > 0xF4)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
        return 0;
    return len;
}

bool text_is_utf8(const char *bytes, size_t n)
{
    const unsigned char *s = (const unsigned char *)bytes;

    while (n > 0) {
        size_t len = utf8_length(s, n);
        if (len == 0)
            return false;
        s += len;
        n -= len;
    }
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Percent-decode n bytes of the URI into a fresh string. */
static int decode(const char *raw, size_t n, bool plus_is_space, char **out, struct err *err)
{
    char *text = xmalloc(n + 1);
    size_t len = 0;
    int rc = 0;

    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)raw[i];
        if (c == '%') {
            int high = i + 2 < n ? hex_digit(raw[i + 1]) : -1;
            int low = high >= 0 ? hex_digit(raw[i + 2]) : -1;
            if (low < 0) {
                rc = err_set(err, ERR_INVALID,
                             "the URL has a '%%' that is not followed by two hex digits; write a "
                             "percent sign as %%25");
                goto out;
            }
            c = (unsigned char)(high * 16 + low);
            i += 2;
        } else if (c >= 0x80) {
            rc = err_set(err, ERR_INVALID, "the URL has bytes outside ASCII; percent-encode them");
            goto out;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        if (c < 0x20 || c == 0x7F) {
            rc = err_set(err, ERR_INVALID, "the URL has the control character %%%02X", c);
            goto out;
        }
        text[len++] = (char)c;
    }
    text[len] = '\0';
    if (!text_is_utf8(text, len)) {
        rc = err_set(err, ERR_INVALID, "the URL does not decode to UTF-8");
        goto out;
    }
    *out = text;
    text = NULL;
out:
    free(text);
    return rc;
}

/* A decoded segment may hold slashes of its own, so dots are looked for between those too. */
static bool has_dot_segment(const char *text)
{
    for (;;) {
        size_t n = strcspn(text, "/\\");
        if ((n == 1 && text[0] == '.') || (n == 2 && text[0] == '.' && text[1] == '.'))
            return true;
        if (!text[n])
            return false;
        text += n + 1;
    }
}

static int path_split(struct request *req, struct err *err)
{
    const char *at = req->path;
    int rc = 0;

    while (*at) {
        const char *start = at + 1; /* behind the slash */
        size_t n = strcspn(start, "/");
        if (req->n_segments == REQUEST_MAX_SEGMENTS) {
            rc = err_set(err, ERR_INVALID, "the URL has more than %d path segments",
                         REQUEST_MAX_SEGMENTS);
            goto out;
        }
        TRY(decode(start, n, false, &req->segments[req->n_segments], err));
        req->n_segments++; /* from here on request_fini frees it */
        if (has_dot_segment(req->segments[req->n_segments - 1])) {
            rc = err_set(err, ERR_INVALID, "the URL has a '.' or '..' segment; write the path out");
            goto out;
        }
        at = start + n;
    }
out:
    return rc;
}

static int query_split(struct request *req, const char *raw, struct err *err)
{
    int rc = 0;

    while (*raw) {
        size_t n = strcspn(raw, "&");
        size_t name_n = strcspn(raw, "=&");
        struct request_pair *pair = &req->query[req->n_query];
        if (n > 0) {
            if (req->n_query == REQUEST_MAX_QUERY) {
                rc = err_set(err, ERR_INVALID, "the URL has more than %d query parameters",
                             REQUEST_MAX_QUERY);
                goto out;
            }
            size_t value_at = name_n < n ? name_n + 1 : n;
            TRY(decode(raw, name_n, true, &pair->name, err));
            req->n_query++; /* from here on request_fini frees the pair */
            TRY(decode(raw + value_at, n - value_at, true, &pair->value, err));
        }
        raw += n + (raw[n] == '&');
    }
out:
    return rc;
}

int request_set_uri(struct request *req, const char *raw, struct err *err)
{
    const char *query;

    if (strncasecmp(raw, "http://", 7) == 0) { /* absolute form, as a proxy would send it */
        raw += 7 + strcspn(raw + 7, "/?#");
        if (*raw != '/')
            raw = "/";
    }
    if (raw[0] != '/' || strchr(raw, '#'))
        return err_set(err, ERR_INVALID, "the URL must be a path that begins with '/'");
    query = strchr(raw, '?');
    req->path = query ? xstrndup(raw, (size_t)(query - raw)) : xstrdup(raw);
    int rc = path_split(req, err);
    return rc != 0 ? rc : query_split(req, query ? query + 1 : "", err);
}

int request_add_header(struct request *req, const char *name, const char *value, struct err *err)
{
    if (req->n_headers == REQUEST_MAX_HEADERS)
        return err_set(err, ERR_INVALID, "the request has more than %d header fields",
                       REQUEST_MAX_HEADERS);
    req->headers[req->n_headers++] =
        (struct request_pair){xstrdup(name), xstrdup(value ? value : "")};
    return 0;
}

const char *request_header(const struct request *req, const char *name)
{
    for (int i = 0; i < req->n_headers; i++)
        if (strcasecmp(req->headers[i].name, name) == 0)
            return req->headers[i].value;
    return NULL;
}

int request_count_header(const struct request *req, const char *name)
{
    int n = 0;

    for (int i = 0; i < req->n_headers; i++)
        n += strcasecmp(req->headers[i].name, name) == 0;
    return n;
}

const char *request_query(const struct request *req, const char *name)
{
    for (int i = 0; i < req->n_query; i++)
        if (strcmp(req->query[i].name, name) == 0)
            return req->query[i].value;
    return NULL;
}

static bool query_is_known(const char *name, const char *const *known)
{
    if (strcmp(name, "api-version") == 0)
        return true;
    for (; *known; known++) {
        size_t n = strlen(*known);
        bool is_map = n > 2 && strcmp(*known + n - 2, "[]") == 0;
        if (is_map ? strncmp(name, *known, n - 1) == 0 && strlen(name) > n &&
                         name[strlen(name) - 1] == ']'
                   : strcmp(name, *known) == 0)
            return true;
    }
    return false;
}

int request_check_query(const struct request *req, const char *const *known, struct err *err)
{
    int rc;

    for (int i = 0; i < req->n_query; i++) {
        const char *name = req->query[i].name;
        if (!query_is_known(name, known)) {
            rc = err_set(err, ERR_INVALID, "query parameter '%.100s' is not known here", name);
            err_set_reason(err, rc, "unknown_parameter");
            return err_set_param(err, rc, name);
        }
        for (int k = 0; k < i; k++) {
            if (strcmp(req->query[k].name, name) == 0) {
                rc = err_set(err, ERR_INVALID, "query parameter '%.100s' is given twice", name);
                return err_set_param(err, rc, name);
            }
        }
    }
    return 0;
}

int request_query_int(const struct request *req, const char *name, int64_t min, int64_t max,
                      int64_t *out, struct err *err)
{
    const char *text = request_query(req, name);
    char *end;

    if (!text)
        return 0;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end || text[0] == ' ' || text[0] == '+' || value < min ||
        value > max) {
        int rc = err_set(err, ERR_INVALID,
                         "query parameter '%s' must be a whole number from %" PRId64 " to %" PRId64
                         ", not '%.40s'",
                         name, min, max, text);
        return err_set_param(err, rc, name);
    }
    *out = value;
    return 0;
}

int request_json(const struct request *req, json_t **out, struct err *err)
{
    json_t *value = NULL;
    int rc;

    if (req->body.len == 0)
        return err_set(err, ERR_INVALID, "the request needs a JSON object as its body");
    rc = json_parse_limited(req->body.data, req->body.len, req->body.len, JSON_MAX_DEPTH_REQUEST,
                            &value, err);
    if (rc != 0) {
        rc = err_wrap(err, rc, "the body cannot be used");
        return err_set_reason(err, rc, "invalid_json");
    }
    if (!json_is_object(value)) {
        json_decref(value);
        return err_set(err, ERR_INVALID, "the body must be a JSON object");
    }
    *out = value;
    return 0;
}

int request_no_body(const struct request *req, struct err *err)
{
    static const char *const none[] = {NULL};
    json_t *body = NULL;
    int rc = 0;

    if (req->body.len == 0)
        return 0;
    TRY(request_json(req, &body, err));
    TRY(json_refuse_unknown(body, "", none, err));
out:
    json_decref(body);
    return rc;
}
