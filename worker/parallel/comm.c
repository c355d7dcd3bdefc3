#include "worker/parallel/comm.h"

void comm_destroy(struct comm *c)
{
    if (c)
        c->impl->destroy(c);
}

int comm_all_reduce(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t,
                    struct err *err)
{
    return c->impl->all_reduce(c, s, x, n, t, err);
}

int comm_all_gather(struct comm *c, struct stream *s, const void *part, void *whole, int64_t n_part,
                    enum dtype t, struct err *err)
{
    return c->impl->all_gather(c, s, part, whole, n_part, t, err);
}

int comm_reduce_scatter(struct comm *c, struct stream *s, const void *whole, void *part,
                        int64_t n_part, enum dtype t, struct err *err)
{
    return c->impl->reduce_scatter(c, s, whole, part, n_part, t, err);
}

int comm_broadcast(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t, int64_t root,
                   struct err *err)
{
    return c->impl->broadcast(c, s, x, n, t, root, err);
}

int comm_send(struct comm *c, struct stream *s, const void *x, int64_t n, enum dtype t, int64_t to,
              struct err *err)
{
    return c->impl->send(c, s, x, n, t, to, err);
}

int comm_recv(struct comm *c, struct stream *s, void *x, int64_t n, enum dtype t, int64_t from,
              struct err *err)
{
    return c->impl->recv(c, s, x, n, t, from, err);
}

int comm_wait(struct comm *c, double seconds, struct err *err)
{
    return c->impl->wait(c, seconds, err);
}

void comm_abort(struct comm *c)
{
    c->impl->abort(c);
}
