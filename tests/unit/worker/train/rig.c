#include "tests/unit/worker/train/rig.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "worker/model/weights.h"
#include "worker/train/checkpoint.h"

#define ROOT "tests/golden/opt/pre/"

static void make_plan(struct rig *r, const struct rig_options *o)
{
    struct err err = {0};
    struct plan_input in = {.model = &r->model,
                            .ops = device_ops(r->device, o->compute),
                            .policy = o->on_host ? PLACE_CPU : PLACE_CUDA,
                            .clip = true,
                            .force = PLAN_CHOICES_AUTO,
                            .moments = o->moments,
                            .master = o->master,
                            .bf16_grads = o->bf16_grads,
                            .micro_batch = o->micro_batch,
                            .micro_batches = RIG_ROWS / o->micro_batch,
                            .seq_length = RIG_LENGTH,
                            .head_rows = 16,
                            .embed_dropout = o->dropout,
                            .hidden_dropout = o->dropout,
                            .attn_dropout = o->dropout};
    for (int a = 0; a < AXIS_COUNT; a++)
        in.mesh.size[a] = 1;
    in.force.cheap = !o->remake;
    in.force.split_masters = 0; /* what o->master says */
    if (o->on_host)
        in.force.early = o->early;
    cr_assert_eq(plan_build(&in, &r->plan, &err), 0, "%s", err.msg);
}

static void load_weights(struct rig *r)
{
    struct weights_reader *weights = NULL;
    struct err err = {0};
    cr_assert_eq(weights_open(ROOT "model", &r->model, &weights, &err), 0, "%s", err.msg);
    cr_assert_eq(checkpoint_load_weights(weights, 5, r->plan, r->executor, &err), 0, "%s", err.msg);
    weights_close(weights);
}

void rig_open(struct rig *r, const struct rig_options *o)
{
    struct device_options device = {.reference_ops = true};
    struct decoder_config config;
    struct err err = {0};
    int64_t targets = 0;

    *r = (struct rig){0};
    cr_assert_eq(decoder_config_load(ROOT "model", &config, &err), 0, "%s", err.msg);
    model_init(&r->model, &config);
    cr_assert_eq(safetensors_open(ROOT "batch.safetensors", &r->golden, &err), 0, "%s", err.msg);
    cr_assert_eq(device_open(DEVICE_CPU, 0, &device, &r->device, &err), 0, "%s", err.msg);
    make_plan(r, o);
    cr_assert_eq(comm_self_create(r->device, &r->comm, &err), 0, "%s", err.msg);
    double *params = rig_golden(r, "adamw.params", 6);
    struct executor_config c = {.plan = r->plan,
                                .device = r->device,
                                .data_comm = r->comm,
                                .seed = 5,
                                .beta1 = params[0],
                                .beta2 = params[1],
                                .epsilon = params[2],
                                .weight_decay = params[3],
                                .max_grad_norm = o->max_norm > 0 ? o->max_norm : params[4]};
    free(params);
    cr_assert_eq(executor_create(&c, &r->executor, &err), 0, "%s", err.msg);
    load_weights(r);
    struct batch b;
    rig_fill(r, 0);
    for (int64_t m = 0; m < r->plan->in.micro_batches; m++) {
        executor_batch(r->executor, 0, m, &b);
        for (int64_t i = 0; i < b.B * b.T; i++)
            targets += b.targets[i] != TARGET_IGNORE;
    }
    r->grad_scale = 1.0 / (double)targets;
}

void rig_close(struct rig *r)
{
    executor_destroy(r->executor);
    comm_destroy(r->comm);
    plan_destroy(r->plan);
    device_close(r->device);
    safetensors_close(&r->golden);
    model_fini(&r->model);
}

static void *golden(const struct rig *r, const char *name, size_t bytes)
{
    const struct safetensor *t = safetensors_find(&r->golden, name);
    struct err err = {0};
    void *data = xmalloc(bytes);
    cr_assert(t && t->bytes == bytes, "%s", name);
    cr_assert_eq(safetensors_read(&r->golden, t, 0, bytes, data, &err), 0, "%s", err.msg);
    return data;
}

double *rig_golden(const struct rig *r, const char *name, int64_t n)
{
    return golden(r, name, (size_t)n * sizeof(double));
}

void rig_fill(struct rig *r, int slot)
{
    size_t bytes = RIG_ROWS * RIG_LENGTH * sizeof(int32_t);
    int32_t *tokens = golden(r, "tokens", bytes);
    int32_t *targets = golden(r, "targets", bytes);
    int32_t *positions = golden(r, "positions", bytes);

    for (int64_t m = 0; m < r->plan->in.micro_batches; m++) {
        struct batch b;
        executor_batch(r->executor, slot, m, &b);
        for (int64_t i = 0; i < b.B * b.T; i++) {
            int64_t from = m * b.B * b.T + i;
            b.tokens[i] = tokens[from];
            b.targets[i] = targets[from] < 0 ? TARGET_IGNORE : targets[from];
            b.positions[i] = positions[from];
            b.first_key[i] = 0;
        }
    }
    free(tokens);
    free(targets);
    free(positions);
}

struct step_result rig_step(struct rig *r, int64_t step, double learning_rate)
{
    struct step_input in = {.step = step,
                            .learning_rate = learning_rate,
                            .grad_scale = r->grad_scale,
                            .wait_for_norm = r->wait_for_norm};
    struct step_result out;
    struct err err = {0};
    int slot = (int)(step % STEP_SLOTS);

    rig_fill(r, slot);
    cr_assert_eq(executor_step(r->executor, slot, &in, &err), 0, "%s", err.msg);
    cr_assert(executor_in_flight(r->executor, slot));
    cr_assert_eq(executor_collect(r->executor, slot, &out, &err), 0, "%s", err.msg);
    cr_assert(!executor_in_flight(r->executor, slot));
    return out;
}

static int append(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                  struct err *err)
{
    buf_add(ud, host, bytes);
    return 0;
}

char *rig_payloads(struct rig *r, size_t *bytes)
{
    struct buf all = {0};
    struct err err = {0};
    cr_assert_eq(executor_transfer(r->executor, LIST_SAVE, append, &all, &err), 0, "%s", err.msg);
    *bytes = all.len;
    return buf_take(&all);
}

char *rig_make_dir(void)
{
    const char *parent = getenv("TMPDIR");
    char *dir = fs_join(parent ? parent : "/tmp", "castor-train-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    return dir;
}

void rig_remove_dir(char *dir)
{
    cr_assert(strstr(dir, "/castor-train-") != NULL);
    fs_remove_tree(dir, NULL);
    free(dir);
}

void rig_expect_same(struct rig *a, struct rig *b, int64_t first, int64_t last)
{
    size_t n, m;
    for (int64_t step = first; step <= last; step++)
        cr_expect_eq(rig_step(a, step, 1e-2).loss_sum, rig_step(b, step, 1e-2).loss_sum);
    char *x = rig_payloads(a, &n), *y = rig_payloads(b, &m);
    cr_expect(n == m && memcmp(x, y, n) == 0);
    free(x);
    free(y);
}
