#include "worker/text/parquet_meta.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/text/thrift.h"
#include "worker/text/utf8.h"

enum {
    MAGIC_BYTES = 4,
    TAIL_BYTES = 8, /* the footer's length and the magic number */
    MAX_NAME = 1024,
    MAX_GROUPS = 1 << 20,
};
/* Entries that a column may have: a run of one value is a few bytes, whatever its length. */
#define FREE_ENTRIES      INT64_C(10000000)
#define ENTRIES_EACH_BYTE INT64_C(1000)

/* Numbers of the format. */
enum { CONVERTED_MAP = 1, CONVERTED_MAP_PAIRS = 2, CONVERTED_LIST = 3 };
enum { LOGICAL_MAP = 2, LOGICAL_LIST = 3 };

int parquet_corrupt(struct err *err, const char *fmt, ...)
{
    char why[300];
    va_list args;

    va_start(args, fmt);
    vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    return err_set(err, ERR_CORRUPT, "the Parquet file is damaged: %s; write it again", why);
}

void parquet_meta_fini(struct parquet_meta *m)
{
    for (int i = 0; i < m->n_nodes; i++)
        free(m->nodes[i].name);
    for (int64_t i = 0; i < m->n_groups; i++)
        free(m->groups[i].chunks);
    free(m->nodes);
    free(m->groups);
    memset(m, 0, sizeof(*m));
}

/* --- the schema --- */

/* A schema element as it stands in the footer. */
struct element {
    int64_t type, repetition, children, converted;
    int logical;
    const char *name;
    size_t name_n;
};

static int read_logical(struct thrift *t, enum thrift_type type)
{
    int id = 0, first = 0;
    enum thrift_type inner;

    if (!thrift_is_struct(t, type))
        return 0;
    while (thrift_field(t, &id, &inner)) {
        first = first ? first : id;
        thrift_skip(t, inner);
    }
    return first;
}

static void read_element(struct thrift *t, struct element *e)
{
    enum thrift_type type;
    int id = 0;

    *e = (struct element){.type = -1, .converted = -1, .repetition = PARQUET_REQUIRED};
    while (thrift_field(t, &id, &type)) {
        if (id == 1)
            e->type = thrift_int(t, type);
        else if (id == 3)
            e->repetition = thrift_int(t, type);
        else if (id == 4)
            e->name = thrift_binary(t, type, &e->name_n);
        else if (id == 5)
            e->children = thrift_int(t, type);
        else if (id == 6)
            e->converted = thrift_int(t, type);
        else if (id == 10)
            e->logical = read_logical(t, type);
        else
            thrift_skip(t, type);
    }
}

static enum parquet_kind kind_of(const struct element *e)
{
    if (e->type >= 0)
        return PARQUET_LEAF;
    if (e->converted == CONVERTED_LIST || e->logical == LOGICAL_LIST)
        return PARQUET_LIST;
    if (e->converted == CONVERTED_MAP || e->converted == CONVERTED_MAP_PAIRS ||
        e->logical == LOGICAL_MAP)
        return PARQUET_MAP;
    return PARQUET_STRUCT;
}

static int check_element(const struct element *e, const struct thrift *t, struct err *err)
{
    if (t->bad || !e->name || e->name_n == 0 || e->name_n > MAX_NAME ||
        memchr(e->name, '\0', e->name_n) || utf8_check(e->name, e->name_n) != e->name_n)
        return parquet_corrupt(err, "its schema cannot be read");
    if (e->children < 0 || e->children > PARQUET_MAX_NODES || e->type > PARQUET_FIXED_BYTES ||
        e->repetition < PARQUET_REQUIRED || e->repetition > PARQUET_REPEATED ||
        (e->type >= 0 && e->children > 0))
        return parquet_corrupt(err, "column '%.60s' has an impossible type", e->name);
    return 0;
}

/* Which node is an element of the list `i`: the format's rules for lists that older writers made
 * without a group of their own around the element. */
static int find_element(const struct parquet_meta *m, int i)
{
    const struct parquet_node *list = &m->nodes[i], *inner = &m->nodes[i + 1];

    if (list->end == i + 1 || inner->end != list->end || inner->repetition != PARQUET_REPEATED)
        return -1;
    bool one_child = inner->end > i + 2 && m->nodes[i + 2].end == inner->end;
    size_t n = strlen(inner->name);
    bool is_tuple = n > 6 && strcmp(inner->name + n - 6, "_tuple") == 0;
    if (inner->kind == PARQUET_LEAF || !one_child || strcmp(inner->name, "array") == 0 || is_tuple)
        return i + 1;
    return m->nodes[i + 2].repetition == PARQUET_REPEATED ? i + 1 : i + 2;
}

/* Read node m->n_nodes and everything below it. */
static int read_node(struct thrift *t, struct parquet_meta *m, int64_t left, int parent, int depth,
                     struct err *err)
{
    int i = m->n_nodes, rc = 0;
    struct element e;

    read_element(t, &e);
    TRY(check_element(&e, t, err));
    if (i >= left || depth > PARQUET_MAX_DEPTH)
        return parquet_corrupt(err, "its schema %s",
                               depth > PARQUET_MAX_DEPTH ? "is nested too deeply" : "is cut off");
    struct parquet_node *node = &m->nodes[m->n_nodes++];
    *node = (struct parquet_node){.name = xstrndup(e.name, e.name_n),
                                  .kind = kind_of(&e),
                                  .repetition = (enum parquet_repetition)e.repetition,
                                  .leaf = m->n_leaves,
                                  .element = -1,
                                  .type = (enum parquet_type)(e.type >= 0 ? e.type : 0)};
    if (parent >= 0) {
        node->def = m->nodes[parent].def + (node->repetition != PARQUET_REQUIRED);
        node->rep = m->nodes[parent].rep + (node->repetition == PARQUET_REPEATED);
    } else {
        node->repetition = PARQUET_REQUIRED;
        node->kind = PARQUET_STRUCT;
    }
    m->n_leaves += node->kind == PARQUET_LEAF;
    for (int64_t child = 0; child < e.children; child++)
        TRY(read_node(t, m, left, i, depth + 1, err));
    node->end = m->n_nodes;
    node->n_leaves = m->n_leaves - node->leaf;
    if (node->n_leaves == 0 && parent >= 0)
        return parquet_corrupt(err, "the group '%.60s' has no columns", node->name);
    if (node->kind == PARQUET_LIST)
        node->element = find_element(m, i);
out:
    return rc;
}

static int read_schema(struct thrift *t, enum thrift_type type, struct parquet_meta *m,
                       struct err *err)
{
    int64_t n = thrift_list(t, type, THRIFT_STRUCT);
    int rc = 0;

    if (t->bad || n == 0 || n > PARQUET_MAX_NODES || m->nodes)
        return parquet_corrupt(err, "its schema has %" PRId64 " columns", n);
    m->nodes = xcalloc((size_t)n, sizeof(*m->nodes));
    TRY(read_node(t, m, n, -1, 0, err));
    if (m->n_nodes != n)
        rc = parquet_corrupt(err, "its schema has columns outside the root");
out:
    return rc;
}

/* --- row groups --- */

struct footer {
    struct thrift t;
    struct parquet_meta *m;
    int64_t data_end; /* where the footer begins */
    int64_t rows;
    int64_t bytes, most_entries; /* of all chunks together; of a column */
};

static void read_chunk_meta(struct thrift *t, enum thrift_type type, struct parquet_chunk *c)
{
    int64_t data = 0, dictionary = 0;
    int id = 0;

    if (!thrift_is_struct(t, type))
        return;
    while (thrift_field(t, &id, &type)) {
        if (id == 4)
            c->codec = (int)thrift_int(t, type);
        else if (id == 5)
            c->values = thrift_int(t, type);
        else if (id == 7)
            c->bytes = thrift_int(t, type);
        else if (id == 9)
            data = thrift_int(t, type);
        else if (id == 11)
            dictionary = thrift_int(t, type);
        else
            thrift_skip(t, type);
    }
    if (c->values == 0) { /* no pages, and offsets that mean nothing */
        c->bytes = 0;
        data = MAGIC_BYTES;
    }
    c->offset = dictionary > 0 && dictionary < data ? dictionary : data;
}

static int read_chunk(struct footer *f, struct parquet_chunk *c, struct err *err)
{
    struct thrift *t = &f->t;
    enum thrift_type type;
    int id = 0;

    while (thrift_field(t, &id, &type)) {
        if (id == 3)
            read_chunk_meta(t, type, c);
        else if (id == 1)
            return err_set(err, ERR_UNSUPPORTED,
                           "the Parquet file keeps its columns in other files; write it as one");
        else if (id == 8 || id == 9)
            return err_set(err, ERR_UNSUPPORTED, "the Parquet file is encrypted; write it plain");
        else
            thrift_skip(t, type);
    }
    if (t->bad || c->bytes < 0 || c->values < 0 || c->values > f->most_entries ||
        c->offset < MAGIC_BYTES || c->offset > f->data_end || c->bytes > f->data_end - c->offset)
        return parquet_corrupt(err, "a column lies outside the file");
    f->bytes += c->bytes;
    if (f->bytes > f->data_end)
        return parquet_corrupt(err, "columns overlap");
    return 0;
}

static int read_group(struct footer *f, struct parquet_group *g, struct err *err)
{
    struct thrift *t = &f->t;
    enum thrift_type type;
    int id = 0, rc = 0;

    g->rows = -1;
    while (thrift_field(t, &id, &type)) {
        if (id == 3) {
            g->rows = thrift_int(t, type);
        } else if (id == 1) {
            int64_t n = thrift_list(t, type, THRIFT_STRUCT);
            if (t->bad || n != f->m->n_leaves || g->chunks)
                return parquet_corrupt(err,
                                       "a row group has %" PRId64 " columns, but the schema %d", n,
                                       f->m->n_leaves);
            g->chunks = xcalloc((size_t)n + 1, sizeof(*g->chunks));
            for (int64_t i = 0; i < n; i++)
                TRY(read_chunk(f, &g->chunks[i], err));
        } else {
            thrift_skip(t, type);
        }
    }
    if (t->bad || g->rows < 0 || !g->chunks || g->rows > INT64_MAX - f->m->rows)
        return parquet_corrupt(err, "a row group cannot be read");
    f->m->rows += g->rows;
out:
    return rc;
}

static int read_groups(struct footer *f, enum thrift_type type, struct err *err)
{
    struct parquet_meta *m = f->m;
    int64_t n = thrift_list(&f->t, type, THRIFT_STRUCT);
    int rc = 0;

    if (f->t.bad || n > MAX_GROUPS || m->groups || !m->nodes)
        return parquet_corrupt(err, "its row groups cannot be read");
    m->groups = xcalloc((size_t)n + 1, sizeof(*m->groups));
    for (int64_t i = 0; i < n; i++) {
        m->n_groups++;
        TRY(read_group(f, &m->groups[i], err));
    }
out:
    return rc;
}

static int read_footer(struct footer *f, struct err *err)
{
    struct thrift *t = &f->t;
    enum thrift_type type;
    int id = 0, rc = 0;

    f->rows = -1;
    while (thrift_field(t, &id, &type)) {
        if (id == 2)
            TRY(read_schema(t, type, f->m, err));
        else if (id == 3)
            f->rows = thrift_int(t, type);
        else if (id == 4)
            TRY(read_groups(f, type, err));
        else if (id == 8)
            return err_set(err, ERR_UNSUPPORTED, "the Parquet file is encrypted; write it plain");
        else
            thrift_skip(t, type);
    }
    if (t->bad || !f->m->nodes || !f->m->groups)
        return parquet_corrupt(err, "its footer cannot be read");
    if (f->rows != f->m->rows)
        return parquet_corrupt(
            err, "the footer says %" PRId64 " rows, its row groups %" PRId64 " together", f->rows,
            f->m->rows);
    if (f->rows > f->most_entries)
        return parquet_corrupt(err, "%" PRId64 " rows are too many for its size", f->rows);
    for (int leaf = 0; leaf < f->m->n_leaves; leaf++) {
        int64_t left = f->most_entries;
        for (int64_t g = 0; g < f->m->n_groups && left >= 0; g++)
            left -= f->m->groups[g].chunks[leaf].values;
        if (left < 0)
            return parquet_corrupt(err, "a column has too many values for its size");
    }
out:
    return rc;
}

int parquet_meta_read(int fd, int64_t file_bytes, struct parquet_meta *out, struct err *err)
{
    unsigned char tail[TAIL_BYTES];
    struct parquet_meta m = {0};
    void *bytes = NULL;
    int rc = 0;

    if (file_bytes < MAGIC_BYTES + TAIL_BYTES) {
        rc = parquet_corrupt(err, "it is cut off");
        goto out;
    }
    TRY(fs_pread_all(fd, tail, sizeof(tail), file_bytes - TAIL_BYTES, "the Parquet file", err));
    int64_t n = (int64_t)bytes_number(tail, 4);
    if (memcmp(tail + 4, "PARE", 4) == 0) {
        rc = err_set(err, ERR_UNSUPPORTED, "the Parquet file is encrypted; write it plain");
        goto out;
    }
    if (memcmp(tail + 4, "PAR1", 4) != 0 || n > file_bytes - MAGIC_BYTES - TAIL_BYTES ||
        n > PARQUET_MAX_FOOTER) {
        rc = parquet_corrupt(err, "it has no footer at its end, so it may be cut off");
        goto out;
    }
    TRY(alloc_try(&bytes, (size_t)n + 1, 1, "the Parquet file's footer", err));
    struct footer f = {.m = &m, .data_end = file_bytes - TAIL_BYTES - n};
    f.most_entries = FREE_ENTRIES + ENTRIES_EACH_BYTE * f.data_end;
    TRY(fs_pread_all(fd, bytes, (size_t)n, f.data_end, "the Parquet file", err));
    f.t = (struct thrift){.in = bytes_of(bytes, (size_t)n)};
    TRY(read_footer(&f, err));
    *out = m;
    m = (struct parquet_meta){0};
out:
    parquet_meta_fini(&m);
    free(bytes);
    return rc;
}
