/*
 * How fast whole layers run: the difference between training steps of two models that differ in
 * their number of layers alone, run by the executor as a job's are, less the layers' updates.
 * Layers of two widths tell apart what the products take, which grows with the width's square, and
 * what passes over memory take, which grows with the width.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/json.h"
#include "kernels/device.h"
#include "worker/model/config.h"
#include "worker/parallel/comm.h"
#include "worker/plan/plan.h"
#include "worker/probe.h"
#include "worker/train/executor.h"

enum {
    FEW = 1,
    MANY = 4,    /* layers */
    WIDE = 4096, /* heads of 128 */
    NARROW = 1536,
    LENGTH = 1024,
    ROWS = 8,
    VOCAB = 1024,
    WARM_UP = 40, /* steps, of 10 to 40 ms: until the GPU has no more power to spare */
    STEPS = 15
};

struct trial {
    struct device *device;
    struct model model;
    struct plan *plan;
    struct comm *comm;
    struct executor *executor;
};

/* OPT's shape: most of today's models have larger products beside the same passes over memory. */
static int make_model(int hidden, int64_t layers, struct model *out, struct err *err)
{
    json_t *j =
        json_pack("{s:s, s:i, s:i, s:I, s:i, s:i, s:i, s:i, s:b, s:f, s:f, s:s, s:b}", "model_type",
                  "opt", "hidden_size", hidden, "ffn_dim", 4 * hidden, "num_hidden_layers",
                  (json_int_t)layers, "num_attention_heads", hidden / 128, "word_embed_proj_dim",
                  hidden, "max_position_embeddings", LENGTH, "vocab_size", VOCAB,
                  "do_layer_norm_before", 1, "dropout", 0.0, "attention_dropout", 0.0,
                  "activation_function", "relu", "tie_word_embeddings", 1);
    struct decoder_config config = {0};
    int rc = decoder_config_parse(j, &config, err);
    if (rc == 0)
        model_init(out, &config);
    json_decref(j);
    return rc;
}

static int make_plan(struct trial *t, bool fp8, struct err *err)
{
    struct plan_input in = {
        .model = &t->model,
        .ops = device_ops(t->device, device_half_type(t->device->kind, t->device->index)),
        .policy = PLACE_CUDA,
        .fp8 = fp8,
        .force = PLAN_CHOICES_AUTO,
        .micro_batch = ROWS,
        .micro_batches = 1,
        .seq_length = LENGTH,
        .head_rows = ROWS * LENGTH};
    for (int a = 0; a < AXIS_COUNT; a++)
        in.mesh.size[a] = 1;
    return plan_build(&in, &t->plan, err);
}

/* Weights about as large as real ones; products of zeros would flatter. */
static int fill_payload(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                        struct err *err)
{
    uint16_t *bf16 = host;
    uint64_t state = 88172645463325252u + (uint64_t)chunk;

    memset(host, 0, bytes);
    for (size_t k = 0; payload == PAYLOAD_PARAM && k < bytes / 2; k++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bf16[k] = (uint16_t)((state & 0x807f) | 0x3c80); /* +-2^-6 to 2^-5 */
    }
    return 0;
}

static void fill_batch(struct executor *e)
{
    struct batch b;
    executor_batch(e, 0, 0, &b);
    for (int64_t i = 0; i < b.B * b.T; i++) {
        b.tokens[i] = (int32_t)((uint64_t)i * 2654435761u % VOCAB);
        b.targets[i] = (int32_t)((uint64_t)i * 40503u % VOCAB);
        b.positions[i] = (int32_t)(i % b.T);
        b.first_key[i] = 0;
    }
}

static int start(struct trial *t, int hidden, int64_t layers, bool fp8, struct err *err)
{
    int rc = 0;
    TRY(device_open(DEVICE_CUDA, 0, NULL, &t->device, err));
    TRY(make_model(hidden, layers, &t->model, err));
    TRY(make_plan(t, fp8, err));
    TRY(comm_self_create(t->device, &t->comm, err));
    struct executor_config config = {.plan = t->plan,
                                     .device = t->device,
                                     .data_comm = t->comm,
                                     .beta1 = 0.9,
                                     .beta2 = 0.999,
                                     .epsilon = 1e-8};
    device_tune(t->device, true);
    TRY(executor_create(&config, &t->executor, err));
    TRY(executor_transfer(t->executor, LIST_LOAD, fill_payload, NULL, err));
out:
    return rc;
}

static void finish(struct trial *t)
{
    executor_destroy(t->executor);
    comm_destroy(t->comm);
    plan_destroy(t->plan);
    model_fini(&t->model);
    if (t->device)
        device_close(t->device);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* What one layer does in a step: operations of its products, as if no multiprocessor had been idle,
 * and seconds of the whole or of attention alone. */
struct layer_cost {
    double seconds, products, attention, pass_bytes;
};

static struct layer_cost count_layer(const struct trial *t, const struct device_profile *profile)
{
    const struct block_shape *s = &t->plan->shapes[LIST_TRAIN];
    const struct model *m = &t->model;
    struct layer_cost c = {0};
    for (int backward = 0; backward < 2; backward++) {
        struct block_passes of = {.backward = backward,
                                  .first_forward = true,
                                  .held_copies = plan_holds_copies(t->plan, 1)};
        struct block_flops flops = block_flops(m, 1, s, backward);
        double rate = device_profile_attention(profile, m->config.head_dim, backward);
        c.products += flops.products;
        c.products += block_idle_flops(m, 1, s, backward, profile->multiprocessors);
        c.attention += flops.attention / rate;
        c.pass_bytes += block_pass_bytes(m, 1, s, &of);
    }
    return c;
}

/* Seconds of a step, the median; all else of one layer. */
static int time_steps(const struct device_profile *profile, int hidden, int64_t layers, bool fp8,
                      struct layer_cost *out, struct err *err)
{
    struct trial t = {0};
    struct step_result result;
    double took[STEPS];
    int rc = 0;

    TRY(start(&t, hidden, layers, fp8, err));
    for (int64_t step = 1; step <= WARM_UP + STEPS; step++) {
        struct step_input in = {.step = step, .learning_rate = 1e-6, .grad_scale = 1e-4};
        fill_batch(t.executor);
        double begun = clock_monotonic();
        TRY(executor_step(t.executor, 0, &in, err));
        TRY(executor_collect(t.executor, 0, &result, err));
        if (step > WARM_UP)
            took[step - WARM_UP - 1] = clock_monotonic() - begun;
    }
    qsort(took, STEPS, sizeof *took, ascending);
    *out = count_layer(&t, profile);
    out->seconds = took[STEPS / 2];
out:
    finish(&t);
    return rc;
}

/* One layer, forward and backward. */
static int time_layer(const struct device_profile *profile, int hidden, bool fp8,
                      struct layer_cost *out, struct err *err)
{
    /* twelve squares of weights: gradient 4 bytes, states 12 in and out, parameter 2 */
    double update = 12.0 * hidden * hidden * 30 / profile->memory_rate;
    struct layer_cost few;
    int rc = 0;
    TRY(time_steps(profile, hidden, FEW, fp8, &few, err));
    TRY(time_steps(profile, hidden, MANY, fp8, out, err));
    out->seconds = (out->seconds - few.seconds) / (MANY - FEW) - update;
out:
    return rc;
}

/* A wide layer's products in 8 bits are what is left of its time. */
static int fit_fp8(struct device_profile *profile, double pass, struct err *err)
{
    struct layer_cost wide;
    int rc = 0;

    TRY(time_layer(profile, WIDE, true, &wide, err));
    double rest = wide.attention + profile->layer_passes * pass * WIDE +
                  wide.pass_bytes / profile->memory_rate;
    double rate = wide.products / (wide.seconds - rest);
    bool sensible = wide.seconds > rest && rate <= 4 * profile->flops_bf16;
    profile->flops_fp8 = sensible ? rate : wide.products / (wide.seconds - wide.attention);
out:
    return rc;
}

int probe_layers(struct device_profile *profile, bool fp8, struct err *err)
{
    struct layer_cost wide, narrow;
    double pass = (double)ROWS * LENGTH * sizeof(uint16_t) / profile->memory_rate; /* a column's */
    int rc = 0;

    TRY(time_layer(profile, WIDE, false, &wide, err));
    TRY(time_layer(profile, NARROW, false, &narrow, err));
    /* seconds = attention + products / rate + passes * pass * hidden */
    double ratio = (double)NARROW / WIDE;
    double seconds = wide.seconds - wide.attention;
    double inverse = (narrow.seconds - narrow.attention - seconds * ratio) /
                     (narrow.products - wide.products * ratio);
    double passes = (seconds - wide.products * inverse) / (pass * WIDE);
    /* A wide layer draws more power, so the fit's rate may be higher than any that is reached. */
    bool sensible = inverse > 0 && passes >= 1 && 1 / inverse <= 2 * profile->flops_bf16;
    profile->flops_layer = sensible ? 1 / inverse : wide.products / seconds;
    profile->layer_passes = sensible ? passes : 1;
    profile->flops_fp8 = profile->flops_layer;
    if (fp8)
        TRY(fit_fp8(profile, pass, err));
out:
    return rc;
}
