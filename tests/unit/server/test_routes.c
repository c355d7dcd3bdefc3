/* Routing, refusals that need no body, authorisation, and the headers of every answer. */
#include <stdlib.h>

#include "core/alloc.h"
#include "core/hash.h"
#include "server/openapi.h"
#include "tests/unit/server/harness.h"

static struct harness h;

static void setup(void)
{
    harness_init(&h);
}

static void teardown(void)
{
    harness_fini(&h);
}

TestSuite(routes, .init = setup, .fini = teardown);

static void expect(const char *method, const char *uri, unsigned status)
{
    struct answer a = ask(&h, method, uri, NULL, NULL);

    cr_expect_eq(a.status, status, "%s %s gave %u: %s", method, uri, a.status,
                 buf_str(&a.rep.body));
    cr_expect_not_null(a.json, "%s %s did not answer JSON", method, uri);
    answer_fini(&a);
}

Test(routes, unknown_paths_are_404)
{
    static const char *const paths[] = {"/",
                                        "/v1",
                                        "/v1/",
                                        "/v1/file",
                                        "/v1/files/",
                                        "/v1//files",
                                        "/v1/files/x/y",
                                        "/v1/files/x/content/z",
                                        "/v1/fine_tuning",
                                        "/v1/fine_tuning/jobs/",
                                        "/v1/fine_tuning/jobs/x/nothing",
                                        "/v1/models/",
                                        "/V1/files",
                                        "/healthz/x"};

    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        struct answer a = ask(&h, "GET", paths[i], NULL, NULL);
        assert_error(a, 404, "unknown_url", "");
        answer_fini(&a);
    }
}

Test(routes, wrong_methods_are_405_with_allow)
{
    static const char *const rows[][3] = {{"PUT", "/v1/files", "POST, GET, HEAD"},
                                          {"DELETE", "/v1/fine_tuning/jobs", "POST, GET, HEAD"},
                                          {"GET", "/v1/fine_tuning/jobs/x/cancel", "POST"},
                                          {"POST", "/v1/models/a/b", "GET, HEAD, DELETE"},
                                          {"TRACE", "/healthz", "GET, HEAD"},
                                          {"OPTIONS", "/v1/files", "POST, GET, HEAD"},
                                          {"get", "/healthz", "GET, HEAD"},
                                          {"AVERYLONGMETHODNAME", "/healthz", "GET, HEAD"}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct answer a = ask(&h, rows[i][0], rows[i][1], NULL, NULL);
        assert_error(a, 405, "method_not_allowed", "");
        cr_expect_str_eq(reply_find_header(&a.rep, "Allow"), rows[i][2]);
        answer_fini(&a);
    }
}

Test(routes, the_table_is_reachable)
{
    fake_add_model("ft:org/name:o::1234");
    expect("GET", "/healthz", 200);
    expect("HEAD", "/healthz", 200);
    expect("GET", "/version", 200);
    expect("GET", "/openapi.json", 200);
    expect("GET", "/v1/files", 200);
    expect("GET", "/v1/f%69les", 200);
    expect("GET", "/v1/fine_tuning/jobs", 200);
    expect("GET", "/v1/models", 200);
    expect("GET", "/v1/models/ft:org/name:o::1234", 200);
    expect("GET", "/v1/models/ft%3Aorg%2Fname%3Ao%3A%3A1234", 200);
    expect("DELETE", "/v1/models/ft:org%2Fname:o::1234", 200);
    expect("GET", "/v1/models/ft:org/name:o::1235", 404);
    expect("GET", "/v1/files/..%2f..%2fetc", 400);
}

Test(routes, every_answer_has_its_headers)
{
    static const char *const uris[] = {"/healthz", "/nowhere", "/v1/files/%00", "/v1/files"};

    for (size_t i = 0; i < 4; i++) {
        struct answer a = ask(&h, "GET", uris[i], NULL, NULL);
        const char *id = reply_find_header(&a.rep, "x-request-id");
        cr_assert_not_null(id);
        cr_expect_eq(strncmp(id, "req_", 4), 0);
        cr_expect_not_null(reply_find_header(&a.rep, "openai-processing-ms"));
        cr_expect_str_eq(reply_find_header(&a.rep, "openai-version"), "2020-10-01");
        cr_expect_str_eq(reply_find_header(&a.rep, "openai-organization"), "org-castor");
        cr_expect_str_eq(a.rep.content_type, "application/json");
        answer_fini(&a);
    }
}

static void expect_headers(const char *method, const char *uri, const char *const *headers,
                           unsigned status, const char *code)
{
    struct answer a = ask(&h, method, uri, headers, NULL);

    cr_expect_eq(a.status, status, "%s %s gave %u: %s", method, uri, a.status,
                 buf_str(&a.rep.body));
    if (status >= 400)
        cr_expect_str_eq(error_member(&a, "code"), code);
    answer_fini(&a);
}

Test(routes, bodies_are_judged_by_their_headers)
{
    const char *jobs = "/v1/fine_tuning/jobs", *files = "/v1/files";
    const char *large[] = {"Content-Length", "1048577", NULL};
    const char *huge[] = {"Content-Length", "999999999999999999999", NULL};
    const char *no_number[] = {"Content-Length", "-1", NULL};
    const char *twice[] = {"Content-Length", "1", "Content-Length", "2", NULL};
    const char *both[] = {"Content-Length", "1", "Transfer-Encoding", "chunked", NULL};
    const char *gzip[] = {"Transfer-Encoding", "gzip", NULL};
    const char *packed[] = {"Content-Encoding", "gzip", NULL};
    const char *form[] = {"Content-Type", "application/x-www-form-urlencoded", NULL};
    const char *plain[] = {"Content-Type", "text/plain", NULL};
    const char *large_file[] = {"Content-Type", "multipart/form-data; boundary=x", "Content-Length",
                                "999999999999", NULL};

    expect_headers("POST", jobs, large, 413, "body_too_large");
    expect_headers("POST", jobs, huge, 413, "body_too_large");
    expect_headers("POST", jobs, no_number, 400, "invalid_framing");
    expect_headers("POST", jobs, twice, 400, "invalid_framing");
    expect_headers("POST", jobs, both, 400, "invalid_framing");
    expect_headers("POST", jobs, gzip, 400, "invalid_framing");
    expect_headers("POST", jobs, packed, 415, "unsupported_encoding");
    expect_headers("POST", jobs, form, 415, "unsupported_media_type");
    expect_headers("POST", files, NULL, 415, "unsupported_media_type");
    expect_headers("POST", files, plain, 415, "unsupported_media_type");
    expect_headers("POST", files, large_file, 413, "file_too_large");
}

static void add_key(const char *name, const char *key, enum role role)
{
    struct hash hash;
    struct api_key *k;

    h.config.keys = xrealloc(h.config.keys, sizeof(*k) * (size_t)(h.config.n_keys + 1));
    k = &h.config.keys[h.config.n_keys++];
    *k = (struct api_key){.role = role};
    snprintf(k->name, sizeof(k->name), "%s", name);
    hash_init(&hash, HASH_SHA256, 0);
    hash_update(&hash, key, strlen(key));
    hash_final_hex(&hash, k->sha256);
}

Test(routes, keys_decide_what_is_allowed)
{
    const char *none[] = {NULL};
    const char *wrong[] = {"Authorization", "Bearer sk-nobody", NULL};
    const char *basic[] = {"Authorization", "Basic sk-read", NULL};
    const char *empty[] = {"Authorization", "Bearer ", NULL};
    const char *reader[] = {"Authorization", "Bearer sk-read", NULL};
    const char *azure[] = {"api-key", "sk-read", NULL};
    const char *submit[] = {"authorization", "bearer sk-submit", NULL};
    const char *admin[] = {"Authorization", "Bearer sk-admin",           "Host", "castor.example",
                           "Origin",        "https://elsewhere.example", NULL};
    const char *cancel = "/v1/fine_tuning/jobs/ftjob-1/cancel";

    add_key("r", "sk-read", ROLE_READ);
    add_key("s", "sk-submit", ROLE_SUBMIT);
    add_key("a", "sk-admin", ROLE_ADMIN);
    fake_add_job("ftjob-1", JOB_RUNNING);
    fake_add_model("m");
    expect_headers("GET", "/v1/files", none, 401, "");
    expect_headers("GET", "/v1/files", empty, 401, "");
    expect_headers("GET", "/v1/files", basic, 401, "");
    expect_headers("GET", "/v1/files", wrong, 401, "invalid_api_key");
    expect_headers("GET", "/v1/files", reader, 200, "");
    expect_headers("GET", "/v1/files", azure, 200, "");
    expect_headers("POST", cancel, reader, 403, "insufficient_permissions");
    expect_headers("POST", cancel, submit, 200, "");
    expect_headers("DELETE", "/v1/models/m", submit, 403, "insufficient_permissions");
    expect_headers("DELETE", "/v1/models/m", admin, 200, "");
    expect_headers("GET", "/healthz", none, 200, "");
    expect_headers("GET", "/nowhere", none, 404, "unknown_url");
    struct answer a = ask(&h, "GET", "/v1/files", NULL, NULL);
    cr_expect_str_eq(reply_find_header(&a.rep, "WWW-Authenticate"), "Bearer");
    answer_fini(&a);
}

Test(routes, without_keys_only_this_machine_is_served)
{
    static const char *const good[] = {"localhost", "localhost:8080", "127.0.0.1:1",
                                       "127.0.0.9", "[::1]:8080",     "LOCALHOST"};
    static const char *const bad[] = {"evil.example", "localhost.evil.example", "127.0.0.1.evil",
                                      "10.0.0.1", ""};

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        const char *headers[] = {"Host", good[i], NULL};
        expect_headers("GET", "/v1/files", headers, 200, "");
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const char *headers[] = {"Host", bad[i], NULL};
        expect_headers("GET", "/v1/files", headers, 403, "host_not_allowed");
    }
    const char *page[] = {"Host", "localhost:8080", "Origin", "https://evil.example", NULL};
    const char *null_origin[] = {"Host", "localhost:8080", "Origin", "null", NULL};
    const char *own[] = {"Host", "localhost:8080", "Origin", "http://localhost:8080", NULL};
    expect_headers("GET", "/v1/files", page, 403, "origin_not_allowed");
    expect_headers("GET", "/v1/files", null_origin, 403, "origin_not_allowed");
    expect_headers("GET", "/v1/files", own, 200, "");
}

Test(routes, readiness_follows_the_scheduler_and_the_disk)
{
    expect("GET", "/readyz", 200);
    expect("GET", "/health", 200);
    fake.healthy = false;
    expect("GET", "/readyz", 503);
    expect("GET", "/healthz", 200);
    fake.healthy = true;
    h.config.limits.free_bytes = INT64_MAX;
    expect("GET", "/readyz", 503);
    h.config.limits.free_bytes = 0;
    atomic_store(&h.draining, true);
    expect("GET", "/health", 503);
    atomic_store(&h.draining, false);
    remove(h.config.worker_path);
    expect("GET", "/readyz", 503);
}

Test(routes, own_troubles_are_not_told_to_strangers)
{
    fake.fail_read = ERR_IO;
    struct answer a = ask(&h, "GET", "/v1/files", NULL, NULL);
    cr_expect_eq(a.status, 500);
    cr_expect_str_eq(error_member(&a, "type"), "server_error");
    cr_expect_null(strstr(buf_str(&a.rep.body), "/secret"), "%s", buf_str(&a.rep.body));
    cr_expect_not_null(
        strstr(error_member(&a, "message"), reply_find_header(&a.rep, "x-request-id")));
    answer_fini(&a);
}

/* The document and the table name the same operations, and every reference in it leads somewhere.
 */
static void check_references(const json_t *schemas, const json_t *value)
{
    const char *key;
    json_t *member;
    size_t i;

    if (json_is_array(value)) {
        json_array_foreach((json_t *)value, i, member) check_references(schemas, member);
        return;
    }
    json_object_foreach((json_t *)value, key, member)
    {
        if (strcmp(key, "$ref") == 0) {
            const char *to = strrchr(json_string_value(member), '/') + 1;
            cr_expect_not_null(json_object_get(schemas, to), "no schema %s", to);
        }
        check_references(schemas, member);
    }
}

Test(routes, the_openapi_document_describes_the_table)
{
    struct answer a = ask(&h, "GET", "/openapi.json", NULL, NULL);
    json_t *paths = json_object_get(a.json, "paths");
    int n, described = 0;
    const struct route *table = route_table(&n);
    const char *key;
    json_t *item;

    cr_assert_not_null(paths);
    for (int i = 0; i < n; i++) {
        const char *pattern = table[i].pattern;
        char method[16] = "", path[128];
        for (size_t k = 0; table[i].method[k]; k++)
            method[k] = (char)(table[i].method[k] | 0x20);
        if (strstr(pattern, "{id*}"))
            snprintf(path, sizeof(path), "%.*s{model}", (int)(strlen(pattern) - 5), pattern);
        else
            snprintf(path, sizeof(path), "%s", pattern);
        json_t *op = json_object_get(json_object_get(paths, path), method);
        cr_expect_not_null(op, "%s %s is not described", table[i].method, path);
        cr_expect_eq(json_object_get(op, "security") != NULL, table[i].role == ROLE_PUBLIC, "%s",
                     path);
    }
    json_object_foreach(paths, key, item) described += (int)json_object_size(item);
    cr_expect_eq(described, n, "%d operations are described, %d exist", described, n);
    check_references(json_object_get(json_object_get(a.json, "components"), "schemas"), a.json);
    answer_fini(&a);
}
