/*
 * The threads that update optimizer state in host memory, and lay it out there when a job loads. An
 * update is cut into pieces, which the threads and the caller take one after the other; each piece
 * is the CPU table's one pass over gradient, master, moments and parameter. How an update is cut
 * changes no bit of it (kernels/op_table.h). Every thread has as many pieces as the others, so that
 * they end together.
 *
 * Host memory bounds these updates, and a plan pushes many of them behind each other: so the
 * threads of a GPU's job are bound to a processor each of those that are the job's (cores.h), where
 * the operating system lets them, the first one being left to whoever feeds the device; and between
 * updates they look for the next one for some microseconds before they sleep.
 *
 * One thread calls at a time.
 */
#ifndef CASTOR_WORKER_TRAIN_UPDATE_POOL_H
#define CASTOR_WORKER_TRAIN_UPDATE_POOL_H

#include "core/err.h"
#include "kernels/op_table.h"
#include "worker/memory/chunk.h"

struct update_pool;

/* Processors that this process may use, but the one that is left over. */
int update_pool_all_threads(void);

/* `threads`, the caller among them, at least 1. `ops` is a table of the CPU's, NULL = the one that
 * takes every mixture of types that a GPU's parameters have. */
int update_pool_create(int threads, const struct op_table *ops, struct update_pool **out,
                       struct err *err);
void update_pool_destroy(struct update_pool *p);

/* The table's return code. Everything has been written when it returns. */
int update_pool_adamw(struct update_pool *p, const struct adamw_args *a);
/* Likewise, but master and moments stay as they are, and the new ones go where they are told:
 * kernels/adamw_aside.h. What the parameters were goes to `kept` where they are the master, or a
 * part of it; NULL beside a whole one, of which they can be made. */
int update_pool_adamw_aside(struct update_pool *p, const struct adamw_args *a,
                            char *const to[PART_COUNT], void *kept);
/* Copy what memcpy would, or zeros where `from` is NULL: between updates, for loading. */
void update_pool_copy(struct update_pool *p, void *to, const void *from, size_t bytes);

#endif
