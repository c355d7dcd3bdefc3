#include "worker/hub/hub.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/hub/fetch.h"
#include "worker/hub/reference.h"
#include "worker/hub/select.h"
#include "worker/hub/settings.h"
#include "worker/hub/status.h"

enum { MAX_INDEX_BYTES = 64 << 20 };

/* --- settings --- */

int hub_poll(void *ud)
{
    struct hub *hub = ud;

    if (!hub->progress)
        return 0;
    return hub->progress(hub->progress_ud, hub->file ? hub->file->path : "", hub->file_done,
                         hub->file ? hub->file->size : 0, hub->all_done + hub->under_way,
                         hub->all_total);
}

static int absolute_path(char **path, struct err *err)
{
    if ((*path)[0] == '/')
        return 0;
    char *here = getcwd(NULL, 0);
    if (!here)
        return err_set_errno(err, errno, "cannot tell the working directory");
    char *whole = fs_join(here, *path);
    free(here);
    free(*path);
    *path = whole;
    return 0;
}

int hub_create(const struct hub_config *config, struct hub **out, struct err *err)
{
    char *endpoint = config->endpoint ? xstrdup(config->endpoint) : settings_endpoint();
    char *token = config->token ? xstrdup(config->token) : settings_token();
    struct hub *hub = xcalloc(1, sizeof(*hub));
    int rc = 0;

    hub->cache_root = config->cache_dir ? xstrdup(config->cache_dir) : settings_cache_root();
    hub->offline = config->offline || settings_offline();
    hub->progress = config->progress;
    hub->progress_ud = config->progress_ud;
    TRY(absolute_path(&hub->cache_root, err));
    TRY(http_init(&hub->http, endpoint, token, err));
    hub->http.stall_timeout =
        config->stall_timeout > 0 ? config->stall_timeout : settings_timeout();
    if (config->wait_scale > 0)
        hub->http.wait_scale = config->wait_scale;
    hub->http.poll = hub_poll;
    hub->http.poll_ud = hub;
    *out = hub;
    hub = NULL;
out:
    hub_destroy(hub);
    if (token)
        explicit_bzero(token, strlen(token));
    free(token);
    free(endpoint);
    return rc;
}

void hub_destroy(struct hub *hub)
{
    if (!hub)
        return;
    http_fini(&hub->http);
    free(hub->cache_root);
    free(hub);
}

void hub_snapshot_fini(struct hub_snapshot *s)
{
    for (int64_t i = 0; i < s->n_files; i++)
        free(s->files[i]);
    free(s->files);
    free(s->commit);
    free(s->directory);
    *s = (struct hub_snapshot){0};
}

/* --- a model --- */

static int choose(struct fetch *f, struct selection *s, struct err *err)
{
    char *path = NULL;
    json_t *json = NULL;
    struct err own = {0};
    int rc = 0;

    TRY(select_files(&f->listing, s, err));
    if (!s->index)
        goto out;
    TRY(fetch_ensure(f, &s->index, 1, err));
    path = fetch_path(f, s->index);
    if (json_parse_file(path, MAX_INDEX_BYTES, JSON_MAX_DEPTH_FILE, &json, &own) != 0) {
        rc =
            status_corrupt(err, "the model's list of weight files cannot be read: %.500s", own.msg);
        goto out;
    }
    TRY(select_shards(&f->listing, json, s, err));
out:
    json_decref(json);
    free(path);
    return rc;
}

/* --- the result --- */

static int compare_files(const void *a, const void *b)
{
    return strcmp((*(const struct listing_file *const *)a)->path,
                  (*(const struct listing_file *const *)b)->path);
}

/* Metadata and, if wanted, weights, by name. */
static const struct listing_file **wanted_files(const struct selection *s, enum hub_want want,
                                                int64_t *n)
{
    int64_t n_weights = want == HUB_WANT_WEIGHTS ? s->n_weights : 0;
    const struct listing_file **files =
        xcalloc((size_t)(s->n_metadata + n_weights) + 1, sizeof(*files));

    memcpy(files, s->metadata, (size_t)s->n_metadata * sizeof(*files));
    if (n_weights > 0)
        memcpy(files + s->n_metadata, s->weights, (size_t)n_weights * sizeof(*files));
    *n = s->n_metadata + n_weights;
    qsort(files, (size_t)*n, sizeof(*files), compare_files);
    return files;
}

int hub_fetch_model(struct hub *hub, const char *repo, const char *revision, enum hub_want want,
                    struct hub_snapshot *out, struct err *err)
{
    struct fetch f;
    struct selection selection = {0};
    const struct listing_file **files = NULL;
    int64_t n = 0;
    int rc = 0;

    TRY(fetch_begin(&f, hub, repo, revision, err));
    TRY(fetch_resolve(&f, err));
    TRY(choose(&f, &selection, err));
    files = wanted_files(&selection, want, &n);
    TRY(fetch_take(&f, files, n, out, err));
    out->weight_bytes = select_weight_bytes(&selection);
out:
    free(files);
    select_fini(&selection);
    fetch_end(&f);
    return rc;
}
