/*
 * A small OPT model (tests/golden/opt/pre) in an executor on the CPU, with the golden batch, and
 * scratch directories. Failures abort the test.
 */
#ifndef CASTOR_TESTS_UNIT_WORKER_TRAIN_RIG_H
#define CASTOR_TESTS_UNIT_WORKER_TRAIN_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"
#include "worker/model/safetensors.h"
#include "worker/train/executor.h"

enum { RIG_ROWS = 4, RIG_LENGTH = 12 };

struct rig_options {
    enum dtype compute;
    int64_t micro_batch; /* divides RIG_ROWS */
    double dropout;
    enum master_kind master;
    enum moment_kind moments;
    bool bf16_grads;
    bool on_host;    /* parameters and states live in host memory ... */
    int64_t early;   /* ... and so many chunks are updated as their gradients arrive */
    double max_norm; /* 0 = the golden one */
    bool remake;     /* what one pass makes again is not kept for backward */
};

struct rig {
    struct device *device;
    struct model model;
    struct plan *plan;
    struct comm *comm;
    struct executor *executor;
    struct safetensors_file golden; /* batch.safetensors */
    double grad_scale;
    bool wait_for_norm; /* steps do */
};

/* Published weights are loaded; AdamW's numbers are the golden file's. */
void rig_open(struct rig *r, const struct rig_options *o);
void rig_close(struct rig *r);

/* A golden array of doubles; free(). */
double *rig_golden(const struct rig *r, const char *name, int64_t n);
/* Lay the golden batch into the slot. */
void rig_fill(struct rig *r, int slot);
/* One whole step on the golden batch. */
struct step_result rig_step(struct rig *r, int64_t step, double learning_rate);
/* Every payload in one buffer, in the order of the saving list; free(). */
char *rig_payloads(struct rig *r, size_t *bytes);
/* Steps first to last of both give the same losses, and then all payloads are equal. */
void rig_expect_same(struct rig *a, struct rig *b, int64_t first, int64_t last);

/* A fresh directory under $TMPDIR, removed by rig_remove_dir. */
char *rig_make_dir(void);
void rig_remove_dir(char *dir);

#endif
