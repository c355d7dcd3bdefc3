/*
 * CSV as RFC 4180 has it: a header row, fields between commas, quoted where they hold commas,
 * quotes (doubled) or line ends. A record may go over several lines; they are joined by \n.
 *
 * Only the columns that are wanted (worker/text/columns.h) are taken; a record becomes an object of
 * them.
 */
#ifndef CASTOR_WORKER_TEXT_CSV_H
#define CASTOR_WORKER_TEXT_CSV_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"

enum { CSV_MAX_COLUMNS = 256 };

struct csv {
    char *columns[CSV_MAX_COLUMNS]; /* of the header */
    bool taken[CSV_MAX_COLUMNS];
    size_t n_columns;
    struct buf record; /* that is being collected */
    int64_t line;      /* where it began; 0: it has not */
    bool open_quote;   /* the record so far ends inside quotes */
};

/* Take a line as the header; *csv is zeroed or finished. False when it cannot be one, which is for
 * csv_fini all the same. */
bool csv_begin(struct csv *csv, const json_t *mapping, const char *line, size_t n);
void csv_fini(struct csv *csv);
/* Add a line; true when the record is complete. */
bool csv_add_line(struct csv *csv, int64_t number, const char *line, size_t n);
/* The complete record as an object, new, or NULL and a sentence in `why`. Starts the next one. */
json_t *csv_take(struct csv *csv, char *why, size_t why_cap);

#endif
