#include "worker/text/examples.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/json.h"
#include "worker/text/columns.h"
#include "worker/text/csv.h"
#include "worker/text/line_reader.h"
#include "worker/text/parquet.h"

struct reading {
    struct line_reader lines;
    enum data_format format; /* DATA_AUTO, DATA_PLAIN or DATA_TEXT: any JSONL */
    enum data_format shape;  /* of the objects */
    struct buf paragraph;    /* plain: the example so far */
    int64_t paragraph_line;
    bool paragraph_bad;
    bool is_csv, begun; /* begun: the first line that is not blank was seen */
    bool judged;        /* the first object was seen */
    bool no_shapes;     /* any_columns, and it had none */
    struct csv csv;
    struct example_reader *reader;
};

static int give(const struct reading *r, int64_t line, const struct example *x, struct err *err)
{
    return r->reader->fn(r->reader->ud, line, x, err);
}

static int tell(const struct reading *r, int64_t line, const char *message, struct err *err)
{
    return r->reader->fault_fn(r->reader->ud, line, message, err);
}

static bool is_blank(const struct buf *line)
{
    return line->len == 0 || strspn(line->data, " \t\v\f\r") == line->len;
}

static enum data_format guess_format(const struct buf *line)
{
    const char *text = line->data + strspn(line->data, " \t");

    return *text == '{' || (*text == '[' && text[1 + strspn(text + 1, " \t")] == '{') ? DATA_TEXT
                                                                                      : DATA_PLAIN;
}

static bool object_fits(const json_t *object)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        if (shape_has_member(key) && !shape_member_is_optional(key))
            return true;
    }
    return json_object_size(object) == 0 || json_object_get(object, "chosen") ||
           json_object_get(object, "preferred_output");
}

/* One object of the file, from a line of JSON or a row of a table. */
static int take_object(struct reading *r, int64_t number, json_t *object, struct err *err)
{
    struct example example = {0};
    char why[512];
    int rc;

    if (!r->judged)
        r->no_shapes = r->reader->any_columns && json_is_object(object) && !object_fits(object);
    r->judged = true;
    if (r->no_shapes && json_is_object(object)) {
        example.kind = EXAMPLE_COLUMNS;
        return give(r, number, &example, err);
    }
    json_t *members = columns_apply(r->reader->mapping, object, why, sizeof(why));
    if (members && shape_read(members, r->shape, &example, why, sizeof(why)))
        rc = give(r, number, &example, err);
    else
        rc = tell(r, number, why, err);
    example_fini(&example);
    json_decref(members);
    return rc;
}

static int take_json_line(struct reading *r, struct err *err)
{
    int64_t number = r->lines.number;
    struct err bad = {0};
    json_t *object = NULL;
    int rc = 0;

    if (is_blank(&r->lines.line))
        return 0;
    if (json_parse_limited(r->lines.line.data, r->lines.line.len, LINE_MAX_BYTES,
                           JSON_MAX_DEPTH_REQUEST, &object, &bad) != 0)
        rc = tell(r, number, bad.msg, err);
    else
        rc = take_object(r, number, object, err);
    json_decref(object);
    return rc;
}

static int end_row(struct reading *r, struct err *err)
{
    int64_t number = r->csv.line;
    char why[256];
    int rc = 0;

    if (number == 0)
        return 0;
    json_t *object = csv_take(&r->csv, why, sizeof(why));
    if (object)
        rc = take_object(r, number, object, err);
    else
        rc = tell(r, number, why, err);
    json_decref(object);
    return rc;
}

static int take_csv_line(struct reading *r, struct err *err)
{
    const struct buf *line = &r->lines.line;

    if (r->csv.line == 0 && is_blank(line))
        return 0;
    if (csv_add_line(&r->csv, r->lines.number, buf_str(line), line->len) ||
        r->csv.record.len > LINE_MAX_BYTES)
        return end_row(r, err);
    return 0;
}

static int end_paragraph(struct reading *r, struct err *err)
{
    int rc = 0;

    if (r->paragraph.len > 0 && !r->paragraph_bad) {
        struct example example = {
            .kind = EXAMPLE_TEXT, .text = r->paragraph.data, .n = r->paragraph.len};
        rc = give(r, r->paragraph_line, &example, err);
    }
    buf_clear(&r->paragraph);
    r->paragraph_bad = false;
    return rc;
}

static int take_plain_line(struct reading *r, struct err *err)
{
    if (is_blank(&r->lines.line))
        return end_paragraph(r, err);
    if (r->paragraph.len + r->lines.line.len > LINE_MAX_BYTES) {
        if (r->paragraph_bad)
            return 0;
        r->paragraph_bad = true;
        return tell(r, r->paragraph_line,
                    "the paragraph is longer than 10 MiB; put blank lines into it", err);
    }
    if (r->paragraph.len == 0)
        r->paragraph_line = r->lines.number;
    else
        buf_add_char(&r->paragraph, '\n');
    buf_add(&r->paragraph, r->lines.line.data, r->lines.line.len);
    return 0;
}

/* Is the first line a header? Where it must be one, by a mapping, it says which columns there are.
 */
static int begin_csv(struct reading *r, struct err *err)
{
    const struct buf *line = &r->lines.line;
    const struct example_reader *reader = r->reader;

    r->is_csv = csv_begin(&r->csv, reader->mapping, buf_str(line), line->len);
    if (!r->is_csv)
        return 0;
    int rc = columns_check(reader->mapping, (const char *const *)r->csv.columns, r->csv.n_columns,
                           reader->mapping ? err : NULL);
    if (rc == 0 || reader->mapping)
        return rc;
    r->is_csv = false;
    return 0;
}

/* The first line that is not blank says what a file is. */
static int begin_file(struct reading *r, struct err *err)
{
    enum data_format guess = guess_format(&r->lines.line);
    int rc = 0;

    r->begun = true;
    if (r->format != DATA_PLAIN && guess == DATA_PLAIN)
        rc = begin_csv(r, err);
    if (r->format == DATA_AUTO)
        r->format = guess;
    r->reader->container = r->is_csv                 ? CONTAINER_CSV
                           : r->format == DATA_PLAIN ? CONTAINER_PLAIN
                                                     : CONTAINER_JSONL;
    return rc;
}

static int take_line(struct reading *r, enum line_fault fault, struct err *err)
{
    if (fault != LINE_OK) {
        r->paragraph_bad = r->format == DATA_PLAIN;
        return tell(r, r->lines.number, line_fault_text(fault), err);
    }
    if (!r->begun && is_blank(&r->lines.line))
        return end_paragraph(r, err); /* one that was faulty */
    if (!r->begun) {
        int rc = begin_file(r, err);
        if (rc != 0 || r->is_csv)
            return rc;
    }
    if (r->is_csv)
        return take_csv_line(r, err);
    return r->format == DATA_TEXT ? take_json_line(r, err) : take_plain_line(r, err);
}

static int read_lines(struct reading *r, const char *path, struct err *err)
{
    enum line_fault fault;
    bool got;
    int rc = 0;

    TRY(line_reader_init(&r->lines, path, err));
    for (;;) {
        TRY(line_reader_next(&r->lines, &got, &fault, err));
        if (!got)
            break;
        TRY(take_line(r, fault, err));
    }
    TRY(end_row(r, err));
    TRY(end_paragraph(r, err));
out:
    csv_fini(&r->csv);
    line_reader_fini(&r->lines);
    buf_fini(&r->paragraph);
    return rc;
}

/* --- Parquet --- */

static int select_columns(struct reading *r, struct parquet *p, struct err *err)
{
    int n = parquet_columns(p), rc = 0;
    const char **names = xcalloc((size_t)n + 1, sizeof(*names));

    for (int i = 0; i < n; i++)
        names[i] = parquet_column_name(p, i);
    rc = columns_check(r->reader->mapping, names, (size_t)n,
                       r->reader->any_columns && !r->reader->mapping ? NULL : err);
    r->judged = true;
    if (rc != 0 && r->reader->any_columns && !r->reader->mapping) {
        r->no_shapes = true;
        rc = 0;
        goto out;
    }
    TRY(rc);
    for (int i = 0; i < n; i++)
        if (columns_wants(r->reader->mapping, names[i]))
            TRY(parquet_select(p, i, err));
out:
    free(names);
    return rc;
}

static int read_parquet(struct reading *r, const char *path, struct err *err)
{
    struct parquet *p = NULL;
    char why[200];
    bool got;
    int rc = 0;

    r->reader->container = CONTAINER_PARQUET;
    TRY(parquet_open(path, &p, err));
    TRY(select_columns(r, p, err));
    for (int64_t number = 1;; number++) {
        json_t *row = NULL;
        TRY(parquet_next(p, &got, &row, why, sizeof(why), err));
        if (!got)
            break;
        rc = row ? take_object(r, number, row, err) : tell(r, number, why, err);
        json_decref(row);
        TRY(rc);
    }
out:
    parquet_close(p);
    return rc;
}

/* Files that cannot be opened are the line reader's to complain about. */
static bool is_parquet(const char *path)
{
    char magic[PARQUET_MAGIC_BYTES] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    if (fd < 0)
        return false;
    bool is = pread(fd, magic, sizeof(magic), 0) == sizeof(magic) && parquet_is_magic(magic);
    close(fd);
    return is;
}

int examples_read(struct example_reader *reader, const char *path, struct err *err)
{
    bool is_jsonl = reader->format != DATA_AUTO && reader->format != DATA_PLAIN;
    struct reading r = {
        .format = is_jsonl ? DATA_TEXT : reader->format, .shape = reader->format, .reader = reader};

    reader->container = CONTAINER_NONE;
    if (reader->format != DATA_PLAIN && is_parquet(path))
        return read_parquet(&r, path, err);
    return read_lines(&r, path, err);
}
