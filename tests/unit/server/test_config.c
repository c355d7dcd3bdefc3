/* The configuration file and the listen address. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "server/config.h"

#define HASH64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static int load(struct server_config *c, const char *text, struct err *err)
{
    char path[] = "/tmp/castor-config-XXXXXX";
    int fd = mkstemp(path);

    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    int rc = config_load(c, path, err);
    unlink(path);
    return rc;
}

Test(config, a_file_is_read_over_the_defaults)
{
    struct server_config c;
    struct err err = {0};

    config_init(&c);
    cr_expect_eq(c.limits.file_bytes, 536870912);
    cr_expect_eq(c.gpu_slots, -1);
    cr_expect_eq(c.limits.silence_seconds, 1800);
    cr_expect_not_null(strstr(c.worker_path, "/castor-worker"));
    cr_assert_eq(load(&c,
                      "{\"organization\":\"acme\",\"worker\":\"/w\",\"threads\":3,"
                      "\"slots\":{\"cpu\":2},\"limits\":{\"body_bytes\":2048,"
                      "\"silence_seconds\":90},"
                      "\"api_keys\":[{\"name\":\"a\",\"sha256\":\"" HASH64 "\",\"role\":\"read\"},"
                      "{\"name\":\"b\",\"sha256\":\"" HASH64 "\"}]}",
                      &err),
                 0, "%s", err.msg);
    cr_expect_str_eq(c.organization, "acme");
    cr_expect_str_eq(c.worker_path, "/w");
    cr_expect_eq(c.threads, 3);
    cr_expect_eq(c.cpu_slots, 2);
    cr_expect_eq(c.limits.body_bytes, 2048);
    cr_expect_eq(c.limits.silence_seconds, 90);
    cr_expect_eq(c.limits.file_bytes, 536870912);
    cr_expect_eq(c.n_keys, 2);
    cr_expect_eq(c.keys[0].role, ROLE_READ);
    cr_expect_eq(c.keys[1].role, ROLE_ADMIN);
    config_fini(&c);
    config_fini(&c);
}

Test(config, faulty_files_change_nothing)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{\"colour\":1}",
        "{\"organization\":7}",
        "{\"threads\":1}",
        "{\"slots\":{\"tpu\":1}}",
        "{\"slots\":[]}",
        "{\"limits\":{\"file_bytes\":0}}",
        "{\"limits\":{\"files\":1}}",
        "{\"limits\":{\"silence_seconds\":0}}",
        "{\"local_model_dirs\":[\"relative\"]}",
        "{\"volumes\":{}}",
        "{\"volumes\":[{\"name\":\"fast\"}]}",
        "{\"volumes\":[{\"name\":\"\",\"path\":\"/\"}]}",
        "{\"volumes\":[{\"name\":\"fast\",\"path\":\"relative\"}]}",
        "{\"volumes\":[{\"name\":\"fast\",\"path\":\"/nowhere/at/all\"}]}",
        "{\"volumes\":[{\"name\":\"a\",\"path\":\"/\"},{\"name\":\"a\",\"path\":\"/\"}]}",
        "{\"hub_endpoints\":{}}",
        "{\"hub_endpoints\":[{}]}",
        "{\"hub_endpoints\":[{\"url\":\"hub\"}]}",
        "{\"hub_endpoints\":[{\"url\":\"https://me:sk-secret@hub\"}]}",
        "{\"hub_endpoints\":[{\"url\":\"https://hub\",\"token\":\"sk-secret\"}]}",
        "{\"hub_endpoints\":[{\"url\":\"https://hub\"},{\"url\":\"https://HUB/\"}]}",
        "{\"hub_endpoints\":[{\"url\":\"https://hub\",\"token_file\":\"token\"}]}",
        "{\"hub_endpoints\":[{\"url\":\"https://hub\",\"token_file\":\"/nowhere/token\"}]}",
        "{\"hub_endpoints\":[{\"url\":\"https://hub\",\"token_file\":\"/dev/null\"}]}",
        "{\"hub_endpoints\":[{\"url\":\"https://hub\",\"cache_dir\":\"cache\"}]}",
        "{\"local_model_dirs\":[\"/\",\"/nowhere/at/all\"]}",
        "{\"organization\":\"new\",\"api_keys\":{}}",
        "{\"organization\":\"new\",\"api_keys\":[{\"name\":\"a\"}]}",
        "{\"api_keys\":[{\"name\":\"a\",\"sha256\":\"sk-secret\"}]}",
        "{\"api_keys\":[{\"name\":\"\",\"sha256\":\"" HASH64 "\"}]}",
        "{\"api_keys\":[{\"name\":\"a\",\"sha256\":\"" HASH64 "\",\"role\":\"root\"}]}",
        "{\"api_keys\":[{\"name\":\"a\",\"sha256\":\"" HASH64 "\",\"key\":\"x\"}]}",
    };
    struct server_config c;

    config_init(&c);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err err = {0};
        cr_expect_neq(load(&c, bad[i], &err), 0, "%s", bad[i]);
        cr_expect(err.msg[0]);
        cr_expect_null(strstr(err.msg, "sk-secret"), "the key itself is in the message");
        cr_expect_str_eq(c.organization, "org-castor");
        cr_expect_eq(c.n_keys, 0);
    }
    struct err err = {0};
    cr_expect_eq(config_load(&c, "/nowhere/castor.json", &err), ERR_NOT_FOUND);
    config_fini(&c);
}

Test(config, hubs_that_jobs_may_name)
{
    char token[] = "/tmp/castor-token-XXXXXX";
    int fd = mkstemp(token);
    struct server_config c;
    struct buf allowed = {0};
    struct err err = {0};

    cr_assert(write(fd, "hf_x\n", 5) == 5);
    close(fd);
    char *text = xasprintf("{\"hub_endpoints\":[{\"url\":\"https://Hub.example/\","
                           "\"token_file\":\"%s\",\"cache_dir\":\"/srv/c\"},"
                           "{\"url\":\"http://plain:8080\"}]}",
                           token);
    setenv("HF_ENDPOINT", "https://own/", 1);
    config_init(&c);
    cr_assert(load(&c, text, &err) == 0, "%s", err.msg);
    cr_expect_eq(c.n_hubs, 2);
    cr_expect_str_eq(c.hubs[0].url, "https://hub.example");
    cr_expect_str_eq(c.hubs[0].token_file, token);
    cr_expect_str_eq(c.hubs[0].cache_dir, "/srv/c");
    cr_expect(!c.hubs[1].token_file && !c.hubs[1].cache_dir);
    cr_expect(config_hub_allowed(&c, "https://own", &allowed));
    cr_expect_str_eq(buf_str(&allowed), "https://own, https://hub.example, http://plain:8080");
    buf_fini(&allowed);
    cr_expect(config_hub_allowed(&c, "http://plain:8080", &allowed));
    cr_expect(!config_hub_allowed(&c, "http://plain", &allowed));
    buf_fini(&allowed);
    config_fini(&c);
    free(text);
    unlink(token);
}

Test(config, listen_addresses)
{
    static const struct {
        const char *text;
        bool loopback;
        const char *host;
    } good[] = {{"127.0.0.1:8080", true, "127.0.0.1"}, {"[::1]:0", true, "[::1]"},
                {"0.0.0.0:80", false, "0.0.0.0"},      {"[::]:65535", false, "[::]"},
                {"127.9.9.9:1", true, "127.9.9.9"},    {"10.1.2.3:1", false, "10.1.2.3"}};
    static const char *const bad[] = {"",           "8080",  ":8080",         "127.0.0.1",
                                      "127.0.0.1:", "h:1x",  "h:-1",          "h:65536",
                                      "h:123456",   "[::1]", "no such host:1"};
    struct listen_address a;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct err err = {0};
        cr_assert_eq(config_parse_listen(good[i].text, &a, &err), 0, "%s: %s", good[i].text,
                     err.msg);
        cr_expect_eq(a.loopback, good[i].loopback, "%s", good[i].text);
        cr_expect_str_eq(a.host, good[i].host);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_expect_eq(config_parse_listen(bad[i], &a, NULL), ERR_INVALID, "%s", bad[i]);
}
