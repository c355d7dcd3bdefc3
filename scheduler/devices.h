/*
 * How many GPUs this machine has, by `castor-worker --devices`: a child with a deadline and limits,
 * because drivers crash and hang, and castord does not load one. Its memory is not limited: a
 * driver reserves address space by the terabyte, and the child reads nothing that strangers made.
 */
#ifndef CASTOR_SCHEDULER_DEVICES_H
#define CASTOR_SCHEDULER_DEVICES_H

#include <stdint.h>

#include "core/err.h"

/* Blocks for `seconds` at most, and a moment. Not 0: nobody knows, and *n is as it was. */
int devices_count_gpus(const char *worker_path, int64_t seconds, int64_t *n, struct err *err);

#endif
