/*
 * A scheduler and store in memory, behind the real headers: handler tests steer what it answers,
 * among it the errors that a real one gives on a bad day only. One Criterion test is one process,
 * so its tables are plain globals that begin empty.
 */
#ifndef CASTOR_TESTS_FAKE_SCHEDULER_H
#define CASTOR_TESTS_FAKE_SCHEDULER_H

#include "scheduler/scheduler.h"
#include "scheduler/store.h"

enum { FAKE_MAX = 64 };

struct fake_state {
    struct store_file files[FAKE_MAX];
    int n_files;
    struct job jobs[FAKE_MAX];
    char *dedupe[FAKE_MAX]; /* of each job */
    int n_jobs;
    struct store_event events[FAKE_MAX];
    int n_events;
    struct store_checkpoint checkpoints[FAKE_MAX];
    int n_checkpoints;
    struct store_model models[FAKE_MAX];
    int n_models;
    int calls;               /* of sched_post_* and sched_dry_run */
    enum err_code fail;      /* the next such call fails with this; 0 = it works */
    enum err_code fail_read; /* all reads fail with this                         */
    bool healthy;
    bool plan_fits;
    json_t *seen_metadata; /* the last filter of store_list_jobs, borrowed copy */
    char *seen_status;
};
extern struct fake_state fake;

void fake_add_file(const char *id, const char *purpose, const char *path, int64_t bytes);
struct job *fake_add_job(const char *id, enum job_status status);
void fake_add_event(const char *job_id, const char *id);
void fake_add_checkpoint(const char *job_id, const char *id, int64_t step);
void fake_add_model(const char *id);

#endif
