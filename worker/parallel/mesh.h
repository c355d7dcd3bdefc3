/*
 * The mesh: ranks as points on axes. From the innermost: tensor axes t0, t1, t2, then context, then
 * data, then pipeline:
 *
 *   rank = (((pipeline * DATA + data) * CONTEXT + context) * T2 + t2) * T1 ... + t0
 *
 * Worked example, PIPELINE 2, DATA 2, T0 2: rank 5 = ((1 * 2 + 0) * 2 + 1): pipeline 1, data 0,
 * t0 1. Ranks that differ only in t0 (0 and 1, 2 and 3, ...) talk most and are neighbours on the
 * fastest link.
 */
#ifndef CASTOR_WORKER_PARALLEL_MESH_H
#define CASTOR_WORKER_PARALLEL_MESH_H

#include <stdint.h>

#include "core/err.h"

enum mesh_axis { AXIS_T0, AXIS_T1, AXIS_T2, AXIS_CONTEXT, AXIS_DATA, AXIS_PIPELINE, AXIS_COUNT };

struct mesh {
    int64_t size[AXIS_COUNT]; /* each >= 1 */
};

struct mesh_point {
    int64_t at[AXIS_COUNT];
};

int mesh_init(struct mesh *m, const int64_t size[AXIS_COUNT], struct err *err);
int64_t mesh_ranks(const struct mesh *m);
struct mesh_point mesh_locate(const struct mesh *m, int64_t rank);
int64_t mesh_rank(const struct mesh *m, struct mesh_point p);
const char *mesh_axis_name(enum mesh_axis axis);

#endif
