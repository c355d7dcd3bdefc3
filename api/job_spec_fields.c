#include "api/job_spec_fields.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"

enum {
    PROMPT_MAX_BYTES = 32 * 1024,
    METADATA_MAX_PAIRS = 16,
    METADATA_MAX_KEY = 64,    /* characters */
    METADATA_MAX_VALUE = 512, /* characters */
};

static const char *const format_words[] = {"auto", "text", "prompt", "messages", "plain", NULL};
static const char *const loss_words[] = {"auto", "all", "assistant", NULL};
static const char *const schedule_words[] = {"constant", "linear", "cosine", NULL};
static const char *const compute_words[] = {"auto", "fp32", "bf16", "fp16", "fp8", NULL};
static const char *const master_words[] = {"fp32", "bf16", "split", NULL};
static const char *const state_words[] = {"fp32", "bf16", NULL};
static const char *const moment_words[] = {"fp32", "bf16", "fp8", NULL};
static const char *const tensor_words[] = {"1d", "2d", "2.5d", "3d", NULL};
static const char *const pipeline_words[] = {"1f1b", "gpipe", NULL};
static const char *const policy_words[] = {"auto", "cuda", "cpu", NULL};
static const char *const backend_words[] = {"local", "slurm", NULL};
static const char *const export_words[] = {"last", "best", NULL};
static const char *const quantize_words[] = {"none", "nf4", "int8", NULL};
static const char *const lora_export_words[] = {"adapter", "merged", "both", NULL};
static const char *const device_words[] = {"auto", "cpu", "gpu", NULL};

const char *placement_policy_name(enum placement_policy policy)
{
    return policy_words[policy];
}

const char *compute_dtype_name(enum compute_dtype dtype)
{
    return compute_words[dtype];
}

#define AT(member) offsetof(struct job_spec, member)
#define INT(path, member, lo, hi, start)                                                           \
    {                                                                                              \
        path, RECORD_INT, AT(member), lo, hi, start                                                \
    }
#define SIZE(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_SIZE, AT(member)                                                              \
    }
#define REAL(path, member, lo, hi, start, how)                                                     \
    {                                                                                              \
        path, RECORD_REAL, AT(member), lo, hi, start, .flags = (how)                               \
    }
#define BOOL(path, member, start)                                                                  \
    {                                                                                              \
        path, RECORD_BOOL, AT(member), .initial = start                                            \
    }
#define WORD(path, member, list, start)                                                            \
    {                                                                                              \
        path, RECORD_WORD, AT(member), .initial = start, .words = list                             \
    }
#define AUTO_INT(path, member, lo, hi)                                                             \
    {                                                                                              \
        path, RECORD_AUTO_INT, AT(member), lo, hi, NAN                                             \
    }
#define AUTO_REAL(path, member, lo, hi, how)                                                       \
    {                                                                                              \
        path, RECORD_AUTO_REAL, AT(member), lo, hi, NAN, .flags = (how)                            \
    }
#define NAME(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_NAME, AT(member), .flags = RECORD_SHOW_NULL                                   \
    }

#define TEXT(path, member)                                                                         \
    {                                                                                              \
        path, RECORD_STRING, AT(member), .flags = RECORD_SHOW_NULL                                 \
    }

#define HYPER "hyperparameters."
#define OPT   "optimization."
#define PAR   "parallelism."

enum { ABOVE = RECORD_ABOVE_MIN, BELOW = RECORD_BELOW_MAX };

/* clang-format off */
const struct record_field spec_fields[] = {
    NAME("suffix", suffix),
    INT("seed", seed, 0, 2147483647, 0),
    AUTO_INT(HYPER "n_epochs", hyper.n_epochs, 1, 50),
    AUTO_INT(HYPER "batch_size", hyper.batch_size, 1, 4096),
    AUTO_REAL(HYPER "learning_rate_multiplier", hyper.learning_rate_multiplier, 0, 1e6, ABOVE),

    WORD("dataset.format", dataset.format, format_words, DATA_AUTO),
    WORD("dataset.loss_on", dataset.loss_on, loss_words, LOSS_ON_AUTO),
    INT("dataset.max_seq_length", dataset.max_seq_length, 0, JOB_MAX_SEQ_LENGTH, 0),
    BOOL("dataset.packing", dataset.packing, true),
    INT("dataset.max_examples", dataset.max_examples, 0, 1e12, 0),
    INT("dataset.min_examples", dataset.min_examples, 0, 1e12, 10),
    TEXT("dataset.config", dataset.config),
    TEXT("dataset.split", dataset.split),
    TEXT("dataset.validation_split", dataset.validation_split),
    REAL("dataset.validation_fraction", dataset.validation_fraction, 0, 0.5, 0, 0),

    AUTO_REAL(OPT "learning_rate", optimization.learning_rate, 0, 10, ABOVE),
    REAL(OPT "beta1", optimization.beta1, 0, 1, 0.9, BELOW),
    REAL(OPT "beta2", optimization.beta2, 0, 1, 0.999, BELOW),
    REAL(OPT "epsilon", optimization.epsilon, 0, 1, 1e-8, ABOVE),
    REAL(OPT "weight_decay", optimization.weight_decay, 0, 100, 0, 0),
    WORD(OPT "schedule", optimization.schedule, schedule_words, LR_LINEAR),
    REAL(OPT "warmup_ratio", optimization.warmup_ratio, 0, 1, 0, 0),
    REAL(OPT "max_grad_norm", optimization.max_grad_norm, 0, 1e9, 1, 0),
    INT(OPT "max_steps", optimization.max_steps, 0, 1e9, 0),
    AUTO_INT(OPT "micro_batch_size", optimization.micro_batch_size, 1, 4096),
    INT(OPT "eval_interval", optimization.eval_interval, 0, 1e9, 0),
    INT(OPT "checkpoint_interval", optimization.checkpoint_interval, 0, 1e9, 0),
    INT(OPT "keep_checkpoints", optimization.keep_checkpoints, 1, 1000, 3),
    INT(OPT "early_stopping.patience", optimization.early_stopping.patience, 0, 1e6, 0),
    REAL(OPT "early_stopping.min_delta", optimization.early_stopping.min_delta, 0, 1e6, 0, 0),
    WORD(OPT "export", optimization.export, export_words, EXPORT_LAST),
    AUTO_REAL(OPT "dropout", optimization.dropout, 0, 1, BELOW),

    WORD("precision.compute", precision.compute, compute_words, COMPUTE_AUTO),
    WORD("precision.master", precision.master, master_words, MASTER_FP32),
    WORD("precision.gradients", precision.gradients, state_words, STATE_FP32),
    WORD("precision.optimizer_state", precision.optimizer_state, moment_words, MOMENTS_FP32),

    INT(PAR "data", parallelism.data, 1, 65536, 1),
    WORD(PAR "tensor.mode", parallelism.tensor_mode, tensor_words, TENSOR_1D),
    INT(PAR "tensor.size", parallelism.tensor_size, 1, 65536, 1),
    INT(PAR "tensor.depth", parallelism.tensor_depth, 1, 65536, 1),
    INT(PAR "pipeline.stages", parallelism.pipeline_stages, 1, 65536, 1),
    WORD(PAR "pipeline.schedule", parallelism.pipeline_schedule, pipeline_words, PIPELINE_1F1B),
    INT(PAR "context", parallelism.context, 1, 65536, 1),
    INT(PAR "zero", parallelism.zero, 0, 3, 0),

    WORD("placement.policy", placement.policy, policy_words, PLACE_AUTO),
    SIZE("placement.gpu_memory_limit", placement.gpu_memory_limit),
    SIZE("placement.host_memory_limit", placement.host_memory_limit),
    SIZE("placement.nvme_limit", placement.nvme_limit),
    NAME("placement.nvme_path", placement.nvme_path),
    INT("placement.prefetch_depth", placement.prefetch_depth, 0, 64, 0),

    WORD("resources.device", resources.device, device_words, DEVICE_AUTO),
    AUTO_INT("resources.gpus", resources.gpus, 1, 65536),
    INT("resources.nodes", resources.nodes, 1, 65536, 1),
    WORD("resources.backend", resources.backend, backend_words, BACKEND_LOCAL),

    INT("scheduling.priority", scheduling.priority, -100, 100, 0),
    INT("scheduling.max_runtime_seconds", scheduling.max_runtime_seconds, 0, 1e9, 0),
    INT("scheduling.max_restarts", scheduling.max_restarts, 0, 100, 0),

    INT("lora.rank", lora.rank, 1, 65536, 16),
    REAL("lora.alpha", lora.alpha, 0, 1e6, 32, ABOVE),
    REAL("lora.dropout", lora.dropout, 0, 1, 0, BELOW),
    BOOL("lora.rslora", lora.rslora, false),
    WORD("lora.quantize_base", lora.quantize_base, quantize_words, BASE_QUANTIZE_NONE),
    WORD("lora.export", lora.export, lora_export_words, LORA_EXPORT_ADAPTER),

    INT("sample_tokens", sample_tokens, 1, 4096, 64),
};
/* clang-format on */
const size_t spec_n_fields = sizeof(spec_fields) / sizeof(spec_fields[0]);
_Static_assert(sizeof(spec_fields) / sizeof(spec_fields[0]) <= SPEC_MAX_FIELDS,
               "spec_reader.seen is too short");

bool spec_path_is_within(const char *path, const char *group)
{
    size_t n = strlen(group);

    return n == 0 || (strncmp(path, group, n) == 0 && path[n] == '.');
}

static bool is_group(const char *path)
{
    for (size_t i = 0; i < spec_n_fields; i++)
        if (spec_path_is_within(spec_fields[i].path, path))
            return true;
    return false;
}

static void add_name(struct buf *names, const char *path, const char *prefix)
{
    size_t skip = *prefix ? strlen(prefix) + 1 : 0;
    char name[SPEC_PATH_CAP];
    const char *at;

    if (!spec_path_is_within(path, prefix))
        return;
    int n = snprintf(name, sizeof(name), "%.*s", (int)strcspn(path + skip, "."), path + skip);
    at = names->len > 0 ? strstr(names->data, name) : NULL;
    if (at && (at == names->data || at[-1] == ' ') && (at[n] == ',' || at[n] == '\0'))
        return;
    buf_printf(names, "%s%s", names->len > 0 ? ", " : "", name);
}

static void refuse_unknown(struct spec_reader *r, const char *prefix, const char *path)
{
    struct buf names = {0};

    for (const struct spec_special *s = r->specials; s->path; s++)
        add_name(&names, s->path, prefix);
    for (size_t i = 0; i < spec_n_fields; i++)
        add_name(&names, spec_fields[i].path, prefix);
    fault_add(r->faults, path, "unknown_parameter", "Unknown parameter: '%s'. Known here: %s.",
              path, buf_str(&names));
    buf_fini(&names);
}

static void read_field(struct spec_reader *r, size_t i, const json_t *object, const char *path,
                       const char *key)
{
    struct err err = {0};

    r->seen[i] = true;
    if (record_read_member(&spec_fields[i], object, path, key, r->spec, &err) != 0)
        fault_add(r->faults, err.param, err.reason, "%s", err.msg);
}

static const struct spec_special *find_special(const struct spec_reader *r, const char *path)
{
    for (const struct spec_special *s = r->specials; s->path; s++)
        if (strcmp(s->path, path) == 0)
            return s;
    return NULL;
}

static void read_member(struct spec_reader *r, const json_t *object, const char *key,
                        const char *prefix, const char *path)
{
    const json_t *value = json_object_get(object, key);
    char in_table[SPEC_PATH_CAP], full[SPEC_PATH_CAP];
    const struct spec_special *special;

    int n = snprintf(in_table, sizeof(in_table), "%s%s%s", prefix, *prefix ? "." : "", key);
    snprintf(full, sizeof(full), "%s%s%s", path, *path ? "." : "", key);
    if (n >= (int)sizeof(in_table) || strchr(key, '.')) {
        refuse_unknown(r, prefix, full);
        return;
    }
    special = find_special(r, in_table);
    if (special) {
        if (!json_is_null(value))
            special->read(r, value, full);
        return;
    }
    for (size_t i = 0; i < spec_n_fields; i++) {
        if (strcmp(spec_fields[i].path, in_table) != 0)
            continue;
        if (!json_is_null(value))
            read_field(r, i, object, path, key);
        return;
    }
    if (is_group(in_table)) {
        if (!json_is_null(value))
            spec_read_members(r, value, in_table, full);
        return;
    }
    refuse_unknown(r, prefix, full);
}

void spec_read_members(struct spec_reader *r, const json_t *object, const char *prefix,
                       const char *path)
{
    const char *key;
    json_t *value;

    if (!json_is_object(object)) {
        fault_add(r->faults, path, "invalid_type", "%s must be an object",
                  *path ? path : "the body");
        return;
    }
    json_object_foreach((json_t *)object, key, value)
    {
        read_member(r, object, key, prefix, path);
    }
}

const char *spec_read_text(struct spec_reader *r, const json_t *value, const char *path)
{
    if (json_is_string(value))
        return json_string_value(value);
    fault_add(r->faults, path, "invalid_type", "%s must be a string", path);
    return NULL;
}

/* Characters of a UTF-8 text. */
static size_t count_characters(const char *text)
{
    size_t n = 0;

    for (; *text; text++)
        n += ((unsigned char)*text & 0xC0) != 0x80;
    return n;
}

void spec_read_metadata(struct spec_reader *r, const json_t *value, const char *path)
{
    int64_t faults_before = r->faults->n_found;
    const char *key;
    json_t *item;

    if (!json_is_object(value)) {
        fault_add(r->faults, path, "invalid_type", "%s must be an object of strings", path);
        return;
    }
    if (json_object_size(value) > METADATA_MAX_PAIRS)
        fault_add(r->faults, path, "invalid_value", "%s may have at most %d pairs, not %zu", path,
                  METADATA_MAX_PAIRS, json_object_size(value));
    json_object_foreach((json_t *)value, key, item)
    {
        char full[SPEC_PATH_CAP];

        snprintf(full, sizeof(full), "%s.%s", path, key);
        if (count_characters(key) > METADATA_MAX_KEY)
            fault_add(r->faults, full, "invalid_value", "a key of %s is longer than %d characters",
                      path, METADATA_MAX_KEY);
        if (!json_is_string(item))
            fault_add(r->faults, full, "invalid_type", "%s must be a string", full);
        else if (count_characters(json_string_value(item)) > METADATA_MAX_VALUE)
            fault_add(r->faults, full, "invalid_value", "%s is longer than %d characters", full,
                      METADATA_MAX_VALUE);
    }
    if (r->faults->n_found != faults_before)
        return;
    json_decref(r->spec->metadata);
    r->spec->metadata = json_deep_copy(value);
}

const char *const example_members[] = {"text",     "prompt",        "completion", "instruction",
                                       "input",    "output",        "system",     "history",
                                       "messages", "conversations", "tools",      NULL};

void spec_read_column_mapping(struct spec_reader *r, const json_t *value, const char *path)
{
    int64_t faults_before = r->faults->n_found;
    struct buf known = {0};
    const char *key;
    json_t *item;

    if (!json_is_object(value) || json_object_size(value) == 0) {
        fault_add(r->faults, path, "invalid_type",
                  "%s must be an object like {\"prompt\": \"question\", \"completion\": "
                  "\"answer\"}",
                  path);
        return;
    }
    for (int i = 0; example_members[i]; i++)
        buf_printf(&known, "%s%s", i ? ", " : "", example_members[i]);
    json_object_foreach((json_t *)value, key, item)
    {
        char full[SPEC_PATH_CAP];

        snprintf(full, sizeof(full), "%s.%s", path, key);
        if (record_word_index(example_members, key) < 0)
            fault_add(r->faults, full, "unknown_parameter",
                      "Unknown parameter: '%s'. Known here: %s.", full, buf_str(&known));
        else if (!json_is_string(item) || json_string_length(item) == 0 ||
                 json_string_length(item) > METADATA_MAX_VALUE)
            fault_add(r->faults, full, "invalid_type",
                      "%s must be the name of a column, a string of 1 to %d bytes", full,
                      METADATA_MAX_VALUE);
    }
    buf_fini(&known);
    if (r->faults->n_found != faults_before)
        return;
    json_decref(r->spec->dataset.column_mapping);
    r->spec->dataset.column_mapping = json_deep_copy(value);
}

void spec_read_parallelism(struct spec_reader *r, const json_t *value, const char *path)
{
    if (json_is_string(value)) {
        if (strcmp(json_string_value(value), "auto") != 0)
            fault_add(r->faults, path, "invalid_value", "%s must be \"auto\" or an object", path);
        return;
    }
    r->spec->parallelism.is_auto = false;
    spec_read_members(r, value, "parallelism", path);
}

void spec_read_lora(struct spec_reader *r, const json_t *value, const char *path)
{
    r->spec->lora.enabled = true;
    spec_read_members(r, value, "lora", path);
}

void spec_read_target_modules(struct spec_reader *r, const json_t *value, const char *path)
{
    struct spec_lora *lora = &r->spec->lora;
    const char *word = json_string_value(value);
    const json_t *item;
    size_t i;

    if (word && strcmp(word, "auto") == 0)
        return;
    if (word && strcmp(word, "all-linear") == 0) {
        lora->target_modules = xcalloc(1, sizeof(char *));
        lora->target_modules[lora->n_target_modules++] = xstrdup(word);
        return;
    }
    if (!json_is_array(value) || json_array_size(value) == 0 ||
        json_array_size(value) > SPEC_MAX_TARGET_MODULES) {
        fault_add(r->faults, path, "invalid_value",
                  "%s must be \"auto\", \"all-linear\" or a list of 1 to %d module names", path,
                  SPEC_MAX_TARGET_MODULES);
        return;
    }
    lora->target_modules = xcalloc(json_array_size(value), sizeof(char *));
    json_array_foreach(value, i, item)
    {
        char full[SPEC_PATH_CAP];

        snprintf(full, sizeof(full), "%s[%zu]", path, i);
        const char *text = spec_read_text(r, item, full);
        if (text && (strlen(text) == 0 || strlen(text) > 256))
            fault_add(r->faults, full, "invalid_value", "%s must have 1 to 256 bytes", full);
        else if (text)
            lora->target_modules[lora->n_target_modules++] = xstrdup(text);
    }
}

void spec_read_sample_prompts(struct spec_reader *r, const json_t *value, const char *path)
{
    const json_t *item;
    size_t i;

    if (!json_is_array(value) || json_array_size(value) > JOB_MAX_SAMPLE_PROMPTS) {
        fault_add(r->faults, path, json_is_array(value) ? "invalid_value" : "invalid_type",
                  "%s must be a list of at most %d strings", path, JOB_MAX_SAMPLE_PROMPTS);
        return;
    }
    json_array_foreach(value, i, item)
    {
        char full[SPEC_PATH_CAP];

        snprintf(full, sizeof(full), "%s[%zu]", path, i);
        const char *text = spec_read_text(r, item, full);
        if (text && strlen(text) > PROMPT_MAX_BYTES)
            fault_add(r->faults, full, "invalid_value", "%s is longer than %d bytes", full,
                      PROMPT_MAX_BYTES);
        else if (text)
            r->spec->sample_prompts[r->spec->n_sample_prompts++] = xstrdup(text);
    }
}
