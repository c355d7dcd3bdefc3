#include <inttypes.h>
#include <stdlib.h>

#include "api/event.h"
#include "api/job_dir.h"
#include "core/fs.h"
#include "core/jsonl.h"
#include "core/log.h"
#include "scheduler/change.h"
#include "scheduler/store_write.h"

enum { BATCH_IS_FULL = -1 }; /* no err_code */

struct tail {
    const struct change_context *context;
    struct job next; /* the job with the lines so far applied */
    bool open;       /* a transaction and `next` are */
    bool failed;     /* the store, not the file, is at fault */
    const struct job *job;
    int64_t n;
};

static int apply_line(struct tail *t, json_t *value, struct err *err)
{
    struct event event;
    struct err why = {0};
    struct job_input in = {.kind = JOB_OCC_EVENT, .event = &event};

    if (!value || event_from_json(value, &event, &why) != 0) {
        log_warn("scheduler", "job=%s attempt=%" PRId64 " skipping a line that is no event: %s",
                 t->next.id, t->next.attempt, value ? why.msg : "not JSON");
        return 0;
    }
    in.t = event.t;
    in.attempt = event.attempt;
    return change_apply(t->context, &t->next, &in, err);
}

static int on_line(void *ud, json_t *value, int64_t offset_after, struct err *err)
{
    struct tail *t = ud;
    int rc = 0;

    if (!t->open) {
        TRY(store_begin(t->context->store, err));
        job_copy(&t->next, t->job);
        t->open = true;
    }
    TRY(apply_line(t, value, err));
    t->next.tail_offset = offset_after;
    t->n++;
out:
    if (rc != 0)
        t->failed = true;
    else if (t->n == TAIL_BATCH)
        rc = BATCH_IS_FULL;
    return rc;
}

int tail_read(const struct change_context *c, struct job *job, int64_t *n_lines, bool *broken,
              struct err *err)
{
    struct tail t = {.context = c, .job = job};
    char *jobdir = change_jobdir(c, job->id);
    char *path = job_dir_events(jobdir, job->attempt);
    int64_t offset = job->tail_offset;
    int file_rc, rc = 0;

    *n_lines = 0;
    *broken = false;
    file_rc = jsonl_read_from(path, &offset, TAIL_MAX_LINE, on_line, &t, err);
    if (file_rc == BATCH_IS_FULL)
        file_rc = 0;
    if (t.failed) {
        rc = file_rc;
    } else if (t.open) { /* good lines before a bad place count */
        rc = store_update_job(c->store, &t.next, err);
        if (rc == 0)
            rc = store_commit(c->store, err);
    }
    if (rc != 0)
        store_rollback(c->store);
    else
        *broken = file_rc == ERR_CORRUPT;
    if (rc == 0 && t.open) {
        job_fini(job);
        *job = t.next;
        t.open = false;
        *n_lines = t.n;
    }
    if (t.open)
        job_fini(&t.next);
    free(path);
    free(jobdir);
    return rc != 0 ? rc : file_rc;
}
