#include "worker/train/sources.h"

#include <stdlib.h>
#include <string.h>

#include "api/hub_endpoint.h"
#include "core/alloc.h"
#include "core/fs.h"

static int check_endpoint(const struct job_spec *spec, struct err *err)
{
    char *here = NULL;
    int rc = 0;

    if (!spec->hub.endpoint)
        return 0;
    TRY(hub_endpoint_default(&here, err));
    if (strcmp(here, spec->hub.endpoint) != 0) {
        rc = err_set(err, ERR_INVALID,
                     "the job is for the hub %s, but HF_ENDPOINT is %s; set HF_ENDPOINT, and the "
                     "token that belongs to it",
                     spec->hub.endpoint, here);
        err_set_param(err, rc, "hub.endpoint");
    }
out:
    free(here);
    return rc;
}

static int fetch_model(struct hub *hub, struct spec_model *m, const struct sources_options *o,
                       char **dir, struct err *err)
{
    struct hub_snapshot snap = {0};
    int rc = 0;

    TRY(hub_fetch_model(hub, m->repo, m->commit ? m->commit : m->revision,
                        o->want_weights ? HUB_WANT_WEIGHTS : HUB_WANT_METADATA, &snap, err));
    *dir = xstrdup(snap.directory);
    free(m->commit);
    m->commit = xstrdup(snap.commit);
out:
    hub_snapshot_fini(&snap);
    return rc ? err_set_param(err, rc, "model") : 0;
}

static const char converted_revision[] = "refs/convert/parquet";

static int fetch_dataset(struct hub *hub, struct spec_file *file, const char *config,
                         const char *split, const char *usual_split, struct sources_data *out,
                         struct err *err)
{
    struct hub_data_query query = {.repo = file->repo,
                                   .revision = file->commit ? file->commit : file->revision,
                                   .path = file->folder,
                                   .config = config,
                                   .split = split,
                                   .usual_split = usual_split,
                                   .converted = strcmp(file->revision, converted_revision) == 0};
    struct hub_snapshot snap = {0};
    bool converted = false;
    int rc = 0;

    TRY(hub_fetch_dataset(hub, &query, &snap, &converted, err));
    out->paths = xcalloc((size_t)snap.n_files + 1, sizeof(*out->paths));
    out->n = snap.n_files;
    for (int64_t i = 0; i < snap.n_files; i++)
        out->paths[i] = fs_join(snap.directory, snap.files[i]);
    out->name = xstrdup(file->id);
    free(file->commit);
    file->commit = xstrdup(snap.commit);
    if (converted) {
        free(file->revision);
        file->revision = xstrdup(converted_revision);
    }
out:
    hub_snapshot_fini(&snap);
    return rc;
}

static void take_upload(const struct spec_file *file, struct sources_data *out)
{
    out->paths = xcalloc(1, sizeof(*out->paths));
    out->paths[out->n++] = xstrdup(file->path);
    out->name = xstrdup(file->filename ? file->filename : file->path);
}

static int fetch_data(struct hub *hub, struct job_spec *spec, struct sources *s, struct err *err)
{
    struct spec_dataset *d = &spec->dataset;
    struct spec_file *train = &spec->training_file, *validation = &spec->validation_file;
    const char *param = "training_file";
    int rc = 0;

    if (train->repo)
        TRY(fetch_dataset(hub, train, d->config, d->split, "train", &s->train, err));
    else
        take_upload(train, &s->train);
    param = validation->id ? "validation_file" : "dataset.validation_split";
    if (validation->repo)
        TRY(fetch_dataset(hub, validation, d->config, d->validation_split, "validation",
                          &s->validation, err));
    else if (validation->id)
        take_upload(validation, &s->validation);
    else if (d->validation_split)
        TRY(fetch_dataset(hub, train, d->config, d->validation_split, NULL, &s->validation, err));
out:
    return rc ? err_set_param(err, rc, param) : 0;
}

int sources_fetch(struct job_spec *spec, const struct sources_options *options, struct sources *out,
                  struct err *err)
{
    struct hub_config config = {.progress = options->progress, .progress_ud = options->ud};
    struct sources s = {0};
    struct hub *hub = NULL;
    int rc = 0;

    if (!spec->model.path || spec->training_file.repo || spec->validation_file.repo) {
        TRY(check_endpoint(spec, err));
        TRY(hub_create(&config, &hub, err));
    }
    if (spec->model.path)
        s.model_dir = xstrdup(spec->model.path);
    else
        TRY(fetch_model(hub, &spec->model, options, &s.model_dir, err));
    TRY(fetch_data(hub, spec, &s, err));
    *out = s;
    s = (struct sources){0};
out:
    sources_fini(&s);
    hub_destroy(hub);
    return rc;
}

void sources_data_fini(struct sources_data *d)
{
    for (int64_t i = 0; i < d->n; i++)
        free(d->paths[i]);
    free(d->paths);
    free(d->name);
    *d = (struct sources_data){0};
}

void sources_fini(struct sources *s)
{
    sources_data_fini(&s->train);
    sources_data_fini(&s->validation);
    free(s->model_dir);
    *s = (struct sources){0};
}

int sources_fetch_dataset(const char *reference, struct sources_data *out, struct err *err)
{
    struct hub_config config = {0};
    struct spec_file file = {0};
    struct hub *hub = NULL;
    char why[160];
    int rc = 0;

    if (!spec_file_parse(reference, &file, why, sizeof(why))) {
        rc = err_set(err, ERR_INVALID, "%s: %s", reference, why);
        goto out;
    }
    TRY(hub_create(&config, &hub, err));
    TRY(fetch_dataset(hub, &file, NULL, NULL, "train", out, err));
out:
    hub_destroy(hub);
    spec_file_fini(&file);
    return rc;
}
