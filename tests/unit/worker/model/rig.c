#include "tests/unit/worker/model/rig.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/model/weights.h"

static void ok(int rc, const struct err *err)
{
    cr_assert_eq(rc, 0, "%s", err->msg);
}

static void *device_new(struct rig *r, size_t bytes)
{
    struct err err = {0};
    void *p = NULL;

    ok(device_alloc(r->device, bytes, "test", &p, &err), &err);
    memset(p, 0xFF, bytes); /* NaN in every float type */
    return p;
}

void rig_open(struct rig *r, struct decoder_config *config, enum dtype compute, bool reference,
              int64_t B, int64_t T)
{
    struct device_options options = {.threads = 1, .reference_ops = reference};
    struct err err = {0};
    size_t n = (size_t)(B * T);

    memset(r, 0, sizeof(*r));
    ok(device_open(DEVICE_CPU, 0, &options, &r->device, &err), &err);
    r->ops = device_ops(r->device, compute);
    cr_assert_not_null(r->ops);
    ok(device_stream_create(r->device, 0, &r->stream, &err), &err);
    model_init(&r->m, config);
    r->weights = xcalloc((size_t)r->m.n_tensors, sizeof(void *));
    r->grads = xcalloc((size_t)r->m.n_tensors, sizeof(void *));
    for (int64_t i = 0; i < r->m.n_tensors; i++) {
        size_t elements = (size_t)tensor_elements(&r->m.tensors[i]);

        r->weights[i] = device_new(r, elements * dtype_size(compute));
        memset(r->weights[i], 0, elements * dtype_size(compute));
        r->grads[i] = device_new(r, elements * dtype_size(r->ops->grad));
    }
    r->B = B;
    r->T = T;
    r->tokens = xcalloc(n, sizeof(int32_t));
    r->targets = xcalloc(n, sizeof(int32_t));
    r->positions = xcalloc(n, sizeof(int32_t));
    r->row_loss = xcalloc(n, sizeof(double));
    r->row_correct = xcalloc(n, sizeof(int32_t));
    if (r->m.config.position == POSITION_ROPE) {
        int64_t positions = r->m.config.max_positions;

        r->rope = xcalloc((size_t)model_rope_floats(&r->m.config, positions), sizeof(float));
        model_rope_tables(&r->m.config, positions, r->rope);
    }
    if (r->m.config.position == POSITION_ALIBI) {
        r->alibi_slopes = xcalloc((size_t)r->m.config.heads, sizeof(float));
        model_alibi_slopes(&r->m.config, r->alibi_slopes);
    }
    r->head_rows = 5;
    r->seed = 99;
    r->step = 3;
    r->grad_scale = 1;
}

void rig_adapt(struct rig *r, const struct adapter_config *c)
{
    struct err err = {0};
    size_t n;

    ok(model_adapt(&r->m, c, &err), &err);
    n = (size_t)r->m.n_tensors;
    r->weights = xrealloc(r->weights, n * sizeof(void *));
    r->grads = xrealloc(r->grads, n * sizeof(void *));
    for (int64_t i = r->m.n_weights; i < r->m.n_tensors; i++) {
        size_t elements = (size_t)tensor_elements(&r->m.tensors[i]);

        r->weights[i] = device_new(r, elements * dtype_size(r->ops->compute));
        memset(r->weights[i], 0, elements * dtype_size(r->ops->compute));
        r->grads[i] = device_new(r, elements * dtype_size(r->ops->grad));
    }
}

static size_t weight_bytes(const struct rig *r, int64_t tensor)
{
    const struct tensor_desc *t = &r->m.tensors[tensor];
    int64_t n = tensor_elements(t);

    return t->quant == QUANT_NONE ? (size_t)n * dtype_size(r->ops->compute)
                                  : quant_bytes(t->quant, n);
}

void rig_quantise(struct rig *r, enum quant_format format)
{
    r->scales = xcalloc((size_t)r->m.n_tensors, sizeof(*r->scales));
    model_quantize(&r->m, format);
    for (int64_t i = 0; i < r->m.n_weights; i++) {
        int64_t n = tensor_elements(&r->m.tensors[i]);
        size_t plain = (size_t)n * dtype_size(r->ops->compute);
        float *values;
        char *codes;

        if (r->m.tensors[i].quant == QUANT_NONE)
            continue;
        values = xcalloc((size_t)n, sizeof(*values));
        dtype_convert(DT_F32, values, r->ops->compute, r->weights[i], n);
        codes = device_new(r, weight_bytes(r, i));
        r->scales[i] = (const float *)(const void *)(codes + quant_scales_at(format, n));
        quant_encode(format, n, values, codes,
                     (float *)(void *)(codes + quant_scales_at(format, n)));
        device_free(r->device, r->weights[i], plain);
        r->weights[i] = codes;
        free(values);
    }
}

void rig_close(struct rig *r)
{
    for (int64_t i = 0; i < r->m.n_tensors; i++) {
        size_t elements = (size_t)tensor_elements(&r->m.tensors[i]);

        device_free(r->device, r->weights[i], weight_bytes(r, i));
        device_free(r->device, r->grads[i], elements * dtype_size(r->ops->grad));
    }
    free(r->weights);
    free(r->scales);
    free(r->grads);
    free(r->tokens);
    free(r->targets);
    free(r->positions);
    free(r->first_key);
    free(r->rope);
    free(r->alibi_slopes);
    free(r->row_loss);
    free(r->row_correct);
    model_fini(&r->m);
    device_stream_destroy(r->device, r->stream);
    device_close(r->device);
}

double rig_weight(const struct rig *r, int64_t tensor, int64_t i)
{
    enum dtype type = r->ops->compute;
    double value;

    dtype_convert(DT_F64, &value, type, (char *)r->weights[tensor] + (size_t)i * dtype_size(type),
                  1);
    return value;
}

void rig_set_weight(struct rig *r, int64_t tensor, int64_t i, double value)
{
    enum dtype type = r->ops->compute;

    dtype_convert(type, (char *)r->weights[tensor] + (size_t)i * dtype_size(type), DT_F64, &value,
                  1);
}

double rig_grad(const struct rig *r, int64_t tensor, int64_t i)
{
    return r->ops->grad == DT_F64 ? ((double *)r->grads[tensor])[i]
                                  : (double)((float *)r->grads[tensor])[i];
}

static double uniform(uint32_t site, int64_t i)
{
    struct rng_stream s = {.seed = 1, .site = site, .use = RNG_USE_INIT};

    return 2 * (double)rng_to_unit(rng_draw(s, (uint64_t)i)) - 1;
}

static bool is_norm_weight(enum tensor_role role)
{
    return role == TENSOR_NORM1_W || role == TENSOR_NORM2_W || role == TENSOR_FINAL_NORM_W ||
           role == TENSOR_EMBED_NORM_W || role == TENSOR_Q_NORM_W || role == TENSOR_K_NORM_W ||
           role == TENSOR_POST_ATTN_NORM_W || role == TENSOR_POST_MLP_NORM_W;
}

static bool is_norm(enum tensor_role role)
{
    return is_norm_weight(role) || role == TENSOR_NORM1_B || role == TENSOR_NORM2_B ||
           role == TENSOR_FINAL_NORM_B || role == TENSOR_EMBED_NORM_B;
}

void rig_random_weights(struct rig *r, double spread)
{
    for (int64_t t = 0; t < r->m.n_tensors; t++) {
        const struct tensor_desc *desc = &r->m.tensors[t];

        for (int64_t i = 0; i < tensor_elements(desc); i++)
            rig_set_weight(r, t, i,
                           spread * uniform((uint32_t)t, i) + (is_norm_weight(desc->role) ? 1 : 0));
    }
}

void rig_random_batch(struct rig *r)
{
    for (int64_t i = 0; i < r->B * r->T; i++) {
        r->tokens[i] = (int32_t)((uniform(1000, i) + 1) / 2 * (double)r->m.config.vocab);
        r->targets[i] = (int32_t)((uniform(1001, i) + 1) / 2 * (double)r->m.config.vocab);
        if (i % 7 == 3)
            r->targets[i] = -1;
        r->positions[i] = (int32_t)(i % r->T);
    }
}

void rig_load(struct rig *r, const char *model_dir)
{
    struct weights_reader *reader = NULL;
    struct err err = {0};

    ok(weights_open(model_dir, &r->m, &reader, &err), &err);
    for (int64_t i = 0; i < r->m.n_weights; i++)
        ok(weights_read(reader, i, r->ops->compute, r->weights[i], &err), &err);
    weights_close(reader);
}

/* One micro-batch's memory: what a plan would give the blocks. */
struct micro {
    struct rig *r;
    int64_t first, rows; /* sequences */
    bool train;
    void **acts;  /* by block: its output */
    void **saved; /* by block */
    void **held;  /* likewise */
    void *dstream, *scratch, *row_loss;
    size_t act_bytes, saved_bytes, scratch_bytes, loss_bytes;
    struct block_run run;
    void *weights[BLOCK_MAX_TENSORS], *grads[BLOCK_MAX_TENSORS];
    const float *scales[BLOCK_MAX_TENSORS];
};

static struct block_shape micro_shape(const struct micro *u)
{
    const struct rig *r = u->r;

    return (struct block_shape){
        .B = u->rows,
        .T = r->T,
        .head_rows = r->head_rows,
        .train = u->train,
        .fp8 = r->fp8,
        .keep_cheap = r->keep_cheap,
        .embed_dropout = r->embed_dropout,
        .hidden_dropout = r->hidden_dropout,
        .attn_dropout = r->attn_dropout,
        .lora_dropout = r->lora_dropout,
    };
}

static void micro_open(struct micro *u, struct rig *r, int64_t first, int64_t rows, bool train)
{
    struct block_shape shape;

    *u = (struct micro){.r = r, .first = first, .rows = rows, .train = train};
    shape = micro_shape(u);
    u->act_bytes = (size_t)(rows * r->T * r->m.config.hidden) * dtype_size(r->ops->compute);
    u->loss_bytes = (size_t)(rows * r->T) * dtype_size(r->ops->stat);
    u->acts = xcalloc((size_t)r->m.n_blocks, sizeof(void *));
    u->saved = xcalloc((size_t)r->m.n_blocks, sizeof(void *));
    u->held = xcalloc((size_t)r->m.n_blocks, sizeof(void *));
    u->dstream = device_new(r, u->act_bytes);
    u->row_loss = device_new(r, u->loss_bytes);
    u->run = (struct block_run){
        .model = &r->m,
        .shape = shape,
        .device = r->device,
        .ops = r->ops,
        .stream = r->stream,
        .weights = u->weights,
        .scales = u->scales,
        .grads = u->grads,
        .tokens = r->tokens + first * r->T,
        .targets = r->targets + first * r->T,
        .positions = r->positions + first * r->T,
        .first_key = r->first_key != NULL ? r->first_key + first * r->T : NULL,
        .rope = r->rope,
        .rope_positions = r->m.config.max_positions,
        .alibi_slopes = r->alibi_slopes,
        .row_loss = u->row_loss,
        .row_correct = r->row_correct + first * r->T,
        .grad_scale = &r->grad_scale,
        .seed = r->seed,
        .step = r->step,
        .first_sequence = first,
        .held_copies = r->held_copies,
    };
    for (int64_t b = 0; b < r->m.n_blocks; b++) {
        u->acts[b] = device_new(r, u->act_bytes);
        u->saved[b] = device_new(r, block_sizes(&r->m, b, &shape, r->ops).saved);
        u->held[b] = device_new(r, block_sizes(&r->m, b, &shape, r->ops).held_copies);
    }
}

static void micro_close(struct micro *u)
{
    struct rig *r = u->r;
    struct block_shape shape = micro_shape(u);

    for (int64_t b = 0; b < r->m.n_blocks; b++) {
        device_free(r->device, u->acts[b], u->act_bytes);
        device_free(r->device, u->saved[b], block_sizes(&r->m, b, &shape, r->ops).saved);
        device_free(r->device, u->held[b], block_sizes(&r->m, b, &shape, r->ops).held_copies);
    }
    for (int64_t i = 0; i < u->rows * r->T; i++)
        r->row_loss[u->first * r->T + i] =
            r->ops->stat == DT_F64 ? ((double *)u->row_loss)[i] : (double)((float *)u->row_loss)[i];
    device_free(r->device, u->dstream, u->act_bytes);
    device_free(r->device, u->row_loss, u->loss_bytes);
    free(u->acts);
    free(u->saved);
    free(u->held);
}

static void micro_block(struct micro *u, int64_t b, bool backward)
{
    struct rig *r = u->r;
    const struct block_desc *desc = &r->m.blocks[b];
    struct block_bytes bytes = block_sizes(&r->m, b, &u->run.shape, r->ops);
    size_t scratch = backward ? bytes.backward_scratch : bytes.forward_scratch;
    struct err err = {0};

    cr_assert_eq(scratch % DEVICE_ALIGN + bytes.saved % DEVICE_ALIGN, 0);
    for (int64_t i = 0; i < desc->n_tensors; i++) {
        const struct tensor_desc *t = &r->m.tensors[desc->tensors[i]];
        bool frozen = !t->trainable || (r->freeze_all_but_norms && !is_norm(t->role));

        u->weights[i] = r->weights[desc->tensors[i]];
        u->scales[i] = r->scales != NULL ? r->scales[desc->tensors[i]] : NULL;
        u->grads[i] = frozen ? NULL : r->grads[desc->tensors[i]];
    }
    u->run.block = b;
    u->run.x = b > 0 ? u->acts[b - 1] : NULL;
    u->run.saved = u->saved[b];
    u->run.held = u->held[b];
    u->run.scratch = device_new(r, scratch);
    ok(backward ? block_backward(&u->run, &err) : block_forward(&u->run, &err), &err);
    device_free(r->device, u->run.scratch, scratch);
}

static void micro_forward(struct micro *u, int64_t last)
{
    for (int64_t b = 0; b <= last; b++) {
        u->run.y = u->acts[b];
        u->run.first_forward = true;
        micro_block(u, b, false);
    }
}

static void micro_backward(struct micro *u)
{
    u->run.dy = u->run.dx = u->dstream;
    for (int64_t b = u->r->m.n_blocks - 1; b >= model_first_trained(&u->r->m); b--) {
        if (u->r->recompute && u->r->m.blocks[b].kind == BLOCK_LAYER) {
            memset(u->saved[b], 0xFF, block_sizes(&u->r->m, b, &u->run.shape, u->r->ops).saved);
            u->run.y = NULL;
            u->run.first_forward = false;
            micro_block(u, b, false);
        }
        micro_block(u, b, true);
    }
}

static void zero_embedding_grads(struct rig *r)
{
    for (int64_t i = 0; i < r->m.n_tensors; i++) {
        enum tensor_role role = r->m.tensors[i].role;

        if (r->m.tensors[i].trainable && (role == TENSOR_EMBED || role == TENSOR_POSITIONS))
            memset(r->grads[i], 0,
                   (size_t)tensor_elements(&r->m.tensors[i]) * dtype_size(r->ops->grad));
    }
}

void rig_train(struct rig *r, int64_t rows, enum accum accum)
{
    struct micro u;

    if (accum == ACCUM_ASSIGN)
        zero_embedding_grads(r);
    for (int64_t first = 0; first < r->B; first += rows) {
        micro_open(&u, r, first, rows, true);
        u.run.grad_accum = first == 0 ? accum : ACCUM_ADD;
        micro_forward(&u, r->m.n_blocks - 2);
        micro_backward(&u);
        micro_close(&u);
    }
}

double rig_evaluate(struct rig *r, int64_t rows)
{
    struct micro u;
    double sum = 0;

    for (int64_t first = 0; first < r->B; first += rows) {
        micro_open(&u, r, first, rows, false);
        micro_forward(&u, r->m.n_blocks - 1);
        micro_close(&u);
    }
    for (int64_t i = 0; i < r->B * r->T; i++)
        sum += r->row_loss[i];
    return sum;
}

void rig_logits(struct rig *r, int64_t first, int64_t n, double *out)
{
    int64_t elements = n * r->m.config.vocab;
    size_t bytes = (size_t)elements * dtype_size(r->ops->compute);
    void *logits = device_new(r, bytes);
    struct micro u;

    micro_open(&u, r, 0, r->B, false);
    u.run.logits = logits;
    u.run.logit_first = first;
    u.run.logit_rows = n;
    micro_forward(&u, r->m.n_blocks - 1);
    micro_close(&u);
    dtype_convert(DT_F64, out, r->ops->compute, logits, elements);
    device_free(r->device, logits, bytes);
}

double *rig_grads(const struct rig *r, int64_t first)
{
    double *g;
    int64_t n = 0;

    for (int64_t t = first; t < r->m.n_tensors; t++)
        n += tensor_elements(&r->m.tensors[t]);
    g = xcalloc((size_t)n, sizeof(double));
    n = 0;
    for (int64_t t = first; t < r->m.n_tensors; t++) {
        for (int64_t i = 0; i < tensor_elements(&r->m.tensors[t]); i++)
            g[n++] = rig_grad(r, t, i);
    }
    return g;
}

/* The sum of losses with an element of a weight moved by h. */
static double loss_beside(struct rig *r, int64_t tensor, int64_t i, double h)
{
    double was = rig_weight(r, tensor, i), loss;

    rig_set_weight(r, tensor, i, was + h);
    loss = rig_evaluate(r, r->B);
    rig_set_weight(r, tensor, i, was);
    return loss;
}

void rig_check_gradients(struct rig *r, int64_t first)
{
    const double h = 1e-5, tolerance = 1e-7;
    double worst = 0;

    for (int64_t t = first; t < r->m.n_tensors; t++) {
        int64_t n = tensor_elements(&r->m.tensors[t]), stride = n > 24 ? n / 24 : 1;

        for (int64_t i = 0; i < n; i += stride) {
            double up = loss_beside(r, t, i, h), down = loss_beside(r, t, i, -h);
            double error = fabs((up - down) / (2 * h) - rig_grad(r, t, i));

            cr_assert_leq(error, tolerance, "%s %s[%d]: gradient %g is off by %g",
                          r->m.config.family, tensor_role_name(r->m.tensors[t].role), (int)i,
                          rig_grad(r, t, i), error);
            worst = fmax(worst, error);
        }
    }
    fprintf(stderr, "gradients, %s: %.2g %% of the tolerance used\n", r->m.config.family,
            100 * worst / tolerance);
}

void rig_expect_near(const double *a, const double *b, int64_t n, double factor)
{
    double largest = 0;

    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(b[i]));
    cr_assert_gt(largest, 0);
    for (int64_t i = 0; i < n; i++)
        cr_assert_leq(fabs(a[i] - factor * b[i]), 1e-12 * largest, "%g is not %g x %g", a[i],
                      factor, b[i]);
}
