/* The comm of an axis with one member. */
#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "worker/parallel/comm.h"

static void self_destroy(struct comm *c)
{
    free(c);
}

static int self_all_reduce(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t,
                           struct err *err)
{
    return 0; /* the sum over one member is what is there */
}

/* Gather and scatter of one part: a copy, unless the part lies in place. */
static int self_copy(struct comm *c, struct stream *s, void *to, const void *from, int64_t n,
                     enum dtype t, struct err *err)
{
    if (to == from)
        return 0;
    return device_copy(c->device, s, COPY_D2D, to, from, (size_t)n * dtype_size(t), err);
}

static int self_all_gather(struct comm *c, struct stream *s, const void *part, void *whole,
                           int64_t n_part, enum dtype t, struct err *err)
{
    return self_copy(c, s, whole, part, n_part, t, err);
}

static int self_reduce_scatter(struct comm *c, struct stream *s, const void *whole, void *part,
                               int64_t n_part, enum dtype t, struct err *err)
{
    return self_copy(c, s, part, whole, n_part, t, err);
}

static int self_broadcast(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t,
                          int64_t root, struct err *err)
{
    assert(root == 0);
    return 0;
}

static int self_send(struct comm *c, struct stream *s, const void *x, int64_t n, enum dtype t,
                     int64_t to, struct err *err)
{
    assert(!"a single rank has nobody to send to");
    return err_set(err, ERR_INTERNAL, "send on an axis with one rank");
}

static int self_recv(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t,
                     int64_t from, struct err *err)
{
    assert(!"a single rank has nobody to receive from");
    return err_set(err, ERR_INTERNAL, "receive on an axis with one rank");
}

static int self_wait(struct comm *c, double seconds, struct err *err)
{
    return 0;
}

static void self_abort(struct comm *c)
{
}

static const struct comm_impl self_impl = {
    .name = "self",
    .ordered = true,
    .destroy = self_destroy,
    .all_reduce = self_all_reduce,
    .all_gather = self_all_gather,
    .reduce_scatter = self_reduce_scatter,
    .broadcast = self_broadcast,
    .send = self_send,
    .recv = self_recv,
    .wait = self_wait,
    .abort = self_abort,
};

int comm_self_create(struct device *device, struct comm **out, struct err *err)
{
    struct comm *c = xcalloc(1, sizeof *c);
    *c = (struct comm){.impl = &self_impl, .rank = 0, .size = 1, .device = device};
    *out = c;
    return 0;
}
