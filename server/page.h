/* Lists: `after`, `limit` and `order` of a query, and OpenAI's list envelope. */
#ifndef CASTOR_SERVER_PAGE_H
#define CASTOR_SERVER_PAGE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "scheduler/store.h"
#include "server/reply.h"
#include "server/request.h"

/* page->after is borrowed from the request. */
int page_from_query(const struct request *req, int64_t default_limit, int64_t max_limit,
                    struct store_page *page, struct err *err);
/* A list call that failed with ERR_NOT_FOUND met an unknown `after`: 400, because the list itself
 * is there. Other codes pass. */
int page_error(int rc, const struct store_page *page, struct err *err);
/* {"object":"list","data":...,"has_more":...}, with first_id and last_id where wanted. Takes
 * `data`. */
void page_reply(struct reply *rep, json_t *data, bool has_more, bool with_ids);

#endif
