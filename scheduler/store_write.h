/*
 * The store's writing half: for the scheduler thread alone, on the connection of store_open. What
 * belongs together goes between store_begin and store_commit; after any failure store_rollback
 * leaves the database as it was before.
 */
#ifndef CASTOR_SCHEDULER_STORE_WRITE_H
#define CASTOR_SCHEDULER_STORE_WRITE_H

#include "scheduler/store.h"

int store_begin(struct store *s, struct err *err);
int store_commit(struct store *s, struct err *err);
void store_rollback(struct store *s); /* fine when no transaction is open */

/* A file of that id is replaced (its size alone can differ). */
int store_put_file(struct store *s, const struct store_file *file, struct err *err);
int store_delete_file(struct store *s, const char *id, struct err *err);
int store_list_expired_files(struct store *s, int64_t now, struct store_file **rows, int64_t *n,
                             struct err *err);

int store_insert_job(struct store *s, const struct job *job, const char *dedupe, struct err *err);
int store_update_job(struct store *s, const struct job *job, struct err *err);
/* Jobs that are not final or whose attempt may still live, oldest first. */
int store_list_live_jobs(struct store *s, struct job **rows, int64_t *n, struct err *err);
/* The first job with that key created at `since` or later; ERR_NOT_FOUND when there is none. */
int store_find_dedupe(struct store *s, const char *dedupe, int64_t since, struct job *out,
                      struct err *err);

/* data may be NULL; the row's id is the database's. */
int store_insert_event(struct store *s, const char *job_id, int64_t created_at, const char *level,
                       const char *type, const char *message, const json_t *data, struct err *err);
int store_put_checkpoint(struct store *s, const struct store_checkpoint *c, struct err *err);
/* Forget a job's checkpoints but that of `step` and those of `kept`, an array of steps. */
int store_keep_checkpoints(struct store *s, const char *job_id, int64_t step, const json_t *kept,
                           struct err *err);
int store_put_model(struct store *s, const struct store_model *m, struct err *err);
int store_delete_model(struct store *s, const char *id, struct err *err);

/* `data` of every metrics event of a job, oldest first. Non-zero from fn stops and is returned. */
typedef int (*store_metrics_fn)(void *ud, const json_t *data, struct err *err);
int store_each_metrics(struct store *s, const char *job_id, store_metrics_fn fn, void *ud,
                       struct err *err);

/* Write something small: can the database be written? */
int store_touch(struct store *s, int64_t now, struct err *err);

#endif
