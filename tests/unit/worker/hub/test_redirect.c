/* Which redirects are followed, and where to. The fixture hub speaks no https; here nothing is
 * sent. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "worker/hub/http.h"

/* target NULL: not followed. */
static void expect_target(const char *url, const char *location, const char *target)
{
    struct http_response r = {.url = (char *)url, .location = (char *)location};
    struct err err = {0};
    char *got = NULL;
    int rc = http_redirect_target(&r, &got, &err);

    if (target) {
        cr_expect_eq(rc, 0, "%s to %s: %s", url, location, err.msg);
        cr_expect_str_eq(got, target);
    } else {
        cr_expect_eq(rc, ERR_CORRUPT, "%s to %s goes to %s", url, location, got ? got : "");
        cr_expect_str_eq(err.reason, "hub_corrupt");
        cr_expect_null(got);
    }
    free(got);
}

Test(redirect, https_is_not_left)
{
    expect_target("https://hub.example/a", "http://hub.example/a", NULL);
    expect_target("https://hub.example/a", "http://store.example/a", NULL);
    expect_target("HTTPS://hub.example/a", "http://store.example/a", NULL);
    expect_target("https://hub.example/a", "HTTP://store.example/a", NULL);
    expect_target("https://hub.example/a", "http://store.example:443/a", NULL);
    expect_target("https://hub.example/a", "https://store.example/b?x=1",
                  "https://store.example/b?x=1");
    expect_target("https://hub.example/a", "//store.example/b", "https://store.example/b");
    expect_target("https://hub.example/a", "/b", "https://hub.example/b");
    expect_target("http://hub.example/a", "https://store.example/b", "https://store.example/b");
    expect_target("http://hub.example/a", "http://store.example/b", "http://store.example/b");
}

Test(redirect, other_places_are_refused)
{
    static const char *const locations[] = {"file:///etc/passwd",
                                            "ftp://store.example/a",
                                            "gopher://store.example/",
                                            "javascript:alert(1)",
                                            "https://user:word@store.example/a",
                                            "https://",
                                            NULL};

    for (int i = 0; i < 7; i++)
        expect_target("https://hub.example/a", locations[i], NULL);
}
