#include "server/reply.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/api_error.h"
#include "core/alloc.h"
#include "core/json.h"

void reply_init(struct reply *rep)
{
    *rep = (struct reply){.fd = -1, .content_type = "application/json"};
}

/* Forget the answer so far: an error may come after a handler began one. */
void reply_fini(struct reply *rep)
{
    if (rep->fd >= 0)
        close(rep->fd);
    buf_fini(&rep->body);
    for (int i = 0; i < rep->n_headers; i++)
        free(rep->headers[i].value);
    reply_init(rep);
}

void reply_header(struct reply *rep, const char *name, const char *value)
{
    assert(rep->n_headers < REPLY_MAX_HEADERS);
    rep->headers[rep->n_headers].name = name;
    rep->headers[rep->n_headers++].value = xstrdup(value);
}

const char *reply_find_header(const struct reply *rep, const char *name)
{
    for (int i = 0; i < rep->n_headers; i++)
        if (strcmp(rep->headers[i].name, name) == 0)
            return rep->headers[i].value;
    return NULL;
}

void reply_text(struct reply *rep, unsigned status, const char *content_type, const char *bytes,
                size_t n)
{
    rep->status = status;
    rep->content_type = content_type;
    buf_clear(&rep->body);
    buf_add(&rep->body, bytes, n);
}

void reply_json(struct reply *rep, unsigned status, json_t *value)
{
    char *line = json_to_line(value);

    reply_text(rep, status, "application/json", line, strlen(line));
    free(line);
    json_decref(value);
    /* The SDKs try a 409 again, which cannot help: the state does not allow the request. */
    if (status == 409)
        reply_header(rep, "x-should-retry", "false");
}

void reply_error(struct reply *rep, unsigned status, const char *param, const char *code,
                 const char *fmt, ...)
{
    struct err clean = {0}; /* makes valid UTF-8 of whatever is quoted */
    va_list args;
    const char *type = status >= 500   ? "server_error"
                       : status == 429 ? "rate_limit_error"
                                       : "invalid_request_error";

    va_start(args, fmt);
    err_setv(&clean, ERR_INVALID, fmt, args);
    va_end(args);
    if (param)
        err_set_param(&clean, ERR_INVALID, param);
    reply_json(rep, status,
               json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error", "message", clean.msg, "type", type,
                         "param", param ? clean.param : NULL, "code", code));
}

void reply_err(struct reply *rep, const struct err *err)
{
    reply_json(rep, api_error_status(err->code), api_error_to_json(err));
}

void reply_faults(struct reply *rep, const struct fault_list *faults)
{
    reply_json(rep, 400, api_error_from_faults(faults));
}
