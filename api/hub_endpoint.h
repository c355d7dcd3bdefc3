/*
 * The address of a hub, in the one form in which addresses are compared: scheme and host in lower
 * case, no default port, no final slash. "https://Hub.example.org:443/" is
 * "https://hub.example.org". Pure functions but for hub_endpoint_default, which reads the
 * environment.
 */
#ifndef CASTOR_API_HUB_ENDPOINT_H
#define CASTOR_API_HUB_ENDPOINT_H

#include "core/err.h"

/* Fresh. ERR_INVALID for what is not http(s)://host[:port][/path]: credentials, queries and
 * fragments have no place in an address. */
int hub_endpoint_canonical(const char *text, char **out, struct err *err);
/* HF_ENDPOINT or the public hub, canonical and fresh; ERR_INVALID as above. */
int hub_endpoint_default(char **out, struct err *err);

#endif
