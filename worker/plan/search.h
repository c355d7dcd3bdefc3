/*
 * The search for the fastest plan that fits, between its files: search.c looks at all kinds of
 * plans, refine.c makes the fastest of them faster.
 */
#ifndef CASTOR_WORKER_PLAN_SEARCH_H
#define CASTOR_WORKER_PLAN_SEARCH_H

#include "worker/plan/build.h"

enum { KEEP_STEPS = 4 }; /* so many steps from no kept layer to all are looked at, at first */

struct search {
    const struct plan_input *in;
    const struct device_profile *profile;
    int64_t n_chunks, layers;
    struct plan *best; /* or NULL */
    double best_seconds;
    double most_waiting;         /* seconds of a step that waits for the norm: no plan of longer
                                    ones is taken */
    struct plan_choices nearest; /* of the plan that came nearest to fitting   */
    double least_over;           /* by how much it did not: share of the limits */
    bool nearly;                 /* the plan that was looked at last: nearly_fits */
};

/* Sets of tiers. */
enum {
    ALL_TIERS = (1 << TIER_COUNT) - 1,
    GPU_ONLY = 1 << TIER_GPU,
    HOST_ONLY = 1 << TIER_HOST,
    NOT_GPU = ALL_TIERS - GPU_ONLY
};

/* Does the plan claim no more than the limits of these tiers? In a draft: might it? */
bool search_fits(struct search *s, struct plan_choices c, unsigned tiers, bool draft);
/* Set a member of `c` to the value nearest to `best` with which the plan fits, and return it; with
 * `good` it does. */
int64_t search_most(struct search *s, struct plan_choices *c, int64_t *member, int64_t good,
                    int64_t best, unsigned tiers);
/* Seconds of a step all of whose updates wait for the norm. */
double search_waiting_seconds(const struct search *s, const struct plan *p);

/* Keep the plan if it fits and is the fastest so far; false where it does not fit. */
bool search_consider(struct search *s, struct plan_choices c);
/* It claims `least` where it takes less: it would be refused where only it fits, since the search
 * did not look there. */
bool search_consider_claiming(struct search *s, struct plan_choices c,
                              const size_t least[TIER_COUNT]);
/* Of the saved tensors up to `most` wait in host memory, no more than need be; in what is left
 * weights' rounded copies stay. */
bool search_consider_saved(struct search *s, struct plan_choices c, int64_t most);
/* Places of their own for as many gradients as host memory holds. */
void search_house_gradients(struct search *s, struct plan_choices c);
/* Visits of blocks in a step. */
int64_t search_count_visits(const struct search *s, int64_t group);

/* All kinds of plans that have what `c` says of resident ones; `s` is begun. */
void search_resident(struct search *s, struct plan_choices c);
/* A whole search: all kinds of plans, from choices that say whether masters are split. */
void search_from(struct search *s, const struct plan_input *in, struct plan_choices c);

/* refine.c. There is a plan; a faster one takes its place. */
void search_refine(struct search *s);
/* Likewise one with split masters. With clipping steps that wait for the norm come first. */
void search_try_split_masters(struct search *s);

#endif
