/*
 * Private to scheduler/store*.c: the connection, its prepared statements, and the few helpers that
 * keep SQLite's calling convention in one place.
 *
 * Statements are named constants, prepared when first used and kept. A statement is used like this:
 * store_use (reset and cleared), bind, step, read columns, and store_done before the next use; the
 * helpers collect the first error, so that a sequence of binds needs one check.
 */
#ifndef CASTOR_SCHEDULER_STORE_IMPL_H
#define CASTOR_SCHEDULER_STORE_IMPL_H

#include <jansson.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#include "scheduler/store.h"

enum store_sql {
    SQL_BEGIN,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_GET_FILE,
    SQL_LIST_FILES,
    SQL_LIST_FILES_UP,
    SQL_GET_JOB,
    SQL_LIST_JOBS,
    SQL_LIST_LIVE_JOBS,
    SQL_FIND_DEDUPE,
    SQL_LIST_EVENTS,
    SQL_LIST_EVENTS_UP,
    SQL_LIST_METRICS,
    SQL_LIST_CHECKPOINTS,
    SQL_GET_MODEL,
    SQL_LIST_MODELS,
    SQL_ROW_OF_FILE,
    SQL_ROW_OF_JOB,
    SQL_ROW_OF_CHECKPOINT,
    SQL_PUT_FILE,
    SQL_DELETE_FILE,
    SQL_EXPIRED_FILES,
    SQL_INSERT_JOB,
    SQL_UPDATE_JOB,
    SQL_INSERT_EVENT,
    SQL_PUT_CHECKPOINT,
    SQL_KEEP_CHECKPOINTS,
    SQL_PUT_MODEL,
    SQL_DELETE_MODEL,
    SQL_TOUCH,
    SQL_COUNT,
};

struct store {
    sqlite3 *db;
    sqlite3_stmt *statements[SQL_COUNT];
};

/* Bindings count from 1, columns from 0. A NULL text or value binds NULL. */
int store_use(struct store *s, enum store_sql sql, sqlite3_stmt **out, struct err *err);
void store_bind_text(sqlite3_stmt *stmt, int at, const char *text);
void store_bind_json(sqlite3_stmt *stmt, int at, const json_t *value);
/* SQLITE_ROW -> *row true, SQLITE_DONE -> false; the statement is done after an error. */
int store_step(struct store *s, sqlite3_stmt *stmt, bool *row, struct err *err);
void store_done(sqlite3_stmt *stmt);
/* A statement without rows, to its end. */
int store_run(struct store *s, sqlite3_stmt *stmt, struct err *err);

char *store_column_text(sqlite3_stmt *stmt, int at); /* fresh; NULL for NULL */
int store_column_json(sqlite3_stmt *stmt, int at, json_t **out, struct err *err);

#endif
