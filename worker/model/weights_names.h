/* What reading and writing weights share: a family's names spelled out. */
#ifndef CASTOR_WORKER_MODEL_WEIGHTS_NAMES_H
#define CASTOR_WORKER_MODEL_WEIGHTS_NAMES_H

#include <stdint.h>

#include "worker/model/family.h"

enum { WEIGHTS_MAX_PARTS = 3 }; /* files' tensors that make one of ours: q, k, v */

/* The name in files: prefix, and the layer's number for "{i}". A fresh string. */
char *weights_name(const struct name_map *map, const char *prefix, int64_t layer);

#endif
