#include "worker/parallel/mesh.h"

#include <assert.h>

enum { MESH_MAX_RANKS = 1 << 20 };

const char *mesh_axis_name(enum mesh_axis axis)
{
    static const char *const names[AXIS_COUNT] = {"t0", "t1", "t2", "context", "data", "pipeline"};
    assert(axis < AXIS_COUNT);
    return names[axis];
}

int mesh_init(struct mesh *m, const int64_t size[AXIS_COUNT], struct err *err)
{
    int64_t ranks = 1;
    for (int a = 0; a < AXIS_COUNT; a++) {
        if (size[a] < 1 || size[a] > MESH_MAX_RANKS / ranks)
            return err_set(err, ERR_INVALID,
                           "parallelism axis %s has size %lld; sizes are at least 1 and their "
                           "product at most %d",
                           mesh_axis_name(a), (long long)size[a], MESH_MAX_RANKS);
        ranks *= size[a];
    }
    for (int a = 0; a < AXIS_COUNT; a++)
        m->size[a] = size[a];
    return 0;
}

int64_t mesh_ranks(const struct mesh *m)
{
    int64_t n = 1;
    for (int a = 0; a < AXIS_COUNT; a++)
        n *= m->size[a];
    return n;
}

struct mesh_point mesh_locate(const struct mesh *m, int64_t rank)
{
    struct mesh_point p;
    assert(rank >= 0 && rank < mesh_ranks(m));
    for (int a = 0; a < AXIS_COUNT; a++) {
        p.at[a] = rank % m->size[a];
        rank /= m->size[a];
    }
    return p;
}

int64_t mesh_rank(const struct mesh *m, struct mesh_point p)
{
    int64_t rank = 0;
    for (int a = AXIS_COUNT - 1; a >= 0; a--) {
        assert(p.at[a] >= 0 && p.at[a] < m->size[a]);
        rank = rank * m->size[a] + p.at[a];
    }
    return rank;
}
