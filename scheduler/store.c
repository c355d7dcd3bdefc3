/* Opening, the schema, statements and transactions. */
#include "scheduler/store.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "scheduler/store_impl.h"
#include "scheduler/store_write.h"

enum {
    SCHEMA_VERSION = 1,
    APPLICATION_ID = 0x43535452, /* "CSTR": tells our file from any other database */
    BUSY_MS = 5000,              /* readers wait for a checkpoint, never for a transaction */
    COLUMN_MAX_BYTES = 64 << 20,
};

static const char *const schema =
    "CREATE TABLE files (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " filename TEXT NOT NULL, purpose TEXT NOT NULL, status TEXT NOT NULL, status_details TEXT,"
    " path TEXT NOT NULL, job_id TEXT, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL,"
    " expires_at INTEGER NOT NULL) STRICT;"
    "CREATE TABLE jobs (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " status TEXT NOT NULL, live INTEGER NOT NULL, priority INTEGER NOT NULL,"
    " created_at INTEGER NOT NULL, dedupe TEXT, metadata TEXT, spec TEXT NOT NULL,"
    " state TEXT NOT NULL, plan TEXT) STRICT;"
    "CREATE INDEX jobs_live ON jobs (n) WHERE live;"
    "CREATE INDEX jobs_queue ON jobs (priority DESC, n) WHERE status = 'queued';"
    "CREATE INDEX jobs_dedupe ON jobs (dedupe, created_at) WHERE dedupe IS NOT NULL;"
    "CREATE TABLE events (n INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL,"
    " created_at INTEGER NOT NULL, level TEXT NOT NULL, type TEXT NOT NULL,"
    " message TEXT NOT NULL, data TEXT) STRICT;"
    "CREATE INDEX events_job ON events (job_id, n);"
    "CREATE TABLE checkpoints (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " job_id TEXT NOT NULL, model TEXT NOT NULL, path TEXT NOT NULL, created_at INTEGER NOT NULL,"
    " step INTEGER NOT NULL, metrics TEXT NOT NULL, UNIQUE (job_id, step)) STRICT;"
    "CREATE TABLE models (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
    " job_id TEXT NOT NULL, base TEXT NOT NULL, path TEXT NOT NULL,"
    " created_at INTEGER NOT NULL) STRICT;"
    "CREATE TABLE pulse (one INTEGER PRIMARY KEY CHECK (one = 1), t INTEGER NOT NULL) STRICT;";

#define FILE_COLUMNS                                                                               \
    "id, filename, purpose, status, status_details, path, job_id, bytes, created_at, expires_at"
/* With the place in the queue: 1 is next, 0 is not queued. */
#define JOB_COLUMNS                                                                                \
    "id, spec, state, plan, CASE WHEN status <> 'queued' THEN 0 ELSE (SELECT count(*)"             \
    " FROM jobs AS o WHERE o.status = 'queued' AND (o.priority > jobs.priority"                    \
    " OR (o.priority = jobs.priority AND o.n <= jobs.n))) END"
#define EVENT_COLUMNS "n, job_id, created_at, level, type, message, data"

static const char *const texts[SQL_COUNT] = {
    [SQL_BEGIN] = "BEGIN IMMEDIATE",
    [SQL_COMMIT] = "COMMIT",
    [SQL_ROLLBACK] = "ROLLBACK",
    [SQL_GET_FILE] = "SELECT " FILE_COLUMNS " FROM files WHERE id = ?1",
    [SQL_LIST_FILES] = "SELECT " FILE_COLUMNS " FROM files WHERE (?1 IS NULL OR purpose = ?1)"
                       " AND (?2 = 0 OR n < ?2) ORDER BY n DESC LIMIT ?3",
    [SQL_LIST_FILES_UP] = "SELECT " FILE_COLUMNS " FROM files WHERE (?1 IS NULL OR purpose = ?1)"
                          " AND n > ?2 ORDER BY n LIMIT ?3",
    [SQL_GET_JOB] = "SELECT " JOB_COLUMNS " FROM jobs WHERE id = ?1",
    /* ?4 = an object whose pairs must all be there; ?5 = 1: jobs without metadata. */
    [SQL_LIST_JOBS] =
        "SELECT " JOB_COLUMNS " FROM jobs WHERE (?1 IS NULL OR status = ?1)"
        " AND (?2 = 0 OR n < ?2) AND (?5 = 0 OR metadata IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM json_each(?4) AS f WHERE NOT EXISTS"
        " (SELECT 1 FROM json_each(jobs.metadata) AS m WHERE m.key = f.key AND m.value = f.value))"
        " ORDER BY n DESC LIMIT ?3",
    [SQL_LIST_LIVE_JOBS] = "SELECT " JOB_COLUMNS " FROM jobs WHERE live ORDER BY n",
    [SQL_FIND_DEDUPE] = "SELECT " JOB_COLUMNS " FROM jobs WHERE dedupe = ?1 AND created_at >= ?2"
                        " ORDER BY n LIMIT 1",
    [SQL_LIST_EVENTS] = "SELECT " EVENT_COLUMNS " FROM events WHERE job_id = ?1"
                        " AND (?2 = 0 OR n < ?2) ORDER BY n DESC LIMIT ?3",
    [SQL_LIST_EVENTS_UP] =
        "SELECT " EVENT_COLUMNS " FROM events WHERE job_id = ?1 AND n > ?2 ORDER BY n LIMIT ?3",
    [SQL_LIST_METRICS] = "SELECT data FROM events WHERE job_id = ?1 AND type = 'metrics'"
                         " AND data IS NOT NULL ORDER BY n",
    [SQL_LIST_CHECKPOINTS] = "SELECT id, job_id, model, path, created_at, step, metrics"
                             " FROM checkpoints WHERE job_id = ?1 AND (?2 = 0 OR n < ?2)"
                             " ORDER BY n DESC LIMIT ?3",
    [SQL_GET_MODEL] = "SELECT id, job_id, base, path, created_at FROM models WHERE id = ?1",
    [SQL_LIST_MODELS] = "SELECT id, job_id, base, path, created_at FROM models ORDER BY n DESC",
    [SQL_ROW_OF_FILE] = "SELECT n FROM files WHERE id = ?1",
    [SQL_ROW_OF_JOB] = "SELECT n FROM jobs WHERE id = ?1",
    [SQL_ROW_OF_CHECKPOINT] = "SELECT n FROM checkpoints WHERE id = ?1 AND job_id = ?2",
    [SQL_PUT_FILE] = "INSERT INTO files (" FILE_COLUMNS ") VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)"
                     " ON CONFLICT (id) DO UPDATE SET bytes = ?8",
    [SQL_DELETE_FILE] = "DELETE FROM files WHERE id = ?1",
    [SQL_EXPIRED_FILES] = "SELECT " FILE_COLUMNS " FROM files WHERE expires_at > 0"
                          " AND expires_at <= ?1",
    [SQL_INSERT_JOB] = "INSERT INTO jobs (id, status, live, priority, created_at, dedupe, metadata,"
                       " spec, state, plan) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)",
    [SQL_UPDATE_JOB] = "UPDATE jobs SET status = ?2, live = ?3, state = ?4, spec = ?5, plan = ?6"
                       " WHERE id = ?1",
    [SQL_INSERT_EVENT] = "INSERT INTO events (job_id, created_at, level, type, message, data)"
                         " VALUES (?1,?2,?3,?4,?5,?6)",
    /* A step that was trained again after a restart replaces its checkpoint. */
    [SQL_PUT_CHECKPOINT] = "INSERT INTO checkpoints (id, job_id, model, path, created_at, step,"
                           " metrics) VALUES (?1,?2,?3,?4,?5,?6,?7) ON CONFLICT (job_id, step)"
                           " DO UPDATE SET path = ?4, created_at = ?5, metrics = ?7",
    [SQL_KEEP_CHECKPOINTS] = "DELETE FROM checkpoints WHERE job_id = ?1 AND step <> ?2"
                             " AND step NOT IN (SELECT value FROM json_each(?3))",
    [SQL_PUT_MODEL] = "INSERT OR REPLACE INTO models (id, job_id, base, path, created_at)"
                      " VALUES (?1,?2,?3,?4,?5)",
    [SQL_DELETE_MODEL] = "DELETE FROM models WHERE id = ?1",
    [SQL_TOUCH] =
        "INSERT INTO pulse (one, t) VALUES (1, ?1) ON CONFLICT (one) DO UPDATE SET t = ?1",
};

static enum err_code code_from_sqlite(int code)
{
    switch (code & 0xff) {
    case SQLITE_FULL:
        return ERR_NOSPACE;
    case SQLITE_NOMEM:
        return ERR_NOMEM;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return ERR_CORRUPT;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
        return ERR_PERMISSION;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return ERR_TIMEOUT;
    case SQLITE_CONSTRAINT:
        return ERR_CONFLICT;
    case SQLITE_CANTOPEN:
    case SQLITE_IOERR:
        return ERR_IO;
    default:
        return ERR_INTERNAL;
    }
}

/* The connection's last failure. */
static int fail(struct store *s, const char *doing, struct err *err)
{
    return err_set(err, code_from_sqlite(sqlite3_extended_errcode(s->db)),
                   "the job database failed while %s: %s", doing, sqlite3_errmsg(s->db));
}

int store_use(struct store *s, enum store_sql sql, sqlite3_stmt **out, struct err *err)
{
    sqlite3_stmt **kept = &s->statements[sql];

    if (!*kept && sqlite3_prepare_v3(s->db, texts[sql], -1, SQLITE_PREPARE_PERSISTENT, kept,
                                     NULL) != SQLITE_OK)
        return fail(s, "preparing a statement", err);
    *out = *kept;
    return 0;
}

void store_bind_text(sqlite3_stmt *stmt, int at, const char *text)
{
    if (text)
        sqlite3_bind_text(stmt, at, text, -1, SQLITE_TRANSIENT);
    else
        sqlite3_bind_null(stmt, at);
}

void store_bind_json(sqlite3_stmt *stmt, int at, const json_t *value)
{
    if (value)
        sqlite3_bind_text(stmt, at, json_to_line(value), -1, free);
    else
        sqlite3_bind_null(stmt, at);
}

void store_done(sqlite3_stmt *stmt)
{
    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
}

int store_step(struct store *s, sqlite3_stmt *stmt, bool *row, struct err *err)
{
    int code = sqlite3_step(stmt);

    if (code != SQLITE_ROW && code != SQLITE_DONE) {
        int rc = fail(s, "running a statement", err);
        store_done(stmt);
        return rc;
    }
    *row = code == SQLITE_ROW;
    return 0;
}

int store_run(struct store *s, sqlite3_stmt *stmt, struct err *err)
{
    bool row = true;
    int rc = 0;

    while (row)
        TRY(store_step(s, stmt, &row, err));
    store_done(stmt);
out:
    return rc;
}

char *store_column_text(sqlite3_stmt *stmt, int at)
{
    const char *text = (const char *)sqlite3_column_text(stmt, at);

    return text ? xstrdup(text) : NULL;
}

int store_column_json(sqlite3_stmt *stmt, int at, json_t **out, struct err *err)
{
    const char *text = (const char *)sqlite3_column_text(stmt, at);

    if (!text) {
        *out = NULL;
        return 0;
    }
    return json_parse_limited(text, (size_t)sqlite3_column_bytes(stmt, at), COLUMN_MAX_BYTES,
                              JSON_MAX_DEPTH_FILE, out, err);
}

static int run_plain(struct store *s, enum store_sql sql, struct err *err)
{
    sqlite3_stmt *stmt = NULL;
    int rc = store_use(s, sql, &stmt, err);

    return rc != 0 ? rc : store_run(s, stmt, err);
}

int store_begin(struct store *s, struct err *err)
{
    return run_plain(s, SQL_BEGIN, err);
}

int store_commit(struct store *s, struct err *err)
{
    return run_plain(s, SQL_COMMIT, err);
}

void store_rollback(struct store *s)
{
    /* SQLite rolls back by itself after some errors (a full disk); then there is nothing left. */
    if (!sqlite3_get_autocommit(s->db))
        run_plain(s, SQL_ROLLBACK, NULL);
}

static int pragma_number(struct store *s, const char *pragma, int64_t *out, struct err *err)
{
    sqlite3_stmt *stmt = NULL;
    bool row = false;
    int rc = 0;

    if (sqlite3_prepare_v2(s->db, pragma, -1, &stmt, NULL) != SQLITE_OK)
        return fail(s, "opening it", err);
    rc = store_step(s, stmt, &row, err);
    if (rc == 0 && row)
        *out = sqlite3_column_int64(stmt, 0);
    sqlite3_finalize(stmt);
    return rc;
}

static int run_script(struct store *s, const char *script, struct err *err)
{
    if (sqlite3_exec(s->db, script, NULL, NULL, NULL) != SQLITE_OK)
        return fail(s, "opening it", err);
    return 0;
}

static int make_schema(struct store *s, struct err *err)
{
    char *script = xasprintf("BEGIN IMMEDIATE; %s PRAGMA application_id = %d;"
                             " PRAGMA user_version = %d; COMMIT;",
                             schema, APPLICATION_ID, SCHEMA_VERSION);
    int rc = run_script(s, script, err);

    free(script);
    return rc;
}

static int check_schema(struct store *s, bool may_create, struct err *err)
{
    int64_t version = 0, application = 0, tables = 0;
    int rc = 0;

    TRY(pragma_number(s, "PRAGMA user_version", &version, err));
    TRY(pragma_number(s, "PRAGMA application_id", &application, err));
    TRY(pragma_number(s, "SELECT count(*) FROM sqlite_schema", &tables, err));
    if (tables == 0 && version == 0 && may_create)
        return make_schema(s, err);
    if (application != APPLICATION_ID)
        return err_set(err, ERR_CORRUPT,
                       "castor.db is not a job database; move it away or choose another --state "
                       "directory");
    if (version != SCHEMA_VERSION)
        return err_set(err, ERR_UNSUPPORTED,
                       "castor.db has schema version %" PRId64 ", this release knows %d; run the "
                       "release that wrote it",
                       version, SCHEMA_VERSION);
out:
    return rc;
}

static int open_at(const char *state_dir, bool writer, struct store **out, struct err *err)
{
    struct store *s = xcalloc(1, sizeof(*s));
    char *path = fs_join(state_dir, "castor.db");
    int flags = writer ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY;
    int rc = 0;

    if (sqlite3_open_v2(path, &s->db, flags | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
        rc = s->db ? fail(s, "opening it", err)
                   : err_set(err, ERR_NOMEM, "no memory to open %s", path);
        goto out;
    }
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, BUSY_MS);
    if (writer) {
        chmod(path, 0600); /* metadata and prompts are nobody else's business */
        TRY(run_script(s,
                       "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                       " PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;",
                       err));
    }
    TRY(check_schema(s, writer, err));
    *out = s;
    s = NULL;
out:
    if (rc != 0)
        err_wrap(err, rc, "%s", path);
    store_close(s);
    free(path);
    return rc;
}

int store_open(const char *state_dir, struct store **out, struct err *err)
{
    return open_at(state_dir, true, out, err);
}

int store_open_reader(const char *state_dir, struct store **out, struct err *err)
{
    return open_at(state_dir, false, out, err);
}

void store_close(struct store *s)
{
    if (!s)
        return;
    for (int i = 0; i < SQL_COUNT; i++)
        sqlite3_finalize(s->statements[i]);
    sqlite3_close(s->db);
    free(s);
}
