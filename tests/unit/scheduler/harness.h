/*
 * A scheduler in a fresh state directory, with fake_worker.py for its worker. One test is one
 * process, so what a test needs is global; test_setup and test_teardown frame every test.
 */
#ifndef CASTOR_TESTS_SCHEDULER_HARNESS_H
#define CASTOR_TESTS_SCHEDULER_HARNESS_H

#include <stdbool.h>
#include <stdint.h>

#include "api/attempt_exit.h"
#include "scheduler/scheduler.h"

extern char state[64]; /* the directory */
extern struct scheduler *sched;
extern struct store *reader;

void test_setup(void);
void test_teardown(void);
struct scheduler_config test_config(void);
void test_start(struct scheduler_config c); /* sched, and reader the first time */

struct store_file test_upload(void);
/* A job whose metadata are `meta`, a JSON object; `more` has further members or is empty. */
void test_spec(struct job_spec *spec, const char *file_id, const char *meta, const char *more);
char *test_create(const char *meta, const char *more); /* its id, fresh */
struct job test_get(const char *id);
/* Wait for a status (or, for -1, any final one); the job is the caller's. */
struct job wait_for(const char *id, int status);
void wait_for_step(const char *id, int64_t step);
/* Let a job of {"run":"gate"} go on, which stands still behind its second step; let one of
 * {"run":"crowded"} find the memory it needs, the next time. */
void test_open_gate(const char *id);
void steer_to(const char *id,
              int (*post)(struct scheduler *, const char *, struct job *, struct err *), int want);

/* The metrics rows that are steps must be exactly `steps`, in order. */
void expect_steps(const char *id, const int64_t *steps, int64_t n);
/* A new job must fail with that code and text. */
void expect_failure(const char *meta, const char *code, const char *text);
bool has_event(const char *id, const char *level, const char *text);
int count_group(int64_t pgid); /* its processes, without zombies */
struct supervisor_record supervisor_of(const char *id, int64_t attempt);

#endif
