/* The order in which blocks are visited, and how long fetched parameters stay. */
#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "worker/plan/build.h"

/* A chunk's consecutive uses, which one stay may cover. */
struct pair {
    int64_t chunk, a, b; /* visits */
};

static void add_visit(struct itinerary *it, int64_t *cap, struct visit v)
{
    if (it->n_visits == *cap) {
        *cap = *cap ? 2 * *cap : 64;
        it->visits = xrealloc(it->visits, (size_t)*cap * sizeof *it->visits);
    }
    it->visits[it->n_visits++] = v;
}

static int closer(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;
    int64_t d = (x->b - x->a) - (y->b - y->a);
    if (d != 0)
        return d < 0 ? -1 : 1;
    return x->a < y->a ? -1 : x->a > y->a;
}

static int by_fetch(const void *a, const void *b)
{
    const struct stay *x = a, *y = b;
    if (x->fetch != y->fetch)
        return x->fetch < y->fetch ? -1 : 1;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    return x->chunk < y->chunk ? -1 : x->chunk > y->chunk;
}

/* The chunks whose parameters a visit needs and that do not stay for good; their number. */
static int64_t travelling(const struct plan *p, const struct visit *v,
                          int64_t chunks[BLOCK_MAX_CHUNKS])
{
    int64_t n_chunks = plan_block_chunks(p, v->block, chunks), n = 0;
    for (int64_t k = 0; k < n_chunks; k++)
        if (!plan_is_resident(p, chunks[k]) &&
            plan_needs_params(p, v->block, chunks[k], v->backward))
            chunks[n++] = chunks[k];
    return n;
}

/* All pairs of consecutive uses of chunks that are not resident, the closest first. A chunk with a
 * single use gives a pair of that use with itself. */
static struct pair *find_pairs(const struct plan *p, const struct itinerary *it, int64_t *n_out)
{
    struct pair *pairs = xcalloc((size_t)(it->n_visits * BLOCK_MAX_CHUNKS) + 1, sizeof *pairs);
    int64_t *last = xcalloc((size_t)p->chunks.n_chunks, sizeof *last);
    int64_t n = 0;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++)
        last[c] = -1;
    for (int64_t v = 0; v < it->n_visits; v++) {
        int64_t chunks[BLOCK_MAX_CHUNKS];
        int64_t n_chunks = travelling(p, &it->visits[v], chunks);
        for (int64_t k = 0; k < n_chunks; k++) {
            int64_t c = chunks[k];
            if (last[c] >= 0)
                pairs[n++] = (struct pair){.chunk = c, .a = last[c], .b = v};
            last[c] = v;
        }
    }
    free(last);
    qsort(pairs, (size_t)n, sizeof *pairs, closer);
    *n_out = n;
    return pairs;
}

/* Is the chunk kept from visit a to its next use? Pairs that a fetch ahead would overlap are
 * always joined. */
static void join_pairs(const struct plan *p, struct itinerary *it, bool *joined)
{
    int64_t n, turn = p->chosen.turn;
    struct pair *pairs = find_pairs(p, it, &n);
    it->n_optional = 0;
    for (int64_t k = 0; k < n; k++) {
        bool must = pairs[k].b - pairs[k].a <= p->chosen.prefetch;
        if (must || it->n_optional < turn)
            joined[pairs[k].chunk * it->n_visits + pairs[k].a] = true;
        it->n_optional += !must;
    }
    free(pairs);
}

/* Counting sort; those of one visit stay in the order of their fetches. */
static void sort_ends(struct itinerary *it)
{
    int64_t *at = xcalloc((size_t)it->n_visits + 1, sizeof *at);
    it->ends = xcalloc((size_t)it->n_stays + 1, sizeof *it->ends);
    for (int64_t k = 0; k < it->n_stays; k++)
        at[it->stays[k].last + 1]++;
    for (int64_t v = 0; v < it->n_visits; v++)
        at[v + 1] += at[v];
    for (int64_t k = 0; k < it->n_stays; k++)
        it->ends[at[it->stays[k].last]++] = k;
    free(at);
}

static void find_stays(const struct plan *p, struct itinerary *it)
{
    bool *joined = xcalloc((size_t)(p->chunks.n_chunks * it->n_visits), sizeof *joined);
    int64_t *open = xcalloc((size_t)p->chunks.n_chunks, sizeof *open); /* stay + 1 */

    join_pairs(p, it, joined);
    it->stays = xcalloc((size_t)(it->n_visits * BLOCK_MAX_CHUNKS), sizeof *it->stays);
    for (int64_t v = 0; v < it->n_visits; v++) {
        int64_t chunks[BLOCK_MAX_CHUNKS];
        int64_t n_chunks = travelling(p, &it->visits[v], chunks);
        for (int64_t k = 0; k < n_chunks; k++) {
            int64_t c = chunks[k];
            if (open[c] == 0) {
                int64_t fetch = v > p->chosen.prefetch ? v - p->chosen.prefetch : 0;
                it->stays[it->n_stays++] = (struct stay){.chunk = c, .fetch = fetch, .first = v};
                open[c] = it->n_stays;
            }
            it->stays[open[c] - 1].last = v;
            if (!joined[c * it->n_visits + v])
                open[c] = 0;
        }
    }
    qsort(it->stays, (size_t)it->n_stays, sizeof *it->stays, by_fetch);
    sort_ends(it);
    free(joined);
    free(open);
}

void plan_train_itinerary(const struct plan *p, struct itinerary *out)
{
    int64_t n = p->in.model->n_blocks, bottom = model_first_trained(p->in.model), cap = 0;
    *out = (struct itinerary){0};
    for (int64_t first = 0; first < p->in.micro_batches; first += p->chosen.group) {
        int64_t left = p->in.micro_batches - first;
        struct visit v = {.first_micro = first,
                          .n_micro = left < p->chosen.group ? left : p->chosen.group};
        /* The head's backward runs its own forward, slice by slice of rows. */
        for (v.block = 0; v.block < n - 1; v.block++)
            add_visit(out, &cap, v);
        v.backward = true;
        for (v.block = n - 1; v.block >= bottom; v.block--)
            add_visit(out, &cap, v);
    }
    find_stays(p, out);
}

void plan_forward_itinerary(const struct plan *p, struct itinerary *out)
{
    int64_t cap = 0;
    *out = (struct itinerary){0};
    for (int64_t b = 0; b < p->in.model->n_blocks; b++)
        add_visit(out, &cap, (struct visit){.block = b, .n_micro = 1});
    find_stays(p, out);
}

void plan_itinerary_fini(struct itinerary *i)
{
    free(i->visits);
    free(i->stays);
    free(i->ends);
    *i = (struct itinerary){0};
}

int64_t plan_first_fetch(const struct itinerary *it, int64_t visit)
{
    int64_t low = 0, high = it->n_stays;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (it->stays[middle].fetch < visit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int64_t plan_first_end(const struct itinerary *it, int64_t visit)
{
    int64_t low = 0, high = it->n_stays;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (it->stays[it->ends[middle]].last < visit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
