/* Probes and documents that need no key and tell nothing about the jobs. */
#include <unistd.h>

#include "core/fs.h"
#include "core/log.h"
#include "server/openapi.h"
#include "server/routes.h"

static json_t *status(const char *word)
{
    return json_pack("{s:s}", "status", word);
}

int health_live(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    reply_json(rep, 200, status("ok"));
    return 0;
}

static int check_ready(struct ctx *ctx, struct err *err)
{
    int64_t bytes = 0;
    int rc = 0;

    if (atomic_load(ctx->draining))
        return err_set(err, ERR_CANCELLED, "stopping");
    TRY(scheduler_healthy(ctx->scheduler, err));
    TRY(fs_free_bytes(ctx->config->state_dir, &bytes, err));
    if (bytes < ctx->config->limits.free_bytes)
        rc = err_set(err, ERR_NOSPACE, "less than limits.free_bytes free on the state's disk");
    else if (access(ctx->config->worker_path, X_OK) != 0)
        rc = err_set(err, ERR_NOT_FOUND, "cannot run the worker %s", ctx->config->worker_path);
out:
    return rc;
}

/* Anybody may ask, so the reason goes to the log only. */
int health_ready(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct err why = {0};

    if (check_ready(ctx, &why) == 0) {
        reply_json(rep, 200, status("ok"));
        return 0;
    }
    log_warn("health", "request=%s not ready: %s", req->id, why.msg);
    reply_json(rep, 503, status("unavailable"));
    return 0;
}

int health_version(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    reply_json(rep, 200, json_pack("{s:s, s:s}", "name", "castor", "version", CASTOR_VERSION));
    return 0;
}

int health_openapi(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    size_t n;
    const char *text = openapi_text(&n);

    reply_text(rep, 200, "application/json", text, n);
    return 0;
}
