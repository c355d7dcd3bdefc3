/* Where payloads live from step to step, and the places of the step as a whole. */
#include "worker/plan/build.h"

#include <stdlib.h>

#include "core/alloc.h"
#include "kernels/device.h"

bool plan_is_resident(const struct plan *p, int64_t chunk)
{
    return chunk < p->chosen.resident;
}

static enum plan_tier state_tier(const struct plan *p, int64_t chunk)
{
    if (plan_is_resident(p, chunk))
        return TIER_GPU;
    return chunk >= p->chunks.n_chunks - p->chosen.nvme ? TIER_NVME : TIER_HOST;
}

bool plan_pages(const struct plan *p, int64_t chunk)
{
    return !plan_is_resident(p, chunk) && chunk >= p->chunks.n_chunks - p->chosen.nvme_params;
}

static bool updated_on_cpu(const struct plan *p, int64_t chunk)
{
    return p->chunks.chunks[chunk].trainable && !plan_is_resident(p, chunk);
}

/* Gradients of the chunk `c` are complete before those of `than`: block after block downwards. */
static bool arrives_before(const struct plan *p, int64_t c, int64_t than)
{
    int64_t a = p->chunks.chunks[c].first_use, b = p->chunks.chunks[than].first_use;
    return a > b || (a == b && c < than);
}

/* Spread evenly over the chunks as their gradients arrive: then the last updates of the next
 * forward are those of its last blocks, and the processor rests but from these to the first
 * gradient. */
static void find_early(struct plan *p)
{
    int64_t n = 0;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        n += updated_on_cpu(p, c);
    int64_t early = p->chosen.early < n ? p->chosen.early : n;
    for (int64_t c = p->chosen.resident; c < p->chunks.n_chunks; c++) {
        int64_t before = 0;
        for (int64_t k = p->chosen.resident; k < p->chunks.n_chunks; k++)
            before += updated_on_cpu(p, k) && arrives_before(p, k, c);
        p->chunk[c].early = updated_on_cpu(p, c) && (before + 1) * early / n > before * early / n;
    }
}

bool plan_speculates(const struct plan *p, int64_t chunk)
{
    return p->in.clip && p->chunk[chunk].early && state_tier(p, chunk) == TIER_HOST &&
           !plan_pages(p, chunk) && p->types.compute != DT_F16;
}

bool plan_grad_waits_in_param(const struct plan *p, int64_t chunk)
{
    return chunk_has_whole_master(p->types) && !plan_speculates(p, chunk);
}

static int32_t place_gradient(struct plan *p, int64_t c)
{
    bool last = c >= p->chunks.n_chunks - p->chosen.grad_homes;
    size_t bytes = (size_t)p->chunks.chunks[c].n * dtype_size(p->types.compute);
    if (!last || !updated_on_cpu(p, c) || plan_pages(p, c) || plan_grad_waits_in_param(p, c))
        return NO_PLACE;
    return plan_place_for_good(p, TIER_HOST, PURPOSE_GRADIENTS, bytes);
}

/* Of the parameters as they were before a speculative update. */
static size_t kept_bytes(const struct plan *p, const struct plan_slice *s)
{
    return chunk_has_whole_master(p->types) ? 0 : (size_t)s->n * dtype_size(p->types.compute);
}

/* One update, but of what comes from the disk: there slices let moves and updates overlap. */
static void place_state(struct plan *p, int64_t c)
{
    const struct chunk *ch = &p->chunks.chunks[c];
    struct plan_chunk *pc = &p->chunk[c];
    enum plan_tier tier = state_tier(p, c);
    int64_t size = tier == TIER_NVME || plan_pages(p, c) ? p->chosen.slice : ch->n;

    pc->n_slices = (ch->n + size - 1) / size;
    pc->slices = xcalloc((size_t)pc->n_slices, sizeof *pc->slices);
    for (int64_t k = 0; k < pc->n_slices; k++) {
        struct plan_slice *s = &pc->slices[k];
        s->first = k * size;
        s->n = ch->n - s->first < size ? ch->n - s->first : size;
        s->home = plan_place_for_good(p, tier, PURPOSE_OPTIMIZER, plan_slice_bytes(p, s));
        s->shadow = NO_PLACE;
        if (plan_speculates(p, c))
            s->shadow = plan_place_for_good(p, tier, PURPOSE_OPTIMIZER,
                                            plan_slice_bytes(p, s) + kept_bytes(p, s));
    }
}

static void place_parameters(struct plan *p, int64_t c)
{
    struct plan_chunk *pc = &p->chunk[c];
    size_t bytes = chunk_payload_bytes(&p->chunks.chunks[c], PAYLOAD_PARAM, p->types);

    if (!plan_pages(p, c)) {
        pc->param = plan_place_for_good(p, plan_is_resident(p, c) ? TIER_GPU : TIER_HOST,
                                        PURPOSE_WEIGHTS, bytes);
        return;
    }
    for (; plan_piece_at(p, pc->n_pieces) < bytes; pc->n_pieces++) {
        int32_t at = plan_place_for_good(p, TIER_NVME, PURPOSE_WEIGHTS,
                                         plan_piece_bytes(p, c, pc->n_pieces));
        if (pc->n_pieces == 0)
            pc->param = at;
    }
}

void plan_place_homes(struct plan *p)
{
    p->chunk = xcalloc((size_t)p->chunks.n_chunks, sizeof *p->chunk);
    find_early(p);
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        const struct chunk *ch = &p->chunks.chunks[c];
        struct plan_chunk *pc = &p->chunk[c];
        place_parameters(p, c);
        for (int u = 0; u < CHUNK_MAX_USES; u++)
            pc->grad[u] = NO_PLACE;
        pc->grad_home = place_gradient(p, c);
        if (!ch->trainable)
            continue;
        place_state(p, c);
        pc->first_partial = p->n_partials;
        pc->n_partials = (ch->n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;
        p->n_partials += pc->n_partials;
    }
}

static size_t largest_payload(const struct plan *p)
{
    size_t largest = 0;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        for (int k = 0; k < PAYLOAD_COUNT; k++) {
            size_t bytes = chunk_payload_bytes(&p->chunks.chunks[c], k, p->types);
            if (k != PAYLOAD_GRAD && bytes > largest)
                largest = bytes;
        }
    }
    return largest;
}

static bool updates_on_cpu(const struct plan *p)
{
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        if (updated_on_cpu(p, c))
            return true;
    return false;
}

void plan_place_io(struct plan *p)
{
    const struct plan_input *in = &p->in;
    const struct decoder_config *c = &in->model->config;
    size_t batch = plan_batch_bytes(p), results = plan_rows_bytes(p);
    size_t scalars = sizeof(struct step_scalars), largest = largest_payload(p);
    size_t logits = (size_t)c->vocab * dtype_size(p->types.compute);

    p->io.batch = plan_place_for_good(p, TIER_GPU, PURPOSE_BUFFERS, batch);
    p->io.rows = plan_place_for_good(p, TIER_GPU, PURPOSE_BUFFERS, results);
    p->io.partials =
        plan_place_for_good(p, TIER_GPU, PURPOSE_BUFFERS, (size_t)p->n_partials * sizeof(double));
    p->io.scalars = plan_place_for_good(p, TIER_GPU, PURPOSE_BUFFERS, scalars);
    p->io.rope = p->io.clip = NO_PLACE;
    if (c->position == POSITION_ROPE)
        p->io.rope =
            plan_place_for_good(p, TIER_GPU, PURPOSE_BUFFERS,
                                (size_t)model_rope_floats(c, in->seq_length) * sizeof(float));
    else if (c->position == POSITION_ALIBI)
        p->io.rope =
            plan_place_for_good(p, TIER_GPU, PURPOSE_BUFFERS, (size_t)c->heads * sizeof(float));
    for (int slot = 0; slot < STEP_SLOTS; slot++) {
        p->io.host_batch[slot] = plan_place_for_good(p, TIER_HOST, PURPOSE_BUFFERS, batch);
        p->io.host_rows[slot] = plan_place_for_good(p, TIER_HOST, PURPOSE_BUFFERS, results);
        p->io.host_scalars[slot] = plan_place_for_good(p, TIER_HOST, PURPOSE_BUFFERS, scalars);
    }
    if (in->clip && updates_on_cpu(p))
        p->io.clip = plan_place_for_good(p, TIER_HOST, PURPOSE_BUFFERS, scalars);
    p->io.staging =
        plan_add_place(p, TIER_HOST, PURPOSE_BUFFERS, largest > logits ? largest : logits, false);
}
