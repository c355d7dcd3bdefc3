/*
 * Golden files in tests: finding and reading them, and comparing with them. A golden is a folder
 * tests/golden/FAMILY/CASE and named FAMILY/CASE. Failures abort the test.
 */
#ifndef CASTOR_TESTS_UNIT_WORKER_MODEL_GOLDEN_H
#define CASTOR_TESTS_UNIT_WORKER_MODEL_GOLDEN_H

#include <criterion/parameterized.h>

#include "tests/unit/worker/model/rig.h"
#include "worker/model/safetensors.h"

enum { GOLDEN_NAME = 32, GOLDEN_PATH = 128 };

/* The names of all goldens that have the file or folder `has`, and their number; the caller frees.
 */
size_t golden_names(const char *has, char (**out)[GOLDEN_NAME]);
/* The same as parameters of a test. */
struct criterion_test_params golden_params(const char *has);
void golden_path(char out[GOLDEN_PATH], const char *name, const char *file);
/* A rig with the golden's model and batch. */
void golden_open(struct rig *r, const char *name, enum dtype compute, bool reference);
void golden_open_file(struct safetensors_file *f, const char *name, const char *file);

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
/* Names, shapes and bytes of two files are equal. */
void golden_same_file(const char *a_path, const char *b_path);

/* `steps` steps of AdamW on every tensor that trains, as the executor makes them: their losses and
 * gradient norms are within 1e-6 of those in the file. */
void golden_adamw(struct rig *r, const struct safetensors_file *f, int64_t steps);

#endif
