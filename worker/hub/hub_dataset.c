/* hub_fetch_dataset: which files of a data set are the split that is asked for. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/hub/card.h"
#include "worker/hub/fetch.h"
#include "worker/hub/hub.h"
#include "worker/hub/reference.h"
#include "worker/hub/splits.h"

static const char converted_revision[] = "refs/convert/parquet";

/* One look at one revision. */
struct look {
    struct fetch f;
    const struct hub_data_query *query;
    const char *split;
    struct split_files found;
    struct buf splits; /* that there are */
};

static int refuse(struct err *err, enum err_code code, const char *reason, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static int refuse(struct err *err, enum err_code code, const char *reason, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    err_setv(err, code, fmt, args);
    va_end(args);
    return err_set_reason(err, code, reason);
}

static int no_data(const struct look *k, struct err *err)
{
    return refuse(err, ERR_UNSUPPORTED, "no_data_files",
                  "'%s' at '%s' has no data file of a format that Castor reads (" SPLITS_FORMATS
                  ")%s%s; name another revision or path, or upload the data",
                  k->f.repo, k->f.revision, k->query->path ? " below " : "",
                  k->query->path ? k->query->path : "");
}

/* --- the card --- */

static int read_card(struct look *k, json_t **configs, struct err *err)
{
    const struct listing_file *readme = listing_find(&k->f.listing, "README.md");
    struct buf text = {0};
    char *path = NULL;
    int rc = 0;

    if (!readme) {
        *configs = json_array();
        return 0;
    }
    if (readme->size > CARD_MAX_BYTES)
        return refuse(err, ERR_CORRUPT, "dataset_card", "the README.md of '%s' is absurdly large",
                      k->f.repo);
    TRY(fetch_ensure(&k->f, &readme, 1, err));
    path = fetch_path(&k->f, readme);
    TRY(fs_read_file(path, CARD_MAX_BYTES, &text, err));
    if (card_read_configs(buf_str(&text), text.len, configs, err) != 0) {
        rc = err_wrap(err, ERR_CORRUPT, "'%s'", k->f.repo);
        err_set_reason(err, rc, "dataset_card");
    }
out:
    buf_fini(&text);
    free(path);
    return rc;
}

/* The configuration that is asked for; NULL with *names where there is none such. */
static const json_t *find_config(const json_t *configs, const char *wanted, struct buf *names)
{
    const json_t *item, *found = NULL, *by_default = NULL;
    size_t i;

    json_array_foreach((json_t *)configs, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        buf_printf(names, "%s%s", names->len > 0 ? ", " : "", name);
        if (strcmp(name, wanted ? wanted : "default") == 0)
            found = item;
        if (json_is_true(json_object_get(item, "is_default")))
            by_default = item;
    }
    if (!wanted && by_default)
        return by_default;
    if (!wanted && !found && json_array_size(configs) == 1)
        return json_array_get(configs, 0);
    return found;
}

static int refuse_config(const struct look *k, const char *names, struct err *err)
{
    const char *wanted = k->query->config;

    return refuse(err, ERR_NOT_FOUND, "config_not_found",
                  "'%s' has %s%s%s; set dataset.config to one of: %s", k->f.repo,
                  wanted ? "no configuration '" : "several configurations", wanted ? wanted : "",
                  wanted ? "'" : "", names);
}

/* "" for the top; what a card says is no path outside, since it is only compared. */
static char *folder_of(const char *text)
{
    size_t n;

    while (text && (strncmp(text, "./", 2) == 0 || *text == '/'))
        text += *text == '/' ? 1 : 2;
    n = text ? strlen(text) : 0;
    while (n > 0 && text[n - 1] == '/')
        n--;
    return n == 1 && *text == '.' ? xstrdup("") : xstrndup(text ? text : "", n);
}

static int look_by_card(struct look *k, const json_t *configs, struct err *err)
{
    struct buf names = {0};
    const json_t *config = find_config(configs, k->query->config, &names);
    const json_t *patterns = json_object_get(config, "splits");
    char *folder = folder_of(json_string_value(json_object_get(config, "folder")));
    int rc = 0;

    if (!config)
        rc = refuse_config(k, buf_str(&names), err);
    else if (json_is_object(patterns))
        splits_by_pattern(&k->f.listing, folder, patterns, k->split, &k->found, &k->splits);
    else
        splits_by_name(&k->f.listing, folder, k->split, &k->found, &k->splits);
    free(folder);
    buf_fini(&names);
    return rc;
}

/* --- what is asked for --- */

static bool has_folder(const struct listing *l, const char *folder)
{
    size_t n = strlen(folder);

    for (int64_t i = 0; i < l->n; i++)
        if (strncmp(l->files[i].path, folder, n) == 0 && l->files[i].path[n] == '/')
            return true;
    return false;
}

static int look_at_path(struct look *k, struct err *err)
{
    const char *path = k->query->path;
    const struct listing_file *file = listing_find(&k->f.listing, path);

    if (!file && !has_folder(&k->f.listing, path))
        return refuse(err, ERR_NOT_FOUND, "data_file_not_found",
                      "'%s' at '%s' has neither a file nor a folder '%.200s'", k->f.repo,
                      k->f.revision, path);
    if (!file) {
        splits_by_name(&k->f.listing, path, k->split, &k->found, &k->splits);
        return 0;
    }
    if (k->query->split)
        return refuse(
            err, ERR_INVALID, "split_not_found",
            "'%.200s' of '%s' is one file, which has no split '%s'; name a folder, or leave "
            "the split out",
            path, k->f.repo, k->split);
    if (!splits_is_data(path))
        return refuse(err, ERR_UNSUPPORTED, "no_data_files",
                      "'%.200s' of '%s' is of no format that Castor reads (" SPLITS_FORMATS ")",
                      path, k->f.repo);
    k->found.files = xcalloc(1, sizeof(*k->found.files));
    k->found.files[k->found.n++] = file;
    return 0;
}

static int look_at_converted(struct look *k, struct err *err)
{
    struct buf configs = {0};
    int rc = 0;

    splits_converted(&k->f.listing, k->query->config, k->split, &k->found, &k->splits, &configs);
    if (k->splits.len == 0)
        rc = configs.len > 0 ? refuse_config(k, buf_str(&configs), err) : no_data(k, err);
    buf_fini(&configs);
    return rc;
}

/* A set without a card has one configuration, "default". */
static int look_at_all(struct look *k, struct err *err)
{
    const char *config = k->query->config;
    json_t *configs = NULL;
    int rc = 0;

    TRY(read_card(k, &configs, err));
    if (json_array_size(configs) > 0)
        TRY(look_by_card(k, configs, err));
    else if (config && strcmp(config, "default") != 0)
        rc = refuse_config(k, "default", err);
    else
        splits_by_name(&k->f.listing, "", k->split, &k->found, &k->splits);
out:
    json_decref(configs);
    return rc;
}

static int look(struct look *k, struct hub *hub, const char *repo, const char *revision,
                bool converted, struct err *err)
{
    int rc = 0;

    TRY(fetch_begin(&k->f, hub, repo, revision, err));
    TRY(fetch_resolve(&k->f, err));
    if (k->query->path)
        TRY(look_at_path(k, err));
    else if (converted)
        TRY(look_at_converted(k, err));
    else
        TRY(look_at_all(k, err));
    if (k->found.n == 0 && k->splits.len == 0)
        rc = no_data(k, err);
    else if (k->found.n == 0)
        rc = refuse(err, ERR_NOT_FOUND, "split_not_found",
                    "'%s' has no files of a split '%s'; it has: %s", repo, k->split,
                    buf_str(&k->splits));
out:
    return rc;
}

static void look_end(struct look *k)
{
    split_files_fini(&k->found);
    buf_fini(&k->splits);
    if (k->f.hub)
        fetch_end(&k->f);
    k->f.hub = NULL;
}

/* Whether the converter's copy may have what main has not. */
static bool may_be_converted(const struct look *k, const struct err *why)
{
    return strcmp(k->query->revision, "main") == 0 && !k->query->path &&
           (strcmp(why->reason, "no_data_files") == 0 ||
            strcmp(why->reason, "config_not_found") == 0);
}

int hub_fetch_dataset(struct hub *hub, const struct hub_data_query *query, struct hub_snapshot *out,
                      bool *converted, struct err *err)
{
    struct look k = {.query = query, .split = query->split ? query->split : query->usual_split};
    char *repo = xasprintf(REFERENCE_DATASETS "%s", query->repo);
    bool copy = query->converted || strcmp(query->revision, converted_revision) == 0;
    struct err own = {0}, second = {0};
    int rc = 0;

    if (query->path && !reference_path_is_safe(query->path)) {
        rc = err_set(err, ERR_INVALID, "'%.200s' is not a path in a repository", query->path);
        goto out;
    }
    rc = look(&k, hub, repo, query->revision, copy, &own);
    if (rc != 0 && !copy && may_be_converted(&k, &own)) {
        look_end(&k);
        rc = look(&k, hub, repo, converted_revision, true, &second);
        copy = rc == 0;
        if (rc != 0 && strcmp(second.reason, "revision_not_found") != 0)
            own = second;
    }
    if (rc == 0)
        rc = fetch_take(&k.f, k.found.files, k.found.n, out, &own);
    if (rc == 0) {
        *converted = copy;
    } else {
        rc = own.code;
        if (err)
            *err = own;
    }
out:
    look_end(&k);
    free(repo);
    return rc;
}
