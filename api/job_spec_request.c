/*
 * The request form: OpenAI's create body and Castor's extensions, read along the table of fields.
 * After reading, rules over several members are checked, then what this build cannot do.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/capability.h"
#include "api/hub_endpoint.h"
#include "api/job_spec.h"
#include "api/job_spec_fields.h"
#include "core/alloc.h"
#include "core/hash.h"

enum { TOKEN_MAX = 1024, PART_MAX = 128 };

/* What one request carries besides the spec. */
struct request {
    const json_t *hyper;     /* method.supervised.hyperparameters, borrowed */
    const json_t *old_hyper; /* hyperparameters                             */
    bool *dry_run;
};

static void read_model(struct spec_reader *r, const json_t *value, const char *path)
{
    const char *text = spec_read_text(r, value, path);
    char why[160];

    if (!text)
        return;
    if (strncmp(text, "ft:", 3) == 0 || strncmp(text, "ftckpt_", 7) == 0)
        r->spec->model.name = xstrdup(text);
    else if (!spec_parse_model(text, &r->spec->model, why, sizeof(why)))
        fault_add(r->faults, path, "invalid_value",
                  "%s: %s. Write \"organization/name\", optionally with \"@revision\"", path, why);
}

static void read_hub(struct spec_reader *r, const json_t *value, const char *path)
{
    spec_read_members(r, value, "hub", path);
}

static void read_endpoint(struct spec_reader *r, const json_t *value, const char *path)
{
    const char *text = spec_read_text(r, value, path);
    struct err err = {0};

    if (text && hub_endpoint_canonical(text, &r->spec->hub.endpoint, &err) != 0)
        fault_add(r->faults, path, "invalid_value", "%s: %s", path, err.msg);
}

/* What it is never appears in a fault. */
static void read_token(struct spec_reader *r, const json_t *value, const char *path)
{
    const char *text = spec_read_text(r, value, path);
    size_t n = text ? json_string_length(value) : 0;
    bool ok = n > 0 && n <= TOKEN_MAX && strlen(text) == n;

    if (!text)
        return;
    for (const char *p = text; ok && *p; p++)
        ok = (unsigned char)*p > ' ' && (unsigned char)*p < 0x7F;
    if (!ok) {
        fault_add(r->faults, path, "invalid_value",
                  "%s must be a hub's access token: 1 to %d characters of ASCII without spaces",
                  path, TOKEN_MAX);
        return;
    }
    r->spec->hub.token = xstrdup(text);
    r->spec->hub.has_token = true;
}

static bool is_file_id(const char *id)
{
    const char *rest = id + 5;
    size_t n;

    if (strncmp(id, "file-", 5) != 0)
        return false;
    n = strspn(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-");
    return n >= 1 && n <= 64 && rest[n] == '\0';
}

static void read_file(struct spec_reader *r, const json_t *value, const char *path,
                      struct spec_file *out)
{
    const char *text = spec_read_text(r, value, path);
    char why[160];

    if (!text)
        return;
    if (is_file_id(text))
        out->id = xstrdup(text);
    else if (strncmp(text, "hf://", 5) != 0)
        fault_add(r->faults, path, "invalid_value",
                  "%s must be the id of an uploaded file (\"file-...\") or a data set on the hub "
                  "(\"hf://datasets/organization/name\")",
                  path);
    else if (!spec_file_parse(text, out, why, sizeof(why)))
        fault_add(r->faults, path, "invalid_value",
                  "%s: %s. Write \"hf://datasets/organization/name[@revision][/path]\"", path, why);
}

static void read_training_file(struct spec_reader *r, const json_t *value, const char *path)
{
    read_file(r, value, path, &r->spec->training_file);
}

static void read_validation_file(struct spec_reader *r, const json_t *value, const char *path)
{
    read_file(r, value, path, &r->spec->validation_file);
}

static void read_dry_run(struct spec_reader *r, const json_t *value, const char *path)
{
    struct request *request = r->ud;

    if (!json_is_boolean(value))
        fault_add(r->faults, path, "invalid_type", "%s must be true or false", path);
    else if (request->dry_run)
        *request->dry_run = json_is_true(value);
}

/* Nothing is done with it yet: capability_check refuses whatever it says. */
static void read_nothing(struct spec_reader *r, const json_t *value, const char *path)
{
}

static void read_old_hyper(struct spec_reader *r, const json_t *value, const char *path)
{
    struct request *request = r->ud;

    (void)path;
    request->old_hyper = value;
}

/* method: {"type": T, T: {"hyperparameters": {...}}} */
static void read_method(struct spec_reader *r, const json_t *value, const char *path)
{
    static const char *const types[] = {"supervised", "dpo", "reinforcement", NULL};
    const char *type = json_string_value(json_object_get(value, "type"));
    struct request *request = r->ud;
    const char *key;
    json_t *member;

    if (!json_is_object(value)) {
        fault_add(r->faults, path, "invalid_type", "%s must be an object", path);
        return;
    }
    if (!type || record_word_index(types, type) < 0) {
        fault_add(r->faults, "method.type", type ? "invalid_value" : "missing_required_parameter",
                  "method.type must be \"supervised\" (or, not supported yet, \"dpo\" or "
                  "\"reinforcement\")");
        return;
    }
    if (strcmp(type, "supervised") != 0)
        return; /* capability_check refuses it; its members have rules of their own */
    json_object_foreach((json_t *)value, key, member)
    {
        char full[SPEC_PATH_CAP];

        snprintf(full, sizeof(full), "method.%s", key);
        if (strcmp(key, "type") != 0 && strcmp(key, "supervised") != 0)
            fault_add(r->faults, full, "unknown_parameter",
                      "Unknown parameter: '%s'. Known here: type, supervised.", full);
    }
    value = json_object_get(value, "supervised");
    if (!value || json_is_null(value))
        return;
    if (!json_is_object(value)) {
        fault_add(r->faults, "method.supervised", "invalid_type",
                  "method.supervised must be an object");
        return;
    }
    json_object_foreach((json_t *)value, key, member)
    {
        char full[SPEC_PATH_CAP];

        snprintf(full, sizeof(full), "method.supervised.%s", key);
        if (strcmp(key, "hyperparameters") != 0)
            fault_add(r->faults, full, "unknown_parameter",
                      "Unknown parameter: '%s'. Known here: hyperparameters.", full);
        else if (!json_is_null(member))
            request->hyper = member;
    }
}

static const struct spec_special specials[] = {
    {"model", read_model},
    {"training_file", read_training_file},
    {"validation_file", read_validation_file},
    {"method", read_method},
    {"hyperparameters", read_old_hyper},
    {"metadata", spec_read_metadata},
    {"dataset.column_mapping", spec_read_column_mapping},
    {"integrations", read_nothing},
    {"webhook", read_nothing},
    {"parallelism", spec_read_parallelism},
    {"hub", read_hub},
    {"hub.endpoint", read_endpoint},
    {"hub.token", read_token},
    {"lora", spec_read_lora},
    {"lora.target_modules", spec_read_target_modules},
    {"sample_prompts", spec_read_sample_prompts},
    {"dry_run", read_dry_run},
    {NULL, NULL},
};

/* Both places may name hyperparameters; where both name the same one, the values must agree. */
static void read_hyper(struct spec_reader *r, const struct request *request)
{
    static const char *const group = "hyperparameters";
    struct job_spec old;
    struct spec_reader old_reader = {.spec = &old, .faults = r->faults, .specials = r->specials};
    json_t *mine, *theirs;

    job_spec_init(&old);
    if (request->old_hyper)
        spec_read_members(&old_reader, request->old_hyper, group, group);
    if (request->hyper)
        spec_read_members(r, request->hyper, group, "method.supervised.hyperparameters");
    mine = json_object();
    theirs = json_object();
    record_write(spec_fields, spec_n_fields, r->spec, mine);
    record_write(spec_fields, spec_n_fields, &old, theirs);
    for (size_t i = 0; i < spec_n_fields; i++) {
        const char *path = spec_fields[i].path;
        if (!old_reader.seen[i] || !spec_path_is_within(path, group))
            continue;
        if (!r->seen[i])
            record_read_member(&spec_fields[i], json_object_get(theirs, group), group,
                               path + strlen(group) + 1, r->spec, NULL);
        else if (!json_equal(record_lookup(mine, path), record_lookup(theirs, path)))
            fault_add(r->faults, path, "conflicting_parameters",
                      "%s and method.supervised.%s differ; give one of them", path, path);
    }
    json_decref(mine);
    json_decref(theirs);
    job_spec_fini(&old);
}

/* The ranks of each layout: 2d is a square, 2.5d is depth squares, 3d a cube. */
static void check_tensor(const struct spec_parallelism *p, struct fault_list *faults)
{
    int64_t root = 1;

    switch (p->tensor_mode) {
    case TENSOR_1D:
        return;
    case TENSOR_2D:
    case TENSOR_2P5D: {
        int64_t depth = p->tensor_mode == TENSOR_2P5D ? p->tensor_depth : 1;
        while (root * root * depth < p->tensor_size)
            root++;
        if (root * root * depth != p->tensor_size)
            fault_add(faults, "parallelism.tensor.size", "invalid_parallelism",
                      "parallelism.tensor.size must be depth x q x q for this mode, with depth "
                      "%" PRId64 "; %" PRId64 " is the next larger one",
                      depth, root * root * depth);
        return;
    }
    case TENSOR_3D:
        while (root * root * root < p->tensor_size)
            root++;
        if (root * root * root != p->tensor_size)
            fault_add(faults, "parallelism.tensor.size", "invalid_parallelism",
                      "parallelism.tensor.size must be a cube for mode 3d; %" PRId64
                      " is the next larger one",
                      root * root * root);
    }
}

/* A member that says which part of a data set on the hub: `on_hub`, whether there is one. */
static void check_part(struct spec_reader *r, const char *path, const char *value, bool on_hub)
{
    bool ok = true;

    if (!value)
        return;
    for (const char *p = value; ok && *p; p++)
        ok = (unsigned char)*p >= ' ' && *p != 0x7F && *p != '/';
    if (!*value || strlen(value) > PART_MAX || !ok)
        fault_add(r->faults, path, "invalid_value",
                  "%s must be a name of 1 to %d bytes, as the data set's page has it", path,
                  PART_MAX);
    else if (!on_hub)
        fault_add(r->faults, path, "conflicting_parameters",
                  "%s is for data sets on the hub (\"hf://datasets/...\"); an uploaded file has no "
                  "parts",
                  path);
}

static void check_data(struct spec_reader *r)
{
    const struct spec_dataset *d = &r->spec->dataset;
    const struct spec_file *validation = &r->spec->validation_file;
    bool train_on_hub = r->spec->training_file.repo != NULL;

    check_part(r, "dataset.config", d->config, train_on_hub || validation->repo);
    check_part(r, "dataset.split", d->split, train_on_hub);
    check_part(r, "dataset.validation_split", d->validation_split,
               validation->id ? validation->repo != NULL : train_on_hub);
    if (validation->id && d->validation_fraction > 0)
        fault_add(r->faults, "dataset.validation_fraction", "conflicting_parameters",
                  "dataset.validation_fraction and validation_file exclude each other; give one");
    else if (d->validation_split && d->validation_fraction > 0)
        fault_add(r->faults, "dataset.validation_fraction", "conflicting_parameters",
                  "dataset.validation_fraction and dataset.validation_split exclude each other; "
                  "give one");
}

static void check_rules(struct spec_reader *r, const json_t *body)
{
    const struct spec_parallelism *p = &r->spec->parallelism;
    const struct auto_int *gpus = &r->spec->resources.gpus;
    static const char *const required[] = {"model", "training_file"};

    for (size_t i = 0; i < sizeof(required) / sizeof(required[0]); i++) {
        const json_t *value = json_object_get(body, required[i]);
        if (!value || json_is_null(value))
            fault_add(r->faults, required[i], "missing_required_parameter",
                      "Missing required parameter: '%s'.", required[i]);
    }
    check_data(r);
    if (r->spec->dataset.max_examples > 0 &&
        r->spec->dataset.max_examples < r->spec->dataset.min_examples)
        fault_add(r->faults, "dataset.max_examples", "conflicting_parameters",
                  "dataset.max_examples must be 0 or at least dataset.min_examples, which is "
                  "%" PRId64,
                  r->spec->dataset.min_examples);
    if (r->spec->dataset.max_seq_length == 1)
        fault_add(r->faults, "dataset.max_seq_length", "invalid_value",
                  "dataset.max_seq_length must be 0 (automatic) or at least 2");
    if (r->spec->placement.nvme_limit > 0 && !r->spec->placement.nvme_path)
        fault_add(r->faults, "placement.nvme_path", "missing_required_parameter",
                  "placement.nvme_limit needs placement.nvme_path: the name of a volume");
    if (p->is_auto)
        return;
    check_tensor(p, r->faults);
    int64_t ranks; /* each factor is at most 2^16 */
    if (__builtin_mul_overflow(p->data * p->tensor_size, p->pipeline_stages * p->context, &ranks))
        ranks = INT64_MAX;
    if (!gpus->is_auto && ranks != gpus->value)
        fault_add(r->faults, "parallelism", "invalid_parallelism",
                  "parallelism needs %" PRId64 " ranks (data x tensor.size x pipeline.stages x "
                  "context), but resources.gpus is %" PRId64,
                  ranks, gpus->value);
}

static int64_t draw_seed(void)
{
    char hex[9];

    hash_random_hex(hex, 4);
    return (int64_t)(strtoul(hex, NULL, 16) & 0x7fffffff);
}

int job_spec_from_request(const json_t *body, struct job_spec *spec, bool *dry_run,
                          struct fault_list *faults)
{
    struct job_spec fresh;
    struct request request = {.dry_run = dry_run};
    struct spec_reader reader = {
        .spec = &fresh, .faults = faults, .specials = specials, .ud = &request};

    job_spec_init(&fresh);
    fresh.seed = draw_seed();
    spec_read_members(&reader, body, "", "");
    read_hyper(&reader, &request);
    check_rules(&reader, body);
    json_t *stored = job_spec_to_json(&fresh);
    capability_check(stored, body, faults);
    json_decref(stored);
    if (faults->n_found > 0) {
        job_spec_fini(&fresh);
        return ERR_INVALID;
    }
    *spec = fresh;
    return 0;
}
