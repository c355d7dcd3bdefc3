/* A case on a device: its tensors between sentinels, the call, and what the call left there. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/ops/harness.h"
#include "tests/ops/harness_op.h"

enum { SENTINEL = DEVICE_ALIGN, POISON = 1 << 20 /* bytes at a time */ };
static const unsigned char SENTINEL_BYTE = 0xA5, POISON_BYTE = 0xFF; /* 0xFF...: NaN in all types */

enum dtype bind_dtype(const struct bind *b, const struct op_table *t)
{
    switch (b->elem) {
    case EL_REAL:
        return t->compute;
    case EL_GRAD:
        return t->grad;
    case EL_STAT:
        return t->stat;
    case EL_MASTER:
        return t->master;
    default:
        return (enum dtype)b->elem;
    }
}

static void store_value(enum dtype t, unsigned char *at, double x)
{
    if (t == DT_I32) {
        int32_t i = (int32_t)x;
        memcpy(at, &i, sizeof i);
    } else if (t == DT_U8) {
        *at = (unsigned char)x;
    } else if (t == DT_I16) {
        int16_t i = (int16_t)x;
        memcpy(at, &i, sizeof i);
    } else {
        dtype_convert(t, at, DT_F64, &x, 1);
    }
}

static double load_value(enum dtype t, const unsigned char *at)
{
    double x = 0;
    int32_t i;
    int16_t narrow;

    if (t == DT_I32) {
        memcpy(&i, at, sizeof i);
        return (double)i;
    }
    if (t == DT_U8)
        return (double)*at;
    if (t == DT_I16) {
        memcpy(&narrow, at, sizeof narrow);
        return (double)narrow;
    }
    dtype_convert(DT_F64, &x, t, at, 1);
    return x;
}

static size_t bind_bytes(const struct bind *b, enum dtype t)
{
    return (size_t)((b->rows - 1) * b->ld + b->cols) * dtype_size(t);
}

static unsigned char *at_element(const struct bind *b, enum dtype t, unsigned char *image,
                                 int64_t row, int64_t col)
{
    return image + SENTINEL + (size_t)(row * b->ld + col) * dtype_size(t);
}

/* The memory of a tensor with its sentinels, as it is before the run. */
static unsigned char *make_image(const struct bind *b, const struct op_table *table,
                                 const struct op_table *like, size_t *size)
{
    enum dtype t = bind_dtype(b, table), rounded = bind_dtype(b, like);
    size_t bytes = bind_bytes(b, t);
    unsigned char *image = xmalloc(bytes + 2 * SENTINEL), scratch[8];

    memset(image, SENTINEL_BYTE, bytes + 2 * SENTINEL);
    memset(image + SENTINEL, POISON_BYTE, bytes);
    for (int64_t r = 0; r < b->rows && b->role != ROLE_ASSIGN; r++)
        for (int64_t c = 0; c < b->cols; c++) {
            store_value(rounded, scratch, b->init[r * b->cols + c]);
            store_value(t, at_element(b, t, image, r, c), load_value(rounded, scratch));
        }
    *size = bytes + 2 * SENTINEL;
    return image;
}

static void must(int rc, const struct err *err)
{
    if (rc != 0) {
        fprintf(stderr, "%s\n", err->msg);
        exit(2);
    }
}

/* Everything outside the values of an output, and all of an input, must be what it was. */
static bool untouched(const struct bind *b, enum dtype t, const unsigned char *before,
                      const unsigned char *after, size_t size, bool written)
{
    if (!written)
        return memcmp(before, after, size) == 0;
    size_t row = (size_t)b->ld * dtype_size(t), used = (size_t)b->cols * dtype_size(t);
    for (size_t i = 0; i < size; i++) {
        bool inside = i >= SENTINEL && i < size - SENTINEL && (i - SENTINEL) % row < used;
        if (!inside && before[i] != after[i])
            return false;
    }
    return true;
}

struct memory { /* of one run; the last one is the workspace, without an image */
    unsigned char *image[CASE_BINDS], *device[CASE_BINDS + 1];
    size_t size[CASE_BINDS + 1];
};

static unsigned char *memory_alloc(struct memory *m, int i, const struct target *t, size_t size)
{
    struct err err = {0};
    void *p = NULL;
    must(device_alloc(t->device, size, "a test tensor", &p, &err), &err);
    m->size[i] = size;
    m->device[i] = p;
    return p;
}

static void copy(const struct target *t, enum copy_kind kind, void *to, const void *from,
                 size_t bytes)
{
    struct err err = {0};
    must(device_copy(t->device, t->stream, kind, to, from, bytes, &err), &err);
}

static void wait(const struct target *t)
{
    struct err err = {0};
    must(device_stream_sync(t->device, t->stream, &err), &err);
}

/* The image of a tensor; unset: of its sentinels only. */
static void memory_add(struct memory *m, int i, const struct target *t, bool unset)
{
    unsigned char *p = memory_alloc(m, i, t, m->size[i]), *image = m->image[i];
    size_t end = m->size[i] - SENTINEL;
    copy(t, COPY_H2D, p, image, unset ? SENTINEL : m->size[i]);
    if (unset)
        copy(t, COPY_H2D, p + end, image + end, SENTINEL);
    wait(t);
}

/* It may be large, so it is filled by copies on the device. */
static void workspace_add(struct memory *m, int i, const struct target *t, size_t bytes)
{
    unsigned char *p = memory_alloc(m, i, t, bytes + 2 * SENTINEL), *at = p + SENTINEL;
    unsigned char *fill = xmalloc(POISON), edge[SENTINEL];
    memset(edge, SENTINEL_BYTE, sizeof edge);
    memset(fill, POISON_BYTE, POISON);
    copy(t, COPY_H2D, p, edge, SENTINEL);
    copy(t, COPY_H2D, at + bytes, edge, SENTINEL);
    for (size_t done = 0; done < bytes && !harness_unset(); done += POISON) {
        size_t n = bytes - done < POISON ? bytes - done : POISON;
        copy(t, done > 0 ? COPY_D2D : COPY_H2D, at + done, done > 0 ? at : fill, n);
    }
    wait(t);
    free(fill);
}

static bool workspace_edges_are_whole(const struct memory *m, int i, const struct target *t)
{
    unsigned char edge[2 * SENTINEL];
    size_t wrong = 0;
    copy(t, COPY_D2H, edge, m->device[i], SENTINEL);
    copy(t, COPY_D2H, edge + SENTINEL, m->device[i] + m->size[i] - SENTINEL, SENTINEL);
    wait(t);
    for (size_t k = 0; k < sizeof edge; k++)
        wrong += edge[k] != SENTINEL_BYTE;
    return wrong == 0;
}

static void set_slot(union op_args *args, size_t slot, void *p)
{
    memcpy((char *)args + slot, &p, sizeof p);
}

static void place_tensors(const struct op_case *c, const struct target *t,
                          const struct op_table *like, union op_args *args, struct memory *m)
{
    for (int i = 0; i < c->n; i++) {
        const struct bind *b = &c->b[i];
        if (b->alias >= 0) {
            set_slot(args, b->slot, m->device[b->alias] + SENTINEL);
            continue;
        }
        m->image[i] = make_image(b, t->table, like, &m->size[i]);
        memory_add(m, i, t, harness_unset() && b->role == ROLE_ASSIGN && b->ld == b->cols);
        set_slot(args, b->slot, m->device[i] + SENTINEL);
    }
    size_t bytes = t->table->workspace(c->op, args);
    int slot = op_workspace_slot(c->op);
    assert(bytes == 0 || slot != NO_SLOT);
    workspace_add(m, c->n, t, bytes);
    if (slot != NO_SLOT)
        set_slot(args, (size_t)slot, bytes > 0 ? m->device[c->n] + SENTINEL : NULL);
}

static bool is_written(const struct op_case *c, int i)
{
    for (int k = 0; k < c->n; k++)
        if (c->b[k].alias == i)
            return true;
    return c->b[i].role != ROLE_IN;
}

static void read_tensor(const struct op_case *c, const struct target *t, struct memory *m, int i,
                        struct result *r)
{
    const struct bind *b = &c->b[i];
    int from = b->alias >= 0 ? b->alias : i;
    enum dtype dt = bind_dtype(b, t->table);
    unsigned char *after = xmalloc(m->size[from]);

    copy(t, COPY_D2H, after, m->device[from], m->size[from]);
    wait(t);
    r->v[i] = xcalloc((size_t)(b->rows * b->cols), sizeof(double));
    for (int64_t row = 0; row < b->rows; row++)
        for (int64_t col = 0; col < b->cols; col++)
            r->v[i][row * b->cols + col] = load_value(dt, at_element(b, dt, after, row, col));
    if (from == i)
        expect(untouched(b, dt, m->image[i], after, m->size[i], is_written(c, i)),
               "%s on %s: %s was written where it must not be", c->title, t->table->name, b->name);
    free(after);
}

void case_run(const struct op_case *c, const struct target *t, const struct op_table *like,
              int times, struct result *r)
{
    struct memory m = {0};
    union op_args args = c->args;

    memset(r, 0, sizeof *r);
    place_tensors(c, t, like, &args, &m);
    op_fill_types(c->op, &args, t->table);
    for (int i = 0; i < times && r->rc == 0; i++)
        r->rc = op_call(t->table, t->stream, c->op, &args);
    wait(t);
    for (int i = 0; i < c->n && r->rc == 0; i++)
        read_tensor(c, t, &m, i, r);
    expect(workspace_edges_are_whole(&m, c->n, t), "%s on %s: wrote outside its workspace",
           c->title, t->table->name);
    for (int i = 0; i <= c->n; i++)
        device_free(t->device, m.device[i], m.size[i]);
    for (int i = 0; i < c->n; i++)
        free(m.image[i]);
}

void result_fini(struct result *r)
{
    for (int i = 0; i < CASE_BINDS; i++)
        free(r->v[i]);
    memset(r, 0, sizeof *r);
}
