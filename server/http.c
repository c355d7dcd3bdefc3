#include "server/http.h"

#include <inttypes.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "server/pool.h"
#include "server/routes.h"
#include "server/upload.h"

enum {
    LOOP_THREADS = 2,
    CONNECTION_BUFFER = 64 * 1024, /* header block; more than REQUEST_MAX_HEADER_BYTES, so that
                                      what is too long is refused here and not by the library */
    FORM_PIECE = 64 * 1024,
    DRAIN_BYTES = 16 << 20, /* of a refused body, read and dropped so that the answer arrives */
    TRICKLE_SECONDS = 60,   /* a body may take that long, and a second for every ... */
    TRICKLE_BYTES = 1024,   /* ... bytes more                                         */
    TASKS_PER_THREAD = 4,
    ANSWER_WAITS = 200, /* hundredths of a second at the stop */
};

struct http_server {
    const struct server_config *config;
    struct MHD_Daemon *daemon;
    struct pool *pool;
    struct dedupe *dedupe;
    char *spool_dir;
    struct ctx *contexts; /* one a handler thread */
    void **states;
    atomic_int slow_left;
    atomic_bool draining;
    atomic_int exchanges; /* begun and not ended */
    uint16_t port;
};

enum stage { STAGE_HEAD, STAGE_BODY, STAGE_RUNNING };

/* One request from its first line to its answer. */
struct exchange {
    struct http_server *http;
    struct MHD_Connection *connection;
    enum stage stage;
    char *raw_uri;
    struct request req;
    struct reply rep;
    struct upload upload;
    struct MHD_PostProcessor *form;
    const struct route *route; /* NULL: refused, rep holds the answer */
    int64_t body_bytes;
    double started; /* monotonic */
};

static void log_library(void *cls, const char *fmt, va_list args)
{
    char text[512];

    vsnprintf(text, sizeof(text), fmt, args);
    log_debug("http", "%s", text);
}

/* Called with the request line; what it returns is the request's own pointer from then on. */
static void *exchange_begin(void *cls, const char *raw_uri, struct MHD_Connection *connection)
{
    struct exchange *x = xcalloc(1, sizeof(*x));

    x->http = cls;
    atomic_fetch_add(&x->http->exchanges, 1);
    x->connection = connection;
    x->raw_uri = xstrdup(raw_uri);
    x->started = clock_monotonic();
    upload_init(&x->upload, NULL, 0);
    reply_init(&x->rep);
    return x;
}

static void exchange_end(void *cls, struct MHD_Connection *connection, void **req_cls,
                         enum MHD_RequestTerminationCode code)
{
    struct exchange *x = *req_cls;

    if (!x)
        return;
    *req_cls = NULL;
    atomic_fetch_sub(&x->http->exchanges, 1);
    if (x->stage == STAGE_RUNNING)
        log_info("http", "request=%s caller=%s status=%u ms=%.0f %s %.300s%s", x->req.id,
                 x->req.key ? x->req.key->name : "-", x->rep.status,
                 (clock_monotonic() - x->started) * 1000, x->req.method,
                 x->req.path ? x->req.path : "-",
                 code == MHD_REQUEST_TERMINATED_COMPLETED_OK ? "" : " (client went away)");
    if (x->form)
        MHD_destroy_post_processor(x->form);
    upload_fini(&x->upload);
    request_fini(&x->req);
    reply_fini(&x->rep);
    free(x->raw_uri);
    free(x);
}

struct header_copy {
    struct request *req;
    size_t bytes;
    bool too_many;
};

static enum MHD_Result header_add(void *cls, enum MHD_ValueKind kind, const char *name,
                                  const char *value)
{
    struct header_copy *copy = cls;

    copy->bytes += strlen(name) + (value ? strlen(value) : 0) + 4;
    copy->too_many = copy->too_many || request_add_header(copy->req, name, value, NULL) != 0;
    return copy->too_many ? MHD_NO : MHD_YES;
}

static enum MHD_Result form_add(void *cls, enum MHD_ValueKind kind, const char *name,
                                const char *filename, const char *content_type,
                                const char *transfer_encoding, const char *data, uint64_t offset,
                                size_t size)
{
    upload_add(cls, name, filename, data, (int64_t)offset, size);
    return MHD_YES;
}

static void form_begin(struct exchange *x)
{
    const struct server_limits *limits = &x->http->config->limits;
    const char *length = request_header(&x->req, "Content-Length");
    int64_t bytes = length ? strtoll(length, NULL, 10) : 0;
    struct err err = {0};

    upload_init(&x->upload, x->http->spool_dir, limits->file_bytes);
    x->req.upload = &x->upload;
    if (upload_check_room(x->http->spool_dir, bytes, limits->free_bytes, &err) != 0) {
        x->route = NULL;
        reply_err(&x->rep, &err);
        return;
    }
    x->form = MHD_create_post_processor(x->connection, FORM_PIECE, form_add, &x->upload);
    if (!x->form) {
        x->route = NULL;
        reply_error(&x->rep, 400, NULL, NULL,
                    "the Content-Type names no boundary of the multipart body");
    }
}

/* The request's head is there: fill req, and refuse what needs no body to be refused. */
static void head_read(struct exchange *x, const char *method)
{
    struct header_copy copy = {.req = &x->req};
    struct err err = {0};

    request_init(&x->req, method);
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, header_add, &copy);
    if (strlen(x->raw_uri) > REQUEST_MAX_URI) {
        reply_error(&x->rep, 414, NULL, "uri_too_long", "the URL is longer than %d bytes",
                    REQUEST_MAX_URI);
    } else if (copy.too_many || copy.bytes > REQUEST_MAX_HEADER_BYTES) {
        reply_error(&x->rep, 431, NULL, "headers_too_large",
                    "the header is larger than %d bytes or has more than %d fields",
                    REQUEST_MAX_HEADER_BYTES, REQUEST_MAX_HEADERS);
    } else if (request_set_uri(&x->req, x->raw_uri, &err) != 0) {
        err_set_reason(&err, ERR_INVALID, "invalid_url");
        reply_err(&x->rep, &err);
    } else if (atomic_load(&x->http->draining)) {
        reply_error(&x->rep, 503, NULL, "stopping", "the server is stopping; try again soon");
    } else {
        x->route = route_admit(x->http->config, &x->req, &x->rep);
    }
    if (x->route && x->route->body == BODY_MULTIPART)
        form_begin(x);
}

static void body_refuse(struct exchange *x, const char *text)
{
    x->route = NULL;
    buf_clear(&x->req.body);
    reply_error(&x->rep, 413, NULL, "body_too_large", "%s", text);
}

/* False: close the connection without an answer, the only way out in the middle of a body. */
static bool body_read(struct exchange *x, const char *bytes, size_t n)
{
    double seconds = clock_monotonic() - x->started;

    x->body_bytes += (int64_t)n;
    if (seconds > TRICKLE_SECONDS + (double)x->body_bytes / TRICKLE_BYTES) {
        log_info("http", "request=%s closed: the body trickles in", x->req.id);
        return false;
    }
    if (!x->route)
        return x->body_bytes <= DRAIN_BYTES;
    if (x->form) {
        if (x->upload.error.code == 0 && MHD_post_process(x->form, bytes, n) != MHD_YES)
            err_set(&x->upload.error, ERR_INVALID, "the multipart body is malformed");
        /* Only a chunked body gets here with more than was declared. */
        return x->body_bytes <= 2 * x->upload.max_bytes + DRAIN_BYTES;
    }
    if (x->body_bytes > x->http->config->limits.body_bytes)
        body_refuse(x, "the body is larger than allowed here; see limits.body_bytes");
    else
        buf_add(&x->req.body, bytes, n);
    return true;
}

static void headers_copy(struct MHD_Response *response, const struct reply *rep)
{
    MHD_add_response_header(response, "Content-Type", rep->content_type);
    for (int i = 0; i < rep->n_headers; i++)
        MHD_add_response_header(response, rep->headers[i].name, rep->headers[i].value);
}

static enum MHD_Result answer(struct exchange *x)
{
    struct MHD_Response *response;
    struct reply *rep = &x->rep;

    x->stage = STAGE_RUNNING;
    if (rep->status == 0)
        reply_error(rep, 500, NULL, NULL, "The server found no answer to this request");
    route_finish(x->http->config, &x->req, x->started, rep);
    if (rep->fd >= 0) {
        response = MHD_create_response_from_fd64((uint64_t)rep->fd_bytes, rep->fd);
        if (response)
            rep->fd = -1; /* closed by the library */
    } else {
        size_t n = rep->body.len;
        response = MHD_create_response_from_buffer(n, buf_take(&rep->body), MHD_RESPMEM_MUST_FREE);
    }
    if (!response)
        return MHD_NO;
    headers_copy(response, rep);
    enum MHD_Result result = MHD_queue_response(x->connection, rep->status, response);
    MHD_destroy_response(response);
    return result;
}

/* On a handler thread. */
static void run_task(void *thread_state, void *task)
{
    struct exchange *x = task;
    struct MHD_Connection *connection = x->connection;

    route_run(x->route, thread_state, &x->req, &x->rep);
    /* The spooled file was renamed away, or goes now rather than with the connection. */
    upload_fini(&x->upload);
    MHD_resume_connection(connection); /* x belongs to the loop again */
}

static enum MHD_Result body_ended(struct exchange *x)
{
    if (x->form) {
        x->upload.closed = MHD_destroy_post_processor(x->form) == MHD_YES;
        x->form = NULL;
    }
    if (x->route && !pool_reserve(x->http->pool)) {
        reply_error(&x->rep, 503, NULL, "server_busy",
                    "the server has too many requests to work on; try again");
        reply_header(&x->rep, "retry-after", "1");
        x->route = NULL;
    }
    if (!x->route)
        return answer(x);
    x->stage = STAGE_RUNNING;
    MHD_suspend_connection(x->connection);
    pool_push(x->http->pool, x);
    return MHD_YES;
}

/* Is there no point in reading the body of a refused request before the answer? */
static bool answer_early(const struct exchange *x)
{
    const char *length = request_header(&x->req, "Content-Length");
    const char *expect = request_header(&x->req, "Expect");

    return expect || (length && strtoll(length, NULL, 10) > DRAIN_BYTES);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload_data,
                                  size_t *upload_data_size, void **req_cls)
{
    struct exchange *x = *req_cls;

    switch (x->stage) {
    case STAGE_HEAD:
        x->stage = STAGE_BODY;
        head_read(x, method);
        return !x->route && answer_early(x) ? answer(x) : MHD_YES;
    case STAGE_BODY:
        if (*upload_data_size > 0) {
            size_t n = *upload_data_size;
            *upload_data_size = 0;
            return body_read(x, upload_data, n) ? MHD_YES : MHD_NO;
        }
        return body_ended(x);
    case STAGE_RUNNING:
        break;
    }
    return answer(x);
}

static void http_free(struct http_server *h)
{
    pool_destroy(h->pool);
    for (int64_t i = 0; h->contexts && i < h->config->threads; i++)
        if (h->contexts[i].reader)
            store_close(h->contexts[i].reader);
    free(h->contexts);
    free(h->states);
    dedupe_destroy(h->dedupe);
    free(h->spool_dir);
    free(h);
}

static int contexts_create(struct http_server *h, struct scheduler *scheduler, struct err *err)
{
    int64_t n = h->config->threads;
    int rc = 0;

    h->contexts = xcalloc((size_t)n, sizeof(*h->contexts));
    h->states = xcalloc((size_t)n, sizeof(*h->states));
    for (int64_t i = 0; i < n; i++) {
        h->contexts[i] = (struct ctx){.config = h->config,
                                      .scheduler = scheduler,
                                      .dedupe = h->dedupe,
                                      .slow_left = &h->slow_left,
                                      .draining = &h->draining};
        h->states[i] = &h->contexts[i];
        TRY(store_open_reader(h->config->state_dir, &h->contexts[i].reader, err));
    }
    TRY(pool_create(n, h->states, n * TASKS_PER_THREAD, run_task, &h->pool, err));
out:
    return rc;
}

static int daemon_start(struct http_server *h, const struct listen_address *listen, struct err *err)
{
    const struct server_limits *limits = &h->config->limits;
    unsigned flags = MHD_USE_AUTO | MHD_USE_INTERNAL_POLLING_THREAD | MHD_ALLOW_SUSPEND_RESUME |
                     MHD_USE_ERROR_LOG | (listen->addr.ss_family == AF_INET6 ? MHD_USE_IPv6 : 0);

    h->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, log_library, NULL,
        MHD_OPTION_SOCK_ADDR, (const struct sockaddr *)&listen->addr, MHD_OPTION_THREAD_POOL_SIZE,
        (unsigned)LOOP_THREADS, MHD_OPTION_URI_LOG_CALLBACK, exchange_begin, h,
        MHD_OPTION_NOTIFY_COMPLETED, exchange_end, NULL, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)limits->connections, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
        (unsigned)limits->connections_per_address, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)limits->idle_seconds, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_BUFFER, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    if (!h->daemon)
        return err_set(err, ERR_NET,
                       "cannot listen on %s: %m; is another server there? Choose another port "
                       "with --listen",
                       listen->host);
    h->port = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_BIND_PORT)->port;
    return 0;
}

int http_create(const struct server_config *config, const struct listen_address *listen,
                struct scheduler *scheduler, struct http_server **out, struct err *err)
{
    struct http_server *h = xcalloc(1, sizeof(*h));
    int rc = 0;

    h->config = config;
    h->dedupe = dedupe_create();
    /* A part of the threads never waits for children, so that short requests are answered at once.
     */
    atomic_init(&h->slow_left, (int)(config->threads - (config->threads + 3) / 4));
    atomic_init(&h->draining, false);
    TRY(upload_prepare_spool(config->state_dir, &h->spool_dir, err));
    TRY(contexts_create(h, scheduler, err));
    TRY(daemon_start(h, listen, err));
    *out = h;
    h = NULL;
out:
    if (h)
        http_free(h);
    return rc;
}

uint16_t http_port(const struct http_server *h)
{
    return h->port;
}

bool http_stop(struct http_server *h, double seconds)
{
    atomic_store(&h->draining, true);
    MHD_socket listening = MHD_quiesce_daemon(h->daemon);
    if (listening != MHD_INVALID_SOCKET)
        close(listening);
    if (!pool_drain(h->pool, seconds))
        return false;
    /* Nothing is suspended now, nor will be. Let answers that are on their way arrive. */
    for (int i = 0; i < ANSWER_WAITS && atomic_load(&h->exchanges) > 0; i++)
        clock_sleep(0.01);
    MHD_stop_daemon(h->daemon);
    http_free(h);
    return true;
}
