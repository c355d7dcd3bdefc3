/* Multipart parts in every order, and every way an upload can go wrong. */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/buf.h"
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

TestSuite(upload, .init = setup, .fini = teardown);

static void part(struct upload *u, const char *name, const char *text)
{
    upload_add(u, name, strcmp(name, "file") == 0 ? "d.jsonl" : NULL, text, 0, strlen(text));
}

static struct upload begin(void)
{
    struct upload u;

    upload_init(&u, h.spool, 1000);
    u.closed = true;
    return u;
}

Test(upload, either_order_gives_the_same_file)
{
    for (int file_first = 0; file_first < 2; file_first++) {
        struct upload u = begin();
        if (!file_first)
            part(&u, "purpose", "fine-tune");
        upload_add(&u, "file", "C:\\data\\my \"set\".jsonl", "{\"te", 0, 4);
        upload_add(&u, "file", "C:\\data\\my \"set\".jsonl", "xt\":1}\n", 4, 7);
        if (file_first) {
            /* a field in pieces as well */
            upload_add(&u, "purpose", NULL, "fine-", 0, 5);
            upload_add(&u, "purpose", NULL, "tune", 5, 4);
        }
        struct answer a = ask_upload(&h, "/v1/files", &u);
        cr_assert_eq(a.status, 200, "%s", buf_str(&a.rep.body));
        cr_expect_str_eq(text_at(a.json, "object"), "file");
        cr_expect_str_eq(text_at(a.json, "filename"), "my _set_.jsonl");
        cr_expect_str_eq(text_at(a.json, "purpose"), "fine-tune");
        cr_expect_str_eq(text_at(a.json, "status"), "processed");
        cr_expect_eq(json_integer_value(json_object_get(a.json, "bytes")), 11);
        cr_expect_null(json_object_get(a.json, "expires_at"));
        struct buf kept = {0};
        cr_assert_eq(fs_read_file(fake.files[fake.n_files - 1].path, 100, &kept, NULL), 0);
        cr_expect_str_eq(buf_str(&kept), "{\"text\":1}\n");
        buf_fini(&kept);
        answer_fini(&a);
        cr_expect_eq(harness_spooled(&h), 0);
    }
}

/* As libmicrohttpd may hand them out. */
Test(upload, parts_may_begin_with_an_empty_piece)
{
    struct upload u = begin();

    upload_add(&u, "file", "d.jsonl", "", 0, 0);
    upload_add(&u, "file", "d.jsonl", "{}\n", 0, 3);
    upload_add(&u, "purpose", NULL, "", 0, 0);
    upload_add(&u, "purpose", NULL, "batch", 0, 5);
    struct answer a = ask_upload(&h, "/v1/files", &u);
    cr_assert_eq(a.status, 200, "%s", buf_str(&a.rep.body));
    cr_expect_eq(json_integer_value(json_object_get(a.json, "bytes")), 3);
    answer_fini(&a);
    cr_expect_eq(harness_spooled(&h), 0);
}

Test(upload, expiry_is_counted_from_creation)
{
    struct upload u = begin();

    part(&u, "file", "{}\n");
    part(&u, "purpose", "batch");
    part(&u, "expires_after[anchor]", "created_at");
    part(&u, "expires_after[seconds]", "3600");
    struct answer a = ask_upload(&h, "/v1/files", &u);
    cr_assert_eq(a.status, 200, "%s", buf_str(&a.rep.body));
    cr_expect_eq(json_integer_value(json_object_get(a.json, "expires_at")),
                 json_integer_value(json_object_get(a.json, "created_at")) + 3600);
    answer_fini(&a);
}

struct bad_form {
    const char *name[4], *value[4];
    const char *code, *param;
};

Test(upload, faulty_forms_are_refused_and_leave_nothing)
{
    static const struct bad_form forms[] = {
        {{"purpose"}, {"fine-tune"}, "", "file"},
        {{"file"}, {"{}"}, "", "purpose"},
        {{"file", "purpose"}, {"{}", "fine_tune"}, "", "purpose"},
        {{"file", "purpose"}, {"{}", "fine-tune-results"}, "", "purpose"},
        {{"file", "purpose"}, {"", "fine-tune"}, "", "file"},
        {{"file", "file", "purpose"}, {"{}", "{}", "fine-tune"}, "", ""},
        {{"file", "purpose", "purpose"}, {"{}", "fine-tune", "fine-tune"}, "", ""},
        {{"file", "purpose", "colour"}, {"{}", "fine-tune", "red"}, "unknown_parameter", "colour"},
        {{"file", "purpose", "expires_after[seconds]"},
         {"{}", "batch", "3600"},
         "",
         "expires_after[anchor]"},
        {{"file", "purpose", "expires_after[anchor]"},
         {"{}", "batch", "created_at"},
         "",
         "expires_after[seconds]"},
        {{"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"},
         {"{}", "batch", "created_at", "3599"},
         "",
         "expires_after[seconds]"},
        {{"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"},
         {"{}", "batch", "created_at", "36e2"},
         "",
         "expires_after[seconds]"},
        {{"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"},
         {"{}", "batch", "now", "3600"},
         "",
         "expires_after[anchor]"},
    };
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        struct upload u = begin();
        for (int k = 0; k < 4 && forms[i].name[k]; k++)
            part(&u, forms[i].name[k], forms[i].value[k]);
        struct answer a = ask_upload(&h, "/v1/files", &u);
        assert_error(a, 400, forms[i].code, forms[i].param);
        answer_fini(&a);
        cr_expect_eq(harness_spooled(&h), 0, "form %zu left a file", i);
        cr_expect_eq(fake.n_files, 0);
    }
}

Test(upload, too_large_a_file_is_dropped_at_once)
{
    char block[600] = {0};
    struct upload u = begin();

    upload_add(&u, "file", "big", block, 0, sizeof(block));
    cr_expect_eq(harness_spooled(&h), 1);
    upload_add(&u, "file", "big", block, sizeof(block), sizeof(block));
    cr_expect_eq(harness_spooled(&h), 0, "the spooled bytes wait for the end of the request");
    part(&u, "purpose", "fine-tune");
    struct answer a = ask_upload(&h, "/v1/files", &u);
    assert_error(a, 413, "file_too_large", "file");
    answer_fini(&a);
}

Test(upload, a_full_disk_is_507_and_leaves_nothing)
{
    struct upload u = begin();

    upload_add(&u, "file", "d", "{", 0, 1);
    int full = open("/dev/full", O_WRONLY);
    cr_assert_geq(full, 0);
    cr_assert_eq(dup2(full, u.fd), u.fd);
    close(full);
    upload_add(&u, "file", "d", "}", 1, 1);
    part(&u, "purpose", "fine-tune");
    struct answer a = ask_upload(&h, "/v1/files", &u);
    assert_error(a, 507, "disk_full", "");
    cr_expect_null(strstr(buf_str(&a.rep.body), h.spool), "the answer names the server's paths");
    answer_fini(&a);
    cr_expect_eq(harness_spooled(&h), 0);
}

Test(upload, the_database_keeps_its_room)
{
    struct err err = {0};

    cr_expect_eq(upload_check_room(h.spool, 1, 0, NULL), 0);
    cr_expect_eq(upload_check_room(h.spool, INT64_C(1) << 60, 0, NULL), ERR_NOSPACE);
    cr_expect_eq(upload_check_room(h.spool, 1, INT64_C(1) << 60, &err), ERR_NOSPACE);
    cr_expect_str_eq(err.reason, "disk_full");
    cr_expect_null(strstr(err.msg, h.spool));
}

Test(upload, an_unterminated_body_is_refused)
{
    struct upload u = begin();

    part(&u, "file", "{}\n");
    part(&u, "purpose", "fine-tune");
    u.closed = false;
    struct answer a = ask_upload(&h, "/v1/files", &u);
    assert_error(a, 400, "", "");
    answer_fini(&a);
    cr_expect_eq(harness_spooled(&h), 0);
}

Test(upload, a_failing_scheduler_leaves_no_spooled_file)
{
    struct upload u = begin();

    part(&u, "file", "{}\n");
    part(&u, "purpose", "batch");
    fake.fail = ERR_TIMEOUT;
    struct answer a = ask_upload(&h, "/v1/files", &u);
    cr_expect_eq(a.status, 503);
    answer_fini(&a);
    cr_expect_eq(harness_spooled(&h), 0);
}

static struct answer upload_data(void)
{
    struct upload u = begin();

    part(&u, "file", "{\"text\":1}\n");
    part(&u, "purpose", "fine-tune");
    return ask_upload(&h, "/v1/files", &u);
}

Test(upload, the_checkers_faults_are_the_answer)
{
    harness_worker(&h, "[ \"$1\" = --check ] && [ -s \"$2\" ] || exit 0\n"
                       "echo '{\"ok\":false,\"faults\":[{\"line\":2,\"message\":\"no object\"},"
                       "{\"line\":7,\"message\":\"not UTF-8\"}]}'\nexit 1");
    struct answer a = upload_data();
    assert_error(a, 400, "invalid_file", "file");
    cr_expect_str_eq(error_member(&a, "message"), "Invalid file format. Line 2: no object");
    cr_expect_eq(json_array_size(json_object_get(json_object_get(a.json, "error"), "details")), 2);
    answer_fini(&a);
    cr_expect_eq(harness_spooled(&h), 0);
    cr_expect_eq(fake.calls, 0);
}

Test(upload, a_checker_that_talks_nonsense_or_dies_is_survived)
{
    static const struct {
        const char *script;
        unsigned status;
        const char *code;
    } rows[] = {
        {"echo '{\"faults\":[{\"line\":\"x\"},7]}'; exit 1", 400, "invalid_file"},
        {"head -c 300000 /dev/zero | tr '\\0' '['; exit 1", 400, "invalid_file"},
        {"exit 1", 400, "invalid_file"},
        {"kill -SEGV $$", 400, "unchecked_file"},
        {"exit 2", 200, ""}, /* this worker knows no --check */
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        harness_worker(&h, rows[i].script);
        struct answer a = upload_data();
        cr_expect_eq(a.status, rows[i].status, "%s: %s", rows[i].script, buf_str(&a.rep.body));
        cr_expect_str_eq(error_member(&a, "code"), rows[i].code);
        answer_fini(&a);
    }
    unlink(h.config.worker_path);
    struct answer a = upload_data();
    cr_expect_eq(a.status, 200);
    answer_fini(&a);
}

Test(upload, a_checker_that_hangs_is_ended, .timeout = 600)
{
    h.config.limits.check_seconds = 1;
    harness_worker(&h, "exec sleep 1000");
    struct answer a = upload_data();
    assert_error(a, 400, "unchecked_file", "file");
    answer_fini(&a);
    harness_worker(&h, "exec >&-; exec sleep 1000"); /* closes its output first */
    a = upload_data();
    assert_error(a, 400, "unchecked_file", "file");
    answer_fini(&a);
}

Test(upload, only_so_many_checks_run_at_once)
{
    atomic_store(&h.slow_left, 0);
    struct answer a = upload_data();
    assert_error(a, 503, "server_busy", "");
    cr_expect_str_eq(reply_find_header(&a.rep, "retry-after"), "2");
    answer_fini(&a);
    cr_expect_eq(atomic_load(&h.slow_left), 0);
    atomic_store(&h.slow_left, 1);
    a = upload_data();
    cr_expect_eq(a.status, 200);
    answer_fini(&a);
    cr_expect_eq(atomic_load(&h.slow_left), 1, "the slot was not given back");
}

Test(upload, an_old_spool_is_emptied)
{
    char path[256];
    char *spool = NULL;

    snprintf(path, sizeof(path), "%s/upload-old", h.spool);
    cr_assert_eq(fs_write_file_atomic(path, "x", 1, NULL), 0);
    cr_assert_eq(harness_spooled(&h), 1);
    cr_assert_eq(upload_prepare_spool(h.dir, &spool, NULL), 0);
    cr_expect_eq(harness_spooled(&h), 0);
    free(spool);
}
