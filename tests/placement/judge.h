/*
 * Judging trials: each against the same job with everything resident, under limits from plenty down
 * to the smallest that the planner accepts. Losses, norms, final weights and moments are compared
 * with memcmp; planned peaks and link bytes with what was counted. What fails is told on stderr and
 * counted.
 */
#ifndef CASTOR_TESTS_PLACEMENT_JUDGE_H
#define CASTOR_TESTS_PLACEMENT_JUDGE_H

#include "tests/placement/trial.h"

struct tally {
    int64_t passed, failed;
    int64_t paged, below; /* runs with parameters on the disk, with less host memory than those take
                           */
};

/* What is being judged now: a job, its numbers when all is resident, and words for messages. */
struct subject {
    struct tally *tally;
    struct device *planner; /* plans are made for it, nothing runs on it */
    const struct trial_model *model;
    const struct trial_job *job;
    const struct trial_result *want;
    const char *name, *policy, *variant;
};

bool judge_check(const struct subject *s, const struct trial_placement *place, bool ok,
                 const char *what);

/* Bytes that the placement claims on a tier; 0 = refused. A plan over its limits fails, and so does
 * a refusal that does not say what is short. */
size_t judge_claim(const struct subject *s, const struct trial_placement *place,
                   enum plan_tier tier);
/* The smallest limit on a tier that the planner accepts, by bisection below `high`, which it does,
 * down to the size that addresses have. */
size_t judge_smallest(const struct subject *s, struct trial_placement place, enum plan_tier tier,
                      size_t high);

/* The whole job there. */
void judge_run(const struct subject *s, const struct trial_placement *place);
/* Two steps under one placement, the rest under another. */
void judge_resume(const struct subject *s, const struct trial_placement *before,
                  const struct trial_placement *behind);

#endif
