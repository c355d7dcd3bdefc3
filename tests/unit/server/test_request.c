/* URIs, queries and bodies as clients, and enemies, write them. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "server/request.h"

static int set(struct request *req, const char *raw)
{
    request_init(req, "GET");
    return request_set_uri(req, raw, NULL);
}

Test(request, segments_are_decoded_one_by_one)
{
    struct request req;

    cr_assert_eq(set(&req, "/v1/models/org%2Fname@rev:x?a=1&b=x+y%20z&metadata%5Bk%5D=v&flag"), 0);
    cr_expect_eq(req.n_segments, 3);
    cr_expect_str_eq(req.segments[2], "org/name@rev:x");
    cr_expect_str_eq(req.path, "/v1/models/org%2Fname@rev:x");
    cr_expect_str_eq(request_query(&req, "b"), "x y z");
    cr_expect_str_eq(request_query(&req, "metadata[k]"), "v");
    cr_expect_str_eq(request_query(&req, "flag"), "");
    cr_expect_null(request_query(&req, "nothing"));
    request_fini(&req);
    cr_assert_eq(set(&req, "http://proxy.example/v1/files?limit=3"), 0);
    cr_expect_str_eq(req.path, "/v1/files");
    request_fini(&req);
}

Test(request, hostile_uris_are_refused)
{
    static const char *const bad[] = {
        "",
        "v1/files",
        "*",
        "/v1/files/%00",
        "/v1/files/a%00b",
        "/v1/files/%0a",
        "/v1/files/a%7Fb",
        "/v1/files/%",
        "/v1/files/%4",
        "/v1/files/%zz",
        "/v1/files/%4",
        "/v1/files/%FF",
        "/v1/files/%C0%AF",
        "/v1/files/%ED%A0%80",
        "/v1/files/%F5%80%80%80",
        "/v1/files/\xC3\xA4",
        "/v1/./files",
        "/v1/../files",
        "/v1/%2e%2E/files",
        "/v1/models/a%2F..%2Fb",
        "/v1/models/a%5C..%5Cb",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/files#x",
        "/v1/files?limit=%",
        "/v1/files?limit=%00",
        "/v1/files?%ff=1",
        "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17",
    };
    struct request req;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_expect_eq(set(&req, bad[i]), ERR_INVALID, "'%s' passed", bad[i]);
        request_fini(&req);
    }
    char many[4096] = "/?";
    for (int i = 0; i <= REQUEST_MAX_QUERY; i++)
        snprintf(many + strlen(many), sizeof(many) - strlen(many), "k%d=1&", i);
    cr_expect_eq(set(&req, many), ERR_INVALID);
    request_fini(&req);
}

Test(request, unusual_but_valid_uris_pass)
{
    static const char *const good[] = {
        "/",          "/v1/models/...", "/v1/models/a.b..c", "/v1/models/%C3%A4", "/v1//files",
        "/v1/files/", "/v1/files?",     "/v1/files?&&a=1&",  "/v1/files?a==b",    "/v1/files/%25"};
    struct request req;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        cr_expect_eq(set(&req, good[i]), 0, "'%s' was refused", good[i]);
        request_fini(&req);
    }
}

Test(request, whole_numbers_of_the_query)
{
    static const char *const bad[] = {"",    "0",  "101", "-1",  "+5",  " 5",
                                      "5 ",  "5x", "x",   "1e1", "1.0", "99999999999999999999",
                                      "0x5", "NaN"};
    struct request req;
    char uri[64];
    int64_t value = 7;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err err = {0};
        snprintf(uri, sizeof(uri), "/?limit=%s", bad[i]);
        for (char *p = uri; *p; p++)
            if (*p == ' ' || *p == '+')
                *p = *p == ' ' ? '+' : '-'; /* a plus is a space in a query */
        cr_assert_eq(set(&req, uri), 0);
        cr_expect_eq(request_query_int(&req, "limit", 1, 100, &value, &err), ERR_INVALID, "'%s'",
                     bad[i]);
        cr_expect_str_eq(err.param, "limit");
        cr_expect_eq(value, 7);
        request_fini(&req);
    }
    cr_assert_eq(set(&req, "/?limit=100"), 0);
    cr_expect_eq(request_query_int(&req, "limit", 1, 100, &value, NULL), 0);
    cr_expect_eq(value, 100);
    cr_expect_eq(request_query_int(&req, "absent", 1, 100, &value, NULL), 0);
    cr_expect_eq(value, 100);
    request_fini(&req);
}

Test(request, unknown_and_repeated_parameters_are_refused)
{
    static const char *const known[] = {"limit", "metadata[]", NULL};
    struct request req;

    cr_assert_eq(set(&req, "/?limit=1&metadata[a]=1&metadata[b]=2&api-version=3"), 0);
    cr_expect_eq(request_check_query(&req, known, NULL), 0);
    request_fini(&req);
    static const char *const bad[] = {"/?limt=1",       "/?limit=1&limit=2",
                                      "/?metadata[]=1", "/?metadata=1",
                                      "/?metadata[a=1", "/?metadata[a]=1&metadata[a]=2"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert_eq(set(&req, bad[i]), 0);
        cr_expect_eq(request_check_query(&req, known, NULL), ERR_INVALID, "%s", bad[i]);
        request_fini(&req);
    }
}

Test(request, headers_ignore_case_and_are_counted)
{
    struct request req;

    request_init(&req, "GET");
    cr_expect_eq(strlen(req.id), 36);
    for (int i = 0; i < REQUEST_MAX_HEADERS; i++)
        cr_assert_eq(request_add_header(&req, i == 3 ? "Content-Type" : "X", "v", NULL), 0);
    cr_expect_eq(request_add_header(&req, "X", "v", NULL), ERR_INVALID);
    cr_expect_str_eq(request_header(&req, "content-TYPE"), "v");
    cr_expect_eq(request_count_header(&req, "x"), REQUEST_MAX_HEADERS - 1);
    cr_expect_null(request_header(&req, "Host"));
    request_fini(&req);
    request_fini(&req); /* idempotent */
}
