#include "worker/train/sources.h"

#include <stdlib.h>
#include <string.h>

#include "api/hub_endpoint.h"
#include "core/alloc.h"

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

int sources_fetch(struct job_spec *spec, const struct sources_options *options, struct sources *out,
                  struct err *err)
{
    struct hub_config config = {.progress = options->progress, .progress_ud = options->ud};
    struct sources s = {0};
    struct hub *hub = NULL;
    int rc = 0;

    if (spec->model.path) {
        s.model_dir = xstrdup(spec->model.path);
    } else {
        TRY(check_endpoint(spec, err));
        TRY(hub_create(&config, &hub, err));
        TRY(fetch_model(hub, &spec->model, options, &s.model_dir, err));
    }
    *out = s;
    s = (struct sources){0};
out:
    sources_fini(&s);
    hub_destroy(hub);
    return rc;
}

void sources_fini(struct sources *s)
{
    free(s->model_dir);
    *s = (struct sources){0};
}
