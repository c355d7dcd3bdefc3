/*
 * Random models (the families' flags with other numbers of layers, widths and heads), random jobs
 * and random limits, all from one seed, which is printed. For each: a plan that is accepted gives
 * the resident run's numbers to the bit, within its limits and with the planned peaks; a plan that
 * is refused cannot be had by any choice of the planner's.
 */
#ifndef CASTOR_TESTS_PLACEMENT_RANDOM_H
#define CASTOR_TESTS_PLACEMENT_RANDOM_H

#include "tests/placement/judge.h"

/* `dirs`: models whose flags are taken. `nvme`: a directory for the disk tier, or NULL. */
void random_trials(struct tally *t, const char *const *dirs, int n_dirs, int64_t n, uint64_t seed,
                   const char *nvme);

#endif
