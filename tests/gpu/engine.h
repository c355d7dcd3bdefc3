/*
 * The training engine on a device, for the small models of tests/golden: a plan with everything
 * resident, an executor, published weights. Failures of Castor end the program with their text.
 */
#ifndef CASTOR_TESTS_GPU_ENGINE_H
#define CASTOR_TESTS_GPU_ENGINE_H

#include "kernels/device.h"
#include "worker/model/safetensors.h"
#include "worker/train/executor.h"

enum { ENGINE_ROWS = 4, ENGINE_LENGTH = 12 }; /* the golden batches */

struct engine {
    struct device *device;
    struct model model;
    struct plan *plan;
    struct comm *comm;
    struct executor *executor;
    struct safetensors_file batch;
};

/* End the program with err's text unless rc is 0. */
void engine_must(int rc, const struct err *err);

/* `directory` holds model/ and batch.safetensors; micro_batch divides ENGINE_ROWS. */
void engine_open(struct engine *e, enum device_kind kind, enum dtype compute, const char *directory,
                 int64_t micro_batch);
void engine_close(struct engine *e);

/* Lay the golden batch into a slot; positions all the same where `position` is not negative. */
void engine_fill(struct engine *e, int slot, int32_t position);
/* Queue a step that updates nothing and wait for it; its error is the caller's. Gradients are those
 * of the sum of losses, as in the golden files. */
int engine_step(struct engine *e, int64_t step, struct step_result *out, struct err *err);
/* A golden array of doubles; free(). */
double *engine_golden(const struct engine *e, const char *name, int64_t *n);
/* Every trained tensor's gradient of the last step, the first of the engine's, tensor after tensor:
 * read off the first moments that it left. (n_params); free(). */
double *engine_gradients(struct engine *e);

#endif
