/*
 * The shallow check of an uploaded data file, done by a child: castord itself parses no client's
 * file. `castor-worker --check PATH` gets limits on address space, processor time, output files
 * and descriptors, and a deadline; it exits with 0 when the file is fine, or with 1 after printing
 *   {"ok":false,"faults":[{"line":7,"message":"..."}]}
 * which is read with limits of its own. Blocking; called from handler threads.
 */
#ifndef CASTOR_SERVER_FILE_CHECK_H
#define CASTOR_SERVER_FILE_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "api/fault.h"
#include "core/err.h"

struct file_check {
    const char *worker_path;
    int64_t seconds; /* deadline                            */
    int64_t bytes;   /* address space of the child, 0 = any */
};

/* 0: the file is fine when `faults` stays empty. A child that dies or runs into its limits is a
 * fault of the file ("unchecked_file"); a worker that cannot be started, or that does not know
 * --check (any other exit status), leaves the file to the job's own validation: logged, no fault.
 */
int file_check_run(const struct file_check *check, const char *path, struct fault_list *faults,
                   struct err *err);

#endif
