#include "worker/train/session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "api/capability.h"
#include "core/alloc.h"
#include "worker/model/adapter.h"
#include "worker/text/template.h"

enum {
    AUTO_EPOCHS = 3,
    AUTO_SEQ_LENGTH = 1024,
    AUTO_BATCH_MAX = 32,
    AUTO_STEPS_PER_EPOCH = 64,   /* aimed at when the batch size is left to us           */
    AUTO_MICRO_TOKENS = 8192,    /* tokens of a micro-batch: enough for full GEMM speed  */
    HEAD_LOGITS_CPU = 32 << 20,  /* 128 MiB of float: some hundred rows read the head once */
    HEAD_LOGITS_GPU = 256 << 20, /* 512 MiB of bf16: products large enough for full rate */
    HEAD_ROWS_TILE = 256,        /* rows of a slice are a multiple of this where they can */
};
/* Default peak learning rates: for full fine-tuning as Hugging Face's Trainer has it; for adapters,
 * which start at nothing and bear more, that of Dettmers et al., "QLoRA", 2023. */
static const double auto_learning_rate = 5e-5, auto_lora_learning_rate = 2e-4;

/* --- files --- */

static int fetch_sources(struct session *s, const struct session_options *o, struct err *err)
{
    struct sources_options wanted = {
        .want_weights = o->want_weights, .progress = o->progress, .ud = o->ud};

    return sources_fetch(&s->spec, &wanted, &s->sources, err);
}

/* "auto" and "all-linear" become the names of the modules. */
static void name_modules(struct spec_lora *lora, const struct model *m)
{
    bool named = lora->n_target_modules > 0 && strcmp(lora->target_modules[0], "all-linear") != 0;
    json_t *names;

    if (named)
        return;
    names = adapters_target_modules(m);
    for (int64_t i = 0; i < lora->n_target_modules; i++)
        free(lora->target_modules[i]);
    free(lora->target_modules);
    lora->n_target_modules = (int64_t)json_array_size(names);
    lora->target_modules = xcalloc((size_t)lora->n_target_modules, sizeof(char *));
    for (int64_t i = 0; i < lora->n_target_modules; i++)
        lora->target_modules[i] = xstrdup(json_string_value(json_array_get(names, (size_t)i)));
    json_decref(names);
}

static enum quant_format base_format(enum base_quantization q)
{
    switch (q) {
    case BASE_QUANTIZE_NF4:
        return QUANT_NF4;
    case BASE_QUANTIZE_INT8:
        return QUANT_INT8;
    default:
        return QUANT_NONE;
    }
}

static int add_adapters(struct session *s, struct err *err)
{
    struct spec_lora *lora = &s->spec.lora;
    struct adapter_config c = {.rank = lora->rank,
                               .alpha = lora->alpha,
                               .dropout = lora->dropout,
                               .rslora = lora->rslora,
                               .targets = (const char *const *)lora->target_modules,
                               .n_targets = lora->n_target_modules};
    int rc = 0;

    if (!lora->enabled)
        return 0;
    TRY(model_adapt(&s->model, &c, err));
    model_quantize(&s->model, base_format(lora->quantize_base));
    name_modules(lora, &s->model);
out:
    return rc;
}

static int load_model(struct session *s, struct err *err)
{
    struct decoder_config config = {0};
    int rc = 0;

    TRY(decoder_config_load(s->sources.model_dir, &config, err));
    model_init(&s->model, &config);
    TRY(tokenizer_load(s->sources.model_dir, &s->tokenizer, err));
    if (tokenizer_vocab_size(s->tokenizer) > s->model.config.vocab) {
        rc = err_set(err, ERR_INVALID,
                     "the tokenizer has %lld tokens and the model's embedding %lld rows; the files "
                     "of the repository do not belong together",
                     (long long)tokenizer_vocab_size(s->tokenizer),
                     (long long)s->model.config.vocab);
    }
out:
    decoder_config_fini(&config);
    return rc ? err_set_param(err, rc, "model") : 0;
}

/* What needs a validation set must have one. */
static int check_validation(const struct session *s, struct err *err)
{
    const struct spec_optimization *o = &s->spec.optimization;
    bool best = o->export == EXPORT_BEST;

    if (s->validation || (!best && o->early_stopping.patience == 0))
        return 0;
    int rc = err_set(err, ERR_INVALID,
                     "%s goes by the validation loss, and the job has no validation data; give it "
                     "a validation_file or a dataset.validation_fraction",
                     best ? "optimization.export \"best\"" : "early stopping");
    return err_set_param(err, rc,
                         best ? "optimization.export" : "optimization.early_stopping.patience");
}

static int load_data(struct session *s, const char *scratch_dir, struct err *err)
{
    const struct job_spec *spec = &s->spec;
    struct dataset_options o = {.format = spec->dataset.format,
                                .loss_on = spec->dataset.loss_on,
                                .mapping = spec->dataset.column_mapping,
                                .max_seq_length = s->seq_length,
                                .packing = spec->dataset.packing,
                                .max_examples = spec->dataset.max_examples,
                                .min_examples = spec->dataset.min_examples,
                                .seed = (uint64_t)spec->seed,
                                .scratch_dir = scratch_dir,
                                .param = "training_file",
                                .name = s->sources.train.name};
    const struct sources_data *train = &s->sources.train, *validation = &s->sources.validation;
    struct chat_template *chat = NULL;
    int rc = 0;

    TRY(chat_template_load(s->sources.model_dir, (time_t)spec->created_at, &chat, err));
    o.chat = chat;
    TRY(dataset_load((const char *const *)train->paths, train->n, s->tokenizer, &o, &s->train,
                     err));
    if (validation->n > 0) {
        o.min_examples = 1;
        o.max_examples = 0;
        o.param = "validation_file";
        o.name = validation->name;
        TRY(dataset_load((const char *const *)validation->paths, validation->n, s->tokenizer, &o,
                         &s->validation, err));
    } else if (spec->dataset.validation_fraction > 0) {
        TRY(dataset_split(s->train, spec->dataset.validation_fraction, &s->validation, err));
    }
out:
    chat_template_destroy(chat);
    if (rc && err && !err->param[0])
        err_set_param(err, rc, o.param);
    return rc;
}

/* --- choices --- */

enum device_kind session_device(const struct job_spec *spec)
{
    bool gpu = spec->resources.device != DEVICE_ONLY_CPU && device_count(DEVICE_CUDA) > 0;
    return gpu ? DEVICE_CUDA : DEVICE_CPU;
}

static int64_t clamp(int64_t x, int64_t low, int64_t high)
{
    return x < low ? low : x > high ? high : x;
}

static void settle_int(struct auto_int *a, int64_t value)
{
    if (a->is_auto)
        *a = (struct auto_int){.value = value};
}

static void settle_real(struct auto_real *a, double value)
{
    if (a->is_auto)
        *a = (struct auto_real){.value = value};
}

static int choose_length(struct session *s, struct err *err)
{
    int64_t most = s->model.config.max_positions;
    int64_t asked = s->spec.dataset.max_seq_length;
    if (asked > most) {
        int rc = err_set(err, ERR_INVALID,
                         "dataset.max_seq_length is %lld, but the model's positions end at %lld",
                         (long long)asked, (long long)most);
        return err_set_param(err, rc, "dataset.max_seq_length");
    }
    s->seq_length = asked > 0 ? asked : clamp(AUTO_SEQ_LENGTH, 2, most);
    s->spec.dataset.max_seq_length = s->seq_length;
    return 0;
}

enum dtype session_dtype(const struct job_spec *spec)
{
    switch (spec->precision.compute) {
    case COMPUTE_BF16:
    case COMPUTE_FP8:
        return DT_BF16;
    case COMPUTE_FP16:
        return DT_F16;
    default:
        return DT_F32;
    }
}

void session_set_micro_batch(struct session *s, int64_t rows)
{
    int64_t batch = s->spec.hyper.batch_size.value;

    s->micro_batch = clamp(rows, 1, batch);
    s->micro_batches = (batch + s->micro_batch - 1) / s->micro_batch;
    s->spec.optimization.micro_batch_size.value = s->micro_batch;
}

static void choose_steps(struct session *s)
{
    struct job_spec *spec = &s->spec;
    struct dataset_stats stats;
    dataset_get_stats(s->train, &stats);

    settle_int(&spec->hyper.n_epochs, AUTO_EPOCHS);
    settle_int(&spec->hyper.batch_size,
               clamp(stats.rows / AUTO_STEPS_PER_EPOCH, 1, AUTO_BATCH_MAX));
    settle_real(&spec->hyper.learning_rate_multiplier, 1.0);
    settle_real(&spec->optimization.learning_rate,
                (spec->lora.enabled ? auto_lora_learning_rate : auto_learning_rate) *
                    spec->hyper.learning_rate_multiplier.value);

    int64_t batch = spec->hyper.batch_size.value;
    s->micro_batch_open = spec->optimization.micro_batch_size.is_auto;
    settle_int(&spec->optimization.micro_batch_size, AUTO_MICRO_TOKENS / s->seq_length);
    session_set_micro_batch(s, spec->optimization.micro_batch_size.value);

    s->steps_per_epoch = (stats.rows + batch - 1) / batch;
    s->total_steps = s->steps_per_epoch * spec->hyper.n_epochs.value;
    if (spec->optimization.max_steps > 0 && spec->optimization.max_steps < s->total_steps)
        s->total_steps = spec->optimization.max_steps;
}

static enum compute_dtype auto_compute(enum device_kind device)
{
    if (device == DEVICE_CPU)
        return COMPUTE_FP32;
    return device_half_type(device, 0) == DT_BF16 ? COMPUTE_BF16 : COMPUTE_FP16;
}

static void choose_rest(struct session *s)
{
    struct job_spec *spec = &s->spec;

    if (spec->precision.compute == COMPUTE_AUTO)
        spec->precision.compute = auto_compute(s->device);
    /* Head slices and GEMMs follow the device: a job that resumes elsewhere must not change. Nor
     * may one that asks for a GPU end on the CPU: trainer_open_device refuses it. */
    if (spec->resources.device == DEVICE_AUTO)
        spec->resources.device = s->device == DEVICE_CUDA ? DEVICE_ONLY_GPU : DEVICE_ONLY_CPU;
    spec->parallelism.is_auto = false;
    spec->resolved = true;
}

static int check_precision(const struct job_spec *spec, struct err *err)
{
    const struct spec_precision *p = &spec->precision;
    bool master = p->master != MASTER_FP32;
    const char *param = master ? "precision.master" : "precision.gradients";

    if (session_dtype(spec) == DT_BF16 || (!master && p->gradients != STATE_BF16))
        return 0;
    int rc = err_set(err, ERR_UNSUPPORTED,
                     "%s \"%s\" is for jobs that compute in bf16 or fp8, and this one computes in "
                     "%s; leave it at \"fp32\"",
                     param, p->master == MASTER_SPLIT ? "split" : "bf16",
                     compute_dtype_name(p->compute));
    err_set_reason(err, rc, "unsupported_precision");
    return err_set_param(err, rc, param);
}

/* --- the whole --- */

static int copy_spec(const struct job_spec *from, struct job_spec *to, struct err *err)
{
    json_t *j = job_spec_to_json(from);
    int rc = job_spec_from_json(j, to, err);
    json_decref(j);
    return rc;
}

/* castord asks this of a request already; a directory may have been written by someone else. */
static int check_capabilities(const struct job_spec *spec, struct err *err)
{
    struct fault_list faults = {0};
    json_t *j = job_spec_to_json(spec);
    int rc = 0;

    capability_check(j, NULL, &faults);
    if (faults.n > 0) {
        rc = err_set(err, ERR_UNSUPPORTED, "%s", faults.items[0].message);
        err_set_param(err, rc, faults.items[0].param);
        err_set_reason(err, rc, faults.items[0].code);
    }
    fault_list_fini(&faults);
    json_decref(j);
    return rc;
}

static void begin(const struct session_options *o, enum event_phase phase)
{
    if (o->on_phase)
        o->on_phase(o->ud, phase);
}

int session_prepare(const struct job_spec *spec, const struct session_options *options,
                    struct session *out, struct err *err)
{
    struct session s = {0};
    int rc = 0;

    TRY(copy_spec(spec, &s.spec, err));
    TRY(check_capabilities(spec, err));
    begin(options, PHASE_RESOLVING);
    TRY(fetch_sources(&s, options, err));
    begin(options, PHASE_LOADING);
    TRY(load_model(&s, err));
    TRY(add_adapters(&s, err));
    TRY(choose_length(&s, err));
    TRY(load_data(&s, options->scratch_dir, err));
    TRY(check_validation(&s, err));
    s.device = session_device(&s.spec);
    choose_steps(&s);
    choose_rest(&s);
    TRY(check_precision(&s.spec, err));
    *out = s;
    s = (struct session){0};
out:
    session_fini(&s);
    return rc;
}

void session_fini(struct session *s)
{
    dataset_destroy(s->validation);
    dataset_destroy(s->train);
    tokenizer_destroy(s->tokenizer);
    model_fini(&s->model);
    sources_fini(&s->sources);
    job_spec_fini(&s->spec);
    *s = (struct session){0};
}

/* Without a limit, what is free there now, as a share. */
static const double volume_share = 0.9;

/* Returns whether the volume is there. */
static bool volume_bytes(const struct spec_placement *place, size_t *bytes)
{
    struct statvfs volume;

    if (!place->nvme_directory || statvfs(place->nvme_directory, &volume) != 0)
        return false;
    *bytes = (size_t)((double)volume.f_bavail * (double)volume.f_frsize * volume_share);
    return true;
}

static int set_disk(const struct spec_placement *place, struct plan_input *in, struct err *err)
{
    if (!place->nvme_path)
        return 0;
    if (!volume_bytes(place, &in->limit[TIER_NVME])) {
        int rc = err_set(err, ERR_NOT_FOUND,
                         "the volume \"%s\" %s%s is not there; name another one in "
                         "placement.nvme_path or leave it out",
                         place->nvme_path, place->nvme_directory ? "at " : "",
                         place->nvme_directory ? place->nvme_directory : "");
        return err_set_param(err, rc, "placement.nvme_path");
    }
    if (place->nvme_limit > 0)
        in->limit[TIER_NVME] = (size_t)place->nvme_limit;
    return 0;
}

/* 0 = none. */
static void lower(struct plan_input *in, enum plan_tier tier, size_t limit, const char *part)
{
    if (limit == 0 || (in->limit[tier] > 0 && in->limit[tier] <= limit))
        return;
    in->limit[tier] = limit;
    in->part[tier] = part;
}

static void set_placement(const struct session *s, const struct session_memory *memory,
                          struct plan_input *in)
{
    const struct spec_placement *place = &s->spec.placement;

    in->limit[TIER_GPU] = memory->device;
    in->limit[TIER_HOST] = memory->host.bytes;
    in->part[TIER_HOST] = memory->host.part;
    if (s->device == DEVICE_CPU) {
        in->together = memory->host.bytes;
        in->together_part = memory->host.part;
        in->one_memory = place->gpu_memory_limit == 0;
        lower(in, TIER_GPU, memory->host.bytes, memory->host.part);
    }
    lower(in, TIER_GPU, (size_t)place->gpu_memory_limit, NULL);
    lower(in, TIER_HOST, (size_t)place->host_memory_limit, NULL);
    if (place->prefetch_depth > 0)
        in->force.prefetch = place->prefetch_depth;
}

void session_limits(const struct session *s, const struct session_memory *memory,
                    size_t out[TIER_COUNT])
{
    const struct spec_placement *place = &s->spec.placement;
    size_t volume = 0;

    out[TIER_GPU] = place->gpu_memory_limit > 0 ? memory->device : 0;
    out[TIER_HOST] = place->host_memory_limit > 0 ? memory->host.bytes : 0;
    out[TIER_NVME] = place->nvme_limit > 0 && volume_bytes(place, &volume) ? volume : 0;
}

static int64_t head_rows(const struct session *s)
{
    bool gpu = s->device == DEVICE_CUDA;
    int64_t rows = (gpu ? HEAD_LOGITS_GPU : HEAD_LOGITS_CPU) / s->model.config.vocab;
    if (rows > HEAD_ROWS_TILE)
        rows -= rows % HEAD_ROWS_TILE;
    return rows < 16 ? 16 : rows;
}

int session_plan_input(const struct session *s, const struct op_table *ops,
                       const struct device_profile *profile, const struct session_memory *memory,
                       struct plan_input *out, struct err *err)
{
    const struct spec_parallelism *par = &s->spec.parallelism;
    const struct auto_real *dropout = &s->spec.optimization.dropout;
    const struct decoder_config *c = &s->model.config;
    struct plan_input in = {.model = &s->model,
                            .ops = ops,
                            .profile = profile,
                            .policy = s->spec.placement.policy,
                            .clip = s->spec.optimization.max_grad_norm > 0 ||
                                    s->spec.precision.compute == COMPUTE_FP16,
                            .master = s->spec.precision.master,
                            .moments = s->spec.precision.optimizer_state,
                            .bf16_grads = s->spec.precision.gradients == STATE_BF16,
                            /* It is rounded where it is consumed: the same numbers. */
                            .bf16_alone = session_dtype(&s->spec) == DT_BF16,
                            .force = PLAN_CHOICES_AUTO,
                            .micro_batch = s->micro_batch,
                            .micro_batches = s->micro_batches,
                            .seq_length = s->seq_length,
                            .step_rows = s->spec.hyper.batch_size.value,
                            .head_rows = head_rows(s),
                            .fp8 = s->spec.precision.compute == COMPUTE_FP8,
                            .embed_dropout = c->embed_dropout,
                            .hidden_dropout = c->hidden_dropout,
                            .attn_dropout = c->attn_dropout};
    int64_t axes[AXIS_COUNT] = {par->tensor_size, 1,         1,
                                par->context,     par->data, par->pipeline_stages};
    int rc = 0;

    if (!dropout->is_auto) /* places where the family has none stay without */
        in.hidden_dropout = dropout->value;
    if (!dropout->is_auto && c->embed_dropout > 0)
        in.embed_dropout = dropout->value;
    if (!dropout->is_auto && c->attn_dropout > 0)
        in.attn_dropout = dropout->value;
    TRY(set_disk(&s->spec.placement, &in, err));
    set_placement(s, memory, &in);
    TRY(mesh_init(&in.mesh, axes, err));
    *out = in;
out:
    return rc;
}

int session_report(const struct session *s, const struct plan *plan, const char *device_kind,
                   const char *device_name, struct plan_report *out, struct err *err)
{
    struct plan_report r = {.parameters = s->model.n_params,
                            .trainable_parameters = s->spec.lora.enabled
                                                        ? s->model.adapters.n_params
                                                        : s->model.n_params,
                            .layers = s->model.config.layers,
                            .vocabulary = s->model.config.vocab,
                            .context_length = s->model.config.max_positions,
                            .steps = s->total_steps,
                            .steps_per_epoch = s->steps_per_epoch};
    struct dataset_stats stats;
    int rc = 0;

    TRY(copy_spec(&s->spec, &r.spec, err));
    snprintf(r.family, sizeof r.family, "%s", s->model.config.family);
    snprintf(r.device_kind, sizeof r.device_kind, "%s", device_kind);
    snprintf(r.device_name, sizeof r.device_name, "%s", device_name);
    dataset_get_stats(s->train, &stats);
    r.examples = stats.examples;
    r.tokens = stats.tokens;
    r.target_tokens = stats.target_tokens;
    r.rows = stats.rows;
    if (s->validation) {
        dataset_get_stats(s->validation, &stats);
        r.validation_examples = stats.examples;
        r.validation_tokens = stats.tokens;
    }
    TRY(plan_fill_report(plan, &r, err));
    *out = r;
    r = (struct plan_report){0};
out:
    plan_report_fini(&r);
    return rc;
}
