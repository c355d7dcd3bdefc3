/* A hub, a store or a network that misbehaves: what is bad is refused, what may pass is retried. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "tests/unit/worker/hub/fixture.h"

static struct fixture fx;

static void start(void)
{
    fixture_start(&fx);
}

static void stop(void)
{
    fixture_stop(&fx);
}

TestSuite(faults, .init = start, .fini = stop, .timeout = 600);

struct fault_case {
    const char *faults; /* JSON */
    enum err_code code;
    const char *reason;
};

/* Each with an empty cache. */
static void expect_cases(const struct fault_case *cases, size_t n)
{
    struct hub *hub = fixture_client(&fx);

    for (size_t i = 0; i < n; i++) {
        fixture_empty_cache(&fx);
        fixture_set_faults(&fx, cases[i].faults);
        fixture_expect(hub, "org/tiny", HUB_WANT_WEIGHTS, cases[i].code, cases[i].reason);
        cr_expect_gt(fixture_count(&fx, NULL, NULL, NULL), 0);
        if (cases[i].code == ERR_OK)
            fixture_expect_whole(&fx, hub, "org/tiny");
    }
    hub_destroy(hub);
}
#define EXPECT_CASES(cases) expect_cases(cases, sizeof(cases) / sizeof((cases)[0]))

Test(faults, statuses_are_retried_or_explained)
{
    static const struct fault_case cases[] = {
        {"[{\"match\": \".\", \"action\": \"status\", \"code\": 503, \"times\": 4}]", ERR_OK, NULL},
        {"[{\"match\": \".\", \"action\": \"status\", \"code\": 500, \"times\": 5}]", ERR_NET,
         "hub_unavailable"},
        {"[{\"match\": \"store GET\", \"action\": \"status\", \"code\": 502, \"times\": 4}]",
         ERR_OK, NULL},
        {"[{\"match\": \"store GET\", \"action\": \"status\", \"code\": 504}]", ERR_NET,
         "hub_unavailable"},
        {"[{\"match\": \"HEAD /org\", \"action\": \"status\", \"code\": 408, \"times\": 2}]",
         ERR_OK, NULL},
        /* An expired signature: the next HEAD brings a new address. */
        {"[{\"match\": \"store GET\", \"action\": \"status\", \"code\": 403, \"times\": 1}]",
         ERR_OK, NULL},
        {"[{\"match\": \"/tree/\", \"action\": \"status\", \"code\": 403}]", ERR_PERMISSION,
         "hub_unauthorized"},
        {"[{\"match\": \"/tree/\", \"action\": \"status\", \"code\": 418}]", ERR_NET,
         "hub_unavailable"},
        {"[{\"match\": \"/revision/\", \"action\": \"status\", \"code\": 404}]", ERR_NOT_FOUND,
         "model_not_found"},
        {"[{\"match\": \"/resolve/\", \"action\": \"status\", \"code\": 404,"
         " \"error_code\": \"EntryNotFound\"}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/resolve/\", \"action\": \"status\", \"code\": 401,"
         " \"error_code\": \"GatedRepo\"}]",
         ERR_PERMISSION, "gated_model"},
    };

    EXPECT_CASES(cases);
}

Test(faults, permanent_statuses_are_not_retried)
{
    struct hub *hub = fixture_client(&fx);

    fixture_set_faults(&fx, "[{\"match\": \"/tree/\", \"action\": \"status\", \"code\": 403}]");
    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_PERMISSION, NULL);
    cr_expect_eq(fixture_count(&fx, "hub", "GET", "/tree/"), 1);
    hub_destroy(hub);
}

/* Seconds that one fetch takes when the first answer is a 429 with these headers. */
static double seconds_after_429(const char *headers)
{
    struct hub *hub = fixture_client(&fx);
    char *faults = xasprintf("[{\"match\": \"/revision/\", \"action\": \"status\", \"code\": 429,"
                             " \"times\": 1, \"headers\": %s}]",
                             headers);

    fixture_set_faults(&fx, faults);
    double begin = clock_monotonic();
    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_OK, NULL);
    double seconds = clock_monotonic() - begin;
    free(faults);
    hub_destroy(hub);
    return seconds;
}

/* The client's seconds are hundredths here. A machine under load takes longer, never less. */
Test(faults, a_rate_limit_says_how_long_to_wait)
{
    double none = seconds_after_429("{}");
    cr_expect(none >= 0.01, "%.3f s", none);
    double limit = seconds_after_429("{\"RateLimit\": \"\\\"api\\\";r=0;t=39\"}");
    cr_expect(limit >= 0.4, "%.3f s", limit);
    double after = seconds_after_429("{\"Retry-After\": \"29\"}");
    cr_expect(after >= 0.3, "%.3f s", after);
    /* A date is no number of seconds: as if it were not there. */
    double date = seconds_after_429("{\"Retry-After\": \"Wed, 21 Oct 2065 07:28:00 GMT\"}");
    cr_expect(date >= 0.01, "%.3f s", date);
    /* RateLimit comes with every answer: with requests left it is not the cause. */
    double left =
        seconds_after_429("{\"RateLimit\": \"\\\"api\\\";r=7;t=599\", \"Retry-After\": \"4\"}");
    cr_expect(left >= 0.05 && left < 5.9, "%.3f s", left);
}

Test(faults, a_storm_of_429_ends)
{
    static const struct fault_case cases[] = {
        {"[{\"match\": \"hub\", \"action\": \"status\", \"code\": 429, \"times\": 4,"
         " \"headers\": {\"RateLimit\": \"\\\"resolvers\\\";r=0;t=1\"}}]",
         ERR_OK, NULL},
        {"[{\"match\": \"hub\", \"action\": \"status\", \"code\": 429}]", ERR_NET,
         "hub_unavailable"},
        {"[{\"match\": \"hub\", \"action\": \"status\", \"code\": 429,"
         " \"headers\": {\"Retry-After\": \"86400\"}}]",
         ERR_NET, "hub_unavailable"},
    };

    EXPECT_CASES(cases);
}

Test(faults, content_must_be_what_was_announced)
{
    static const struct fault_case cases[] = {
        {"[{\"match\": \"store GET\", \"action\": \"flip\", \"at\": 200000}]", ERR_CORRUPT,
         "hub_corrupt"},
        {"[{\"match\": \"GET /api/resolve-cache\", \"action\": \"flip\", \"at\": 1}]", ERR_CORRUPT,
         "hub_corrupt"},
        {"[{\"match\": \"store GET\", \"action\": \"short\", \"bytes\": 1000}]", ERR_CORRUPT,
         "hub_corrupt"},
        {"[{\"match\": \"store GET\", \"action\": \"long\", \"bytes\": 1}]", ERR_CORRUPT,
         "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"X-Linked-Size\": \"299999\"}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"X-Linked-Etag\": \"\\\"0000000000000000000000000000000000000000000000000000000000000"
         "000\\\"\"}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"X-Linked-Etag\": null}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"X-Linked-Size\": null}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"X-Repo-Commit\": null}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"X-Repo-Commit\": \"0123456789abcdef0123456789abcdef01234567\"}}]",
         ERR_CORRUPT, "hub_corrupt"},
    };

    EXPECT_CASES(cases);
}

Test(faults, wrong_content_leaves_nothing_behind)
{
    struct hub *hub = fixture_client(&fx);
    char *blobs = xasprintf("%s/models--org--bin/blobs", fx.cache);
    int64_t large = 0;

    fixture_set_faults(&fx, "[{\"match\": \"store GET\", \"action\": \"flip\", \"at\": 7}]");
    fixture_expect(hub, "org/bin", HUB_WANT_WEIGHTS, ERR_CORRUPT, "hub_corrupt");
    DIR *dir = opendir(blobs);
    cr_assert_not_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        char *path = fs_join(blobs, e->d_name);
        int64_t bytes = 0;
        cr_assert_eq(fs_file_size(path, &bytes, NULL), 0);
        large += e->d_name[0] != '.' && bytes > 100;
        free(path);
    }
    cr_expect_eq(large, 0);
    closedir(dir);
    free(blobs);
    hub_destroy(hub);
}

Test(faults, redirects_lead_nowhere_bad)
{
    static const struct fault_case cases[] = {
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"Location\": \"file:///etc/passwd\"}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"Location\": \"ftp://127.0.0.1/x\"}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"Location\": \"http://user:pass@127.0.0.1/x\"}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"HEAD .*safetensors\", \"action\": \"headers\", \"set\":"
         " {\"Location\": null}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/revision/\", \"action\": \"redirect\", \"location\": "
         "\"file:///etc/passwd\"}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/revision/\", \"action\": \"redirect\", \"location\": "
         "\"/api/models/org/tiny/revision/main\"}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"store GET\", \"action\": \"redirect\", \"location\": \"gopher://x/y\"}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"store GET\", \"action\": \"redirect\", \"location\": "
         "\"file:///etc/passwd\"}]",
         ERR_CORRUPT, "hub_corrupt"},
        /* In a circle: of the question where a file is, of the file itself. */
        {"[{\"match\": \"HEAD /org/tiny/resolve\", \"action\": \"redirect\", \"location\": "
         "\"/org/tiny/resolve/main/config.json\"}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"store GET\", \"action\": \"redirect\", \"location\": \"/again\"}]",
         ERR_CORRUPT, "hub_corrupt"},
    };
    struct hub *hub = fixture_client(&fx);

    EXPECT_CASES(cases);
    fixture_empty_cache(&fx);
    fixture_set_faults(&fx, "[{\"match\": \"/revision/\", \"action\": \"redirect\", \"location\": "
                            "\"/api/models/org/tiny/revision/main\"}]");
    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_CORRUPT, NULL);
    cr_expect_leq(fixture_count(&fx, NULL, NULL, "/revision/"), 10);
    hub_destroy(hub);
}

/* The other host must not even see that there was a token. */
Test(faults, a_redirected_api_call_drops_the_token)
{
    struct fixture other = {0};
    struct hub *hub = NULL;
    json_t *request;
    size_t i;

    fixture_start(&other);
    struct hub_config config = {
        .endpoint = fx.endpoint, .token = "hf_granted", .cache_dir = fx.cache, .wait_scale = 0.01};
    char *faults = xasprintf("[{\"match\": \"/revision/\", \"action\": \"redirect\", \"location\": "
                             "\"%s/api/models/org/tiny/revision/main\"}]",
                             other.endpoint);
    fixture_set_faults(&fx, faults);
    cr_assert_eq(hub_create(&config, &hub, NULL), 0);
    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_OK, NULL);
    json_t *log = fixture_log(&other);
    cr_expect_eq(json_array_size(log), 1);
    json_array_foreach(log, i, request)
    {
        cr_expect(json_is_false(json_object_get(request, "authorized")));
    }
    json_decref(log);
    hub_destroy(hub);
    free(faults);
    fixture_stop(&other);
}

Test(faults, listings_are_not_believed)
{
    static const struct fault_case cases[] = {
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"add\": [{\"type\": \"file\", \"path\": "
         "\"../../x\", \"size\": 1, \"oid\": \"0123456789abcdef0123456789abcdef01234567\"}]}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"add\": [{\"type\": \"file\", \"path\": "
         "\"/etc/cron.d/x\", \"size\": 1, \"oid\": "
         "\"0123456789abcdef0123456789abcdef01234567\"}]}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"add\": [{\"type\": \"file\", \"path\": "
         "\"vocab.json\", \"size\": 1, \"oid\": \"../../../x\"}]}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"add\": [{\"type\": \"file\", \"path\": "
         "\"config.json\", \"size\": 1, \"oid\": \"0123456789abcdef0123456789abcdef01234567\"}]}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"add\": [{\"type\": \"file\"}]}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"add\": [1, \"x\", null]}]", ERR_CORRUPT,
         "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"fill\": 101000, \"page\": 5000}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"endless\": true}]", ERR_CORRUPT,
         "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"headers\", \"set\": {\"Link\": "
         "\"<http://127.0.0.1:1/tree>; rel=\\\"next\\\"\"}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"body\", \"text\": \"<html>Log in</html>\"}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"body\", \"text\": \"{}\"}]", ERR_CORRUPT,
         "hub_corrupt"},
        {"[{\"match\": \"/revision/\", \"action\": \"body\", \"text\": \"{\\\"sha\\\": "
         "\\\"../../../../etc\\\"}\"}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"fill\": 2500}]", ERR_OK, NULL},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"page\": 1}]", ERR_OK, NULL},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"add\": [{\"type\": \"file\", \"path\": "
         "\"vocab.json\", \"size\": 1000000000000000, \"oid\": "
         "\"0123456789abcdef0123456789abcdef01234567\"}]}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"/tree/\", \"action\": \"tree\", \"add\": [{\"type\": \"file\", \"path\": "
         "\"vocab.json\", \"size\": 5, \"oid\": "
         "\"0123456789abcdef0123456789abcdef01234567\"}]}]",
         ERR_CORRUPT, "hub_corrupt"},
    };

    EXPECT_CASES(cases);
}

Test(faults, a_cut_connection_is_continued)
{
    struct hub *hub = fixture_client(&fx);

    /* Six cuts are more than the tries that are allowed without progress. */
    fixture_set_faults(
        &fx, "[{\"match\": \"store GET\", \"action\": \"cut\", \"bytes\": 40000, \"times\": 6}]");
    fixture_expect_whole(&fx, hub, "org/tiny");
    cr_expect_eq(fixture_count(&fx, "store", "GET", NULL), 7);
    char *range = fixture_last_range(&fx);
    cr_expect_str_eq(range, "bytes=240000-");
    free(range);
    hub_destroy(hub);
}

Test(faults, a_connection_that_is_always_cut_ends)
{
    static const struct fault_case cases[] = {
        {"[{\"match\": \"store GET\", \"action\": \"cut\", \"bytes\": 0}]", ERR_NET,
         "hub_unavailable"},
        {"[{\"match\": \"/tree/\", \"action\": \"cut\", \"bytes\": 10}]", ERR_NET,
         "hub_unavailable"},
        /* Without Range each try begins anew, and the same place is reached again: no progress. */
        {"[{\"match\": \"store GET\", \"action\": \"ignore_range\"},"
         " {\"match\": \"store GET\", \"action\": \"cut\", \"bytes\": 100000}]",
         ERR_NET, "hub_unavailable"},
        {"[{\"match\": \"store GET\", \"action\": \"ignore_range\"},"
         " {\"match\": \"store GET\", \"action\": \"cut\", \"bytes\": 100000, \"times\": 2}]",
         ERR_OK, NULL},
        /* A part that is not the one asked for. */
        {"[{\"match\": \"store GET\", \"action\": \"cut\", \"bytes\": 100000, \"times\": 1},"
         " {\"match\": \"store GET\", \"action\": \"headers\", \"skip\": 1, \"set\":"
         " {\"Content-Range\": \"bytes 5-299999/300000\"}}]",
         ERR_CORRUPT, "hub_corrupt"},
        {"[{\"match\": \"store GET\", \"action\": \"cut\", \"bytes\": 100000, \"times\": 1},"
         " {\"match\": \"store GET\", \"action\": \"status\", \"code\": 416, \"skip\": 1,"
         " \"times\": 1}]",
         ERR_OK, NULL},
    };

    EXPECT_CASES(cases);
}

/* The connection ends after n bytes of a file from the store, of one from the hub, of an answer. */
static void cut_at(struct hub *hub, const char *match, int bytes)
{
    char *faults = xasprintf(
        "[{\"match\": \"%s\", \"action\": \"cut\", \"bytes\": %d, \"times\": 1}]", match, bytes);

    fixture_empty_cache(&fx);
    fixture_set_faults(&fx, faults);
    fixture_expect_whole(&fx, hub, "org/cut");
    free(faults);
}

Test(faults, a_connection_may_be_cut_at_any_byte)
{
    enum { BYTES = 12 };
    struct hub *hub = fixture_client(&fx);
    char *noise = fixture_noise(BYTES);

    fixture_put(&fx, "org/cut", "config.json", "{\"model_type\": \"gpt2\"}", 22);
    fixture_put(&fx, "org/cut", "pytorch_model.bin", noise, BYTES);
    for (int at = 0; at < BYTES; at++)
        cut_at(hub, "store GET", at);
    for (int at = 0; at < 22; at += 3)
        cut_at(hub, "GET /api/resolve-cache", at);
    for (int at = 0; at < 250; at += 31)
        cut_at(hub, "GET /api/models/.*(revision|tree)", at);
    free(noise);
    hub_destroy(hub);
}

/* While the first shard is silent the second one comes: of the first two requests to the store
 * neither is the first shard's second try. */
Test(faults, several_files_come_at_a_time)
{
    struct hub *hub = fixture_client_patient(&fx, 5);
    const char *first = NULL;
    json_t *request;
    size_t i;
    int n = 0;

    fixture_set_faults(&fx, "[{\"match\": \"store GET\", \"action\": \"stall\", \"bytes\": 40000,"
                            " \"seconds\": 600, \"times\": 1}]");
    fixture_expect_whole(&fx, hub, "org/sharded");
    json_t *log = fixture_log(&fx);
    json_array_foreach(log, i, request)
    {
        const char *path = json_string_value(json_object_get(request, "path"));
        if (strcmp(json_string_value(json_object_get(request, "server")), "store") != 0)
            continue;
        if (n++ == 0)
            first = path;
        else if (n == 2)
            cr_expect_str_neq(path, first);
    }
    cr_expect_eq(n, 3);
    json_decref(log);
    hub_destroy(hub);
}

Test(faults, silence_is_given_up_and_continued)
{
    struct hub *hub = fixture_client_patient(&fx, 2);

    fixture_set_faults(&fx, "[{\"match\": \"store GET\", \"action\": \"stall\", \"bytes\": 40000,"
                            " \"seconds\": 600, \"times\": 1}]");
    fixture_expect_whole(&fx, hub, "org/tiny");
    hub_destroy(hub);
}

Test(faults, an_error_does_not_repeat_the_token)
{
    struct hub *hub = NULL;
    struct hub_config config = {.endpoint = fx.endpoint,
                                .token = "hf_secret_of_this_test",
                                .cache_dir = fx.cache,
                                .wait_scale = 0.01};
    struct hub_snapshot s = {0};
    struct err err = {0};

    cr_assert_eq(hub_create(&config, &hub, NULL), 0);
    cr_expect_eq(hub_fetch_model(hub, "org/tiny", "main", HUB_WANT_METADATA, &s, &err),
                 ERR_PERMISSION);
    cr_expect_null(strstr(err.msg, "hf_secret"), "%s", err.msg);
    hub_destroy(hub);
}
