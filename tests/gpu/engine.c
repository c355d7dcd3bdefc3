#include "tests/gpu/engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/model/weights.h"
#include "worker/train/checkpoint.h"

static const double beta1 = 0.5;

void engine_must(int rc, const struct err *err)
{
    if (rc == 0)
        return;
    printf("%s\n0 passed, 1 failed\n", err->msg);
    exit(1);
}

static void make_plan(struct engine *e, enum dtype compute, int64_t micro_batch)
{
    struct err err = {0};
    struct plan_input in = {.model = &e->model,
                            .ops = device_ops(e->device, compute),
                            .policy = PLACE_CUDA,
                            .clip = compute == DT_F16,
                            .force = PLAN_CHOICES_AUTO,
                            .micro_batch = micro_batch,
                            .micro_batches = ENGINE_ROWS / micro_batch,
                            .seq_length = ENGINE_LENGTH,
                            .head_rows = 16};
    for (int a = 0; a < AXIS_COUNT; a++)
        in.mesh.size[a] = 1;
    engine_must(plan_build(&in, &e->plan, &err), &err);
}

static void make_executor(struct engine *e)
{
    struct executor_config c = {.plan = e->plan,
                                .device = e->device,
                                .data_comm = e->comm,
                                .seed = 5,
                                .beta1 = beta1,
                                .beta2 = 0.9,
                                .epsilon = 1e-8};
    struct loss_scale scale = {.scale = 256, .interval = 1000};
    struct err err = {0};

    engine_must(executor_create(&c, &e->executor, &err), &err);
    if (e->plan->types.compute == DT_F16)
        engine_must(executor_set_loss_scale(e->executor, scale, &err), &err);
}

static void load(struct engine *e, const char *directory)
{
    struct weights_reader *weights = NULL;
    struct err err = {0};
    engine_must(weights_open(directory, &e->model, &weights, &err), &err);
    engine_must(checkpoint_load_weights(weights, 5, e->plan, e->executor, &err), &err);
    weights_close(weights);
}

void engine_open(struct engine *e, enum device_kind kind, enum dtype compute, const char *directory,
                 int64_t micro_batch)
{
    struct decoder_config config;
    struct err err = {0};
    char *model = xasprintf("%s/model", directory);
    char *batch = xasprintf("%s/batch.safetensors", directory);

    *e = (struct engine){0};
    engine_must(decoder_config_load(model, &config, &err), &err);
    model_init(&e->model, &config);
    engine_must(safetensors_open(batch, &e->batch, &err), &err);
    engine_must(device_open(kind, 0, NULL, &e->device, &err), &err);
    make_plan(e, compute, micro_batch);
    engine_must(comm_self_create(e->device, &e->comm, &err), &err);
    make_executor(e);
    load(e, model);
    free(model);
    free(batch);
}

void engine_close(struct engine *e)
{
    executor_destroy(e->executor);
    comm_destroy(e->comm);
    plan_destroy(e->plan);
    device_close(e->device);
    safetensors_close(&e->batch);
    model_fini(&e->model);
}

static void *golden(const struct engine *e, const char *name, size_t *bytes)
{
    const struct safetensor *t = safetensors_find(&e->batch, name);
    struct err err = {0};
    if (!t)
        engine_must(err_set(&err, ERR_CORRUPT, "%s holds no %s", e->batch.path, name), &err);
    void *data = xmalloc(t->bytes);
    engine_must(safetensors_read(&e->batch, t, 0, t->bytes, data, &err), &err);
    *bytes = t->bytes;
    return data;
}

double *engine_golden(const struct engine *e, const char *name, int64_t *n)
{
    size_t bytes;
    double *data = golden(e, name, &bytes);
    *n = (int64_t)(bytes / sizeof *data);
    return data;
}

void engine_fill(struct engine *e, int slot, int32_t position)
{
    size_t bytes;
    int32_t *tokens = golden(e, "tokens", &bytes), *targets = golden(e, "targets", &bytes);
    int32_t *positions = golden(e, "positions", &bytes);

    assert(bytes == ENGINE_ROWS * ENGINE_LENGTH * sizeof(int32_t));
    for (int64_t m = 0; m < e->plan->in.micro_batches; m++) {
        struct batch b;
        executor_batch(e->executor, slot, m, &b);
        for (int64_t i = 0; i < b.B * b.T; i++) {
            int64_t from = m * b.B * b.T + i;
            b.tokens[i] = tokens[from];
            b.targets[i] = targets[from] < 0 ? TARGET_IGNORE : targets[from];
            b.positions[i] = position < 0 ? positions[from] : position;
            b.first_key[i] = 0;
        }
    }
    free(tokens);
    free(targets);
    free(positions);
}

int engine_step(struct engine *e, int64_t step, struct step_result *out, struct err *err)
{
    struct step_input in = {.step = step, .learning_rate = 0, .grad_scale = 1};
    int slot = (int)(step % STEP_SLOTS);
    int rc = 0;
    TRY(executor_step(e->executor, slot, &in, err));
    TRY(executor_collect(e->executor, slot, out, err));
out:
    return rc;
}

struct collecting {
    const struct engine *e;
    double *out;
};

/* State payload: [master,] first moment = (1 - beta1) gradient, second moment. */
static int collect_moments(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                           struct err *err)
{
    struct collecting *c = ud;
    const struct plan *p = c->e->plan;
    const struct chunk *ch = &p->chunks.chunks[chunk];
    size_t master = chunk_has_master(p->types) ? dtype_size(p->types.master) : 0;
    const float *m = (const float *)((const char *)host + (size_t)ch->n * master);

    if (payload != PAYLOAD_STATE)
        return 0;
    for (int64_t k = 0; k < ch->n_members; k++) {
        const struct chunk_member *member = &ch->members[k];
        double *to = c->out;
        for (int64_t t = 0; t < member->tensor; t++)
            to += tensor_elements(&p->in.model->tensors[t]);
        for (int64_t i = 0; i < member->elements; i++)
            to[i] = (double)m[member->offset + i] / (1 - beta1);
    }
    return 0;
}

double *engine_gradients(struct engine *e)
{
    struct collecting c = {.e = e, .out = xcalloc((size_t)e->model.n_params, sizeof(double))};
    struct err err = {0};
    engine_must(executor_transfer(e->executor, LIST_SAVE, collect_moments, &c, &err), &err);
    return c.out;
}
