#include <criterion/criterion.h>
#include <string.h>

#include "worker/parallel/comm.h"
#include "worker/parallel/mesh.h"

static struct mesh make(int64_t t0, int64_t data, int64_t pipeline)
{
    int64_t size[AXIS_COUNT] = {t0, 1, 1, 1, data, pipeline};
    struct mesh m;
    struct err err = {0};
    cr_assert_eq(mesh_init(&m, size, &err), 0, "%s", err.msg);
    return m;
}

Test(mesh, the_worked_example)
{
    struct mesh m = make(2, 2, 2);
    static const int64_t t0[] = {0, 1, 0, 1, 0, 1, 0, 1};
    static const int64_t data[] = {0, 0, 1, 1, 0, 0, 1, 1};
    static const int64_t pipeline[] = {0, 0, 0, 0, 1, 1, 1, 1};
    cr_assert_eq(mesh_ranks(&m), 8);
    for (int64_t r = 0; r < 8; r++) {
        struct mesh_point p = mesh_locate(&m, r);
        cr_expect_eq(p.at[AXIS_T0], t0[r]);
        cr_expect_eq(p.at[AXIS_DATA], data[r]);
        cr_expect_eq(p.at[AXIS_PIPELINE], pipeline[r]);
        cr_expect_eq(mesh_rank(&m, p), r);
    }
}

Test(mesh, every_axis_round_trips)
{
    int64_t size[AXIS_COUNT] = {2, 3, 2, 2, 3, 2};
    struct mesh m;
    cr_assert_eq(mesh_init(&m, size, NULL), 0);
    cr_assert_eq(mesh_ranks(&m), 144);
    for (int64_t r = 0; r < 144; r++)
        cr_expect_eq(mesh_rank(&m, mesh_locate(&m, r)), r);
}

Test(mesh, refuses_sizes_that_make_no_sense)
{
    struct mesh m;
    struct err err = {0};
    int64_t zero[AXIS_COUNT] = {1, 1, 1, 1, 0, 1};
    int64_t huge[AXIS_COUNT] = {1 << 15, 1 << 15, 1 << 15, 1 << 15, 1 << 15, 1};
    cr_expect_eq(mesh_init(&m, zero, &err), ERR_INVALID);
    cr_expect(strstr(err.msg, "data") != NULL);
    err_clear(&err);
    cr_expect_eq(mesh_init(&m, huge, &err), ERR_INVALID);
}

Test(comm_self, leaves_sums_and_copies_parts)
{
    struct device_options o = {0};
    struct device *d = NULL;
    struct stream *s = NULL;
    struct comm *c = NULL;
    float x[4] = {1, 2, 3, 4}, y[4] = {0};
    struct err err = {0};
    cr_assert_eq(device_open(DEVICE_CPU, 0, &o, &d, &err), 0, "%s", err.msg);
    cr_assert_eq(device_stream_create(d, 0, &s, &err), 0);
    cr_assert_eq(comm_self_create(d, &c, &err), 0);
    cr_expect_eq(c->size, 1);
    cr_expect_eq(comm_all_reduce(c, s, x, 4, DT_F32, &err), 0);
    cr_expect_eq(x[3], 4);
    cr_expect_eq(comm_all_gather(c, s, x, y, 4, DT_F32, &err), 0);
    cr_expect_eq(memcmp(x, y, sizeof x), 0);
    cr_expect_eq(comm_all_gather(c, s, y, y, 4, DT_F32, &err), 0);
    memset(y, 0, sizeof y);
    cr_expect_eq(comm_reduce_scatter(c, s, x, y, 4, DT_F32, &err), 0);
    cr_expect_eq(memcmp(x, y, sizeof x), 0);
    cr_expect_eq(comm_broadcast(c, s, x, 4, DT_F32, 0, &err), 0);
    cr_expect_eq(comm_wait(c, 1.0, &err), 0);
    comm_destroy(c);
    device_stream_destroy(d, s);
    device_close(d);
}
