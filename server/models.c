/* /v1/models: the models that jobs have made. Their ids may hold slashes. */
#include <stdlib.h>

#include "server/page.h"
#include "server/routes.h"

/* root and parent as vLLM has them: what the model was made from. */
static json_t *model_to_json(const struct ctx *ctx, const struct store_model *m)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:s?, s:s?, s:s?}", "id", m->id, "object", "model",
                     "created", (json_int_t)m->created_at, "owned_by", ctx->config->organization,
                     "root", m->base, "parent", m->base, "fine_tuning_job_id", m->job_id);
}

static int model_find(struct ctx *ctx, const char *id, struct store_model *out, struct err *err)
{
    int rc = store_get_model(ctx->reader, id, out, err);

    if (rc != ERR_NOT_FOUND)
        return rc;
    err_clear(err);
    err_set(err, rc, "The model '%.200s' does not exist; GET /v1/models lists those there are", id);
    err_set_reason(err, rc, "model_not_found");
    return err_set_param(err, rc, "model");
}

int models_list(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct store_model *rows = NULL;
    json_t *data = NULL;
    int64_t n = 0;
    int rc = 0;

    TRY(store_list_models(ctx->reader, &rows, &n, err));
    data = json_array();
    for (int64_t i = 0; i < n; i++) {
        json_array_append_new(data, model_to_json(ctx, &rows[i]));
        store_model_fini(&rows[i]);
    }
    page_reply(rep, data, false, false);
out:
    free(rows);
    return rc;
}

int models_get(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct store_model model = {0};
    int rc = 0;

    TRY(model_find(ctx, req->object, &model, err));
    reply_json(rep, 200, model_to_json(ctx, &model));
out:
    store_model_fini(&model);
    return rc;
}

int models_delete(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err)
{
    struct store_model model = {0};
    int rc = 0;

    TRY(request_no_body(req, err));
    TRY(model_find(ctx, req->object, &model, err));
    TRY(sched_post_delete_model(ctx->scheduler, req->object, err));
    reply_json(rep, 200,
               json_pack("{s:s, s:s, s:b}", "id", req->object, "object", "model", "deleted", 1));
out:
    store_model_fini(&model);
    return rc;
}
