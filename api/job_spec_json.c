/*
 * The stored form, spec.json: every member of the request's grammar with its value, and what only
 * the service knows: id, created_at, resolved, base_model, files.
 */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_spec.h"
#include "api/job_spec_fields.h"

#define AT(member) offsetof(struct job_spec, member)
#define TEXT(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_STRING, AT(member), .flags = RECORD_SHOW_NULL                                 \
    }
#define COUNT(path, member)                                                                        \
    {                                                                                              \
        path, RECORD_INT, AT(member), .min = 0, .max = 9007199254740992.0                          \
    }

/* `v` is written and checked apart. */
static const struct record_field own_fields[] = {
    {"id", RECORD_CHARS, AT(id), .cap = JOB_ID_MAX, .flags = RECORD_REQUIRED},
    {"created_at", RECORD_REAL, AT(created_at), .min = 0, .max = 1e11, .flags = RECORD_REQUIRED},
    {"resolved", RECORD_BOOL, AT(resolved)},
    TEXT("model", model.name),
    TEXT("base_model.repo", model.repo),
    TEXT("base_model.revision", model.revision),
    TEXT("base_model.commit", model.commit),
    TEXT("base_model.path", model.path),
    TEXT("hub.endpoint", hub.endpoint),
    {"hub.has_token", RECORD_BOOL, AT(hub.has_token)},
    TEXT("training_file", training_file.id),
    TEXT("validation_file", validation_file.id),
    TEXT("files.training_file.path", training_file.path),
    TEXT("files.training_file.filename", training_file.filename),
    COUNT("files.training_file.bytes", training_file.bytes),
    TEXT("files.training_file.repo", training_file.repo),
    TEXT("files.training_file.revision", training_file.revision),
    TEXT("files.training_file.commit", training_file.commit),
    TEXT("files.training_file.folder", training_file.folder),
    TEXT("files.validation_file.path", validation_file.path),
    TEXT("files.validation_file.filename", validation_file.filename),
    COUNT("files.validation_file.bytes", validation_file.bytes),
    TEXT("files.validation_file.repo", validation_file.repo),
    TEXT("files.validation_file.revision", validation_file.revision),
    TEXT("files.validation_file.commit", validation_file.commit),
    TEXT("files.validation_file.folder", validation_file.folder),
    TEXT("files.nvme.path", placement.nvme_directory),
};
enum { N_OWN = sizeof(own_fields) / sizeof(own_fields[0]) };

json_t *job_spec_to_json(const struct job_spec *spec)
{
    json_t *stored = json_object();
    json_t *list;

    json_object_set_new(stored, "v", json_integer(JOB_SPEC_VERSION));
    record_write(own_fields, N_OWN, spec, stored);
    json_object_set(stored, "metadata", spec->metadata ? spec->metadata : json_null());
    record_write(spec_fields, spec_n_fields, spec, stored);
    json_object_set(json_object_get(stored, "dataset"), "column_mapping",
                    spec->dataset.column_mapping ? spec->dataset.column_mapping : json_null());
    if (spec->parallelism.is_auto)
        json_object_set_new(stored, "parallelism", json_string("auto"));
    if (!spec->lora.enabled) {
        json_object_set_new(stored, "lora", json_null());
    } else {
        list = spec->lora.target_modules ? json_array() : json_string("auto");
        for (int64_t i = 0; i < spec->lora.n_target_modules; i++)
            json_array_append_new(list, json_string(spec->lora.target_modules[i]));
        json_object_set_new(json_object_get(stored, "lora"), "target_modules", list);
    }
    list = json_array();
    for (int64_t i = 0; i < spec->n_sample_prompts; i++)
        json_array_append_new(list, json_string(spec->sample_prompts[i]));
    json_object_set_new(stored, "sample_prompts", list);
    return stored;
}

/* The stored fields' own readers: everything below these members was read by record_read before. */
static void skip(struct spec_reader *r, const json_t *value, const char *path)
{
    (void)r, (void)value, (void)path;
}

/* An object whose members are all stored fields. */
static void check_group(struct spec_reader *r, const json_t *value, const char *path)
{
    const char *key;
    json_t *member;

    if (!json_is_object(value)) {
        fault_add(r->faults, path, "invalid_type", "%s must be an object", path);
        return;
    }
    json_object_foreach((json_t *)value, key, member)
    {
        char full[SPEC_PATH_CAP];
        bool known = false, group = false;

        snprintf(full, sizeof(full), "%s.%s", path, key);
        for (size_t i = 0; i < N_OWN; i++) {
            known |= strcmp(own_fields[i].path, full) == 0;
            group |= spec_path_is_within(own_fields[i].path, full);
        }
        if (group)
            check_group(r, member, full); /* as deep as the table's paths */
        else if (!known)
            fault_add(r->faults, full, "unknown_parameter", "%s is not known here", full);
    }
}

static const struct spec_special specials[] = {
    {"v", skip},
    {"id", skip},
    {"created_at", skip},
    {"resolved", skip},
    {"model", skip},
    {"base_model", check_group},
    {"hub", check_group},
    {"training_file", skip},
    {"validation_file", skip},
    {"files", check_group},
    {"metadata", spec_read_metadata},
    {"dataset.column_mapping", spec_read_column_mapping},
    {"parallelism", spec_read_parallelism},
    {"lora", spec_read_lora},
    {"lora.target_modules", spec_read_target_modules},
    {"sample_prompts", spec_read_sample_prompts},
    {NULL, NULL},
};

static int check_version(const json_t *stored, struct err *err)
{
    const json_t *v = json_object_get(stored, "v");

    if (!json_is_object(stored))
        return err_set(err, ERR_INVALID, "a job spec must be a JSON object");
    if (!json_is_integer(v) || json_integer_value(v) != JOB_SPEC_VERSION)
        return err_set(err, ERR_UNSUPPORTED,
                       "the job spec is not of version %d; it was written by another release",
                       JOB_SPEC_VERSION);
    return 0;
}

int job_spec_from_json(const json_t *stored, struct job_spec *spec, struct err *err)
{
    struct fault_list faults = {0};
    struct job_spec fresh;
    struct spec_reader reader = {.spec = &fresh, .faults = &faults, .specials = specials};
    int rc = 0;

    job_spec_init(&fresh);
    TRY(check_version(stored, err));
    TRY(record_read(own_fields, N_OWN, stored, &fresh, err));
    spec_read_members(&reader, stored, "", "");
    if (faults.n > 0) {
        rc = err_set(err, ERR_INVALID, "%s", faults.items[0].message);
        err_set_param(err, rc, faults.items[0].param);
        goto out;
    }
    *spec = fresh;
    fault_list_fini(&faults);
    return 0;
out:
    fault_list_fini(&faults);
    job_spec_fini(&fresh);
    return rc;
}
