/*
 * Handler threads: a bounded queue and N threads, each with a state of its own (a store connection
 * belongs to one thread). The HTTP loops never block in a handler, they hand requests over here.
 *
 * A producer reserves a place first (which may fail) and pushes then (which may not), because
 * between the two it has to give up its hold on the request. Thread-safe.
 */
#ifndef CASTOR_SERVER_POOL_H
#define CASTOR_SERVER_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"

struct pool;

typedef void (*pool_fn)(void *thread_state, void *task);

/* states: n_threads pointers, borrowed; fn runs once for each task, in order of arrival. */
int pool_create(int64_t n_threads, void *const *states, int64_t max_tasks, pool_fn fn,
                struct pool **out, struct err *err);
bool pool_reserve(struct pool *p);
void pool_push(struct pool *p, void *task);
/* Refuse new reservations; true when within `seconds` no task waits or runs any more. */
bool pool_drain(struct pool *p, double seconds);
/* Runs what is queued, then joins the threads. */
void pool_destroy(struct pool *p);

#endif
