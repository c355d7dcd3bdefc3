/* The socket, which all other suites of this folder do without. */
#include <stdlib.h>

#include "core/alloc.h"
#include "server/http.h"
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

TestSuite(http, .init = setup, .fini = teardown);

/* The kernel would share the connections out among servers that both allow it. */
Test(http, two_servers_do_not_listen_on_one_port)
{
    struct http_server *one = NULL, *two = NULL;
    struct listen_address listen;
    struct err err = {0};
    char address[32];

    cr_assert_eq(config_parse_listen("127.0.0.1:0", &listen, &err), 0, "%s", err.msg);
    cr_assert_eq(http_create(&h.config, &listen, h.ctx.scheduler, &one, &err), 0, "%s", err.msg);
    snprintf(address, sizeof(address), "127.0.0.1:%u", http_port(one));
    cr_assert_eq(config_parse_listen(address, &listen, &err), 0, "%s", err.msg);
    cr_expect_eq(http_create(&h.config, &listen, h.ctx.scheduler, &two, &err), ERR_NET);
    cr_expect(strstr(err.msg, "--listen"), "%s", err.msg);
    cr_expect_null(two);
    cr_expect(http_stop(one, 1));
}
