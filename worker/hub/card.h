/*
 * A data set's card: the YAML between the first two "---" lines of its README.md, of which the
 * member `configs` says which files are which split. What comes out is JSON in one form:
 *
 *   [{"name": "default", "is_default": true, "folder": "data" or null,
 *     "splits": {"train": ["data/train-*"], ...} or null}, ...]
 *
 * "splits" null: the files are told by their names (worker/hub/splits.h). A card is untrusted: it
 * is read with bounds on its size, depth and number of nodes, and YAML's aliases are refused.
 */
#ifndef CASTOR_WORKER_HUB_CARD_H
#define CASTOR_WORKER_HUB_CARD_H

#include <jansson.h>
#include <stddef.h>

#include "core/err.h"

enum { CARD_MAX_BYTES = 8 << 20 }; /* of the README */

/* *configs is an empty array where the card names none. ERR_CORRUPT for what is not YAML, and for
 * configs of another form, with a text that tells the data set's owner what is wrong. */
int card_read_configs(const char *readme, size_t n, json_t **configs, struct err *err);

#endif
