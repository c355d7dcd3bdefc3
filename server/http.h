/*
 * HTTP by libmicrohttpd: sockets, framing, limits and time-outs; what a request means is routes.h.
 *
 * Threads: two event loops read requests (uploads go to the spool as they arrive) and send answers.
 * A complete request is suspended and handed to a pool of handler threads, which may block; the
 * handler's thread resumes the connection when the answer is there. The store connections of the
 * handler threads are opened here.
 *
 * Limits: URI 8 KiB (414), headers 32 KiB in all and 100 fields (431), body by route (413),
 * connections in all and for one address, a silent connection and a body that trickles are closed,
 * and at most 4 requests a handler thread wait (503). What libmicrohttpd refuses by itself (a
 * malformed request line, a header block beyond its buffer) has its own short HTML answer.
 */
#ifndef CASTOR_SERVER_HTTP_H
#define CASTOR_SERVER_HTTP_H

#include <stdint.h>

#include "core/err.h"
#include "scheduler/scheduler.h"
#include "server/config.h"

struct http_server;

/* Begins to listen. config and scheduler are borrowed and must outlive the server. */
int http_create(const struct server_config *config, const struct listen_address *listen,
                struct scheduler *scheduler, struct http_server **out, struct err *err);
uint16_t http_port(const struct http_server *h);
/* Accept nothing more, let running requests end within `seconds`. False: some still run, and
 * nothing was freed; the caller can only exit. */
bool http_stop(struct http_server *h, double seconds);

#endif
