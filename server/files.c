/* /v1/files: data sets that clients upload, and result files that jobs write. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/file_check.h"
#include "server/page.h"
#include "server/routes.h"
#include "server/upload.h"

enum { FILE_EXPIRES_MIN = 3600, FILE_EXPIRES_MAX = 2592000 };

static json_t *file_to_json(const struct store_file *f)
{
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:s, s:s, s:s}", "id", f->id, "object", "file",
                          "bytes", (json_int_t)f->bytes, "created_at", (json_int_t)f->created_at,
                          "filename", f->filename, "purpose", f->purpose, "status", f->status);

    if (f->expires_at > 0)
        json_object_set_new(o, "expires_at", json_integer(f->expires_at));
    if (f->status_details)
        json_object_set_new(o, "status_details", json_string(f->status_details));
    return o;
}

/* The one text that clients know for a file that is not there. */
static int file_find(struct ctx *ctx, const char *id, struct store_file *out, struct err *err)
{
    int rc = store_get_file(ctx->reader, id, out, err);

    if (rc != ERR_NOT_FOUND)
        return rc;
    err_clear(err);
    err_set(err, rc, "No such File object: %.100s", id);
    return err_set_param(err, rc, "id");
}

static int form_fault(struct err *err, const char *param, const char *text)
{
    err_set(err, ERR_INVALID, "%s", text);
    return err_set_param(err, ERR_INVALID, param);
}

static int purpose_check(const char *purpose, struct err *err)
{
    static const char *const known[] = {"fine-tune", "assistants", "batch",
                                        "vision",    "user_data",  "evals"};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (purpose && strcmp(purpose, known[i]) == 0)
            return 0;
    return form_fault(err, "purpose",
                      purpose ? "'purpose' must be one of fine-tune, assistants, batch, vision, "
                                "user_data, evals"
                              : "the form has no part 'purpose'; send fine-tune for data sets");
}

static int expiry_parse(const struct upload *u, int64_t *keep_seconds, struct err *err)
{
    const char *anchor = upload_field(u, "expires_after[anchor]");
    const char *seconds = upload_field(u, "expires_after[seconds]");
    int64_t value;

    if (!anchor && !seconds)
        return 0;
    if (!anchor || strcmp(anchor, "created_at") != 0)
        return form_fault(err, "expires_after[anchor]",
                          "'expires_after[anchor]' must be created_at");
    value = seconds && strlen(seconds) <= 9 && *seconds &&
                    strspn(seconds, "0123456789") == strlen(seconds)
                ? strtoll(seconds, NULL, 10)
                : -1;
    if (value < FILE_EXPIRES_MIN || value > FILE_EXPIRES_MAX)
        return form_fault(err, "expires_after[seconds]",
                          "'expires_after[seconds]' must be a whole number from 3600 to 2592000");
    *keep_seconds = value;
    return 0;
}

static int form_check(const struct upload *u, int64_t *keep_seconds, struct err *err)
{
    int rc = 0;

    for (int i = 0; i < u->n_fields; i++) {
        const char *name = u->fields[i].name;
        if (strcmp(name, "purpose") != 0 && strcmp(name, "expires_after[anchor]") != 0 &&
            strcmp(name, "expires_after[seconds]") != 0) {
            form_fault(err, name,
                       "the form has a part that is not known here; use file, purpose, "
                       "expires_after[anchor], expires_after[seconds]");
            return err_set_reason(err, ERR_INVALID, "unknown_parameter");
        }
    }
    if (!u->has_file)
        return form_fault(err, "file", "the form has no part 'file'");
    TRY(purpose_check(upload_field(u, "purpose"), err));
    TRY(expiry_parse(u, keep_seconds, err));
    if (u->bytes == 0)
        rc = form_fault(err, "file", "the file is empty");
out:
    return rc;
}

int files_create(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    const struct server_limits *limits = &ctx->config->limits;
    struct file_check check = {.worker_path = ctx->config->worker_path,
                               .seconds = limits->check_seconds,
                               .bytes = limits->check_bytes};
    struct upload *u = req->upload;
    struct fault_list faults = {0};
    struct store_file file = {0};
    static const char *const no_query[] = {NULL};
    int64_t keep_seconds = 0;
    bool slow = false;
    int rc = 0;

    TRY(request_check_query(req, no_query, err));
    rc = upload_finish(u, err);
    if (rc != 0) {
        if (u->error_status != 0) { /* a status that no err_code stands for */
            reply_error(rep, u->error_status, err->param, err->reason, "%s", err->msg);
            rc = 0;
        }
        goto out;
    }
    TRY(form_check(u, &keep_seconds, err));
    if (strcmp(upload_field(u, "purpose"), "fine-tune") == 0) {
        slow = slow_enter(ctx, rep);
        if (!slow)
            goto out;
        TRY(file_check_run(&check, u->path, &faults, err));
        if (faults.n > 0) {
            reply_faults(rep, &faults);
            goto out;
        }
    }
    TRY(sched_post_file(ctx->scheduler, u->filename, upload_field(u, "purpose"), u->path, u->bytes,
                        keep_seconds, &file, err));
    reply_json(rep, 200, file_to_json(&file));
out:
    if (slow)
        slow_leave(ctx);
    fault_list_fini(&faults);
    store_file_fini(&file);
    return rc;
}

int files_list(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    static const char *const known[] = {"purpose", "limit", "order", "after", NULL};
    struct store_file *rows = NULL;
    struct store_page page;
    json_t *data = NULL;
    bool has_more = false;
    int64_t n = 0;
    int rc = 0;

    TRY(request_check_query(req, known, err));
    TRY(page_from_query(req, 10000, 10000, &page, err));
    TRY(page_error(store_list_files(ctx->reader, request_query(req, "purpose"), page, &rows, &n,
                                    &has_more, err),
                   &page, err));
    data = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(data, file_to_json(&rows[i]));
    page_reply(rep, data, has_more, true);
out:
    for (int64_t i = 0; i < n; i++)
        store_file_fini(&rows[i]);
    free(rows);
    return rc;
}

int files_get(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct store_file file = {0};
    int rc = 0;

    TRY(file_find(ctx, req->object, &file, err));
    reply_json(rep, 200, file_to_json(&file));
out:
    store_file_fini(&file);
    return rc;
}

int files_delete(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct store_file file = {0};
    int rc = 0;

    TRY(request_no_body(req, err));
    TRY(file_find(ctx, req->object, &file, err));
    TRY(sched_post_delete_file(ctx->scheduler, req->object, err));
    reply_json(rep, 200,
               json_pack("{s:s, s:s, s:b}", "id", req->object, "object", "file", "deleted", 1));
out:
    store_file_fini(&file);
    return rc;
}

/* The bytes as they came. The name was cleaned at upload; what is not ASCII is left out here. */
int files_content(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct store_file file = {0};
    char disposition[320];
    struct stat st;
    int rc = 0;
    int fd = -1;

    TRY(file_find(ctx, req->object, &file, err));
    fd = open(file.path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) != 0) {
        rc = err_set(err, ERR_IO, "cannot open %s of %s: %s", file.path, file.id, strerror(errno));
        goto out;
    }
    int n =
        snprintf(disposition, sizeof(disposition), "attachment; filename=\"%s\"", file.filename);
    for (int i = 0; i < n && disposition[i]; i++)
        if ((unsigned char)disposition[i] < 0x20 || (unsigned char)disposition[i] >= 0x7F)
            disposition[i] = '_';
    reply_header(rep, "Content-Disposition", disposition);
    reply_header(rep, "X-Content-Type-Options", "nosniff");
    rep->content_type = strcmp(file.purpose, "fine-tune-results") == 0 ? "text/csv; charset=utf-8"
                                                                       : "application/octet-stream";
    rep->status = 200;
    rep->fd = fd;
    rep->fd_bytes = st.st_size;
    fd = -1;
out:
    if (fd >= 0)
        close(fd);
    store_file_fini(&file);
    return rc;
}
