/*
 * The waits of a plan are enough: its queues are run side by side in random order, each instruction
 * as soon as its waits allow, pass behind pass; whatever the order, every place must hold what it
 * holds when the list is executed from front to back, whenever it is read.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/unit/worker/plan/rig.h"
#include "worker/plan/touch.h"

enum { ORDERS = 40 };

/* Only the training list is run pass behind pass without a pause. */
static int64_t passes_of(enum plan_list list)
{
    return list == LIST_TRAIN ? 3 : 1;
}

static uint64_t state = 7;
static uint64_t next(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

/* Who wrote each place last, and from what: a hash. Writing a place spoils those that share memory
 * with it. */
struct memory {
    const struct plan *p;
    uint64_t *holds;
    bool **shares; /* by place and place */
};

static void memory_init(struct memory *m, const struct plan *p)
{
    *m = (struct memory){.p = p, .holds = xcalloc((size_t)p->n_places, sizeof *m->holds)};
    m->shares = xcalloc((size_t)p->n_places, sizeof *m->shares);
    for (int64_t a = 0; a < p->n_places; a++) {
        m->shares[a] = xcalloc((size_t)p->n_places, 1);
        for (int64_t b = 0; b < p->n_places; b++)
            m->shares[a][b] = a != b && rig_overlap(p, a, b);
    }
}

static void memory_fini(struct memory *m)
{
    for (int64_t a = 0; a < m->p->n_places; a++)
        free(m->shares[a]);
    free(m->shares);
    free(m->holds);
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ (b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2))) * 0xbf58476d1ce4e5b9u;
    return x ^ x >> 31;
}

/* Returns a hash of all that the instruction read. */
static uint64_t execute(struct memory *m, enum plan_list list, int64_t n)
{
    const struct instr *i = &m->p->lists[list].items[n];
    struct touch t[INSTR_MAX_TOUCHES];
    int n_touches = instr_touches(m->p, list, i, t);
    uint64_t seen = 1;
    for (int k = 0; k < n_touches; k++)
        if (t[k].reads)
            seen = mix(seen, m->holds[t[k].place]);
    for (int k = 0; k < n_touches; k++) {
        if (!t[k].writes)
            continue;
        m->holds[t[k].place] = mix(seen, (uint64_t)(n * 64 + k));
        for (int64_t q = 0; q < m->p->n_places; q++)
            if (m->shares[t[k].place][q])
                m->holds[q] = mix(m->holds[t[k].place], 99);
    }
    return seen;
}

/* What every instruction of every pass reads in order. */
static uint64_t *in_order(const struct plan *p, enum plan_list list)
{
    int64_t n = p->lists[list].n;
    uint64_t *seen = xcalloc((size_t)(passes_of(list) * n), sizeof *seen);
    struct memory m;
    memory_init(&m, p);
    for (int64_t k = 0; k < passes_of(list) * n; k++)
        seen[k] = execute(&m, list, k % n);
    memory_fini(&m);
    return seen;
}

static bool may_run(const struct plan *p, enum plan_list list, int64_t k, const bool *done)
{
    int64_t n = p->lists[list].n, pass = k / n;
    const struct instr *i = &p->lists[list].items[k % n];
    for (int q = 0; q < QUEUE_COUNT; q++) {
        if (i->wait[q] >= 0 && !done[pass * n + i->wait[q]])
            return false;
        if (i->wait_prev[q] >= 0 && pass > 0 && !done[(pass - 1) * n + i->wait_prev[q]])
            return false;
    }
    return true;
}

/* The next instruction of a queue behind k; passes_of(list) * n = none. */
static int64_t next_of(const struct plan *p, enum plan_list list, int q, int64_t k)
{
    int64_t n = p->lists[list].n;
    while (k < passes_of(list) * n && (int)p->lists[list].items[k % n].queue != q)
        k++;
    return k;
}

/* Returns the number of the first instruction that read something else, or -1. Each order prefers
 * one queue, so that the others lag behind as far as waits let them. */
static int64_t run_at_random(const struct plan *p, enum plan_list list, const uint64_t *want,
                             int favourite)
{
    int64_t n = p->lists[list].n, at[QUEUE_COUNT], wrong = -1;
    bool *done = xcalloc((size_t)(passes_of(list) * n), 1);
    struct memory m;

    memory_init(&m, p);
    for (int q = 0; q < QUEUE_COUNT; q++)
        at[q] = next_of(p, list, q, 0);
    for (int64_t left = passes_of(list) * n; left > 0 && wrong < 0;) {
        int q = favourite >= 0 && next() % 8 ? favourite : (int)(next() % QUEUE_COUNT);
        if (at[q] == passes_of(list) * n || !may_run(p, list, at[q], done)) {
            q = (int)(next() % QUEUE_COUNT);
            if (at[q] == passes_of(list) * n || !may_run(p, list, at[q], done))
                continue;
        }
        if (execute(&m, list, at[q] % n) != want[at[q]])
            wrong = at[q];
        done[at[q]] = true;
        at[q] = next_of(p, list, q, at[q] + 1);
        left--;
    }
    memory_fini(&m);
    free(done);
    return wrong;
}

static int64_t first_wrong(const struct plan *p, enum plan_list list)
{
    uint64_t *want = in_order(p, list);
    int64_t wrong = -1;
    for (int k = 0; k < ORDERS && wrong < 0; k++)
        wrong = run_at_random(p, list, want, k % (QUEUE_COUNT + 1) - 1);
    free(want);
    return wrong;
}

static struct plan *build(struct rig *r, enum placement_policy policy, bool clip,
                          struct plan_choices force)
{
    r->in.policy = policy;
    r->in.clip = clip;
    r->in.force = force;
    r->in.limit[TIER_NVME] = force.nvme > 0 ? 1 << 30 : 0;
    return rig_plan(r);
}

Test(waits, any_order_that_they_allow_gives_the_same)
{
    struct rig r;
    rig_init(&r, 3, 3);
    for (int64_t trial = 0; trial < 12; trial++) {
        struct plan_choices force = {.group = 1 + trial % 3,
                                     .resident = trial % 4,
                                     .nvme = trial % 2 ? 2 : 0,
                                     .keep = trial % 3,
                                     .offload_boundaries = trial / 2 % 2,
                                     .offload_saved = trial % 3 > 0 ? trial % 2 + trial / 4 % 2 : 0,
                                     .turn = trial % 5,
                                     .prefetch = trial % 3,
                                     .early = trial / 3 % 2 ? 3 : 0,
                                     .grad_homes = trial % 4 * 2,
                                     .slice = CHUNK_ALIGN * 4};
        struct plan *p = build(&r, PLACE_AUTO, trial % 2, force);
        int64_t wrong = first_wrong(p, LIST_TRAIN);
        cr_expect_lt(wrong, 0, "trial %lld: instruction %lld", (long long)trial,
                     (long long)(wrong % p->lists[LIST_TRAIN].n));
        cr_expect_lt(first_wrong(p, LIST_EVAL), 0);
    }
    rig_fini(&r);
}

/* The test itself can fail. */
Test(waits, a_missing_one_is_found)
{
    struct rig r;
    struct plan_choices force = PLAN_CHOICES_AUTO;
    int64_t found = 0;
    rig_init(&r, 2, 2);
    struct plan *p = build(&r, PLACE_CPU, true, force);
    struct instr_list *l = &p->lists[LIST_TRAIN];
    for (int64_t n = 0; n < l->n; n++) {
        for (int q = 0; q < QUEUE_COUNT; q++) {
            struct instr whole = l->items[n];
            if (whole.wait[q] < 0 && whole.wait_prev[q] < 0)
                continue;
            l->items[n].wait[q] = l->items[n].wait_prev[q] = -1;
            found += first_wrong(p, LIST_TRAIN) >= 0;
            l->items[n] = whole;
        }
    }
    cr_expect_gt(found, 10, "%lld", (long long)found);
    rig_fini(&r);
}
