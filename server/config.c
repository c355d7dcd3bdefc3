#include "server/config.h"

#include <arpa/inet.h>
#include <jansson.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/hub_endpoint.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"

enum { CONFIG_MAX_BYTES = 1 << 20 };

static char *beside_this_program(const char *name)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

    if (n <= 0)
        return xstrdup(name);
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    if (slash)
        *slash = '\0';
    return fs_join(path, name);
}

void config_init(struct server_config *c)
{
    *c = (struct server_config){
        .worker_path = beside_this_program("castor-worker"),
        .organization = xstrdup("org-castor"),
        .threads = 16,
        .cpu_slots = 1,
        .gpu_slots = -1,
        .limits =
            {
                .file_bytes = INT64_C(512) << 20,
                .body_bytes = 1 << 20,
                .free_bytes = INT64_C(64) << 20,
                .connections = 512,
                .connections_per_address = 256,
                .idle_seconds = 60,
                .silence_seconds = 1800,
                .plan_seconds = 600,
                .plan_bytes = INT64_C(8) << 30,
                .check_seconds = 120,
                .check_bytes = INT64_C(8) << 30,
            },
    };
}

void config_fini(struct server_config *c)
{
    free(c->state_dir);
    free(c->worker_path);
    free(c->organization);
    free(c->keys);
    for (int64_t i = 0; i < c->n_local_model_dirs; i++)
        free(c->local_model_dirs[i]);
    for (int64_t i = 0; i < c->n_volumes; i++)
        free(c->volumes[i].path);
    for (int64_t i = 0; i < c->n_hubs; i++) {
        free(c->hubs[i].url);
        free(c->hubs[i].token_file);
        free(c->hubs[i].cache_dir);
    }
    *c = (struct server_config){0};
}

static int key_parse(const json_t *item, const char *path, struct api_key *out, struct err *err)
{
    static const char *const known[] = {"name", "sha256", "role", NULL};
    static const char *const roles[] = {"read", "submit", "admin"};
    const char *name = "", *sha256 = "", *role = "admin";
    int rc = 0;

    TRY(json_refuse_unknown(item, path, known, err));
    TRY(json_get_string(item, path, "name", true, &name, err));
    TRY(json_get_string(item, path, "sha256", true, &sha256, err));
    TRY(json_get_string(item, path, "role", false, &role, err));
    if (strlen(sha256) != 64 || strspn(sha256, "0123456789abcdef") != 64) {
        /* Not quoted: it may be the key itself. */
        rc = err_set(err, ERR_INVALID,
                     "%s.sha256 must be 64 lower-case hex digits: the output of "
                     "`printf %%s \"$KEY\" | sha256sum`",
                     path);
        goto out;
    }
    if (!*name || strlen(name) >= sizeof(out->name)) {
        rc = err_set(err, ERR_INVALID, "%s.name must have 1 to %zu bytes", path,
                     sizeof(out->name) - 1);
        goto out;
    }
    for (int i = 0; i < 3; i++) {
        if (strcmp(role, roles[i]) == 0) {
            *out = (struct api_key){.role = (enum role)(ROLE_READ + i)};
            snprintf(out->name, sizeof(out->name), "%s", name);
            memcpy(out->sha256, sha256, 65);
            goto out;
        }
    }
    rc = err_set(err, ERR_INVALID, "%s.role must be read, submit or admin", path);
out:
    return rc;
}

static int keys_parse(struct server_config *c, const json_t *list, struct err *err)
{
    json_t *item;
    size_t i;
    int rc = 0;

    if (!list)
        return 0;
    if (!json_is_array(list) || json_array_size(list) > CONFIG_MAX_KEYS)
        return err_set(err, ERR_INVALID, "api_keys must be an array of at most %d keys",
                       CONFIG_MAX_KEYS);
    free(c->keys);
    c->keys = xcalloc(json_array_size(list) + 1, sizeof(*c->keys));
    c->n_keys = 0;
    json_array_foreach((json_t *)list, i, item)
    {
        char path[32];
        snprintf(path, sizeof(path), "api_keys[%zu]", i);
        TRY(key_parse(item, path, &c->keys[i], err));
        c->n_keys++;
    }
out:
    return rc;
}

static int limits_parse(struct server_limits *l, const json_t *obj, struct err *err)
{
    static const char *const known[] = {
        "file_bytes",      "body_bytes",   "free_bytes",
        "connections",     "idle_seconds", "connections_per_address",
        "silence_seconds", "plan_seconds", "plan_bytes",
        "check_seconds",   "check_bytes",  NULL};
    const int64_t day = 86400, tera = INT64_C(1) << 40;
    const struct {
        const char *key;
        int64_t min, max, *out;
    } rows[] = {
        {"file_bytes", 1, tera, &l->file_bytes},
        {"body_bytes", 1024, INT64_C(64) << 20, &l->body_bytes},
        {"free_bytes", 0, INT64_C(1) << 50, &l->free_bytes},
        {"connections", 4, 100000, &l->connections},
        {"connections_per_address", 1, 100000, &l->connections_per_address},
        {"idle_seconds", 1, day, &l->idle_seconds},
        {"silence_seconds", 1, 365 * day, &l->silence_seconds},
        {"plan_seconds", 1, day, &l->plan_seconds},
        {"plan_bytes", 0, tera, &l->plan_bytes},
        {"check_seconds", 1, day, &l->check_seconds},
        {"check_bytes", 0, tera, &l->check_bytes},
    };
    int rc = 0;

    if (!obj)
        return 0;
    TRY(json_refuse_unknown(obj, "limits", known, err));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        TRY(json_get_int64(obj, "limits", rows[i].key, false, rows[i].min, rows[i].max, rows[i].out,
                           err));
out:
    return rc;
}

static int volume_parse(struct server_config *c, const json_t *item, const char *path,
                        struct err *err)
{
    static const char *const known[] = {"name", "path", NULL};
    const char *name = "", *dir = "";
    struct volume v = {0};
    int rc = 0;

    TRY(json_refuse_unknown(item, path, known, err));
    TRY(json_get_string(item, path, "name", true, &name, err));
    TRY(json_get_string(item, path, "path", true, &dir, err));
    if (!*name || strlen(name) >= sizeof(v.name))
        return err_set(err, ERR_INVALID, "%s.name must have 1 to %zu bytes", path,
                       sizeof(v.name) - 1);
    for (int64_t i = 0; i < c->n_volumes; i++)
        if (strcmp(c->volumes[i].name, name) == 0)
            return err_set(err, ERR_INVALID, "%s.name: there are two volumes \"%s\"", path, name);
    v.path = dir[0] == '/' ? realpath(dir, NULL) : NULL;
    if (!v.path)
        return err_set(err, ERR_INVALID, "%s.path must be the absolute path of a directory", path);
    snprintf(v.name, sizeof(v.name), "%s", name);
    c->volumes[c->n_volumes++] = v;
out:
    return rc;
}

static int volumes_parse(struct server_config *c, const json_t *list, struct err *err)
{
    json_t *item;
    size_t i;
    int rc = 0;

    if (!list)
        return 0;
    if (!json_is_array(list) || json_array_size(list) > CONFIG_MAX_DIRS)
        return err_set(err, ERR_INVALID, "volumes must be an array of at most %d volumes",
                       CONFIG_MAX_DIRS);
    json_array_foreach((json_t *)list, i, item)
    {
        char path[32];
        snprintf(path, sizeof(path), "volumes[%zu]", i);
        TRY(volume_parse(c, item, path, err));
    }
out:
    return rc;
}

const char *config_volume(const struct server_config *c, const char *name, struct buf *names)
{
    const char *path = NULL;
    for (int64_t i = 0; i < c->n_volumes; i++) {
        if (strcmp(c->volumes[i].name, name) == 0)
            path = c->volumes[i].path;
        buf_printf(names, "%s%s", i > 0 ? ", " : "", c->volumes[i].name);
    }
    return path;
}

static int dirs_parse(struct server_config *c, const json_t *list, struct err *err)
{
    json_t *item;
    size_t i;

    if (!list)
        return 0;
    if (!json_is_array(list) || json_array_size(list) > CONFIG_MAX_DIRS)
        return err_set(err, ERR_INVALID, "local_model_dirs must be an array of at most %d paths",
                       CONFIG_MAX_DIRS);
    json_array_foreach((json_t *)list, i, item)
    {
        const char *text = json_string_value(item);
        char *dir = text && text[0] == '/' ? realpath(text, NULL) : NULL;
        if (!dir)
            return err_set(err, ERR_INVALID,
                           "local_model_dirs[%zu] must be the absolute path of a directory", i);
        c->local_model_dirs[c->n_local_model_dirs++] = dir;
    }
    return 0;
}

/* The file must be there at the start; its content is read by the worker, whenever one starts. */
static int token_file_check(const char *file, const char *path, struct err *err)
{
    enum { MAX_TOKEN_BYTES = 4096 };
    struct buf text = {0};
    int rc = 0;

    if (file[0] != '/') {
        rc = err_set(err, ERR_INVALID, "%s.token_file must be the absolute path of a file", path);
    } else if (fs_read_file(file, MAX_TOKEN_BYTES, &text, err) != 0) {
        rc = err_wrap(err, ERR_INVALID, "%s.token_file", path);
    } else if (text.len == 0 || strspn(text.data, " \r\n") == text.len) {
        rc = err_set(err, ERR_INVALID, "%s.token_file: %s is empty", path, file);
    }
    if (text.data)
        explicit_bzero(text.data, text.len);
    buf_fini(&text);
    return rc;
}

static int hub_parse(struct server_config *c, const json_t *item, const char *path, struct err *err)
{
    static const char *const known[] = {"url", "token_file", "cache_dir", NULL};
    const char *url = "", *token_file = NULL, *cache_dir = NULL;
    struct hub_endpoint hub = {0};
    int rc = 0;

    TRY(json_refuse_unknown(item, path, known, err));
    TRY(json_get_string(item, path, "url", true, &url, err));
    TRY(json_get_string(item, path, "token_file", false, &token_file, err));
    TRY(json_get_string(item, path, "cache_dir", false, &cache_dir, err));
    if (hub_endpoint_canonical(url, &hub.url, err) != 0) {
        rc = err_wrap(err, ERR_INVALID, "%s.url", path);
        goto out;
    }
    for (int64_t i = 0; i < c->n_hubs; i++) {
        if (strcmp(c->hubs[i].url, hub.url) == 0) {
            rc = err_set(err, ERR_INVALID, "%s.url: %s is listed twice", path, hub.url);
            goto out;
        }
    }
    if (token_file)
        TRY(token_file_check(token_file, path, err));
    if (cache_dir && cache_dir[0] != '/') {
        rc = err_set(err, ERR_INVALID, "%s.cache_dir must be an absolute path", path);
        goto out;
    }
    hub.token_file = token_file ? xstrdup(token_file) : NULL;
    hub.cache_dir = cache_dir ? xstrdup(cache_dir) : NULL;
    c->hubs[c->n_hubs++] = hub;
    hub.url = NULL;
out:
    free(hub.url);
    return rc;
}

static int hubs_parse(struct server_config *c, const json_t *list, struct err *err)
{
    json_t *item;
    size_t i;
    int rc = 0;

    if (!list)
        return 0;
    if (!json_is_array(list) || json_array_size(list) > CONFIG_MAX_HUBS)
        return err_set(err, ERR_INVALID, "hub_endpoints must be an array of at most %d hubs",
                       CONFIG_MAX_HUBS);
    json_array_foreach((json_t *)list, i, item)
    {
        char path[40];
        snprintf(path, sizeof(path), "hub_endpoints[%zu]", i);
        TRY(hub_parse(c, item, path, err));
    }
out:
    return rc;
}

bool config_hub_allowed(const struct server_config *c, const char *url, struct buf *allowed)
{
    char *own = NULL;
    bool found;

    (void)hub_endpoint_default(&own, NULL); /* else there is none */
    found = own && strcmp(own, url) == 0;
    if (own)
        buf_add_str(allowed, own);
    for (int64_t i = 0; i < c->n_hubs; i++) {
        found |= strcmp(c->hubs[i].url, url) == 0;
        if (!own || strcmp(own, c->hubs[i].url) != 0)
            buf_printf(allowed, "%s%s", allowed->len > 0 ? ", " : "", c->hubs[i].url);
    }
    free(own);
    return found;
}

char *config_local_model(const struct server_config *c, const char *path)
{
    char *real = realpath(path, NULL);

    for (int64_t i = 0; real && i < c->n_local_model_dirs; i++) {
        const char *dir = c->local_model_dirs[i];
        size_t n = strlen(dir);
        if (strncmp(real, dir, n) == 0 && (real[n] == '/' || real[n] == '\0' || n == 1))
            return real;
    }
    free(real);
    return NULL;
}

static void replace(char **slot, const char *text)
{
    if (text) {
        free(*slot);
        *slot = xstrdup(text);
    }
}

static int config_apply(struct server_config *c, const json_t *root, struct err *err)
{
    static const char *const known[] = {
        "api_keys", "organization", "worker",           "threads",       "strict_openai_status",
        "slots",    "limits",       "local_model_dirs", "hub_endpoints", "volumes",
        NULL};
    static const char *const known_slots[] = {"cpu", "gpu", NULL};
    const char *worker = NULL, *organization = NULL;
    const json_t *slots = json_object_get(root, "slots");
    int rc = 0;

    if (!json_is_object(root))
        return err_set(err, ERR_INVALID, "the configuration must be a JSON object");
    TRY(json_refuse_unknown(root, "", known, err));
    TRY(json_get_string(root, "", "worker", false, &worker, err));
    TRY(json_get_string(root, "", "organization", false, &organization, err));
    TRY(json_get_int64(root, "", "threads", false, 2, 256, &c->threads, err));
    TRY(json_get_bool(root, "", "strict_openai_status", false, &c->strict_openai_status, err));
    if (slots) {
        TRY(json_refuse_unknown(slots, "slots", known_slots, err));
        TRY(json_get_int64(slots, "slots", "cpu", false, 0, 4096, &c->cpu_slots, err));
        TRY(json_get_int64(slots, "slots", "gpu", false, -1, 4096, &c->gpu_slots, err));
    }
    TRY(limits_parse(&c->limits, json_object_get(root, "limits"), err));
    TRY(keys_parse(c, json_object_get(root, "api_keys"), err));
    TRY(dirs_parse(c, json_object_get(root, "local_model_dirs"), err));
    TRY(volumes_parse(c, json_object_get(root, "volumes"), err));
    TRY(hubs_parse(c, json_object_get(root, "hub_endpoints"), err));
    replace(&c->worker_path, worker);
    replace(&c->organization, organization);
out:
    return rc;
}

int config_load(struct server_config *c, const char *path, struct err *err)
{
    struct server_config next = *c;
    json_t *root = NULL;
    int rc = 0;

    /* Work on a copy with its own strings, so that a faulty file changes nothing. */
    next.worker_path = xstrdup(c->worker_path);
    next.organization = xstrdup(c->organization);
    next.state_dir = c->state_dir ? xstrdup(c->state_dir) : NULL;
    next.keys = NULL;
    next.n_keys = 0;
    memset(next.local_model_dirs, 0, sizeof(next.local_model_dirs));
    next.n_local_model_dirs = 0;
    memset(next.volumes, 0, sizeof(next.volumes));
    next.n_volumes = 0;
    memset(next.hubs, 0, sizeof(next.hubs));
    next.n_hubs = 0;
    TRY(json_parse_file(path, CONFIG_MAX_BYTES, JSON_MAX_DEPTH_FILE, &root, err));
    rc = config_apply(&next, root, err);
    if (rc != 0) {
        rc = err_wrap(err, rc, "configuration %s", path);
        goto out;
    }
    struct server_config old = *c;
    *c = next;
    next = old;
out:
    config_fini(&next);
    json_decref(root);
    return rc;
}

char *config_default_state_dir(void)
{
    const char *state = getenv("XDG_STATE_HOME");
    const char *home = getenv("HOME");

    if (state && state[0] == '/')
        return fs_join(state, "castor");
    if (home && home[0] == '/')
        return fs_join(home, ".local/state/castor");
    return NULL;
}

static bool is_loopback(const struct sockaddr *addr)
{
    if (addr->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)addr;
        return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
    return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

int config_parse_listen(const char *text, struct listen_address *out, struct err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_PASSIVE};
    struct addrinfo *found = NULL;
    struct listen_address got = {0};
    const char *colon = strrchr(text, ':');
    const char *port = colon ? colon + 1 : "";
    size_t port_n = strlen(port);
    char host[256];
    char numeric[NI_MAXHOST];
    int rc = 0;

    if (!colon || port_n == 0 || port_n > 5 || strspn(port, "0123456789") != port_n ||
        strtol(port, NULL, 10) > 65535 || (size_t)(colon - text) >= sizeof(host) || colon == text)
        return err_set(err, ERR_INVALID,
                       "--listen '%s' must be HOST:PORT with a port from 0 to 65535, as in "
                       "127.0.0.1:8080 or [::1]:8080",
                       text);
    snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
    if (host[0] == '[' && host[strlen(host) - 1] == ']') {
        memmove(host, host + 1, strlen(host));
        host[strlen(host) - 1] = '\0';
    }
    int e = getaddrinfo(host, port, &hints, &found);
    if (e != 0)
        return err_set(err, ERR_INVALID, "--listen: cannot resolve host '%s': %s", host,
                       gai_strerror(e));
    memcpy(&got.addr, found->ai_addr, found->ai_addrlen);
    got.len = found->ai_addrlen;
    got.loopback = is_loopback(found->ai_addr);
    e = getnameinfo(found->ai_addr, found->ai_addrlen, numeric, sizeof(numeric), NULL, 0,
                    NI_NUMERICHOST);
    if (e != 0) {
        rc = err_set(err, ERR_INVALID, "--listen: cannot use host '%s': %s", host, gai_strerror(e));
        goto out;
    }
    snprintf(got.host, sizeof(got.host), found->ai_family == AF_INET6 ? "[%.60s]" : "%.60s",
             numeric);
    *out = got;
out:
    freeaddrinfo(found);
    return rc;
}
