/* The ways to call castor-worker, one function each; see worker/main.c. All return the process's
 * exit status unless they say otherwise. */
#ifndef CASTOR_WORKER_WORKER_H
#define CASTOR_WORKER_WORKER_H

#include <signal.h>
#include <stdint.h>

#include "core/err.h"

/* Print a plan report (api/plan_report.h) for a job directory on stdout. */
int worker_plan(const char *jobdir);
/* Print the instruction list of its optimizer step, one line each. */
int worker_print(const char *jobdir);

/* Print
 * {"ok":bool,"format":...,"shape":...,"bytes":n,"examples":n,"bad_lines":n,"faults":[{"line":n,
 * "message":"..."}]} for a data file (struct dataset_summary); a line is a row of a Parquet file.
 * All bad lines are counted, the first CHECK_MAX_LINES listed, CHECK_MAX_FAULTS of these with what
 * is wrong; line 0 is the file as a whole. "hf://datasets/..." is the split train of a data set on
 * the hub; its faults have the "file" too. */
enum { CHECK_MAX_FAULTS = 100, CHECK_MAX_LINES = 10000 };
int worker_check(const char *path);

/* Measure the devices of this machine and the disk of a directory (NULL: where profiles are kept),
 * keep the profiles (worker/plan/profile.h) and print them. */
int worker_probe(const char *disk);

/* Print {"cuda":n}: how many CUDA devices this machine has and this build can use. */
int worker_devices(void);

/* Start the ranks of one attempt on this host, watch them, end all when one dies, write exit.json.
 * Returns 0 when every rank exited with 0. SIGTERM (*terminate) is passed on to the ranks. */
int supervise(const char *jobdir, int64_t attempt, const volatile sig_atomic_t *terminate,
              struct err *err);

#endif
