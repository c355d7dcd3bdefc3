/* Which hub a job names, and its token, which no stored form may hold. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "api/hub_endpoint.h"
#include "api/job_spec.h"
#include "core/alloc.h"
#include "core/json.h"

static int request(const char *hub, struct job_spec *spec, struct fault_list *faults)
{
    char *text =
        xasprintf("{\"model\":\"org/name\",\"training_file\":\"file-abc\",\"hub\":%s}", hub);
    json_t *body = json_loads(text, 0, NULL);
    int rc = job_spec_from_request(body, spec, NULL, faults);

    json_decref(body);
    free(text);
    return rc;
}

Test(hub, addresses_have_one_form)
{
    static const char *const good[][2] = {
        {"https://huggingface.co", "https://huggingface.co"},
        {"HTTPS://HuggingFace.co:443/", "https://huggingface.co"},
        {"http://hub:80//", "http://hub"},
        {"http://hub:443", "http://hub:443"},
        {"https://h/Hub/v1/", "https://h/Hub/v1"},
        {"http://[::1]:8080/", "http://[::1]:8080"},
        {"http://127.0.0.1:40123", "http://127.0.0.1:40123"},
    };
    static const char *const bad[] = {"",
                                      "hub",
                                      "ftp://hub",
                                      "file:///etc/passwd",
                                      "https://",
                                      "http://a b",
                                      "https://u:p@h",
                                      "https://h?x=1",
                                      "https://h#x",
                                      "https://h:x",
                                      "https://h:",
                                      "http://h:123456",
                                      "http://[::1",
                                      "https://h/../x",
                                      "https://h/\n",
                                      "https://h\\x"};
    char *url = NULL;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        cr_assert(hub_endpoint_canonical(good[i][0], &url, NULL) == 0, "%s", good[i][0]);
        cr_expect_str_eq(url, good[i][1]);
        free(url);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_expect(hub_endpoint_canonical(bad[i], &url, NULL) == ERR_INVALID, "%s", bad[i]);
    unsetenv("HF_ENDPOINT");
    cr_assert(hub_endpoint_default(&url, NULL) == 0);
    cr_expect_str_eq(url, "https://huggingface.co");
    free(url);
    setenv("HF_ENDPOINT", "http://Mirror/", 1);
    cr_assert(hub_endpoint_default(&url, NULL) == 0);
    cr_expect_str_eq(url, "http://mirror");
    free(url);
    setenv("HF_ENDPOINT", "mirror", 1);
    cr_expect(hub_endpoint_default(&url, NULL) == ERR_INVALID);
}

Test(hub, a_token_is_read_and_never_stored)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0}, copy = {0}, back = {0};

    cr_assert(request("{\"endpoint\":\"https://Hub/\",\"token\":\"hf_secret\"}", &spec, &faults) ==
              0);
    cr_expect_str_eq(spec.hub.endpoint, "https://hub");
    cr_expect_str_eq(spec.hub.token, "hf_secret");
    cr_expect(spec.hub.has_token);
    job_spec_copy(&copy, &spec);
    cr_expect_str_eq(copy.hub.token, "hf_secret");
    json_t *stored = job_spec_to_json(&copy);
    char *line = json_to_line(stored);
    cr_expect_null(strstr(line, "hf_secret"));
    cr_assert(job_spec_from_json(stored, &back, NULL) == 0);
    cr_expect_str_eq(back.hub.endpoint, "https://hub");
    cr_expect(back.hub.has_token && !back.hub.token);
    job_spec_forget_token(&copy);
    cr_expect(copy.hub.has_token && !copy.hub.token);
    free(line);
    json_decref(stored);
    job_spec_fini(&back);
    job_spec_fini(&copy);
    job_spec_fini(&spec);
    cr_assert(request("{\"endpoint\":null,\"token\":null}", &spec, &faults) == 0);
    cr_expect(!spec.hub.endpoint && !spec.hub.token && !spec.hub.has_token);
    job_spec_fini(&spec);
}

Test(hub, a_bad_token_is_not_repeated)
{
    static const struct {
        const char *hub, *param, *code;
    } cases[] = {
        {"\"hf_secret\"", "hub", "invalid_type"},
        {"{\"token\":\"\"}", "hub.token", "invalid_value"},
        {"{\"token\":\"hf_secret \"}", "hub.token", "invalid_value"},
        {"{\"token\":\"hf_secret\\r\\nX-Header: 1\"}", "hub.token", "invalid_value"},
        {"{\"token\":\"hf_secret\\u00e9\"}", "hub.token", "invalid_value"},
        {"{\"token\":[\"hf_secret\"]}", "hub.token", "invalid_type"},
        {"{\"endpoint\":\"https://me:hf_secret@hub\"}", "hub.endpoint", "invalid_value"},
        {"{\"has_token\":true}", "hub.has_token", "unknown_parameter"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fault_list faults = {0};
        struct job_spec spec = {0};
        cr_assert(request(cases[i].hub, &spec, &faults) == ERR_INVALID, "%s", cases[i].hub);
        cr_expect(faults.n == 1);
        cr_expect_str_eq(faults.items[0].param, cases[i].param);
        cr_expect_str_eq(faults.items[0].code, cases[i].code);
        cr_expect_null(strstr(faults.items[0].message, "hf_secret"), "%s", faults.items[0].message);
        fault_list_fini(&faults);
    }
}

Test(hub, references_to_data_sets)
{
    static const struct {
        const char *text, *repo, *revision, *folder;
    } good[] = {
        {"hf://datasets/a/b", "a/b", "main", NULL},
        {"hf://datasets/squad", "squad", "main", NULL},
        {"hf://datasets/squad@v1/x", "squad", "v1", "x"},
        {"hf://datasets/a/b/", "a/b", "main", NULL},
        {"hf://datasets/a/b/c/d.jsonl", "a/b", "main", "c/d.jsonl"},
        {"hf://datasets/a/b@v1.0/c d@x.csv", "a/b", "v1.0", "c d@x.csv"},
        {"hf://datasets/a/b@refs/convert/parquet/en/train", "a/b", "refs/convert/parquet",
         "en/train"},
        {"hf://datasets/a/b@refs/pr/7", "a/b", "refs/pr/7", NULL},
        {"hf://datasets/a/b@my%2Fbranch/x", "a/b", "my/branch", "x"},
    };
    static const char *const bad[] = {"hf://a/b",
                                      "hf://spaces/a/b",
                                      "hf://datasets/",
                                      "hf://datasets/a//b",
                                      "hf://datasets/../b",
                                      "hf://datasets/a/b/../c",
                                      "hf://datasets/a/b@",
                                      "hf://datasets/a/b@..",
                                      "hf://datasets/a/b//c",
                                      "hf://datasets/a/b/./c",
                                      "hf://datasets/a/b/*",
                                      "hf://datasets/a--b",
                                      "hf://datasets/a/b/c\\d",
                                      "hf://datasets/a/b@x%2F..%2Fy"};
    char why[160];

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct spec_file file = {0};
        cr_assert(spec_file_parse(good[i].text, &file, why, sizeof(why)), "%s: %s", good[i].text,
                  why);
        cr_expect_str_eq(file.repo, good[i].repo);
        cr_expect_str_eq(file.revision, good[i].revision);
        cr_expect_str_eq(file.folder ? file.folder : "", good[i].folder ? good[i].folder : "");
        cr_expect_str_eq(file.id, good[i].text);
        spec_file_fini(&file);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct spec_file file = {0};
        cr_expect(!spec_file_parse(bad[i], &file, why, sizeof(why)), "%s", bad[i]);
        cr_expect(!file.id && !file.repo);
    }
}

Test(hub, parts_are_for_data_sets_of_the_hub)
{
    static const char set[] = "hf://datasets/a/b";
    static const struct {
        const char *train, *validation, *dataset, *param;
    } cases[] = {
        {"file-a", NULL, "\"config\":\"x\"", "dataset.config"},
        {"file-a", NULL, "\"split\":\"x\"", "dataset.split"},
        {"file-a", set, "\"split\":\"x\"", "dataset.split"},
        {"file-a", NULL, "\"validation_split\":\"x\"", "dataset.validation_split"},
        {set, "file-a", "\"validation_split\":\"x\"", "dataset.validation_split"},
        {set, NULL, "\"split\":\"\"", "dataset.split"},
        {set, NULL, "\"split\":\"a/b\"", "dataset.split"},
        {set, NULL, "\"validation_split\":\"x\",\"validation_fraction\":0.1",
         "dataset.validation_fraction"},
        {set, NULL, "\"split\":\"train\",\"validation_split\":\"x\",\"config\":\"20220301.en\"",
         NULL},
        {"file-a", set, "\"validation_split\":\"x\",\"config\":\"c d\"", NULL},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fault_list faults = {0};
        struct job_spec spec = {0}, back = {0};
        json_t *body = json_pack("{s:s, s:s, s:s*}", "model", "org/name", "training_file",
                                 cases[i].train, "validation_file", cases[i].validation);
        char *dataset = xasprintf("{%s}", cases[i].dataset);
        json_object_set_new(body, "dataset", json_loads(dataset, 0, NULL));
        int rc = job_spec_from_request(body, &spec, NULL, &faults);
        cr_expect((rc == 0) == !cases[i].param, "%s: %s", dataset,
                  faults.n ? faults.items[0].message : "accepted");
        if (cases[i].param && faults.n > 0)
            cr_expect_str_eq(faults.items[0].param, cases[i].param);
        if (rc == 0) {
            json_t *stored = job_spec_to_json(&spec);
            cr_assert(job_spec_from_json(stored, &back, NULL) == 0);
            json_t *again = job_spec_to_json(&back);
            cr_expect(json_equal(stored, again));
            json_decref(stored);
            json_decref(again);
            job_spec_fini(&back);
            job_spec_fini(&spec);
        }
        fault_list_fini(&faults);
        free(dataset);
        json_decref(body);
    }
}
