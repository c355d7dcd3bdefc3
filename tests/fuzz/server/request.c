/* A request of any client: its first line is the target, then a part of a form, all of it once more
 * as the body. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "server/request.h"
#include "server/upload.h"
#include "tests/fuzz/fuzz.h"

static void use_uri(struct request *req)
{
    static const char *const known[] = {"after", "limit", "metadata[]", NULL};
    int64_t limit = 20;

    for (int i = 0; i < req->n_segments; i++)
        if (strcmp(req->segments[i], "..") == 0 || strcmp(req->segments[i], ".") == 0 ||
            !text_is_utf8(req->segments[i], strlen(req->segments[i])))
            abort();
    (void)request_check_query(req, known, NULL);
    if (request_query_int(req, "limit", 1, 100, &limit, NULL) == 0 && (limit < 1 || limit > 100))
        abort();
}

/* In three pieces, as the parser of forms hands them out. */
static void use_form(const char *name, const uint8_t *data, size_t n)
{
    struct upload u;
    size_t third = n / 3;

    upload_init(&u, fuzz_dir(), 4096);
    upload_add(&u, name, name, (const char *)data, 0, third);
    upload_add(&u, name, name, (const char *)data + third, (int64_t)third, third);
    upload_add(&u, "file", name, (const char *)data, 0, n - third);
    upload_add(&u, "file", name, (const char *)data, (int64_t)(n - third), third);
    u.closed = true;
    if (upload_finish(&u, NULL) == 0 && u.has_file &&
        (u.bytes > 4096 || strchr(u.filename, '/') || !*u.filename))
        abort();
    upload_fini(&u);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const uint8_t *end = n > 0 ? memchr(data, '\n', n) : NULL;
    size_t first = end ? (size_t)(end - data) : n;
    char *line = strndup((const char *)data, first);
    struct request req;
    json_t *body = NULL;

    request_init(&req, "POST");
    if (request_set_uri(&req, line, NULL) == 0)
        use_uri(&req);
    buf_add(&req.body, data + first, n - first);
    if (request_json(&req, &body, NULL) == 0 && !json_is_object(body))
        abort();
    json_decref(body);
    (void)request_no_body(&req, NULL);
    request_fini(&req);
    use_form(line, data, n);
    free(line);
    return 0;
}
