#include "api/job_spec.h"

#include <stdlib.h>
#include <string.h>

#include "api/job_spec_fields.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"

enum { SPEC_MAX_BYTES = 4 << 20 }; /* 8 prompts of 32 KiB, escaped six-fold, are the largest part */

void job_spec_init(struct job_spec *spec)
{
    memset(spec, 0, sizeof(*spec));
    record_init(spec_fields, spec_n_fields, spec);
    spec->parallelism.is_auto = true;
}

void spec_file_fini(struct spec_file *file)
{
    free(file->id);
    free(file->path);
    free(file->filename);
    free(file->repo);
    free(file->revision);
    free(file->commit);
    free(file->folder);
    *file = (struct spec_file){0};
}

void job_spec_forget_token(struct job_spec *spec)
{
    if (spec->hub.token)
        explicit_bzero(spec->hub.token, strlen(spec->hub.token));
    free(spec->hub.token);
    spec->hub.token = NULL;
}

void job_spec_fini(struct job_spec *spec)
{
    record_fini(spec_fields, spec_n_fields, spec);
    free(spec->model.name);
    free(spec->model.repo);
    free(spec->model.revision);
    free(spec->model.commit);
    free(spec->model.path);
    spec_file_fini(&spec->training_file);
    spec_file_fini(&spec->validation_file);
    json_decref(spec->metadata);
    json_decref(spec->dataset.column_mapping);
    for (int64_t i = 0; i < spec->lora.n_target_modules; i++)
        free(spec->lora.target_modules[i]);
    free(spec->lora.target_modules);
    free(spec->placement.nvme_directory);
    free(spec->hub.endpoint);
    job_spec_forget_token(spec);
    for (int64_t i = 0; i < spec->n_sample_prompts; i++)
        free(spec->sample_prompts[i]);
    memset(spec, 0, sizeof(*spec));
}

void job_spec_copy(struct job_spec *to, const struct job_spec *from)
{
    struct job_spec copy;
    json_t *metadata = from->metadata ? json_deep_copy(from->metadata) : NULL;
    json_t *mapping =
        from->dataset.column_mapping ? json_deep_copy(from->dataset.column_mapping) : NULL;

#define DUP(member) copy.member = from->member ? xstrdup(from->member) : NULL
    copy = *from;
    DUP(model.name);
    DUP(model.repo);
    DUP(model.revision);
    DUP(model.commit);
    DUP(model.path);
    DUP(training_file.id);
    DUP(training_file.path);
    DUP(training_file.filename);
    DUP(training_file.repo);
    DUP(training_file.revision);
    DUP(training_file.commit);
    DUP(training_file.folder);
    DUP(validation_file.id);
    DUP(validation_file.path);
    DUP(validation_file.filename);
    DUP(validation_file.repo);
    DUP(validation_file.revision);
    DUP(validation_file.commit);
    DUP(validation_file.folder);
    DUP(suffix);
    DUP(dataset.config);
    DUP(dataset.split);
    DUP(dataset.validation_split);
    DUP(placement.nvme_path);
    DUP(placement.nvme_directory);
    DUP(hub.endpoint);
    DUP(hub.token);
#undef DUP
    copy.metadata = metadata;
    copy.dataset.column_mapping = mapping;
    if (from->lora.target_modules) {
        copy.lora.target_modules = xcalloc((size_t)from->lora.n_target_modules + 1, sizeof(char *));
        for (int64_t i = 0; i < from->lora.n_target_modules; i++)
            copy.lora.target_modules[i] = xstrdup(from->lora.target_modules[i]);
    }
    for (int64_t i = 0; i < from->n_sample_prompts; i++)
        copy.sample_prompts[i] = xstrdup(from->sample_prompts[i]);
    *to = copy;
}

static int refuse_source(const char *what, struct err *err)
{
    err_set(err, ERR_INVALID,
            "%s names neither a path nor a repository with a revision; it was not written by "
            "castord",
            what);
    return err_set_param(err, ERR_INVALID, what);
}

/* A job directory is written when it is known where model and data come from. */
static int check_sources(const struct job_spec *spec, struct err *err)
{
    const struct spec_model *m = &spec->model;
    const struct spec_file *train = &spec->training_file, *validation = &spec->validation_file;

    if (!m->path && !(m->repo && m->revision))
        return refuse_source("base_model", err);
    if (!train->id || (!train->path && !(train->repo && train->revision)))
        return refuse_source("training_file", err);
    if (validation->id && !validation->path && !(validation->repo && validation->revision))
        return refuse_source("validation_file", err);
    return 0;
}

int job_spec_load(const char *path, struct job_spec *spec, struct err *err)
{
    struct job_spec fresh = {0};
    json_t *stored = NULL;
    int rc = 0;

    TRY(json_parse_file(path, SPEC_MAX_BYTES, JSON_MAX_DEPTH_REQUEST, &stored, err));
    rc = job_spec_from_json(stored, &fresh, err);
    if (rc == 0)
        rc = check_sources(&fresh, err);
    if (rc != 0) {
        err_wrap(err, rc, "%s", path);
        job_spec_fini(&fresh);
        goto out;
    }
    *spec = fresh;
out:
    json_decref(stored);
    return rc;
}

int job_spec_save(const char *path, const struct job_spec *spec, struct err *err)
{
    json_t *stored = job_spec_to_json(spec);
    char *line = json_to_line(stored);
    int rc = fs_write_file_atomic(path, line, strlen(line), err);

    free(line);
    json_decref(stored);
    return rc;
}
