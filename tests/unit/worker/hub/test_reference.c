#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/hub/hub.h"
#include "worker/hub/reference.h"

Test(reference, accepts_the_hubs_grammar)
{
    static const char *const cases[][3] = {
        {"gpt2", "gpt2", "main"},
        {"Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "main"},
        {"hf://facebook/opt-125m@refs/pr/35", "facebook/opt-125m", "refs/pr/35"},
        {"a_b/C.d-e@v1.0", "a_b/C.d-e", "v1.0"},
        {"x/y@2c4f1a0e9b8d7c6f5a4b3c2d1e0f9a8b7c6d5e4f", "x/y",
         "2c4f1a0e9b8d7c6f5a4b3c2d1e0f9a8b7c6d5e4f"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *repo = NULL, *revision = NULL;
        struct err err = {0};
        cr_assert_eq(hub_parse_reference(cases[i][0], &repo, &revision, &err), 0, "%s", err.msg);
        cr_expect_str_eq(repo, cases[i][1]);
        cr_expect_str_eq(revision, cases[i][2]);
        free(repo);
        free(revision);
    }
}

Test(reference, refuses_what_could_become_another_url_or_path)
{
    static const char *const cases[] = {
        "",         "/",           "a/",         "/a",          "a/b/c",    "../a",
        "a/..",     "a/../b",      ".a/b",       "a/-b",        "a/b.",     "a/b-",
        "a--b/c",   "a/b--c",      "a..b/c",     "a/b.git",     "a b/c",    "a/b?x=1",
        "a/b#c",    "a/b%2e",      "a\\b",       "caf\xc3\xa9", "hf://",    "hf://hf://a/b",
        "a/b@",     "a/b@..",      "a/b@a/../c", "a/b@/x",      "a/b@x/",   "a/b@x//y",
        "a/b@.x",   "a/b@x/.y",    "a/b@x.lock", "a/b@a b",     "a/b@a\nb", "a/b@a\\b",
        "a/b@a:b",  "a/b@a~1",     "a/b@a^",     "a/b@a?",      "a/b@[a",   "a/b@*",
        "a/b@x@{1", "a/b@@",       "a/b@\x7f",   "https://x/y", "a/b\n",    "a/b@x.",
        "/etc/x",   "datasets/a/b"};
    char *untouched = (char *)"untouched";

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *repo = untouched, *revision = untouched;
        struct err err = {0};
        int rc = hub_parse_reference(cases[i], &repo, &revision, &err);
        cr_expect_eq(rc, ERR_INVALID, "'%s' was accepted", cases[i]);
        cr_expect(repo == untouched && revision == untouched);
    }
}

Test(reference, limits_lengths)
{
    char *name = xcalloc(1, 300), *repo = NULL, *revision = NULL;

    memset(name, 'a', 96);
    cr_assert_eq(hub_parse_reference(name, &repo, &revision, NULL), 0);
    free(repo);
    free(revision);
    name[96] = 'a';
    cr_expect_eq(hub_parse_reference(name, &repo, &revision, NULL), ERR_INVALID);
    memset(name, 'a', 299);
    memcpy(name, "a/b@", 4);
    cr_expect_eq(hub_parse_reference(name, &repo, &revision, NULL), ERR_INVALID);
    free(name);
}

Test(reference, knows_safe_paths)
{
    static const char *const safe[] = {"a",   "a/b",     "model.safetensors", "a b+c/d", "..a",
                                       "a..", "a/..b/c", ".gitattributes",    "\xc3\xa9"};
    static const char *const unsafe[] = {
        "",      "/a",    "..",  "../a",  "a/..", "a/../b",      "a/.",  "./a",   "a//b", "a/",
        "..\\a", "a\\..", "\\a", "C:\\a", "c:a",  "\\\\host\\a", "a\nb", "a\x01", "a\x7f"};

    for (size_t i = 0; i < sizeof(safe) / sizeof(safe[0]); i++)
        cr_expect(reference_path_is_safe(safe[i]), "'%s'", safe[i]);
    for (size_t i = 0; i < sizeof(unsafe) / sizeof(unsafe[0]); i++)
        cr_expect(!reference_path_is_safe(unsafe[i]), "'%s'", unsafe[i]);
    cr_expect(!reference_path_is_safe(NULL));
    char *deep = xcalloc(1, 1100);
    memset(deep, 'a', 1099);
    cr_expect(!reference_path_is_safe(deep));
    free(deep);
}

Test(reference, knows_hashes)
{
    cr_expect(reference_is_sha1("0123456789abcdef0123456789abcdef01234567"));
    cr_expect(!reference_is_sha1("0123456789ABCDEF0123456789abcdef01234567"));
    cr_expect(!reference_is_sha1("0123456789abcdef0123456789abcdef0123456"));
    cr_expect(!reference_is_sha1("../3456789abcdef0123456789abcdef01234567"));
    cr_expect(!reference_is_sha1(NULL));
    cr_expect(
        reference_is_sha256("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"));
    cr_expect(!reference_is_sha256("0123456789abcdef0123456789abcdef01234567"));
}

Test(reference, encodes_for_urls)
{
    struct buf out = {0};

    reference_add_encoded(&out, "refs/pr/1", false);
    buf_add_char(&out, ' ');
    reference_add_encoded(&out, "a b/\xc3\xa9%?#.-_~", true);
    cr_expect_str_eq(buf_str(&out), "refs%2Fpr%2F1 a%20b/%C3%A9%25%3F%23.-_~");
    buf_fini(&out);
}
