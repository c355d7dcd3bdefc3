/* A case on a device: its tensors between sentinels, the call, and what the call left there. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/ops/harness.h"
#include "tests/ops/harness_op.h"

enum { SENTINEL = DEVICE_ALIGN };
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

struct memory { /* of one run */
    unsigned char *image[CASE_BINDS + 1], *device[CASE_BINDS + 1];
    size_t size[CASE_BINDS + 1];
};

/* unset: only the sentinels are written. */
static void memory_add(struct memory *m, int i, const struct target *t, bool unset)
{
    struct err err = {0};
    void *p = NULL;
    size_t end = m->size[i] - SENTINEL, first = unset ? SENTINEL : m->size[i];
    must(device_alloc(t->device, m->size[i], "a test tensor", &p, &err), &err);
    m->device[i] = p;
    must(device_copy(t->device, t->stream, COPY_H2D, p, m->image[i], first, &err), &err);
    if (unset)
        must(device_copy(t->device, t->stream, COPY_H2D, m->device[i] + end, m->image[i] + end,
                         SENTINEL, &err),
             &err);
    must(device_stream_sync(t->device, t->stream, &err), &err);
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
    m->size[c->n] = bytes + 2 * SENTINEL;
    m->image[c->n] = xmalloc(m->size[c->n]);
    memset(m->image[c->n], SENTINEL_BYTE, m->size[c->n]);
    memset(m->image[c->n] + SENTINEL, POISON_BYTE, bytes);
    memory_add(m, c->n, t, harness_unset());
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
    struct err err = {0};
    const struct bind *b = &c->b[i];
    int from = b->alias >= 0 ? b->alias : i;
    enum dtype dt = bind_dtype(b, t->table);
    unsigned char *after = xmalloc(m->size[from]);

    must(device_copy(t->device, t->stream, COPY_D2H, after, m->device[from], m->size[from], &err),
         &err);
    must(device_stream_sync(t->device, t->stream, &err), &err);
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
    struct err err = {0};
    struct memory m = {0};
    union op_args args = c->args;

    memset(r, 0, sizeof *r);
    place_tensors(c, t, like, &args, &m);
    op_fill_types(c->op, &args, t->table);
    for (int i = 0; i < times && r->rc == 0; i++)
        r->rc = op_call(t->table, t->stream, c->op, &args);
    must(device_stream_sync(t->device, t->stream, &err), &err);
    for (int i = 0; i < c->n && r->rc == 0; i++)
        read_tensor(c, t, &m, i, r);
    unsigned char *after = xmalloc(m.size[c->n]);
    must(device_copy(t->device, t->stream, COPY_D2H, after, m.device[c->n], m.size[c->n], &err),
         &err);
    must(device_stream_sync(t->device, t->stream, &err), &err);
    size_t end = m.size[c->n] - SENTINEL;
    expect(memcmp(after, m.image[c->n], SENTINEL) == 0 &&
               memcmp(after + end, m.image[c->n] + end, SENTINEL) == 0,
           "%s on %s: wrote outside its workspace", c->title, t->table->name);
    free(after);
    for (int i = 0; i <= c->n; i++) {
        device_free(t->device, m.device[i], m.size[i]);
        free(m.image[i]);
    }
}

void result_fini(struct result *r)
{
    for (int i = 0; i < CASE_BINDS; i++)
        free(r->v[i]);
    memset(r, 0, sizeof *r);
}
