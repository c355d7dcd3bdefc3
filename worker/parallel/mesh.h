/*
 * The mesh: ranks as points on axes, the innermost first: tensor axes t0, t1, t2, then context,
 * then data, then pipeline. With capitals for sizes:
 *
 *   rank = ((((pipeline * DATA + data) * CONTEXT + context) * T2 + t2) * T1 + t1) * T0 + t0
 *
 * Worked example, PIPELINE 2, DATA 2, T0 2, the others 1:
 *
 *   rank      0  1  2  3  4  5  6  7
 *   t0        0  1  0  1  0  1  0  1
 *   data      0  0  1  1  0  0  1  1
 *   pipeline  0  0  0  0  1  1  1  1
 *
 * Ranks that differ only in t0 talk most and are neighbours on the fastest link.
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
