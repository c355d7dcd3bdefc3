/* Folding over a list: peaks, traffic, and proof that the list keeps the rules. */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/plan/build.h"
#include "worker/plan/touch.h"

struct sim {
    const struct plan *p;
    enum plan_list list;
    int64_t *first, *last; /* by place: first and last instruction that touches it, -1 = none */
    bool *written;         /* by place */
    enum chunk_state *state;
    bool *there;     /* by chunk: its parameters are in device memory */
    int64_t *pieces; /* by chunk: so many first pieces are, the others on their way */
    bool *reduced;   /* by chunk: its gradient is complete            */
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

/* --- lifetimes --- */

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

/* --- chunk states --- */

static int move_state(struct sim *s, int64_t at, int64_t chunk, enum chunk_state to)
{
    if (!chunk_state_allowed(s->state[chunk], to))
        return broken(s, at, "forbidden transition of chunk", chunk);
    s->state[chunk] = to;
    return 0;
}

/* Nothing changes a frozen chunk, so nothing of it is reduced, updated or written back once it has
 * been loaded. */
static bool writes_frozen(const struct sim *s, const struct instr *i)
{
    bool writes = i->op == INSTR_REDUCE || i->op == INSTR_UPDATE || i->op == INSTR_CONFIRM ||
                  i->op == INSTR_SPILL || i->op == INSTR_EVICT ||
                  (i->op == INSTR_UNSTAGE && s->list != LIST_LOAD);
    return writes && i->chunk >= 0 && !s->p->chunks.chunks[i->chunk].trainable;
}

/* To the device, or off it; loading and saving copy what stays where it is. */
static bool moves_parameters(const struct sim *s, const struct instr *i)
{
    bool runs_blocks = s->list != LIST_LOAD && s->list != LIST_SAVE;
    return i->op == INSTR_DROP ||
           (i->op == INSTR_FETCH && i->payload == PAYLOAD_PARAM && runs_blocks);
}

/* Pieces come one after the other, and the last one makes the chunk whole. */
static int check_piece(struct sim *s, int64_t at, const struct instr *i)
{
    const struct plan_chunk *pc = &s->p->chunk[i->chunk];
    if (i->slice != s->pieces[i->chunk]++)
        return broken(s, at, "pieces out of turn, now", i->slice);
    if (s->pieces[i->chunk] == pc->n_pieces)
        s->pieces[i->chunk] = 0;
    return 0;
}

static int check_states(struct sim *s, int64_t at, const struct instr *i)
{
    int rc = 0;
    if (writes_frozen(s, i))
        return broken(s, at, "writes the frozen chunk", i->chunk);
    if (i->op == INSTR_FORWARD || i->op == INSTR_BACKWARD) {
        const struct block_operands *o = &s->p->operands[i->operands];
        enum chunk_state after = i->op == INSTR_BACKWARD ? CHUNK_HOLD_AFTER_BWD
                                 : s->list == LIST_TRAIN ? CHUNK_HOLD_AFTER_FWD
                                                         : CHUNK_HOLD;
        for (int32_t c = 0; c < o->n_chunks; c++) {
            bool trainable = s->p->chunks.chunks[o->chunk[c]].trainable;
            if (o->param[c] == NO_PLACE && !trainable)
                continue;
            if (o->param[c] != NO_PLACE && !s->there[o->chunk[c]])
                return broken(s, at, "uses parameters that are not there, of chunk", o->chunk[c]);
            TRY(move_state(s, at, o->chunk[c], CHUNK_COMPUTE));
            TRY(move_state(s, at, o->chunk[c], trainable ? after : CHUNK_HOLD));
        }
    } else if (i->op == INSTR_REDUCE) {
        TRY(move_state(s, at, i->chunk, CHUNK_READY_FOR_REDUCE));
        TRY(move_state(s, at, i->chunk, CHUNK_HOLD));
        if (!s->there[i->chunk])
            TRY(move_state(s, at, i->chunk, CHUNK_FREE));
        s->reduced[i->chunk] = true;
    } else if (moves_parameters(s, i)) {
        if (plan_moves_piece(i))
            TRY(check_piece(s, at, i));
        if (s->pieces[i->chunk] > 0)
            goto out;
        TRY(move_state(s, at, i->chunk, i->op == INSTR_DROP ? CHUNK_FREE : CHUNK_HOLD));
        s->there[i->chunk] = i->op != INSTR_DROP;
    } else if ((i->op == INSTR_UPDATE || i->op == INSTR_CONFIRM) && !s->reduced[i->chunk]) {
        return broken(s, at, "update before its gradient is reduced, chunk", i->chunk);
    }
out:
    return rc;
}

static int check_cycle(struct sim *s)
{
    for (int64_t c = 0; c < s->p->chunks.n_chunks; c++)
        if (s->state[c] != (plan_is_resident(s->p, c) ? CHUNK_HOLD : CHUNK_FREE))
            return broken(s, s->p->lists[s->list].n - 1,
                          "residency at the end unlike the start: chunk", c);
    return 0;
}

/* --- traffic and time --- */

static void count_traffic(struct sim *s, const struct instr *i)
{
    switch (i->op) {
    case INSTR_FETCH:
    case INSTR_LOAD_ACT:
        s->out.link_bytes[LINK_H2D] += (int64_t)plan_move_bytes(s->p, i);
        break;
    case INSTR_EVICT:
    case INSTR_SPILL:
    case INSTR_SAVE_ACT:
        s->out.link_bytes[LINK_D2H] += (int64_t)plan_move_bytes(s->p, i);
        break;
    case INSTR_STAGE:
        s->out.link_bytes[LINK_DISK_READ] += (int64_t)plan_move_bytes(s->p, i);
        break;
    case INSTR_UNSTAGE:
        s->out.link_bytes[LINK_DISK_WRITE] += (int64_t)plan_move_bytes(s->p, i);
        break;
    default:
        break;
    }
}

static int check_waits(struct sim *s, int64_t at, const struct instr *i)
{
    for (int q = 0; q < QUEUE_COUNT; q++) {
        if (i->wait[q] >= at)
            return broken(s, at, "waits for a later instruction,", i->wait[q]);
        if (i->wait_prev[q] >= s->p->lists[s->list].n)
            return broken(s, at, "waits for what the list does not have,", i->wait_prev[q]);
    }
    return 0;
}

/* Where a step's expected time with speculation, which clipping undoes, is that without. */
static double break_even(const struct plan *p)
{
    const struct device_profile *d = p->in.profile ? p->in.profile : &device_profile_nominal;
    bool any = false;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        any = any || plan_speculates(p, c);
    if (!any)
        return 0;
    double holds = plan_time(p, LIST_TRAIN, d, SPECULATION_HOLDS);
    double fails = plan_time(p, LIST_TRAIN, d, SPECULATION_FAILS);
    double off = plan_time(p, LIST_TRAIN, d, SPECULATION_OFF);
    if (fails <= off)
        return 1;
    return holds < off ? (off - holds) / (fails - holds) : 0;
}

static void time_list(const struct sim *s, enum speculation speculation, double *seconds,
                      double *bound)
{
    const struct device_profile *d = s->p->in.profile;
    *seconds = *bound = NAN;
    if (!d)
        return;
    *seconds = plan_time(s->p, s->list, d, speculation);
    *bound = plan_time_bound(s->p, s->list, d, speculation, true);
    assert(!(*bound > *seconds * (1 + 1e-9)));
    *bound = fmin(*bound, *seconds); /* sums of the same terms, rounded apart */
}

static void sum_up(struct sim *s)
{
    time_list(s, SPECULATION_HOLDS, &s->out.seconds, &s->out.bound);
    s->out.seconds_clipped = s->out.bound_clipped = NAN;
    if (s->list == LIST_TRAIN && s->p->in.clip)
        time_list(s, SPECULATION_OFF, &s->out.seconds_clipped, &s->out.bound_clipped);
    if (s->list == LIST_TRAIN)
        s->out.break_even = break_even(s->p);
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
    s.there = xcalloc((size_t)p->chunks.n_chunks, sizeof *s.there);
    s.pieces = xcalloc((size_t)p->chunks.n_chunks, sizeof *s.pieces);
    s.reduced = xcalloc((size_t)p->chunks.n_chunks, sizeof *s.reduced);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        s.there[c] = plan_is_resident(p, c);
        s.state[c] = s.there[c] ? CHUNK_HOLD : CHUNK_FREE;
    }
    s.written[p->io.staging] = true; /* by the host, before the list */
    find_lifetimes(&s);
    for (int64_t n = 0; n < l->n; n++) {
        TRY(check_places(&s, n, &l->items[n]));
        TRY(check_states(&s, n, &l->items[n]));
        TRY(check_waits(&s, n, &l->items[n]));
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
    free(s.there);
    free(s.pieces);
    free(s.reduced);
    return rc;
}
