#include "worker/text/parquet.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/alloc.h"
#include "worker/text/input.h"
#include "worker/text/line_reader.h"
#include "worker/text/parquet_column.h"
#include "worker/text/utf8.h"

enum { NODE_COST = 16 }; /* bytes that a value counts besides its text */

struct parquet {
    int fd;
    struct parquet_meta meta;
    struct parquet_column *leaves; /* [n_leaves]; only those of selected columns are read */
    bool *selected;                /* [n_nodes], for nodes at the top */
    int64_t budget;
    int64_t group, row; /* the next row to be read is `row` of `group` */
    /* The row that is being built. */
    int64_t row_bytes;
    char why[160]; /* what is wrong with it, or "" */
};

bool parquet_is_magic(const char *bytes)
{
    return memcmp(bytes, "PAR1", PARQUET_MAGIC_BYTES) == 0;
}

int parquet_open(const char *path, struct parquet **out, struct err *err)
{
    struct parquet *p = xcalloc(1, sizeof(*p));
    struct stat st;
    int rc = 0;

    p->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (p->fd < 0 || fstat(p->fd, &st) != 0) {
        rc = err_set_errno(err, errno, "cannot open %s", path);
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = err_set(err, ERR_INVALID, "%s is not a file", path);
        goto out;
    }
    TRY(parquet_meta_read(p->fd, st.st_size, &p->meta, err));
    p->budget = INPUT_FREE_BYTES + INPUT_MAX_RATIO * (int64_t)st.st_size;
    p->selected = xcalloc((size_t)p->meta.n_nodes, sizeof(*p->selected));
    p->leaves = xcalloc((size_t)p->meta.n_leaves + 1, sizeof(*p->leaves));
    for (int i = 0; i < p->meta.n_nodes; i++)
        if (p->meta.nodes[i].kind == PARQUET_LEAF)
            p->leaves[p->meta.nodes[i].leaf] = (struct parquet_column){
                .fd = p->fd, .node = &p->meta.nodes[i], .budget = &p->budget};
    p->row = -1;
    *out = p;
    p = NULL;
out:
    parquet_close(p);
    return rc;
}

void parquet_close(struct parquet *p)
{
    if (!p)
        return;
    for (int i = 0; p->leaves && i < p->meta.n_leaves; i++)
        parquet_column_fini(&p->leaves[i]);
    free(p->leaves);
    free(p->selected);
    parquet_meta_fini(&p->meta);
    if (p->fd >= 0)
        close(p->fd);
    free(p);
}

int64_t parquet_rows(const struct parquet *p)
{
    return p->meta.rows;
}

/* The node of a column at the top, or -1 behind the last one. */
static int column_node(const struct parquet *p, int column)
{
    int i = 1;

    while (i < p->meta.n_nodes && column-- > 0)
        i = p->meta.nodes[i].end;
    return i < p->meta.n_nodes ? i : -1;
}

int parquet_columns(const struct parquet *p)
{
    int n = 0;

    for (int i = 1; i < p->meta.n_nodes; i = p->meta.nodes[i].end)
        n++;
    return n;
}

const char *parquet_column_name(const struct parquet *p, int column)
{
    return p->meta.nodes[column_node(p, column)].name;
}

int parquet_select(struct parquet *p, int column, struct err *err)
{
    int top = column_node(p, column);

    for (int i = top; i < p->meta.nodes[top].end; i++) {
        const struct parquet_node *n = &p->meta.nodes[i];
        if (n->kind == PARQUET_LEAF && (n->type == PARQUET_INT96 || n->type == PARQUET_FIXED_BYTES))
            return err_set(err, ERR_UNSUPPORTED,
                           "column '%.60s' holds a type that no text is made of; choose others by "
                           "dataset.column_mapping",
                           p->meta.nodes[top].name);
    }
    p->selected[top] = true;
    return 0;
}

/* --- rows -------------------------------------------------------------------------------------
 * The levels say how much of a column's path is there: Melnik et al., "Dremel: interactive analysis
 * of web-scale datasets", 2010, section 4. A group is there where the first leaf below it says so;
 * the other ones must agree.
 */

static struct parquet_column *first_leaf(const struct parquet *p, const struct parquet_node *n)
{
    return &p->leaves[n->leaf];
}

static int disagree(const struct parquet_node *n, struct err *err)
{
    return parquet_corrupt(err, "the columns of '%.60s' do not belong together", n->name);
}

static void bad_row(struct parquet *p, const char *name, const char *what)
{
    if (!p->why[0])
        snprintf(p->why, sizeof(p->why), "\"%.60s\" %s", name, what);
}

/* Is n, which may be missing, there? */
static int find_presence(const struct parquet *p, const struct parquet_node *n, bool *out,
                         struct err *err)
{
    bool there = first_leaf(p, n)->def >= n->def;

    for (int i = n->leaf; i < n->leaf + n->n_leaves; i++)
        if (!p->leaves[i].has_entry || (p->leaves[i].def >= n->def) != there)
            return disagree(n, err);
    *out = there;
    return 0;
}

/* Does the repeated n go on with another element? */
static int find_more(const struct parquet *p, const struct parquet_node *n, bool *out,
                     struct err *err)
{
    const struct parquet_column *first = first_leaf(p, n);
    bool more = first->has_entry && first->rep == n->rep;

    for (int i = n->leaf; i < n->leaf + n->n_leaves; i++)
        if ((p->leaves[i].has_entry && p->leaves[i].rep == n->rep) != more)
            return disagree(n, err);
    *out = more;
    return 0;
}

static int pass_over(struct parquet *p, const struct parquet_node *n, struct err *err)
{
    int rc = 0;

    for (int i = n->leaf; i < n->leaf + n->n_leaves; i++)
        TRY(parquet_column_next(&p->leaves[i], err));
out:
    return rc;
}

static json_t *text_value(struct parquet *p, const struct parquet_column *c)
{
    const char *text = c->value.p;
    size_t n = c->value.n;

    if (utf8_check(text, n) != n)
        bad_row(p, c->node->name, "is not valid UTF-8");
    else if (n > 0 && memchr(text, '\0', n))
        bad_row(p, c->node->name, "has a NUL byte");
    else
        return json_stringn_nocheck(text, n);
    return NULL;
}

/* The value of a leaf that is there. */
static int build_leaf(struct parquet *p, const struct parquet_node *n, json_t **out,
                      struct err *err)
{
    struct parquet_column *c = first_leaf(p, n);

    p->row_bytes += NODE_COST + (n->type == PARQUET_BYTES ? (int64_t)c->value.n : 0);
    if (p->row_bytes > LINE_MAX_BYTES)
        bad_row(p, n->name, "makes the row longer than 10 MiB; split it into several examples");
    else if (n->type == PARQUET_BYTES)
        *out = text_value(p, c);
    else if (n->type == PARQUET_BOOLEAN)
        *out = json_boolean(c->value.i != 0);
    else if (n->type == PARQUET_INT32 || n->type == PARQUET_INT64)
        *out = json_integer(c->value.i);
    else
        *out = isfinite(c->value.d) ? json_real(c->value.d) : NULL;
    int rc = parquet_column_next(c, err);
    if (rc != 0) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

static int build_member(struct parquet *p, const struct parquet_node *n, json_t **out,
                        struct err *err);
static int build_present(struct parquet *p, const struct parquet_node *n, json_t **out,
                         struct err *err);

/* The elements of the repeated node `r`; each is `element`, r itself or its child. */
static int build_list(struct parquet *p, const struct parquet_node *r,
                      const struct parquet_node *element, json_t **out, struct err *err)
{
    json_t *list = json_array(), *value;
    bool more = false;
    int rc = 0;

    TRY(find_presence(p, r, &more, err));
    if (!more)
        TRY(pass_over(p, r, err));
    while (more) {
        value = NULL;
        TRY(element == r ? build_present(p, r, &value, err)
                         : build_member(p, element, &value, err));
        p->row_bytes += NODE_COST;
        if (p->row_bytes > LINE_MAX_BYTES)
            bad_row(p, r->name, "makes the row longer than 10 MiB; split it into several examples");
        if (p->why[0])
            json_decref(value);
        else
            json_array_append_new(list, value ? value : json_null());
        TRY(find_more(p, r, &more, err));
    }
    *out = list;
    list = NULL;
out:
    json_decref(list);
    return rc;
}

static int build_struct(struct parquet *p, const struct parquet_node *n, json_t **out,
                        struct err *err)
{
    const struct parquet_node *nodes = p->meta.nodes;
    json_t *object = json_object();
    int rc = 0;

    for (int i = (int)(n - nodes) + 1; i < n->end; i = nodes[i].end) {
        json_t *value = NULL;
        TRY(build_member(p, &nodes[i], &value, err));
        if (value)
            json_object_set_new_nocheck(object, nodes[i].name, value);
    }
    *out = object;
    object = NULL;
out:
    json_decref(object);
    return rc;
}

static int build_present(struct parquet *p, const struct parquet_node *n, json_t **out,
                         struct err *err)
{
    if (n->kind == PARQUET_LEAF)
        return build_leaf(p, n, out, err);
    if (n->kind == PARQUET_LIST && n->element >= 0)
        return build_list(p, n + 1, &p->meta.nodes[n->element], out, err);
    if (n->kind == PARQUET_MAP && n[1].repetition == PARQUET_REPEATED && n[1].end == n->end)
        return build_list(p, n + 1, n + 1, out, err);
    return build_struct(p, n, out, err);
}

/* A member of a group that is there; *out stays NULL where it is null. */
static int build_member(struct parquet *p, const struct parquet_node *n, json_t **out,
                        struct err *err)
{
    bool there = true;
    int rc = 0;

    if (n->repetition == PARQUET_REPEATED)
        return build_list(p, n, n, out, err);
    TRY(find_presence(p, n, &there, err));
    TRY(there ? build_present(p, n, out, err) : pass_over(p, n, err));
out:
    return rc;
}

static int begin_group(struct parquet *p, struct err *err)
{
    const struct parquet_node *nodes = p->meta.nodes;
    int rc = 0;

    for (int top = 1; top < p->meta.n_nodes; top = nodes[top].end) {
        for (int i = nodes[top].leaf; p->selected[top] && i < nodes[top].leaf + nodes[top].n_leaves;
             i++) {
            parquet_column_begin(&p->leaves[i], &p->meta.groups[p->group].chunks[i]);
            TRY(parquet_column_next(&p->leaves[i], err));
        }
    }
    p->row = 0;
out:
    return rc;
}

/* Every entry of a column belongs to a row. */
static int check_row(const struct parquet *p, const struct parquet_node *n, bool behind_last,
                     struct err *err)
{
    for (int i = n->leaf; i < n->leaf + n->n_leaves; i++) {
        const struct parquet_column *c = &p->leaves[i];
        if (behind_last ? c->has_entry : !c->has_entry || c->rep != 0)
            return parquet_corrupt(err, "column '%.60s' has %s values than rows", n->name,
                                   behind_last ? "more" : "fewer");
    }
    return 0;
}

static int build_row(struct parquet *p, json_t *row, bool behind_last, struct err *err)
{
    const struct parquet_node *nodes = p->meta.nodes;
    int rc = 0;

    for (int i = 1; i < p->meta.n_nodes; i = nodes[i].end) {
        json_t *value = NULL;
        if (!p->selected[i])
            continue;
        TRY(check_row(p, &nodes[i], behind_last, err));
        if (behind_last)
            continue;
        TRY(build_member(p, &nodes[i], &value, err));
        if (value)
            json_object_set_new_nocheck(row, nodes[i].name, value);
    }
out:
    return rc;
}

int parquet_next(struct parquet *p, bool *got, json_t **row, char *why, size_t why_cap,
                 struct err *err)
{
    json_t *object = json_object();
    int rc = 0;

    while (p->group < p->meta.n_groups && p->row < 0) {
        TRY(begin_group(p, err));
        if (p->meta.groups[p->group].rows == 0) {
            TRY(build_row(p, NULL, true, err));
            p->group++;
            p->row = -1;
        }
    }
    *got = p->group < p->meta.n_groups;
    if (!*got)
        goto out;
    p->row_bytes = 0;
    p->why[0] = '\0';
    TRY(build_row(p, object, false, err));
    if (++p->row == p->meta.groups[p->group].rows) {
        TRY(build_row(p, NULL, true, err));
        p->group++;
        p->row = -1;
    }
    *row = p->why[0] ? NULL : json_incref(object);
    if (p->why[0])
        snprintf(why, why_cap, "%s", p->why);
out:
    json_decref(object);
    return rc;
}
