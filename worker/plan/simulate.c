/* Folding over a list: peaks, traffic, time, and proof that the list keeps the rules. */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/plan/plan.h"
#include "worker/plan/touch.h"

struct sim {
    const struct plan *p;
    enum plan_list list;
    int64_t *first, *last; /* by place: first and last instruction that touches it, -1 = none */
    bool *written;         /* by place */
    enum chunk_state *state;
    double queue_at[QUEUE_COUNT], queue_busy[QUEUE_COUNT];
    double *done_at; /* by instruction */
    struct plan_simulation out;
    struct err *err;
};

static int broken(struct sim *s, int64_t at, const char *what, int64_t which)
{
    const struct instr *i = &s->p->lists[s->list].items[at];
    return err_set(
        s->err, ERR_INTERNAL,
        "plan list %s, instruction %lld (%s block %d chunk %d): %s %lld; this is a bug in "
        "the planner, please report it",
        plan_list_name(s->list), (long long)at, instr_op_name(i->op), i->block, i->chunk, what,
        (long long)which);
}

/* ---- lifetimes ---------------------------------------------------------------------------------
 */

static void find_lifetimes(struct sim *s)
{
    const struct instr_list *l = &s->p->lists[s->list];
    for (int64_t p = 0; p < s->p->n_places; p++)
        s->first[p] = s->last[p] = -1;
    for (int64_t n = 0; n < l->n; n++) {
        struct touch t[INSTR_MAX_TOUCHES];
        int n_touches = instr_touches(s->p, s->list, &l->items[n], t);
        for (int k = 0; k < n_touches; k++) {
            if (s->first[t[k].place] < 0)
                s->first[t[k].place] = n;
            s->last[t[k].place] = n;
        }
    }
}

static bool place_live(const struct sim *s, int64_t place, int64_t at)
{
    if (s->p->places[place].persistent)
        return true;
    return s->first[place] >= 0 && s->first[place] <= at && at <= s->last[place];
}

/* A place that becomes live at `at` must not share an address with another live one. */
static int check_overlap(struct sim *s, int64_t place, int64_t at)
{
    const struct place *a = &s->p->places[place];
    for (int64_t q = 0; q < s->p->n_places; q++) {
        const struct place *b = &s->p->places[q];
        if (q != place && b->tier == a->tier && place_live(s, q, at) &&
            a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes)
            return broken(s, at, "two live places overlap, one of them", q);
    }
    return 0;
}

static void count_memory(struct sim *s, int64_t at)
{
    struct plan_tier_memory now[TIER_COUNT] = {0};
    for (int64_t p = 0; p < s->p->n_places; p++) {
        const struct place *place = &s->p->places[p];
        if (!place_live(s, p, at))
            continue;
        now[place->tier].by_purpose[place->purpose] += (int64_t)place->bytes;
        now[place->tier].total += (int64_t)place->bytes;
    }
    for (int t = 0; t < TIER_COUNT; t++)
        if (now[t].total > s->out.memory[t].total)
            s->out.memory[t] = now[t];
}

static int check_places(struct sim *s, int64_t at, const struct instr *i)
{
    struct touch t[INSTR_MAX_TOUCHES];
    int n = instr_touches(s->p, s->list, i, t);
    bool births = at == 0;
    int rc = 0;

    for (int k = 0; k < n; k++) {
        int32_t place = t[k].place;
        if (s->p->places[place].offset + s->p->places[place].bytes >
            s->p->claim[s->p->places[place].tier])
            return broken(s, at, "outside the claimed memory lies place", place);
        if (t[k].reads && !s->p->places[place].persistent && !s->written[place])
            return broken(s, at, "reads what nothing wrote, place", place);
        if (s->first[place] == at && !s->p->places[place].persistent) {
            births = true;
            TRY(check_overlap(s, place, at));
        }
        s->written[place] |= t[k].writes;
    }
    if (births)
        count_memory(s, at);
out:
    return rc;
}

/* ---- chunk states ------------------------------------------------------------------------------
 */

static int move_state(struct sim *s, int64_t at, int64_t chunk, enum chunk_state to)
{
    if (!chunk_state_allowed(s->state[chunk], to))
        return broken(s, at, "forbidden transition of chunk", chunk);
    s->state[chunk] = to;
    return 0;
}

/* Nothing changes a frozen chunk, so nothing of it is reduced, updated or written back. */
static bool writes_frozen(const struct plan *p, const struct instr *i)
{
    bool writes = i->op == INSTR_REDUCE || i->op == INSTR_UPDATE || i->op == INSTR_SPILL ||
                  i->op == INSTR_EVICT || i->op == INSTR_UNSTAGE;
    return writes && i->chunk >= 0 && !p->chunks.chunks[i->chunk].trainable;
}

static int check_states(struct sim *s, int64_t at, const struct instr *i)
{
    int rc = 0;
    if (writes_frozen(s->p, i))
        return broken(s, at, "writes the frozen chunk", i->chunk);
    if (i->op == INSTR_FORWARD || i->op == INSTR_BACKWARD) {
        const struct block_operands *o = &s->p->operands[i->operands];
        enum chunk_state after = i->op == INSTR_BACKWARD ? CHUNK_HOLD_AFTER_BWD
                                 : s->list == LIST_TRAIN ? CHUNK_HOLD_AFTER_FWD
                                                         : CHUNK_HOLD;
        for (int32_t c = 0; c < o->n_chunks; c++) {
            bool trainable = s->p->chunks.chunks[o->chunk[c]].trainable;
            TRY(move_state(s, at, o->chunk[c], CHUNK_COMPUTE));
            TRY(move_state(s, at, o->chunk[c], trainable ? after : CHUNK_HOLD));
        }
    } else if (i->op == INSTR_REDUCE) {
        TRY(move_state(s, at, i->chunk, CHUNK_READY_FOR_REDUCE));
        TRY(move_state(s, at, i->chunk, CHUNK_HOLD));
    } else if (i->op == INSTR_UPDATE && s->state[i->chunk] != CHUNK_HOLD) {
        return broken(s, at, "update before its gradient is reduced, chunk", i->chunk);
    }
out:
    return rc;
}

static int check_cycle(struct sim *s)
{
    for (int64_t c = 0; c < s->p->chunks.n_chunks; c++)
        if (s->state[c] != CHUNK_HOLD)
            return broken(s, s->p->lists[s->list].n - 1,
                          "residency at the end unlike the start: chunk", c);
    return 0;
}

/* ---- traffic and time --------------------------------------------------------------------------
 */

static size_t move_bytes(const struct plan *p, const struct instr *i)
{
    if (i->chunk >= 0 && i->payload != PAYLOAD_GRAD)
        return chunk_payload_bytes(&p->chunks.chunks[i->chunk], i->payload, p->types);
    return p->places[i->src].bytes;
}

static void count_traffic(struct sim *s, const struct instr *i)
{
    switch (i->op) {
    case INSTR_FETCH:
    case INSTR_LOAD_ACT:
        s->out.link_bytes[LINK_H2D] += (int64_t)move_bytes(s->p, i);
        break;
    case INSTR_EVICT:
    case INSTR_SPILL:
    case INSTR_SAVE_ACT:
        s->out.link_bytes[LINK_D2H] += (int64_t)move_bytes(s->p, i);
        break;
    case INSTR_STAGE:
        s->out.link_bytes[LINK_DISK_READ] += (int64_t)move_bytes(s->p, i);
        break;
    case INSTR_UNSTAGE:
        s->out.link_bytes[LINK_DISK_WRITE] += (int64_t)move_bytes(s->p, i);
        break;
    default:
        break;
    }
}

/* Bytes that an update touches: gradient, master, both moments in; master, moments, parameter out.
 */
static double update_bytes(const struct plan *p, const struct chunk *c)
{
    double state = (double)chunk_payload_bytes(c, PAYLOAD_STATE, p->types);
    double param = (double)chunk_payload_bytes(c, PAYLOAD_PARAM, p->types);
    double grad = (double)c->n * (double)dtype_size(p->types.grad);
    return 2 * state + grad + (chunk_has_master(p->types) ? param : 2 * param);
}

static double instr_seconds(const struct sim *s, const struct instr *i)
{
    const struct device_profile *d = s->p->in.profile;
    const struct chunk *c = i->chunk >= 0 ? &s->p->chunks.chunks[i->chunk] : NULL;
    double flops = s->p->types.compute == DT_F32 ? d->flops_f32 : d->flops_bf16;

    switch (i->op) {
    case INSTR_FORWARD:
    case INSTR_BACKWARD:
        return block_flops(s->p->in.model, i->block, &s->p->shapes[s->list],
                           i->op == INSTR_BACKWARD) /
               flops;
    case INSTR_REDUCE:
        return (double)chunk_payload_bytes(c, PAYLOAD_GRAD, s->p->types) / d->memory_rate;
    case INSTR_UPDATE:
        return update_bytes(s->p, c) / d->memory_rate;
    case INSTR_FETCH:
    case INSTR_LOAD_ACT:
        return (double)move_bytes(s->p, i) / d->h2d_rate;
    case INSTR_EVICT:
    case INSTR_SPILL:
    case INSTR_SAVE_ACT:
        return (double)move_bytes(s->p, i) / d->d2h_rate;
    default:
        return 0;
    }
}

/* Each queue runs its instructions in order; an instruction starts when its queue is free and what
 * it waits for is done. */
static int run_clock(struct sim *s, int64_t at, const struct instr *i)
{
    double start = s->queue_at[i->queue];
    for (int w = 0; w < QUEUE_COUNT; w++) {
        if (i->wait[w] < 0)
            continue;
        if (i->wait[w] >= at)
            return broken(s, at, "waits for a later instruction,", i->wait[w]);
        start = fmax(start, s->done_at[i->wait[w]]);
    }
    double seconds = s->p->in.profile ? instr_seconds(s, i) : 0;
    s->done_at[at] = s->queue_at[i->queue] = start + seconds;
    s->queue_busy[i->queue] += seconds;
    return 0;
}

static void sum_up(struct sim *s)
{
    s->out.seconds = s->out.bound = 0;
    for (int q = 0; q < QUEUE_COUNT; q++) {
        s->out.seconds = fmax(s->out.seconds, s->queue_at[q]);
        s->out.bound = fmax(s->out.bound, s->queue_busy[q]);
    }
    if (!s->p->in.profile)
        s->out.seconds = s->out.bound = NAN;
    if (s->list ==
        LIST_TRAIN) { /* the batch, its results and the scalars cross the link once a step */
        s->out.link_bytes[LINK_H2D] +=
            (int64_t)(plan_batch_bytes(s->p) + offsetof(struct step_scalars, clip));
        s->out.link_bytes[LINK_D2H] +=
            (int64_t)(plan_rows_bytes(s->p) + sizeof(struct step_scalars));
    }
    for (int t = 0; t < TIER_COUNT; t++)
        s->out.memory[t].limit = (int64_t)s->p->in.limit[t];
}

int plan_simulate(const struct plan *p, enum plan_list list, struct plan_simulation *out,
                  struct err *err)
{
    const struct instr_list *l = &p->lists[list];
    struct sim s = {.p = p, .list = list, .err = err};
    int rc = 0;

    s.first = xcalloc((size_t)p->n_places, sizeof *s.first);
    s.last = xcalloc((size_t)p->n_places, sizeof *s.last);
    s.written = xcalloc((size_t)p->n_places, sizeof *s.written);
    s.state = xcalloc((size_t)p->chunks.n_chunks, sizeof *s.state);
    s.done_at = xcalloc((size_t)l->n + 1, sizeof *s.done_at);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        s.state[c] = CHUNK_HOLD;
    find_lifetimes(&s);
    for (int64_t n = 0; n < l->n; n++) {
        TRY(check_places(&s, n, &l->items[n]));
        TRY(check_states(&s, n, &l->items[n]));
        TRY(run_clock(&s, n, &l->items[n]));
        count_traffic(&s, &l->items[n]);
    }
    TRY(check_cycle(&s));
    sum_up(&s);
    *out = s.out;
out:
    free(s.first);
    free(s.last);
    free(s.written);
    free(s.state);
    free(s.done_at);
    return rc;
}
