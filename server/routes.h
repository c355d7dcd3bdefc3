/*
 * What a request becomes: ONE table of method, pattern, handler, body and needed role, and the two
 * steps that every request takes, both free of sockets:
 *   route_admit   with the headers alone: is there such a route, may the caller use it, is the
 *                 declared body acceptable?
 *   route_run     with the body: run the handler, turn its error into an answer, add the headers
 *                 that every answer has.
 *
 * A handler returns 0 with *rep filled, or an err_code with *err set. It may block (it runs on a
 * thread of its own), reads through ctx->reader and changes things through ctx->scheduler only.
 */
#ifndef CASTOR_SERVER_ROUTES_H
#define CASTOR_SERVER_ROUTES_H

#include <stdatomic.h>

#include "scheduler/scheduler.h"
#include "scheduler/store.h"
#include "server/config.h"
#include "server/dedupe.h"
#include "server/reply.h"
#include "server/request.h"

/* What handlers work with. One a thread, because a store connection belongs to one thread. */
struct ctx {
    const struct server_config *config;
    struct scheduler *scheduler;
    struct store *reader;
    struct dedupe *dedupe;
    atomic_int *slow_left; /* how many more requests may occupy a thread for long */
    const atomic_bool *draining;
};

typedef int (*handler_fn)(struct ctx *ctx, const struct request *req, struct reply *rep,
                          struct err *err);

enum body_kind { BODY_NONE, BODY_JSON, BODY_MULTIPART };

struct route {
    const char *method;
    const char *pattern; /* "{id}" is one segment, "{id*}" all that are left */
    handler_fn handler;
    enum role role;
    enum body_kind body;
};

/* Number and addresses of the table's rows, for tests and documentation checks. */
const struct route *route_table(int *n);

/* NULL: refused, *rep holds the answer. Otherwise req->object and req->key are set. */
const struct route *route_admit(const struct server_config *config, struct request *req,
                                struct reply *rep);
void route_run(const struct route *route, struct ctx *ctx, const struct request *req,
               struct reply *rep);
/* The headers of every answer, also of those that never reached a handler. */
void route_finish(const struct server_config *config, const struct request *req, double started,
                  struct reply *rep);

/* A request that may take many seconds (a child process) claims one of the few slots for such, so
 * that short ones always find a thread. False: *rep is a 503, and nothing is to be left. */
bool slow_enter(struct ctx *ctx, struct reply *rep);
void slow_leave(struct ctx *ctx);

/* health.c, files.c, jobs.c, models.c */
int health_live(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int health_ready(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int health_version(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int health_openapi(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int files_create(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int files_list(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int files_get(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int files_delete(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int files_content(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_create(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_estimate(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_list(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_get(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_cancel(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_pause(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_resume(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_events(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int jobs_checkpoints(struct ctx *ctx, const struct request *req, struct reply *rep,
                     struct err *err);
int models_list(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int models_get(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);
int models_delete(struct ctx *ctx, const struct request *req, struct reply *rep, struct err *err);

#endif
