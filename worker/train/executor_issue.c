/* Walking a list: each instruction goes to its queue, behind what it waits for. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "worker/train/executor_impl.h"

/* --- edges --- */

static bool is_host_queue(enum queue q)
{
    return q == QUEUE_CPU || q == QUEUE_READ || q == QUEUE_WRITE;
}

/* Does an instruction of a stream have anybody waiting for it? */
static void find_waited_for(const struct instr_list *l, bool *waited)
{
    for (int64_t n = 0; n < l->n; n++) {
        for (int q = 0; q < QUEUE_COUNT; q++) {
            if (l->items[n].wait[q] >= 0)
                waited[l->items[n].wait[q]] = true;
            if (l->items[n].wait_prev[q] >= 0)
                waited[l->items[n].wait_prev[q]] = true;
        }
    }
}

static int init_list(struct executor *e, enum plan_list list, int64_t pending[QUEUE_COUNT],
                     struct err *err)
{
    const struct instr_list *l = &e->plan->lists[list];
    struct list_edges *edges = &e->edges[list];
    bool *waited = xcalloc((size_t)l->n + 1, sizeof *waited);
    int64_t count[QUEUE_COUNT] = {0};
    int rc = 0;

    find_waited_for(l, waited);
    for (int k = 0; k < 2; k++) {
        edges->mark[k] = xcalloc((size_t)l->n + 1, sizeof *edges->mark[k]);
        edges->word[k] = xcalloc((size_t)l->n + 1, sizeof *edges->word[k]);
        for (int64_t n = 0; n < l->n; n++) {
            count[l->items[n].queue]++;
            if (waited[n] && !is_host_queue(l->items[n].queue))
                TRY(device_mark_create(e->device, &edges->mark[k][n], err));
        }
    }
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (count[q] > pending[q])
            pending[q] = count[q];
out:
    free(waited);
    return rc;
}

int executor_edges_init(struct executor *e, struct err *err)
{
    static const char *const names[QUEUE_COUNT] = {[QUEUE_CPU] = "castor-update",
                                                   [QUEUE_READ] = "castor-read",
                                                   [QUEUE_WRITE] = "castor-write"};
    int64_t pending[QUEUE_COUNT] = {0};
    int rc = 0;

    for (int list = 0; list < LIST_COUNT; list++)
        if (list != LIST_LOAD && list != LIST_SAVE)
            TRY(init_list(e, list, pending, err));
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (is_host_queue(q) && pending[q] > 0)
            TRY(host_queue_create(e->device, names[q], pending[q], &e->host[q], err));
out:
    return rc;
}

void executor_edges_fini(struct executor *e)
{
    for (int q = 0; q < QUEUE_COUNT; q++) {
        host_queue_destroy(e->host[q]);
        e->host[q] = NULL;
    }
    for (int list = 0; list < LIST_COUNT; list++) {
        struct list_edges *edges = &e->edges[list];
        for (int k = 0; k < 2; k++) {
            for (int64_t n = 0; edges->mark[k] && n < e->plan->lists[list].n; n++)
                device_mark_destroy(e->device, edges->mark[k][n]);
            free(edges->mark[k]);
            free(edges->word[k]);
        }
        *edges = (struct list_edges){0};
    }
}

/* --- waiting --- */

/* What a waiter on another queue waits for: instruction n of the pass with this parity. */
static struct host_wait edge_to(const struct executor *e, enum plan_list list, int parity,
                                int32_t n)
{
    const struct list_edges *edges = &e->edges[list];
    enum queue q = e->plan->lists[list].items[n].queue;
    if (!is_host_queue(q))
        return (struct host_wait){.mark = edges->mark[parity][n], .from = q};
    return (struct host_wait){
        .word = host_queue_word(e->host[q]), .value = edges->word[parity][n], .from = q};
}

/* All that instruction i waits for in this pass and the one before. */
static int collect_waits(const struct executor *e, enum plan_list list, const struct instr *i,
                         struct host_wait out[HOST_JOB_MAX_WAITS])
{
    int parity = (int)(e->edges[list].pass & 1);
    int n = 0;
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (i->wait[q] >= 0)
            out[n++] = edge_to(e, list, parity, i->wait[q]);
    /* In the first pass all queues were idle. */
    for (int q = 0; q < QUEUE_COUNT && e->edges[list].pass > 0; q++)
        if (i->wait_prev[q] >= 0)
            out[n++] = edge_to(e, list, 1 - parity, i->wait_prev[q]);
    return n;
}

static int stream_waits(struct executor *e, enum plan_list list, const struct instr *i,
                        struct stream *s, struct err *err)
{
    struct host_wait waits[HOST_JOB_MAX_WAITS];
    int n = collect_waits(e, list, i, waits);
    int rc = 0;
    for (int w = 0; w < n; w++)
        TRY(executor_watched_wait(e, list, i->queue, &waits[w], s, err));
out:
    return rc;
}

/* --- instructions --- */

static void leave_crumb(struct executor *e, enum plan_list list, const struct instr *i)
{
    struct crumb *c = e->config.crumb;
    if (!c)
        return;
    c->step = e->step;
    snprintf(c->where, sizeof c->where, "%s %s block %d chunk %d micro %d", plan_list_name(list),
             instr_op_name(i->op), i->block, i->chunk, i->micro);
}

static void push_host_job(struct executor *e, enum plan_list list, int64_t n)
{
    const struct instr *i = &e->plan->lists[list].items[n];
    struct host_job job = {.run = i->queue == QUEUE_CPU ? executor_host_update : executor_host_disk,
                           .ud = e,
                           .instr = i,
                           .adamw = e->adamw,
                           .swapped = e->swapped,
                           .speculates = e->speculates,
                           .step = e->step};
    job.n_waits = collect_waits(e, list, i, job.waits);
    e->edges[list].word[e->edges[list].pass & 1][n] = host_queue_push(e->host[i->queue], &job);
}

static int run_on_stream(struct executor *e, enum plan_list list, const struct instr *i,
                         struct stream *s, struct err *err)
{
    switch (i->op) {
    case INSTR_FORWARD:
    case INSTR_BACKWARD:
        return executor_run_block(e, list, i, s, err);
    case INSTR_REDUCE:
        return executor_run_reduce(e, i, s, err);
    case INSTR_NORM:
        return executor_run_norm(e, i, s, err);
    case INSTR_UPDATE:
        return executor_run_update(e, i, s, err);
    case INSTR_FETCH:
    case INSTR_EVICT:
    case INSTR_SPILL:
    case INSTR_SAVE_ACT:
    case INSTR_LOAD_ACT:
        return executor_run_copy(e, i, s, err);
    case INSTR_DROP:
        return 0;
    default:
        return err_set(err, ERR_UNSUPPORTED, "instruction %s is not executed by this build",
                       instr_op_name(i->op));
    }
}

static int issue_one(struct executor *e, enum plan_list list, int64_t n, struct err *err)
{
    const struct instr *i = &e->plan->lists[list].items[n];
    struct stream *s = e->stream[i->queue];
    struct event_mark *mark = e->edges[list].mark[e->edges[list].pass & 1][n];
    int rc = 0;

    leave_crumb(e, list, i);
    if (is_host_queue(i->queue)) {
        push_host_job(e, list, n);
        return 0;
    }
    TRY(stream_waits(e, list, i, s, err));
    TRY(run_on_stream(e, list, i, s, err));
    if (mark)
        TRY(device_mark_record(e->device, mark, s, err));
    if (i->queue == QUEUE_COMPUTE)
        TRY(executor_trail_mark(e, list, i, s, err));
out:
    return rc;
}

/* The host queues hold one pass at most beside the one being issued, whose marks are then free. */
static void await_pass_before_last(struct executor *e, enum plan_list list)
{
    const struct instr_list *l = &e->plan->lists[list];
    struct list_edges *edges = &e->edges[list];
    uint32_t last[QUEUE_COUNT];
    bool any[QUEUE_COUNT] = {false};

    if (edges->pass < 2)
        return;
    for (int64_t n = 0; n < l->n; n++) {
        if (is_host_queue(l->items[n].queue)) {
            last[l->items[n].queue] = edges->word[edges->pass & 1][n];
            any[l->items[n].queue] = true;
        }
    }
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (any[q])
            host_queue_wait(e->host[q], last[q]);
}

int executor_issue(struct executor *e, enum plan_list list, struct err *err)
{
    const struct instr_list *l = &e->plan->lists[list];
    int rc = 0;

    await_pass_before_last(e, list);
    if (list == LIST_TRAIN)
        e->stalls[e->edges[list].pass & 1].used = 0;
    for (int64_t n = 0; n < l->n; n++)
        TRY(issue_one(e, list, n, err));
    e->edges[list].pass++;
out:
    rc = executor_trail_explain(e, rc, err);
    return rc ? err_wrap(err, rc, "list %s", plan_list_name(list)) : 0;
}

int executor_host_error(struct executor *e, struct err *err)
{
    for (int q = 0; q < QUEUE_COUNT; q++) {
        int rc = e->host[q] ? host_queue_error(e->host[q], err) : 0;
        if (rc != 0)
            return rc;
    }
    return 0;
}

int executor_quiesce(struct executor *e, struct err *err)
{
    int rc = 0;
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (e->stream[q])
            TRY(device_stream_sync(e->device, e->stream[q], err));
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (e->host[q])
            host_queue_drain(e->host[q]);
    for (int list = 0; list < LIST_COUNT; list++)
        e->edges[list].pass = 0;
    TRY(executor_host_error(e, err));
out:
    return executor_trail_explain(e, rc, err);
}
