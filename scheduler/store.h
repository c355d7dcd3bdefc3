/*
 * The store: one SQLite database (WAL) under STATE/castor.db with files, jobs, events and
 * checkpoints.
 *
 * Who writes: the scheduler thread alone, through the one read-write connection it opened. HTTP
 * threads read through their own read-only connections (store_open_reader), so a read never waits
 * for a write. Every function works on the connection it is given, and a connection belongs to one
 * thread at a time.
 *
 * Rows handed out own their strings (the _fini functions free them). Lists are newest first and
 * paged by the id of the last row seen; *has_more tells whether another page would have rows. An
 * unknown `after` id is ERR_NOT_FOUND.
 */
#ifndef CASTOR_SCHEDULER_STORE_H
#define CASTOR_SCHEDULER_STORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "scheduler/job.h"

struct store;

/* Read-write: creates the schema or migrates it, checks that the file is a database. */
int store_open(const char *state_dir, struct store **out, struct err *err);
int store_open_reader(const char *state_dir, struct store **out, struct err *err);
void store_close(struct store *s);

struct store_file {
    char *id;                              /* "file-..." */
    char *filename, *purpose, *status;     /* status: "uploaded" | "processed" | "error" */
    char *status_details;                  /* or NULL */
    char *path;                            /* absolute, in STATE/files */
    char *job_id;                          /* the job that wrote it (result files), or NULL */
    int64_t bytes, created_at, expires_at; /* expires_at 0 = never */
};

struct store_event {
    char *id; /* "ftevent-..." */
    char *job_id;
    int64_t created_at;
    char *level; /* "info" | "warn" | "error" */
    char *type;  /* "message" | "metrics" */
    char *message;
    json_t *data; /* or NULL */
};

struct store_checkpoint {
    char *id;             /* "ftckpt_..." */
    char *job_id, *model; /* the fine-tuned model's name with ":ckpt-step-N" */
    char *path;           /* absolute directory */
    int64_t created_at, step;
    json_t *metrics; /* object of numbers */
};

struct store_model { /* a fine-tuned model that can be listed and loaded */
    char *id;        /* "ft:base:org:suffix:xxxxxxxx" */
    char *job_id, *base, *path;
    int64_t created_at;
};

struct store_page {
    const char *after; /* NULL = from the newest */
    int64_t limit;
    bool ascending;
};

void store_file_fini(struct store_file *f);
void store_event_fini(struct store_event *e);
void store_checkpoint_fini(struct store_checkpoint *c);
void store_model_fini(struct store_model *m);

/* Reads; any connection. *rows is malloc'ed, its rows are finished by the caller, then free(*rows).
 */
int store_get_file(struct store *s, const char *id, struct store_file *out, struct err *err);
int store_list_files(struct store *s, const char *purpose, struct store_page page,
                     struct store_file **rows, int64_t *n, bool *has_more, struct err *err);
int store_get_job(struct store *s, const char *id, struct job *out, struct err *err);
/* metadata: object of strings that all must match, json_null() = jobs without metadata, NULL = any.
 */
int store_list_jobs(struct store *s, const json_t *metadata, const char *status,
                    struct store_page page, struct job **rows, int64_t *n, bool *has_more,
                    struct err *err);
int store_list_events(struct store *s, const char *job_id, struct store_page page,
                      struct store_event **rows, int64_t *n, bool *has_more, struct err *err);
int store_list_checkpoints(struct store *s, const char *job_id, struct store_page page,
                           struct store_checkpoint **rows, int64_t *n, bool *has_more,
                           struct err *err);
int store_get_model(struct store *s, const char *id, struct store_model *out, struct err *err);
int store_list_models(struct store *s, struct store_model **rows, int64_t *n, struct err *err);

#endif
