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
