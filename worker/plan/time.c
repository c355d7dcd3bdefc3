/*
 * How long a list takes: its queues run side by side, each in order, and an instruction starts when
 * its queue is free and what it waits for is done. Copies in both directions slow each other down,
 * as do reads and writes of the disk, and updates on the CPU and copies, which share host memory.
 *
 * The training list is run pass behind pass, since updates may run on into the next pass; a step is
 * the time between the ends of two passes once they follow each other evenly: not of the last one,
 * beside whose end no next pass runs.
 */
#include <math.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "kernels/adamw_aside.h"
#include "worker/plan/build.h"

enum { PASSES = 4 };

size_t plan_move_bytes(const struct plan *p, const struct instr *i)
{
    size_t src = p->places[i->src].bytes, dst = p->places[i->dst].bytes;
    if (i->src == i->dst)
        return 0;
    if (i->op == INSTR_EVICT && i->chunk < 0)
        return sizeof(struct clip_result);
    if (i->chunk < 0 || i->op == INSTR_STAGE || i->op == INSTR_UNSTAGE) /* whole blocks of a disk */
        return src < dst ? src : dst;
    if (plan_moves_piece(i))
        return plan_piece_bytes(p, i->chunk, i->slice);
    if (i->payload == PAYLOAD_PARAM)
        return chunk_payload_bytes(&p->chunks.chunks[i->chunk], i->payload, p->types);
    if (i->payload == PAYLOAD_STATE)
        return plan_slice_bytes(p, &p->chunk[i->chunk].slices[i->slice]);
    return src < dst ? src : dst;
}

/* --- one instruction alone --- */

/* Bytes that the update of n parameters touches: gradient, master, both moments in; master,
 * moments, parameter out. The parameter is also read where it is the master or half of it. */
static double touched_bytes(struct chunk_types types, enum dtype grad, int64_t n)
{
    size_t param = dtype_size(types.compute) * (chunk_has_whole_master(types) ? 1 : 2);
    return 2.0 * (double)chunk_state_bytes(types, n) +
           (double)n * (double)(dtype_size(grad) + param);
}

/* Of one parameter on the CPU, where the gradient has travelled rounded. */
static double cpu_update_bytes(struct chunk_types types)
{
    return touched_bytes(types, types.compute, CHUNK_ALIGN) / CHUNK_ALIGN;
}

static double update_bytes(const struct plan *p, const struct instr *i)
{
    int64_t n = p->chunk[i->chunk].slices[i->slice].n;
    enum dtype grad = i->queue == QUEUE_CPU
                          ? p->types.compute
                          : chunk_grad_type(&p->chunks.chunks[i->chunk], p->types);
    return touched_bytes(p->types, grad, n);
}

/* The slots of later uses are added to the first one, of which the norm is read; to travel it is
 * rounded. */
static double reduce_bytes(const struct plan *p, const struct instr *i)
{
    const struct chunk *c = &p->chunks.chunks[i->chunk];
    double size = (double)dtype_size(chunk_grad_type(c, p->types));
    double each = size + 3 * size * (double)(c->uses - 1);
    if (i->dst != NO_PLACE && i->dst != i->src)
        each += size + (double)dtype_size(p->types.compute);
    return (double)c->n * each;
}

/* Parameters a second that the CPU updates, or bytes that are copied meanwhile. Two kinds of state
 * are measured; between them the seconds are linear in the bytes that an update touches, and fewer
 * than the least gain nothing. */
static double update_rate(const struct plan *p, double float_rate, double fp8_rate)
{
    static const struct chunk_types float_types = {DT_BF16, DT_F32, DT_F32, DT_F32},
                                    fp8_types = {DT_BF16, DT_F32, DT_I16, DT_U8};
    double most = cpu_update_bytes(float_types), least = cpu_update_bytes(fp8_types);
    double part = fmax((cpu_update_bytes(p->types) - least) / (most - least), 0.0);
    return 1.0 / (part / float_rate + (1.0 - part) / fp8_rate);
}

/* Aside, float states are written at a rate that is measured. Others are copied and the copy is
 * updated, while nothing else is done: of the state, and of parameters that are kept, each byte is
 * read and written, and what is written is read first. */
static double cpu_update_seconds(const struct plan *p, const struct instr *i,
                                 const struct device_profile *d, bool aside)
{
    double n = (double)p->chunk[i->chunk].slices[i->slice].n;
    double each = 1.0 / update_rate(p, d->cpu_update_rate, d->cpu_update_fp8_rate);
    if (!aside)
        return n * each;
    if (adamw_goes_aside(p->types.compute, p->types.compute, p->types.master, p->types.moment))
        return n * each * d->cpu_update_rate / d->cpu_update_aside_rate;
    double copied = (double)chunk_state_bytes(p->types, CHUNK_ALIGN) / CHUNK_ALIGN;
    if (!chunk_has_whole_master(p->types))
        copied += (double)dtype_size(p->types.compute);
    return n * (each + 3.0 * copied / d->host_memory_rate);
}

static double instr_seconds(const struct plan *p, enum plan_list list, const struct instr *i,
                            const struct device_profile *d, bool at_best)
{
    switch (i->op) {
    case INSTR_FORWARD:
    case INSTR_BACKWARD:
        return plan_block_seconds(p, list, i, d, at_best);
    case INSTR_REDUCE:
        return reduce_bytes(p, i) / d->memory_rate;
    case INSTR_UPDATE:
        if (i->queue == QUEUE_CPU)
            return cpu_update_seconds(p, i, d, i->shadow != NO_PLACE);
        return update_bytes(p, i) / d->memory_rate;
    case INSTR_CONFIRM: /* it holds */
        return 0;
    case INSTR_FETCH:
    case INSTR_LOAD_ACT:
        return (double)plan_move_bytes(p, i) / d->h2d_rate;
    case INSTR_EVICT:
    case INSTR_SPILL:
    case INSTR_SAVE_ACT:
        return (double)plan_move_bytes(p, i) / d->d2h_rate;
    case INSTR_STAGE:
        return (double)plan_move_bytes(p, i) / d->disk_read_rate / (at_best ? d->disk_best : 1);
    case INSTR_UNSTAGE:
        return (double)plan_move_bytes(p, i) / d->disk_write_rate / (at_best ? d->disk_best : 1);
    default:
        return 0;
    }
}

double plan_instr_seconds(const struct plan *p, enum plan_list list, const struct instr *i,
                          const struct device_profile *profile)
{
    return instr_seconds(p, list, i, profile, false);
}

/* --- all together --- */

struct run {
    const struct instr_list *l;
    const struct device_profile *profile;
    double update_share;          /* of its speed that an update keeps while copies run both ways */
    double copy_share;            /* that these keep while an update runs */
    const double *alone;          /* seconds by instruction           */
    int32_t *order[QUEUE_COUNT];  /* instructions of a queue          */
    int64_t count[QUEUE_COUNT];   /* of a pass                        */
    int64_t started[QUEUE_COUNT]; /* through all passes               */
    int64_t finished[QUEUE_COUNT]; /* likewise                         */
    int64_t *rank;                 /* by instruction: its place in its queue's order */
    double left[QUEUE_COUNT];      /* seconds of the running one, alone */
    double now;
};

static bool busy(const struct run *r, int q)
{
    return r->started[q] > r->finished[q];
}

/* Is instruction n of a pass done? */
static bool done(const struct run *r, int64_t n, int64_t pass)
{
    int q = r->l->items[n].queue;
    return r->finished[q] > pass * r->count[q] + r->rank[n];
}

static bool may_start(const struct run *r, const struct instr *i, int64_t pass)
{
    for (int q = 0; q < QUEUE_COUNT; q++) {
        if (i->wait[q] >= 0 && !done(r, i->wait[q], pass))
            return false;
        if (i->wait_prev[q] >= 0 && pass > 0 && !done(r, i->wait_prev[q], pass - 1))
            return false;
    }
    return true;
}

/* What is measured beside something else is no faster than alone, but for noise. */
static double share(double beside, double alone)
{
    return fmin(beside / alone, 1.0);
}

/* Of two copies: the speed of the one while the other runs, or not. */
static double copy_speed(const struct run *r, double both, bool other)
{
    double lost = busy(r, QUEUE_CPU) ? 1.0 - r->copy_share : 0;
    return other ? both * (1.0 - lost) : 1.0 - 0.5 * lost;
}

/* Updates and copies slow each other down: each direction by half of what both do. */
static double speed(const struct run *r, int q)
{
    const struct device_profile *d = r->profile;
    bool up = busy(r, QUEUE_H2D), down = busy(r, QUEUE_D2H);
    switch (q) {
    case QUEUE_H2D:
        return copy_speed(r, share(d->h2d_both_rate, d->h2d_rate), down);
    case QUEUE_D2H:
        return copy_speed(r, share(d->d2h_both_rate, d->d2h_rate), up);
    case QUEUE_READ:
        return busy(r, QUEUE_WRITE) ? share(d->disk_read_both_rate, d->disk_read_rate) : 1.0;
    case QUEUE_WRITE:
        return busy(r, QUEUE_READ) ? share(d->disk_write_both_rate, d->disk_write_rate) : 1.0;
    case QUEUE_CPU:
        return 1.0 - 0.5 * (1.0 - r->update_share) * (up + down);
    default:
        return 1.0;
    }
}

static void set_shares(const struct plan *p, struct run *r)
{
    const struct device_profile *d = r->profile;
    r->update_share = share(update_rate(p, d->cpu_update_copy_rate, d->cpu_update_fp8_copy_rate),
                            update_rate(p, d->cpu_update_rate, d->cpu_update_fp8_rate));
    r->copy_share = share(2.0 * update_rate(p, d->copy_update_rate, d->copy_update_fp8_rate),
                          d->h2d_both_rate + d->d2h_both_rate);
}

static void start_all(struct run *r, int64_t passes)
{
    for (int q = 0; q < QUEUE_COUNT; q++) {
        int64_t n = r->started[q];
        if (busy(r, q) || n >= passes * r->count[q])
            continue;
        int32_t at = r->order[q][n % r->count[q]];
        if (!may_start(r, &r->l->items[at], n / r->count[q]))
            continue;
        r->left[q] = r->alone[at];
        r->started[q]++;
    }
}

/* Let time pass until something is done. False when nothing runs. */
static bool advance(struct run *r)
{
    double rate[QUEUE_COUNT], step = INFINITY;
    for (int q = 0; q < QUEUE_COUNT; q++) {
        rate[q] = busy(r, q) ? speed(r, q) : 0;
        if (busy(r, q))
            step = fmin(step, r->left[q] / rate[q]);
    }
    if (isinf(step))
        return false;
    r->now += step;
    for (int q = 0; q < QUEUE_COUNT; q++) {
        if (!busy(r, q))
            continue;
        r->left[q] -= step * rate[q];
        if (r->left[q] <= 1e-9 * step)
            r->finished[q]++;
    }
    return true;
}

static int64_t passes_done(const struct run *r, int64_t passes)
{
    for (int q = 0; q < QUEUE_COUNT; q++)
        if (r->count[q] > 0 && r->finished[q] / r->count[q] < passes)
            passes = r->finished[q] / r->count[q];
    return passes;
}

/* Seconds of a pass: of `passes`, the last but one where there are several. */
static double run_passes(struct run *r, int64_t passes)
{
    double ended[PASSES + 1] = {0};
    for (int64_t pass = 0; pass < passes;) {
        start_all(r, passes);
        if (!advance(r))
            return NAN; /* only a list that waits for the future does that */
        while (pass < passes_done(r, passes))
            ended[++pass] = r->now;
    }
    if (passes > 1)
        passes--;
    return ended[passes] - ended[passes - 1];
}

/* Bytes that an instruction reads and writes in host memory. */
static double host_bytes(const struct plan *p, const struct instr *i)
{
    switch (i->op) {
    case INSTR_UPDATE:
    case INSTR_CONFIRM:
        return i->queue == QUEUE_CPU ? update_bytes(p, i) : 0;
    case INSTR_FETCH:
    case INSTR_EVICT:
    case INSTR_SPILL:
    case INSTR_SAVE_ACT:
    case INSTR_LOAD_ACT:
    case INSTR_STAGE:
    case INSTR_UNSTAGE:
        return (double)plan_move_bytes(p, i);
    default:
        return 0;
    }
}

/* Seconds of the disk, of which so many alone read and so many alone write: as much at a time as
 * gains by it. */
static double disk_bound(double read, double write, const struct device_profile *d)
{
    double reading = share(d->disk_read_both_rate, d->disk_read_rate); /* while both are busy */
    double writing = share(d->disk_write_both_rate, d->disk_write_rate);
    if (reading + writing <= 1)
        return read + write;
    double both = fmin(read / reading, write / writing);
    return both + (read - both * reading) + (write - both * writing);
}

/* How fast host memory may be: what was measured for itself, and no less than what these queues
 * move at a time by what was measured of them; `peak`: each alone, bytes a second. */
static double host_ceiling(const struct plan *p, const struct device_profile *d,
                           const double peak[QUEUE_COUNT])
{
    struct run r = {.profile = d};
    double most = d->host_memory_rate;
    set_shares(p, &r);
    for (unsigned set = 0; set < 1U << QUEUE_COUNT; set++) {
        double sum = 0;
        for (int q = 0; q < QUEUE_COUNT; q++)
            r.started[q] = peak[q] > 0 ? set >> q & 1 : 0;
        for (int q = 0; q < QUEUE_COUNT; q++)
            sum += busy(&r, q) ? peak[q] * speed(&r, q) : 0;
        most = fmax(most, sum);
    }
    return most;
}

/* Of updates on the CPU that wait for the norm: these begin when the gradients of the last backward
 * are there, and all of them are done before the head's backward, the first one, begins. So what
 * the device computes from that one to the norm runs beside none of them. 0 where there are none.
 */
static double norm_bound(const struct instr_list *l, const double *alone)
{
    double apart = 0, late = 0;
    bool backward = false;
    for (int64_t n = 0; n < l->n; n++) {
        const struct instr *i = &l->items[n];
        backward = (backward || i->op == INSTR_BACKWARD) && i->op != INSTR_NORM;
        if (backward && i->queue == QUEUE_COMPUTE)
            apart += alone[n];
        if (i->queue == QUEUE_CPU && (i->op == INSTR_CONFIRM || i->shadow == NO_PLACE))
            late += alone[n];
    }
    return late > 0 ? late + apart : 0;
}

/* Host memory, which updates and copies share: seconds of a pass. At best, updates move their bytes
 * as fast as it lets them, which `alone` says from then on. */
static double host_bound(const struct plan *p, const struct instr_list *l, double *alone,
                         const struct device_profile *d, bool at_best)
{
    double peak[QUEUE_COUNT] = {0}, host = 0;
    for (int64_t n = 0; n < l->n; n++) {
        enum queue q = l->items[n].queue;
        double bytes = alone[n] > 0 ? host_bytes(p, &l->items[n]) : 0;
        host += bytes;
        if (bytes > 0)
            peak[q] = fmax(peak[q], bytes / alone[n]);
    }
    if (host <= 0)
        return 0;
    double ceiling = host_ceiling(p, d, peak);
    for (int64_t n = 0; at_best && n < l->n; n++)
        if (l->items[n].queue == QUEUE_CPU && alone[n] > 0)
            alone[n] = fmin(alone[n], host_bytes(p, &l->items[n]) / ceiling);
    return host / ceiling;
}

/* Host memory; the busiest queue alone; the disk; and with clipping, updates behind the norm.
 * `alone` is spent. */
static double lower_bound(const struct plan *p, const struct instr_list *l, double *alone,
                          const struct device_profile *d, bool at_best)
{
    double queue[QUEUE_COUNT] = {0}, most = host_bound(p, l, alone, d, at_best);
    for (int64_t n = 0; n < l->n; n++)
        queue[l->items[n].queue] += alone[n];
    for (int q = 0; q < QUEUE_COUNT; q++)
        most = fmax(most, queue[q]);
    if (queue[QUEUE_READ] + queue[QUEUE_WRITE] > 0)
        most = fmax(most, disk_bound(queue[QUEUE_READ], queue[QUEUE_WRITE], d));
    return p->in.clip ? fmax(most, norm_bound(l, alone)) : most;
}

/* Speculative updates and what confirms them, if they do not simply hold. */
static void set_speculation(const struct plan *p, const struct instr_list *l,
                            const struct device_profile *d, enum speculation speculation,
                            double *alone)
{
    for (int64_t n = 0; n < l->n; n++) {
        const struct instr *i = &l->items[n];
        if (i->op == INSTR_CONFIRM && speculation != SPECULATION_HOLDS)
            alone[n] = cpu_update_seconds(p, i, d, speculation == SPECULATION_FAILS);
        if (i->op == INSTR_UPDATE && i->shadow != NO_PLACE && speculation == SPECULATION_OFF)
            alone[n] = 0;
    }
}

double plan_time_bound(const struct plan *p, enum plan_list list,
                       const struct device_profile *profile, enum speculation speculation,
                       bool at_best)
{
    const struct instr_list *l = &p->lists[list];
    double *alone = xcalloc((size_t)l->n + 1, sizeof *alone);
    for (int64_t n = 0; n < l->n; n++)
        alone[n] = instr_seconds(p, list, &l->items[n], profile, at_best);
    set_speculation(p, l, profile, speculation, alone);
    double bound = lower_bound(p, l, alone, profile, at_best);
    free(alone);
    return bound;
}

double plan_time(const struct plan *p, enum plan_list list, const struct device_profile *profile,
                 enum speculation speculation)
{
    const struct instr_list *l = &p->lists[list];
    double *alone = xcalloc((size_t)l->n + 1, sizeof *alone);
    struct run r = {.l = l, .alone = alone, .profile = profile};

    set_shares(p, &r);
    r.rank = xcalloc((size_t)l->n + 1, sizeof *r.rank);
    for (int q = 0; q < QUEUE_COUNT; q++)
        r.order[q] = xcalloc((size_t)l->n + 1, sizeof *r.order[q]);
    for (int64_t n = 0; n < l->n; n++) {
        int q = l->items[n].queue;
        alone[n] = instr_seconds(p, list, &l->items[n], profile, false);
        r.rank[n] = r.count[q];
        r.order[q][r.count[q]++] = (int32_t)n;
    }
    set_speculation(p, l, profile, speculation, alone);
    double seconds = run_passes(&r, list == LIST_TRAIN ? PASSES : 1);
    for (int q = 0; q < QUEUE_COUNT; q++)
        free(r.order[q]);
    free(r.rank);
    free(alone);
    return seconds;
}

double plan_seconds(const struct plan *p)
{
    const struct device_profile *d = p->in.profile ? p->in.profile : &device_profile_nominal;
    return plan_time(p, LIST_TRAIN, d, SPECULATION_OFF);
}
