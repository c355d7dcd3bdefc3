/*
 * Families: one small file each (family_opt.c, ...) with two things: config.json -> flags, and a
 * table that maps each of our tensors to the tensors of the family's files. Adding a family adds a
 * file, a row in family.c and a golden test.
 */
#ifndef CASTOR_WORKER_MODEL_FAMILY_H
#define CASTOR_WORKER_MODEL_FAMILY_H

#include <jansson.h>

#include "core/err.h"
#include "worker/model/model.h"

/* Where a part of one of our tensors comes from. "{i}" in the name is the layer. Several rows with
 * one role stack by rows in the order given (q, k, v). */
struct name_map {
    enum tensor_role role;
    const char *name;    /* without the optional prefix */
    int64_t part, parts; /* this source is part `part` of `parts` of the role; rows by rows_of */
    bool transposed;     /* the file holds (in, out): GPT-2's Conv1D */
};

struct family {
    const char *model_type;
    const char *const *prefixes; /* optional prefixes a file's names may carry, NULL-terminated:
                                    "model.", "" ... */
    const char *const
        *ignored; /* tensors that files may carry and the model does not use (glob with '*') */
    const struct name_map *names; /* ends with name == NULL */
    int (*parse)(const json_t *config_json, struct decoder_config *out, struct err *err);
};

const struct family *family_find(const char *model_type); /* NULL = unknown */

/* Rows of our tensor that name_map part p covers: q, k, v parts differ in height under GQA. */
void family_part_rows(const struct decoder_config *c, const struct tensor_desc *t,
                      const struct name_map *map, int64_t *first_row, int64_t *rows);

#endif
