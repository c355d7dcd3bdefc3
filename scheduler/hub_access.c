#include "scheduler/hub_access.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/hub_endpoint.h"
#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/hash.h"
#include "core/log.h"

/* --- the table --- */

static char *copy_or_null(const char *text)
{
    return text ? xstrdup(text) : NULL;
}

/* STATE/hub/<host>-<digits>: one directory an address, and one can tell which it is. */
static char *default_cache(const char *state_dir, const char *url)
{
    const char *host = strstr(url, "://") + 3;
    char digits[65];
    struct hash h;

    hash_init(&h, HASH_SHA256, 0);
    hash_update(&h, url, strlen(url));
    hash_final_hex(&h, digits);
    return xasprintf("%s/hub/%.*s-%.12s", state_dir, (int)strcspn(host, ":/["), host, digits);
}

void hub_access_init(struct hub_access *a, const struct hub_endpoint *listed, int64_t n,
                     const char *state_dir)
{
    struct err err = {0};

    *a = (struct hub_access){.listed = xcalloc((size_t)n + 1, sizeof(*a->listed)), .n_listed = n};
    for (int64_t i = 0; i < n; i++)
        a->listed[i] = (struct hub_endpoint){
            .url = xstrdup(listed[i].url),
            .token_file = copy_or_null(listed[i].token_file),
            .cache_dir = listed[i].cache_dir ? xstrdup(listed[i].cache_dir)
                                             : default_cache(state_dir, listed[i].url)};
    if (hub_endpoint_default(&a->default_url, &err) != 0)
        log_warn("scheduler", "jobs that name no hub will fail: %s", err.msg);
}

void hub_access_fini(struct hub_access *a)
{
    for (int64_t i = 0; i < a->n_listed; i++) {
        free(a->listed[i].url);
        free(a->listed[i].token_file);
        free(a->listed[i].cache_dir);
    }
    free(a->listed);
    free(a->default_url);
    *a = (struct hub_access){0};
}

/* --- the environment --- */

enum { MAX_CHANGES = 8 };

/* Variables that a child gets instead of, or besides, castord's. value NULL: it goes. */
struct changes {
    struct {
        const char *name, *value;
    } items[MAX_CHANGES];
    size_t n;
};

static void change(struct changes *c, const char *name, const char *value)
{
    c->items[c->n].name = name;
    c->items[c->n++].value = value;
}

static bool is_changed(const struct changes *c, const char *entry)
{
    for (size_t i = 0; i < c->n; i++) {
        size_t n = strlen(c->items[i].name);
        if (strncmp(entry, c->items[i].name, n) == 0 && entry[n] == '=')
            return true;
    }
    return false;
}

static char **apply(const struct changes *c)
{
    size_t n = 0, kept = 0;

    while (environ[n])
        n++;
    char **envp = xcalloc(n + c->n + 1, sizeof(char *));
    for (size_t i = 0; i < c->n; i++)
        if (c->items[i].value)
            envp[kept++] = xasprintf("%s=%s", c->items[i].name, c->items[i].value);
    for (size_t i = 0; i < n; i++)
        if (!is_changed(c, environ[i]))
            envp[kept++] = xstrdup(environ[i]);
    return envp;
}

void hub_access_free_environment(char **envp)
{
    for (char **e = envp; e && *e; e++)
        free(*e);
    free(envp);
}

/* The token of this file and no other one, or none at all. */
static void use_token_file(struct changes *c, const char *path)
{
    change(c, "HF_TOKEN", NULL);
    change(c, "HUGGING_FACE_HUB_TOKEN", NULL);
    change(c, "HF_TOKEN_PATH", path);
    change(c, "HF_HUB_DISABLE_IMPLICIT_TOKEN", path ? NULL : "1");
}

static const struct hub_endpoint *find_listed(const struct hub_access *a, const char *url)
{
    for (int64_t i = 0; url && i < a->n_listed; i++)
        if (strcmp(a->listed[i].url, url) == 0)
            return &a->listed[i];
    return NULL;
}

static int refuse(struct err *err, const char *reason, const char *param, const char *text)
{
    err_set(err, ERR_INVALID, "%s", text);
    err_set_reason(err, ERR_INVALID, reason);
    return err_set_param(err, ERR_INVALID, param);
}

int hub_access_environment(const struct hub_access *a, const struct job_spec *spec,
                           const char *jobdir, const char *visible_devices, char ***envp,
                           struct err *err)
{
    const char *url = spec->hub.endpoint;
    const struct hub_endpoint *listed = find_listed(a, url);
    char *own_token = job_dir_hub_token(jobdir);
    struct changes c = {0};
    int rc = 0;

    if (url && !listed && (!a->default_url || strcmp(url, a->default_url) != 0)) {
        rc = refuse(err, "hub_not_allowed", "hub.endpoint",
                    "the job's hub is no longer in castord's hub_endpoints; list it again, or "
                    "create the job with another hub.endpoint");
        goto out;
    }
    if (spec->hub.has_token && !fs_exists(own_token)) {
        rc = refuse(err, "hub_token_gone", "hub.token",
                    "the job's own hub token is no longer there; create the job again with it");
        goto out;
    }
    if (visible_devices)
        change(&c, "CUDA_VISIBLE_DEVICES", visible_devices);
    if (listed) {
        change(&c, "HF_ENDPOINT", listed->url);
        change(&c, "HF_HUB_CACHE", listed->cache_dir);
    }
    if (spec->hub.has_token)
        use_token_file(&c, own_token);
    else if (listed)
        use_token_file(&c, listed->token_file);
    *envp = apply(&c);
out:
    free(own_token);
    return rc;
}

/* --- a job's own token --- */

int hub_access_keep_token(struct job_spec *spec, const char *jobdir, struct err *err)
{
    const char *token = spec->hub.token;
    char *path;
    int rc = 0;

    if (!token)
        return 0;
    path = job_dir_hub_token(jobdir);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        rc = err_set_errno(err, errno, "cannot create %s", path);
        goto out;
    }
    rc = fs_write_all(fd, token, strlen(token), path, err);
    if (rc == 0 && fsync(fd) != 0)
        rc = err_set_errno(err, errno, "cannot write %s", path);
    close(fd);
    if (rc == 0)
        job_spec_forget_token(spec);
out:
    free(path);
    return rc;
}

void hub_access_drop_token(const char *jobdir)
{
    char *path = job_dir_hub_token(jobdir);

    if (unlink(path) != 0 && errno != ENOENT)
        log_warn("scheduler", "file=%s cannot be removed: %s", path, strerror(errno));
    free(path);
}
