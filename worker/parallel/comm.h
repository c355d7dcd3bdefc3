/*
 * Collectives along one axis of the mesh. One comm an axis; all members of the axis call the same
 * sequence of operations with the same sizes on it. Implementations: self (one rank,
 * worker/parallel/comm_self.c); NCCL on GPUs and MPI on CPUs fill the same table.
 *
 * Calls queue on a stream and return; comm_wait is the deadline: it returns ERR_TIMEOUT when the
 * other members do not come within the seconds given, ERR_PEER when one is gone. After either,
 * comm_abort wakes everybody; the comm is then unusable and the attempt ends. Buffers are device
 * memory. Reductions sum in rank order where the implementation can (it says so in `ordered`),
 * which makes them reproducible for a given number of ranks.
 */
#ifndef CASTOR_WORKER_PARALLEL_COMM_H
#define CASTOR_WORKER_PARALLEL_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "kernels/device.h"

struct comm;

struct comm_impl {
    const char *name;
    bool ordered;
    void (*destroy)(struct comm *c);
    int (*all_reduce)(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t,
                      struct err *err);
    int (*all_gather)(struct comm *c, struct stream *s, const void *part, void *whole,
                      int64_t n_part, enum dtype t, struct err *err);
    int (*reduce_scatter)(struct comm *c, struct stream *s, const void *whole, void *part,
                          int64_t n_part, enum dtype t, struct err *err);
    int (*broadcast)(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t,
                     int64_t root, struct err *err);
    int (*send)(struct comm *c, struct stream *s, const void *x, int64_t n, enum dtype t,
                int64_t to, struct err *err);
    int (*recv)(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t, int64_t from,
                struct err *err);
    int (*wait)(struct comm *c, double seconds, struct err *err);
    void (*abort)(struct comm *c);
};

struct comm {
    const struct comm_impl *impl;
    int64_t rank, size; /* on this axis */
    struct device *device;
};

/* The comm of an axis with one member: collectives move nothing or copy. */
int comm_self_create(struct device *device, struct comm **out, struct err *err);
void comm_destroy(struct comm *c);

/* x = sum over members of x, n elements */
int comm_all_reduce(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t,
                    struct err *err);
/* whole (size * n_part) = parts in rank order; part may lie at its place in whole */
int comm_all_gather(struct comm *c, struct stream *s, const void *part, void *whole, int64_t n_part,
                    enum dtype t, struct err *err);
/* part (n_part) = the member's slice of the sum over members of whole */
int comm_reduce_scatter(struct comm *c, struct stream *s, const void *whole, void *part,
                        int64_t n_part, enum dtype t, struct err *err);
int comm_broadcast(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t, int64_t root,
                   struct err *err);
int comm_send(struct comm *c, struct stream *s, const void *x, int64_t n, enum dtype t, int64_t to,
              struct err *err);
int comm_recv(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t, int64_t from,
              struct err *err);
/* Host: wait until everything queued on this comm is done, or the deadline. */
int comm_wait(struct comm *c, double seconds, struct err *err);
void comm_abort(struct comm *c);

#endif
