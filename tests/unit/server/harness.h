/*
 * A request through routing, authorisation, handler and answer, without sockets. The state
 * directory is a fresh temporary one with a spool; its worker is a shell script that the test
 * writes.
 */
#ifndef CASTOR_TESTS_SERVER_HARNESS_H
#define CASTOR_TESTS_SERVER_HARNESS_H

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "server/auth.h"
#include "server/routes.h"
#include "server/upload.h"
#include "tests/unit/server/fake_scheduler.h"

struct harness {
    char dir[64];
    char *spool;
    struct server_config config;
    atomic_int slow_left;
    atomic_bool draining;
    struct ctx ctx;
};

struct answer {
    unsigned status;
    json_t *json; /* NULL when the body is not JSON */
    struct reply rep;
};

void harness_init(struct harness *h);
void harness_fini(struct harness *h);
/* The worker becomes a script with these lines. */
void harness_worker(struct harness *h, const char *lines);
int harness_spooled(struct harness *h); /* files in the spool */

/* headers: NULL-terminated name, value, name, value ... or NULL. body: JSON text or NULL. */
struct answer ask(struct harness *h, const char *method, const char *uri,
                  const char *const *headers, const char *body);
struct answer ask_upload(struct harness *h, const char *uri, struct upload *u);
void answer_fini(struct answer *a);

const char *error_member(const struct answer *a, const char *key); /* "" for null */
const char *text_at(const json_t *json, const char *key);          /* "" when it is no string */

#define assert_error(a, wanted_status, wanted_code, wanted_param)                                  \
    do {                                                                                           \
        cr_expect_eq((a).status, (wanted_status), "status %u, body %s", (a).status,                \
                     buf_str(&(a).rep.body));                                                      \
        cr_expect_str_eq(error_member(&(a), "code"), (wanted_code));                               \
        cr_expect_str_eq(error_member(&(a), "param"), (wanted_param));                             \
        cr_expect(error_member(&(a), "message")[0]);                                               \
        cr_expect(error_member(&(a), "type")[0]);                                                  \
    } while (0)

#endif
