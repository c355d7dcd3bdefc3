/* Moving payloads, gradients and activations between tiers. */
#include <assert.h>
#include <string.h>

#include "worker/train/executor_impl.h"

int executor_run_copy(struct executor *e, const struct instr *i, struct stream *s, struct err *err)
{
    bool up = i->op == INSTR_FETCH || i->op == INSTR_LOAD_ACT;
    char *from_at = executor_at(e, i->src), *to_at = executor_at(e, i->dst);
    size_t piece = plan_moves_piece(i) ? plan_piece_at(e->plan, i->slice) : 0; /* on the gpu */
    if (i->op == INSTR_EVICT && i->chunk < 0) {
        const struct step_scalars *from = executor_at(e, i->src);
        struct step_scalars *to = executor_at(e, i->dst);
        return device_copy(e->device, s, COPY_D2H, &to->clip, &from->clip, sizeof to->clip, err);
    }
    return device_copy(e->device, s, up ? COPY_H2D : COPY_D2H, to_at + (up ? piece : 0),
                       from_at + (up ? 0 : piece), plan_move_bytes(e->plan, i), err);
}

/* --- loading and saving ---
 * The host sees a payload as a whole: its slices or pieces are put together, or taken apart, in the
 * staging place.
 */

static size_t payload_bytes(const struct executor *e, const struct instr *i)
{
    return chunk_payload_bytes(&e->plan->chunks.chunks[i->chunk], i->payload, e->plan->types);
}

/* By the update threads, where there are any: they have nothing to do meanwhile, and a job that
 * offloads much loads much. */
static void copy_in_host(struct executor *e, void *to, const void *from, size_t bytes)
{
    if (e->updates)
        update_pool_copy(e->updates, to, from, bytes);
    else if (from)
        memcpy(to, from, bytes);
    else
        memset(to, 0, bytes);
}

static int copy_between(struct executor *e, int32_t home, void *at_home, void *staging,
                        size_t bytes, bool load, struct err *err)
{
    void *to = load ? at_home : staging, *from = load ? staging : at_home;
    bool host = e->plan->places[home].tier == TIER_HOST;
    if (load && e->loads_zeros && host) {
        copy_in_host(e, to, NULL, bytes);
        return 0;
    }
    if (load && e->loads_zeros)
        return device_zero(e->device, e->stream[QUEUE_COMPUTE], to, bytes, err);
    if (host) {
        copy_in_host(e, to, from, bytes);
        return 0;
    }
    return device_copy(e->device, e->stream[QUEUE_COMPUTE], load ? COPY_H2D : COPY_D2H, to, from,
                       bytes, err);
}

/* A slice's place holds its part of master and moments one after the other; the payload holds each
 * of them whole. */
static int copy_slice(struct executor *e, const struct instr *i, int32_t home, bool load,
                      struct err *err)
{
    const struct plan_slice *s = &e->plan->chunk[i->chunk].slices[i->slice];
    if (home == s->home)
        home = executor_state_place(e, s);
    char *at_home = executor_at(e, home), *whole = executor_at(e, e->plan->io.staging);
    struct chunk_part parts[PART_COUNT];
    int n_parts = chunk_state_parts(e->plan->types, parts);
    int rc = 0;

    for (int k = 0; k < n_parts; k++) {
        size_t bytes = chunk_part_bytes(&parts[k], s->n);
        TRY(copy_between(e, home, at_home, whole + chunk_part_bytes(&parts[k], s->first), bytes,
                         load, err));
        at_home += bytes;
        whole += chunk_part_bytes(&parts[k], e->plan->chunks.chunks[i->chunk].n);
    }
    TRY(device_stream_sync(e->device, e->stream[QUEUE_COMPUTE], err));
out:
    return rc;
}

/* Its last instruction of a list. */
static bool ends_payload(const struct executor *e, const struct instr *i)
{
    const struct plan_chunk *pc = &e->plan->chunk[i->chunk];
    int64_t n = i->payload == PAYLOAD_STATE ? pc->n_slices : pc->n_pieces;
    return i->slice < 0 || i->slice == n - 1;
}

/* A piece of the parameters, or all of them. */
static int copy_parameters(struct executor *e, const struct instr *i, int32_t home, bool load,
                           struct err *err)
{
    const struct plan *p = e->plan;
    char *staging = executor_at(e, p->io.staging);
    size_t bytes = payload_bytes(e, i);
    if (plan_moves_piece(i)) {
        staging += plan_piece_at(p, i->slice);
        bytes = plan_piece_bytes(p, i->chunk, i->slice);
    }
    return copy_between(e, home, executor_at(e, home), staging, bytes, load, err);
}

static int transfer_payload(struct executor *e, const struct instr *i, int32_t home, bool load,
                            struct err *err)
{
    void *staging = executor_at(e, e->plan->io.staging);
    size_t bytes = payload_bytes(e, i);
    int rc = 0;

    if (load && i->slice <= 0) {
        rc = e->transfer(e->transfer_ud, i->chunk, i->payload, staging, bytes, err);
        e->loads_zeros = rc == PAYLOAD_IS_ZERO;
        if (rc != 0 && !e->loads_zeros)
            goto out;
        rc = 0;
    }
    if (i->payload == PAYLOAD_STATE)
        TRY(copy_slice(e, i, home, load, err));
    else
        TRY(copy_parameters(e, i, home, load, err));
    TRY(device_stream_sync(e->device, e->stream[QUEUE_COMPUTE], err));
    if (!load && ends_payload(e, i))
        TRY(e->transfer(e->transfer_ud, i->chunk, i->payload, staging, bytes, err));
out:
    return rc;
}

int executor_transfer(struct executor *e, enum plan_list list, payload_fn fn, void *ud,
                      struct err *err)
{
    const struct instr_list *l = &e->plan->lists[list];
    int rc = 0;

    assert(list == LIST_LOAD || list == LIST_SAVE);
    e->transfer = fn;
    e->transfer_ud = ud;
    TRY(executor_quiesce(e, err));
    for (int64_t n = 0; n < l->n; n++) {
        const struct instr *i = &l->items[n];
        struct host_job job = {.instr = i};
        if (i->op == INSTR_FETCH)
            TRY(transfer_payload(e, i, i->dst, true, err));
        else if (i->op == INSTR_EVICT)
            TRY(transfer_payload(e, i, i->src, false, err));
        else
            TRY(executor_host_disk(e, &job, err));
    }
out:
    return rc ? err_wrap(err, rc, "list %s", plan_list_name(list)) : 0;
}

/* --- the disk's queues --- */

int executor_host_disk(void *ud, const struct host_job *job, struct err *err)
{
    struct executor *e = ud;
    const struct instr *i = job->instr;
    bool read = i->op == INSTR_STAGE;
    int32_t disk = read ? i->src : i->dst, host = read ? i->dst : i->src;
    size_t bytes = e->plan->places[disk].bytes, offset = e->plan->places[disk].offset;

    assert(i->op == INSTR_STAGE || i->op == INSTR_UNSTAGE);
    if (read)
        return nvme_file_read(e->nvme, executor_at(e, host), bytes, offset, err);
    return nvme_file_write(e->nvme, executor_at(e, host), bytes, offset, err);
}
