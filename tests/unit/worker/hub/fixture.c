#include "tests/unit/worker/hub/fixture.h"

#include <criterion/criterion.h>
#include <curl/curl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"

#define REQUIRE(call)                                                                              \
    do {                                                                                           \
        struct err require_err = {0};                                                              \
        int require_rc = (call);                                                                   \
        cr_assert_eq(require_rc, 0, "%s: %s", #call, require_err.msg);                             \
    } while (0)

char *fixture_noise(size_t n)
{
    char *bytes = xmalloc(n + 1);
    uint64_t x = 88172645463325252u + n;

    for (size_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes[i] = (char)(x >> 32);
    }
    return bytes;
}

void fixture_put(const struct fixture *f, const char *repo, const char *name, const void *bytes,
                 size_t n)
{
    const char *kind = strncmp(repo, "datasets/", 9) == 0 ? "" : "models/";
    char *path = xasprintf("%s/%s%s/%s", f->root, kind, repo, name);
    char *dir = xstrndup(path, (size_t)(strrchr(path, '/') - path));

    REQUIRE(fs_mkdir_p(dir, false, &require_err));
    REQUIRE(fs_write_file_atomic(path, bytes, n, &require_err));
    free(dir);
    free(path);
}

static void put_text(const struct fixture *f, const char *repo, const char *name, const char *text)
{
    fixture_put(f, repo, name, text, strlen(text));
}

static void put_noise(const struct fixture *f, const char *repo, const char *name, size_t n)
{
    char *bytes = fixture_noise(n);

    fixture_put(f, repo, name, bytes, n);
    free(bytes);
}

static void make_repositories(const struct fixture *f)
{
    static const char *const simple[] = {"org/gated", "org/private", "org/disabled"};
    static const char index[] = "{\"weight_map\": {\"a\": \"model-00001-of-00002.safetensors\","
                                " \"b\": \"model-00002-of-00002.safetensors\","
                                " \"c\": \"model-00001-of-00002.safetensors\"}}";
    static const char config[] = "{\"tokens\": {\"hf_granted\": {\"gated\": true},"
                                 " \"hf_other\": {\"gated\": false}},"
                                 " \"gated\": {\"org/gated\": \"manual\","
                                 " \"datasets/org/gated\": \"manual\"},"
                                 " \"private\": [\"org/private\"],"
                                 " \"disabled\": [\"org/disabled\"],"
                                 " \"renamed\": {\"old\": \"org/tiny\"}}";
    char *path;

    put_text(f, "org/tiny", "config.json", "{\"model_type\": \"llama\"}");
    put_text(f, "org/tiny", "tokenizer.json", "{}");
    put_noise(f, "org/tiny", "model.safetensors", TINY_WEIGHT_BYTES);
    put_noise(f, "org/tiny", "pytorch_model.bin", 1000);
    put_noise(f, "org/tiny", "flax_model.msgpack", 1000);
    put_text(f, "org/tiny", "modeling_tiny.py", "raise SystemExit\n");
    put_text(f, "org/tiny", "README.md", "# Tiny\n");
    put_text(f, "org/tiny", "onnx/config.json", "{}");
    put_text(f, "org/sharded", "config.json", "{}");
    put_text(f, "org/sharded", "model.safetensors.index.json", index);
    put_noise(f, "org/sharded", "model-00001-of-00002.safetensors", SHARD_BYTES);
    put_noise(f, "org/sharded", "model-00002-of-00002.safetensors", SHARD_BYTES + 1);
    put_text(f, "org/bin", "config.json", "{}");
    put_text(f, "org/bin", "vocab.json", ""); /* empty files exist */
    put_noise(f, "org/bin", "pytorch_model.bin", 5000);
    for (size_t i = 0; i < sizeof(simple) / sizeof(simple[0]); i++) {
        put_text(f, simple[i], "config.json", "{}");
        put_noise(f, simple[i], "model.safetensors", 2000);
    }
    path = fs_join(f->root, "hub.json");
    REQUIRE(fs_write_file_atomic(path, config, strlen(config), &require_err));
    free(path);
}

static char *read_endpoint(int fd)
{
    char line[128] = "";
    size_t n = 0;

    while (n < sizeof(line) - 1 && read(fd, line + n, 1) == 1 && line[n] != '\n')
        n++;
    line[n] = '\0';
    const char *url = strstr(line, "http://");
    cr_assert_not_null(url, "the fixture hub did not start: '%s'", line);
    return xstrdup(url);
}

void fixture_start(struct fixture *f)
{
    int out[2];

    snprintf(f->dir, sizeof(f->dir), "/tmp/castor-hub-test-XXXXXX");
    cr_assert_not_null(mkdtemp(f->dir));
    f->root = fs_join(f->dir, "root");
    f->cache = fs_join(f->dir, "cache");
    make_repositories(f);
    setenv("NO_PROXY", "*", 1);
    unsetenv("HF_HUB_OFFLINE");
    unsetenv("TRANSFORMERS_OFFLINE");
    cr_assert_eq(pipe(out), 0);
    f->pid = fork();
    cr_assert_geq(f->pid, 0);
    if (f->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        execlp("python3", "python3", "-I", "-S", "tests/hub/fixture_hub.py", "--root", f->root,
               "--port", "0", (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    f->endpoint = read_endpoint(out[0]);
    close(out[0]);
}

void fixture_stop(struct fixture *f)
{
    kill(f->pid, SIGKILL);
    waitpid(f->pid, NULL, 0);
    fs_remove_tree(f->dir, NULL);
    free(f->root);
    free(f->cache);
    free(f->endpoint);
}

static size_t add_body(char *bytes, size_t size, size_t count, void *ud)
{
    buf_add(ud, bytes, size * count);
    return size * count;
}

static json_t *control(const struct fixture *f, const char *what, const char *method,
                       const char *body)
{
    char *url = xasprintf("%s/_fixture/%s", f->endpoint, what);
    CURL *curl = curl_easy_init();
    struct buf answer = {0};

    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    if (body)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, add_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
    cr_assert_eq(curl_easy_perform(curl), CURLE_OK, "the fixture hub does not answer");
    json_t *json = json_loads(buf_str(&answer), 0, NULL);
    cr_assert_not_null(json, "the fixture hub answers '%s' to %s", buf_str(&answer),
                       body ? body : what);
    curl_easy_cleanup(curl);
    buf_fini(&answer);
    free(url);
    return json;
}

void fixture_set_faults(const struct fixture *f, const char *json)
{
    json_decref(control(f, "faults", "POST", json));
    json_decref(control(f, "log", "DELETE", NULL));
}

json_t *fixture_log(const struct fixture *f)
{
    return control(f, "log", "GET", NULL);
}

static bool matches(const json_t *request, const char *key, const char *part)
{
    return !part || strstr(json_string_value(json_object_get(request, key)), part);
}

int fixture_count(const struct fixture *f, const char *server, const char *method, const char *part)
{
    json_t *log = fixture_log(f);
    json_t *request;
    size_t i;
    int n = 0;

    json_array_foreach(log, i, request)
    {
        n += matches(request, "server", server) && matches(request, "method", method) &&
             matches(request, "path", part);
    }
    json_decref(log);
    return n;
}

char *fixture_last_range(const struct fixture *f)
{
    json_t *log = fixture_log(f);
    const char *range = NULL;
    json_t *request;
    size_t i;

    json_array_foreach(log, i, request)
    {
        if (matches(request, "server", "store"))
            range = json_string_value(json_object_get(request, "range"));
    }
    char *copy = xstrdup(range ? range : "");
    json_decref(log);
    return copy;
}

struct hub *fixture_client_patient(const struct fixture *f, double stall_timeout)
{
    struct hub_config config = {.endpoint = f->endpoint,
                                .token = "",
                                .cache_dir = f->cache,
                                .wait_scale = 0.01,
                                .stall_timeout = stall_timeout};
    struct hub *hub = NULL;

    REQUIRE(hub_create(&config, &hub, &require_err));
    return hub;
}

struct hub *fixture_client(const struct fixture *f)
{
    return fixture_client_patient(f, 300);
}

void fixture_empty_cache(const struct fixture *f)
{
    REQUIRE(fs_remove_tree(f->cache, &require_err));
}

void fixture_expect(struct hub *hub, const char *repo, enum hub_want want, enum err_code code,
                    const char *reason)
{
    struct hub_snapshot s = {0};
    struct err err = {0};
    int rc = hub_fetch_model(hub, repo, "main", want, &s, &err);

    cr_expect_eq(rc, (int)code, "%s: code %s instead of %s: %s", repo, err_code_name(rc),
                 err_code_name(code), err.msg);
    if (code != ERR_OK && reason)
        cr_expect_str_eq(err.reason, reason, "%s: %s", repo, err.msg);
    if (code != ERR_OK)
        cr_expect_null(s.commit, "the snapshot was touched on failure");
    hub_snapshot_fini(&s);
}

void fixture_expect_whole(const struct fixture *f, struct hub *hub, const char *repo)
{
    struct hub_snapshot s = {0};

    REQUIRE(hub_fetch_model(hub, repo, "main", HUB_WANT_WEIGHTS, &s, &require_err));
    for (int64_t i = 0; i < s.n_files; i++) {
        char *here = fs_join(s.directory, s.files[i]);
        char *there = xasprintf("%s/models/%s/%s", f->root, repo, s.files[i]);
        struct buf a = {0}, b = {0};
        REQUIRE(fs_read_file(here, 1 << 20, &a, &require_err));
        REQUIRE(fs_read_file(there, 1 << 20, &b, &require_err));
        cr_expect(a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0),
                  "%s differs", s.files[i]);
        buf_fini(&a);
        buf_fini(&b);
        free(here);
        free(there);
    }
    cr_expect_gt(s.n_files, 1);
    hub_snapshot_fini(&s);
}
