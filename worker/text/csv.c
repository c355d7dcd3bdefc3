#include "worker/text/csv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/columns.h"

/* The field at *at, which goes behind its comma, or to SIZE_MAX at the end. NULL, or what is wrong
 * with it. */
static const char *take_field(const char *s, size_t n, size_t *at, struct buf *field)
{
    size_t i = *at;

    buf_clear(field);
    if (i < n && s[i] == '"') {
        for (i++;; i++) {
            if (i >= n)
                return "a quote is not closed";
            if (s[i] == '"' && (i + 1 >= n || s[i + 1] != '"'))
                break;
            i += s[i] == '"';
            buf_add_char(field, s[i]);
        }
        i++;
        if (i < n && s[i] != ',')
            return "a quoted field goes on behind its quote; double the quotes inside it";
    } else {
        const char *comma = i < n ? memchr(s + i, ',', n - i) : NULL;
        size_t end = comma ? (size_t)(comma - s) : n;
        if (end > i && memchr(s + i, '"', end - i))
            return "a quote stands in a field that is not quoted";
        buf_add(field, s + i, end - i);
        i = end;
    }
    *at = i < n ? i + 1 : SIZE_MAX;
    return NULL;
}

/* A field is a string: members that are lists cannot come from one, unless a mapping says so. */
static bool holds_text(const char *name)
{
    return strcmp(name, "history") != 0 && strcmp(name, "tools") != 0;
}

bool csv_begin(struct csv *csv, const json_t *mapping, const char *line, size_t n)
{
    struct buf field = {0};
    size_t at = 0;

    while (at != SIZE_MAX && csv->n_columns < CSV_MAX_COLUMNS &&
           !take_field(line, n, &at, &field)) {
        csv->taken[csv->n_columns] =
            columns_wants(mapping, buf_str(&field)) && (mapping || holds_text(buf_str(&field)));
        csv->columns[csv->n_columns++] = xstrndup(buf_str(&field), field.len);
    }
    buf_fini(&field);
    return at == SIZE_MAX;
}

void csv_fini(struct csv *csv)
{
    for (size_t i = 0; i < csv->n_columns; i++)
        free(csv->columns[i]);
    buf_fini(&csv->record);
    memset(csv, 0, sizeof(*csv));
}

bool csv_add_line(struct csv *csv, int64_t number, const char *line, size_t n)
{
    size_t quotes = 0;

    if (csv->line == 0)
        csv->line = number;
    else
        buf_add_char(&csv->record, '\n');
    buf_add(&csv->record, line, n);
    for (size_t i = 0; i < n; i++)
        quotes += line[i] == '"';
    csv->open_quote ^= quotes % 2 == 1;
    return !csv->open_quote;
}

json_t *csv_take(struct csv *csv, char *why, size_t why_cap)
{
    json_t *object = json_object();
    struct buf field = {0};
    const char *wrong = NULL;
    size_t at = 0, column = 0;

    for (; at != SIZE_MAX && !wrong; column++) {
        wrong = take_field(buf_str(&csv->record), csv->record.len, &at, &field);
        if (!wrong && column < csv->n_columns && csv->taken[column])
            json_object_set_new(object, csv->columns[column],
                                json_stringn(buf_str(&field), field.len));
    }
    if (wrong)
        snprintf(why, why_cap, "%s", wrong);
    else if (column != csv->n_columns)
        snprintf(why, why_cap,
                 "the row has %zu fields, but the header %zu; quote fields that hold "
                 "commas",
                 column, csv->n_columns);
    if (wrong || column != csv->n_columns) {
        json_decref(object);
        object = NULL;
    }
    buf_fini(&field);
    buf_clear(&csv->record);
    csv->line = 0;
    csv->open_quote = false;
    return object;
}
