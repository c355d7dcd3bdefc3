/*
 * What the job grammar allows but this build does not do yet, as one table: each row names a
 * member, the values that are done, and what to tell a client that asked for more. Building a
 * feature deletes its row. Codes begin with "unsupported_".
 */
#ifndef CASTOR_API_CAPABILITY_H
#define CASTOR_API_CAPABILITY_H

#include <jansson.h>

#include "api/fault.h"

/* `stored` is the spec's stored form (all members there), `body` the request it came from (may be
 * NULL): members that have no place in a spec are looked up in the body. */
void capability_check(const json_t *stored, const json_t *body, struct fault_list *faults);

#endif
