/*
 * Who may ask. With API keys configured, everything but health needs one: `Authorization: Bearer
 * KEY` or Azure's `api-key: KEY`; only SHA-256 digests are kept and compared, in constant time.
 *
 * Without keys castord listens on loopback only, and the danger left is a web page in a browser on
 * this machine: so a request must name this machine in Host (else a page could rebind its own name
 * to 127.0.0.1) and must not come from a page of another origin (the Origin header).
 */
#ifndef CASTOR_SERVER_AUTH_H
#define CASTOR_SERVER_AUTH_H

#include <stdbool.h>

#include "server/config.h"
#include "server/reply.h"
#include "server/request.h"

/* True: the request may go on, and req->key is set. False: *rep holds a 401 or 403. */
bool auth_allow(const struct server_config *config, enum role needed, struct request *req,
                struct reply *rep);

#endif
