#include "server/page.h"

#include <string.h>

int page_from_query(const struct request *req, int64_t default_limit, int64_t max_limit,
                    struct store_page *page, struct err *err)
{
    const char *order = request_query(req, "order");
    const char *after = request_query(req, "after");
    int64_t limit = default_limit;
    int rc = 0;

    TRY(request_query_int(req, "limit", 1, max_limit, &limit, err));
    if (order && strcmp(order, "asc") != 0 && strcmp(order, "desc") != 0) {
        rc = err_set(err, ERR_INVALID, "query parameter 'order' must be asc or desc");
        err_set_param(err, rc, "order");
        goto out;
    }
    *page = (struct store_page){
        .after = after && *after ? after : NULL,
        .limit = limit,
        .ascending = order && strcmp(order, "asc") == 0,
    };
out:
    return rc;
}

int page_error(int rc, const struct store_page *page, struct err *err)
{
    if (rc != ERR_NOT_FOUND || !page->after)
        return rc;
    err_clear(err);
    err_set(err, ERR_INVALID,
            "'after' names no item of this list: '%.100s'; use the id of the last item you have",
            page->after);
    err_set_reason(err, ERR_INVALID, "invalid_cursor");
    return err_set_param(err, ERR_INVALID, "after");
}

static json_t *id_of(const json_t *item)
{
    json_t *id = json_object_get(item, "id");

    return id ? json_incref(id) : json_null();
}

void page_reply(struct reply *rep, json_t *data, bool has_more, bool with_ids)
{
    json_t *list = json_object();
    size_t n = json_array_size(data);

    json_object_set_new(list, "object", json_string("list"));
    if (with_ids) {
        json_object_set_new(list, "first_id", id_of(json_array_get(data, 0)));
        json_object_set_new(list, "last_id", id_of(n > 0 ? json_array_get(data, n - 1) : NULL));
    }
    json_object_set_new(list, "data", data);
    json_object_set_new(list, "has_more", json_boolean(has_more));
    reply_json(rep, 200, list);
}
