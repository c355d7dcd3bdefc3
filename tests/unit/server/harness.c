#include "tests/unit/server/harness.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"

void harness_init(struct harness *h)
{
    struct err err = {0};

    memset(h, 0, sizeof(*h));
    snprintf(h->dir, sizeof(h->dir), "/tmp/castor-server-XXXXXX");
    cr_assert(mkdtemp(h->dir));
    config_init(&h->config);
    h->config.state_dir = xstrdup(h->dir);
    h->config.limits.free_bytes = 0;
    h->config.limits.check_bytes = 0;
    h->config.limits.check_seconds = 20;
    cr_assert_eq(upload_prepare_spool(h->dir, &h->spool, &err), 0, "%s", err.msg);
    atomic_init(&h->slow_left, 2);
    atomic_init(&h->draining, false);
    h->ctx = (struct ctx){.config = &h->config,
                          .scheduler = (struct scheduler *)&fake,
                          .dedupe = dedupe_create(),
                          .slow_left = &h->slow_left,
                          .draining = &h->draining};
    cr_assert_eq(store_open_reader(h->dir, &h->ctx.reader, &err), 0);
    harness_worker(h, "exit 0");
}

void harness_fini(struct harness *h)
{
    fs_remove_tree(h->dir, NULL);
    dedupe_destroy(h->ctx.dedupe);
    config_fini(&h->config);
    free(h->spool);
}

void harness_worker(struct harness *h, const char *lines)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/worker.sh", h->dir);
    FILE *f = fopen(path, "w");
    cr_assert(f);
    fprintf(f, "#!/bin/sh\n%s\n", lines);
    fclose(f);
    cr_assert_eq(chmod(path, 0755), 0);
    free(h->config.worker_path);
    h->config.worker_path = xstrdup(path);
}

int harness_spooled(struct harness *h)
{
    DIR *d = opendir(h->spool);
    int n = 0;

    cr_assert(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.' && !strstr(e->d_name, ".kept");
    closedir(d);
    return n;
}

static struct answer run(struct harness *h, struct request *req, const char *uri)
{
    struct answer a = {0};
    struct err err = {0};

    reply_init(&a.rep);
    if (request_set_uri(req, uri, &err) != 0) {
        err_set_reason(&err, ERR_INVALID, "invalid_url");
        reply_err(&a.rep, &err);
    } else {
        const struct route *route = route_admit(&h->config, req, &a.rep);
        if (route)
            route_run(route, &h->ctx, req, &a.rep);
    }
    route_finish(&h->config, req, clock_monotonic(), &a.rep);
    a.status = a.rep.status;
    a.json = json_loadb(buf_str(&a.rep.body), a.rep.body.len, 0, NULL);
    return a;
}

struct answer ask(struct harness *h, const char *method, const char *uri,
                  const char *const *headers, const char *body)
{
    struct request req;

    request_init(&req, method);
    for (; headers && headers[0]; headers += 2)
        cr_assert_eq(request_add_header(&req, headers[0], headers[1], NULL), 0);
    if (body)
        buf_add_str(&req.body, body);
    struct answer a = run(h, &req, uri);
    request_fini(&req);
    return a;
}

struct answer ask_upload(struct harness *h, const char *uri, struct upload *u)
{
    struct request req;

    request_init(&req, "POST");
    request_add_header(&req, "Content-Type", "multipart/form-data; boundary=x", NULL);
    req.upload = u;
    struct answer a = run(h, &req, uri);
    request_fini(&req);
    upload_fini(u);
    return a;
}

void answer_fini(struct answer *a)
{
    json_decref(a->json);
    reply_fini(&a->rep);
}

const char *text_at(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));

    return text ? text : "";
}

const char *error_member(const struct answer *a, const char *key)
{
    return text_at(json_object_get(a->json, "error"), key);
}
