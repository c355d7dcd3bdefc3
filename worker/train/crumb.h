/*
 * Breadcrumbs: where a rank is, in a small shared file mapping that survives the rank's death, so
 * that its supervisor can say what it was doing: step, list, instruction. Written by the rank with
 * plain stores, read by the supervisor afterwards.
 */
#ifndef CASTOR_WORKER_TRAIN_CRUMB_H
#define CASTOR_WORKER_TRAIN_CRUMB_H

#include <stdint.h>

#include "core/err.h"

struct crumb {
    int64_t step;
    char where[64]; /* "train BACKWARD block 3 micro-batch 1" */
};

/* Map attempt-N/crumb-K, creating it zeroed (step -1). */
int crumb_open(const char *path, struct crumb **out, struct err *err);
void crumb_close(struct crumb *c);
/* Read a crumb file; a missing one gives step -1 and "". */
void crumb_read(const char *path, struct crumb *out);

#endif
