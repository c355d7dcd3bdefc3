/* /v1/files beyond the upload, and /v1/models. */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
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

TestSuite(files, .init = setup, .fini = teardown);

Test(files, a_file_that_is_not_there_is_404)
{
    static const char *const rows[][2] = {{"GET", "/v1/files/file-x"},
                                          {"DELETE", "/v1/files/file-x"},
                                          {"GET", "/v1/files/file-x/content"}};

    for (size_t i = 0; i < 3; i++) {
        struct answer a = ask(&h, rows[i][0], rows[i][1], NULL, NULL);
        assert_error(a, 404, "", "id");
        cr_expect_str_eq(error_member(&a, "message"), "No such File object: file-x");
        answer_fini(&a);
    }
    struct answer a = ask(&h, "GET", "/v1/models/x", NULL, NULL);
    assert_error(a, 404, "model_not_found", "model");
    answer_fini(&a);
    a = ask(&h, "DELETE", "/v1/models/x", NULL, NULL);
    assert_error(a, 404, "model_not_found", "model");
    answer_fini(&a);
}

Test(files, content_is_the_bytes_under_a_harmless_name)
{
    char path[128];
    char bytes[16] = "";

    snprintf(path, sizeof(path), "%s/data", h.dir);
    cr_assert_eq(fs_write_file_atomic(path, "{\"a\":1}\n", 8, NULL), 0);
    fake_add_file("file-1", "fine-tune", path, 8);
    fake_add_file("file-2", "fine-tune-results", path, 8);
    free(fake.files[0].filename);
    fake.files[0].filename = xstrdup("n\xC3\xA4me\r\nX: y.jsonl");
    struct answer a = ask(&h, "GET", "/v1/files/file-1/content", NULL, NULL);
    cr_assert_eq(a.status, 200);
    cr_expect_eq(a.rep.fd_bytes, 8);
    cr_expect_eq(read(a.rep.fd, bytes, sizeof(bytes)), 8);
    cr_expect_arr_eq(bytes, "{\"a\":1}\n", 8);
    cr_expect_str_eq(a.rep.content_type, "application/octet-stream");
    cr_expect_str_eq(reply_find_header(&a.rep, "Content-Disposition"),
                     "attachment; filename=\"n__me__X: y.jsonl\"");
    answer_fini(&a);
    a = ask(&h, "GET", "/v1/files/file-2/content", NULL, NULL);
    cr_expect_str_eq(a.rep.content_type, "text/csv; charset=utf-8");
    answer_fini(&a);

    /* a link in the place of the file is not followed */
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(symlink("/etc/passwd", path), 0);
    a = ask(&h, "GET", "/v1/files/file-1/content", NULL, NULL);
    cr_expect_eq(a.status, 500);
    cr_expect_null(strstr(buf_str(&a.rep.body), path));
    cr_expect_null(reply_find_header(&a.rep, "Content-Disposition"));
    answer_fini(&a);
}

Test(files, deleting_answers_the_id_and_minds_jobs)
{
    fake_add_file("file-1", "fine-tune", "/nowhere", 8);
    fake_add_model("org/m:1");
    struct answer a = ask(&h, "DELETE", "/v1/files/file-1", NULL, NULL);
    cr_expect_eq(a.status, 200);
    cr_expect_str_eq(buf_str(&a.rep.body),
                     "{\"id\":\"file-1\",\"object\":\"file\",\"deleted\":true}");
    answer_fini(&a);
    fake.fail = ERR_CONFLICT;
    a = ask(&h, "DELETE", "/v1/files/file-1", NULL, NULL);
    cr_expect_eq(a.status, 409);
    cr_expect_str_eq(reply_find_header(&a.rep, "x-should-retry"), "false");
    answer_fini(&a);
    a = ask(&h, "DELETE", "/v1/models/org%2Fm:1", NULL, NULL);
    cr_expect_str_eq(buf_str(&a.rep.body),
                     "{\"id\":\"org/m:1\",\"object\":\"model\",\"deleted\":true}");
    answer_fini(&a);
}

Test(files, lists_and_models_have_openais_shape)
{
    fake_add_file("file-1", "fine-tune", "/nowhere", 8);
    fake_add_file("file-2", "batch", "/nowhere", 9);
    fake_add_model("ft:org/name:o::1");
    struct answer a = ask(&h, "GET", "/v1/files?purpose=fine-tune", NULL, NULL);
    json_t *data = json_object_get(a.json, "data");
    cr_expect_eq(json_array_size(data), 1);
    cr_expect_str_eq(text_at(a.json, "first_id"), "file-1");
    cr_expect_str_eq(text_at(json_array_get(data, 0), "object"), "file");
    cr_expect(json_is_false(json_object_get(a.json, "has_more")));
    answer_fini(&a);
    a = ask(&h, "GET", "/v1/models", NULL, NULL);
    json_t *model = json_array_get(json_object_get(a.json, "data"), 0);
    cr_expect_str_eq(text_at(a.json, "object"), "list");
    cr_expect_str_eq(text_at(model, "id"), "ft:org/name:o::1");
    cr_expect_str_eq(text_at(model, "object"), "model");
    cr_expect_str_eq(text_at(model, "owned_by"), "org-castor");
    cr_expect_str_eq(text_at(model, "root"), "org/name");
    cr_expect_eq(json_integer_value(json_object_get(model, "created")), 1700000003);
    answer_fini(&a);
}
