/*
 * Golden files in tests: reading them, and comparing with them. Failures abort the test.
 */
#ifndef CASTOR_TESTS_UNIT_WORKER_MODEL_GOLDEN_H
#define CASTOR_TESTS_UNIT_WORKER_MODEL_GOLDEN_H

#include "tests/unit/worker/model/rig.h"
#include "worker/model/safetensors.h"

/* The worst |a - b| seen, as a share of its allowance: rtol times the largest |b| of the tensor,
 * since elements near 0 come from sums of larger terms. by_norm: of a - b and b as vectors, their
 * Euclidean norms, for errors that are many and random. */
struct golden_check {
    double rtol, worst;
    bool by_norm;
};
void golden_compare(struct golden_check *c, const char *what, const double *got, const double *want,
                    int64_t n);

/* A tensor's data, to be freed, and its elements. */
void *golden_load(const struct safetensors_file *f, const char *name, int64_t *n);
/* tokens, targets and positions into the rig's batch. */
void golden_load_batch(struct rig *r, const struct safetensors_file *f);
/* Names, shapes and bytes of two files are equal. */
void golden_same_file(const char *a_path, const char *b_path);

/* One update of every tensor that trains, as the executor makes it: norm over all, then AdamW on
 * each. params: beta1, beta2, epsilon, weight decay, clip norm. Returns the norm. */
double golden_adamw_step(struct rig *r, double *const *moments, const double *params,
                         struct adamw_step step);
/* A loss or norm of a step within 1e-6; *worst is raised to the share of that. */
void golden_near(const char *what, int step, double got, double want, double *worst);

#endif
