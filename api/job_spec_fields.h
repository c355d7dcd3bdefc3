/*
 * The job spec's one table of fields, private to api/job_spec*.c: path in JSON, place in struct
 * job_spec, range and default. The request parser, the reader and writer of spec.json and
 * job_spec_init all run over it.
 *
 * A spec_reader walks a JSON object along the table. Members that are no plain value (a reference,
 * a list) have a reading function of their own; each form of the spec brings its list of those.
 */
#ifndef CASTOR_API_JOB_SPEC_FIELDS_H
#define CASTOR_API_JOB_SPEC_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "api/fault.h"
#include "api/job_spec.h"
#include "api/record.h"

enum { SPEC_MAX_FIELDS = 64, SPEC_PATH_CAP = 128, SPEC_MAX_TARGET_MODULES = 64 };

/* In both forms; order is that of the JSON. */
extern const struct record_field spec_fields[];
extern const size_t spec_n_fields;

struct spec_reader;

/* `path` is as the client wrote it, for faults. `value` is never null or JSON null. */
typedef void (*spec_special_fn)(struct spec_reader *r, const json_t *value, const char *path);

struct spec_special {
    const char *path; /* in the table's paths */
    spec_special_fn read;
};

struct spec_reader {
    struct job_spec *spec;
    struct fault_list *faults;
    const struct spec_special *specials; /* ended by a NULL path */
    bool seen[SPEC_MAX_FIELDS];          /* fields that were present and not null */
    void *ud;                            /* the form's own */
};

/* Read the members of `object`, whose place in the table is `prefix` ("" at the top) and in the
 * client's text `path`. Faults: unknown keys, wrong types, values out of range. */
void spec_read_members(struct spec_reader *r, const json_t *object, const char *prefix,
                       const char *path);

/* Specials that both forms share. */
void spec_read_metadata(struct spec_reader *r, const json_t *value, const char *path);
void spec_read_column_mapping(struct spec_reader *r, const json_t *value, const char *path);
void spec_read_parallelism(struct spec_reader *r, const json_t *value, const char *path);
void spec_read_lora(struct spec_reader *r, const json_t *value, const char *path);
void spec_read_target_modules(struct spec_reader *r, const json_t *value, const char *path);
void spec_read_sample_prompts(struct spec_reader *r, const json_t *value, const char *path);

/* A string, or a fault. Borrowed. */
const char *spec_read_text(struct spec_reader *r, const json_t *value, const char *path);
/* Split a model reference into spec->model; false and untouched when the grammar refuses it. */
bool spec_parse_model(const char *text, struct spec_model *model, char *why, size_t why_cap);

bool spec_path_is_within(const char *path, const char *group);

#endif
