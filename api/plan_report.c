#include "api/plan_report.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "api/record.h"

enum { PLAN_MAX_NOTES = 64 };

static const char *const tier_words[] = {
    [TIER_GPU] = "gpu", [TIER_HOST] = "host", [TIER_NVME] = "nvme"};
static const char *const link_words[] = {
    [LINK_H2D] = "h2d",
    [LINK_D2H] = "d2h",
    [LINK_DISK_READ] = "disk_read",
    [LINK_DISK_WRITE] = "disk_write",
    [LINK_NETWORK] = "network",
};

const char *plan_tier_name(enum plan_tier t)
{
    return tier_words[t];
}

static const char *const basis_words[] = {"model", "measured", NULL};

#define AT(member) offsetof(struct plan_report, member)
#define COUNT_FIELD(path, member)                                                                  \
    {                                                                                              \
        path, RECORD_INT, AT(member), .min = 0, .max = 9007199254740992.0                          \
    }
#define TEXT_FIELD(path, member, cap)                                                              \
    {                                                                                              \
        path, RECORD_CHARS, AT(member), 0, 0, 0, NULL, cap                                         \
    }
#define REAL_FIELD(path, member)                                                                   \
    {                                                                                              \
        path, RECORD_REAL, AT(member), .initial = NAN                                              \
    }

static const struct record_field fields[] = {
    TEXT_FIELD("model.family", family, 32),
    COUNT_FIELD("model.parameters", parameters),
    COUNT_FIELD("model.trainable_parameters", trainable_parameters),
    COUNT_FIELD("model.layers", layers),
    COUNT_FIELD("model.vocabulary", vocabulary),
    COUNT_FIELD("model.context_length", context_length),
    COUNT_FIELD("data.examples", examples),
    COUNT_FIELD("data.tokens", tokens),
    COUNT_FIELD("data.target_tokens", target_tokens),
    COUNT_FIELD("data.rows", rows),
    COUNT_FIELD("data.validation_examples", validation_examples),
    COUNT_FIELD("data.validation_tokens", validation_tokens),
    COUNT_FIELD("steps", steps),
    COUNT_FIELD("steps_per_epoch", steps_per_epoch),
    TEXT_FIELD("device.kind", device_kind, 16),
    TEXT_FIELD("device.name", device_name, 64),
    COUNT_FIELD("instructions", instructions),
    REAL_FIELD("step_seconds", step_seconds),
    REAL_FIELD("step_seconds_bound", step_seconds_bound),
    REAL_FIELD("step_seconds_clipped", step_seconds_clipped),
    REAL_FIELD("step_seconds_clipped_bound", step_seconds_clipped_bound),
};

static const struct record_field tier_fields[] = {
#define TIER_FIELD(path, member)                                                                   \
    {                                                                                              \
        path, RECORD_INT, offsetof(struct plan_tier_memory, member), .min = 0,                     \
                                                                     .max = 9007199254740992.0     \
    }
    TIER_FIELD("weights", by_purpose[PURPOSE_WEIGHTS]),
    TIER_FIELD("gradients", by_purpose[PURPOSE_GRADIENTS]),
    TIER_FIELD("optimizer", by_purpose[PURPOSE_OPTIMIZER]),
    TIER_FIELD("activations", by_purpose[PURPOSE_ACTIVATIONS]),
    TIER_FIELD("workspace", by_purpose[PURPOSE_WORKSPACE]),
    TIER_FIELD("buffers", by_purpose[PURPOSE_BUFFERS]),
    TIER_FIELD("total", total),
    TIER_FIELD("limit", limit),
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static json_t *error_to_json(const struct err *e)
{
    json_t *object = json_object();

    json_object_set_new(object, "code", json_string(err_code_name(e->code)));
    json_object_set_new(object, "reason", *e->reason ? json_string(e->reason) : json_null());
    json_object_set_new(object, "message", json_string(e->msg));
    json_object_set_new(object, "param", *e->param ? json_string(e->param) : json_null());
    return object;
}

json_t *plan_report_to_json(const struct plan_report *r)
{
    json_t *object = json_object();
    json_t *memory, *links;

    json_object_set_new(object, "object", json_string("fine_tuning.plan"));
    json_object_set_new(object, "v", json_integer(1));
    json_object_set_new(object, "fits", json_boolean(r->fits));
    if (!r->fits) {
        json_object_set_new(object, "error", error_to_json(&r->error));
        json_object_set_new(object, "alternatives",
                            r->alternatives ? json_incref(r->alternatives) : json_array());
        return object;
    }
    json_object_set_new(object, "spec", job_spec_to_json(&r->spec));
    record_write(fields, COUNT(fields), r, object);
    memory = json_object();
    for (int t = 0; t < TIER_COUNT; t++) {
        json_t *tier = json_object();
        record_write(tier_fields, COUNT(tier_fields), &r->memory[t], tier);
        json_object_set_new(memory, tier_words[t], tier);
    }
    json_object_set_new(object, "memory", memory);
    links = json_object();
    for (int l = 0; l < LINK_COUNT; l++)
        json_object_set_new(links, link_words[l], json_integer(r->link_bytes[l]));
    json_object_set_new(object, "links", links);
    json_object_set_new(object, "basis", json_string(basis_words[r->measured]));
    json_object_set_new(object, "warnings", r->warnings ? json_incref(r->warnings) : json_array());
    json_object_set_new(object, "alternatives",
                        r->alternatives ? json_incref(r->alternatives) : json_array());
    return object;
}

static int read_error(const json_t *object, struct err *out, struct err *err)
{
    const json_t *error = json_object_get(object, "error");
    const char *message = json_string_value(json_object_get(error, "message"));
    const char *code = json_string_value(json_object_get(error, "code"));
    const char *reason = json_string_value(json_object_get(error, "reason"));
    const char *param = json_string_value(json_object_get(error, "param"));

    if (!message || !code)
        return err_set(err, ERR_INVALID,
                       "a plan that does not fit must carry error.code and .message");
    enum err_code known = err_code_from_name(code);
    err_clear(out);
    err_set(out, known == ERR_OK ? ERR_INTERNAL : known, "%s", message);
    err_set_reason(out, 0, reason ? reason : "");
    err_set_param(out, 0, param ? param : "");
    return 0;
}

/* An array of objects, or absent. Handed on to clients as it is, so its size is bounded. */
static int read_notes(const json_t *object, const char *key, json_t **out, struct err *err)
{
    json_t *array = json_object_get(object, key);
    const json_t *item;
    size_t i;

    if (!array || json_is_null(array))
        return 0;
    if (!json_is_array(array) || json_array_size(array) > PLAN_MAX_NOTES)
        return err_set(err, ERR_INVALID, "%s must be an array of at most %d objects", key,
                       PLAN_MAX_NOTES);
    json_array_foreach(array, i, item)
    {
        if (!json_is_object(item))
            return err_set(err, ERR_INVALID, "%s[%zu] must be an object", key, i);
    }
    *out = json_incref(array);
    return 0;
}

static int read_numbers(const json_t *value, struct plan_report *r, struct err *err)
{
    const json_t *memory = json_object_get(value, "memory");
    const json_t *links = json_object_get(value, "links");
    const char *basis = json_string_value(json_object_get(value, "basis"));
    int rc = 0;

    TRY(record_read(fields, COUNT(fields), value, r, err));
    for (int t = 0; t < TIER_COUNT; t++) {
        const json_t *tier = json_object_get(memory, tier_words[t]);
        if (!tier)
            continue;
        rc = record_read(tier_fields, COUNT(tier_fields), tier, &r->memory[t], err);
        if (rc != 0) {
            err_wrap(err, rc, "memory.%s", tier_words[t]);
            goto out;
        }
    }
    for (int l = 0; l < LINK_COUNT; l++) {
        const struct record_field field = {link_words[l], RECORD_INT, 0, .min = 0,
                                           .max = 9007199254740992.0};
        TRY(record_read_member(&field, links, "links", link_words[l], &r->link_bytes[l], err));
    }
    r->measured = basis && strcmp(basis, "measured") == 0;
out:
    return rc;
}

int plan_report_from_json(const json_t *value, struct plan_report *out, struct err *err)
{
    const char *object = json_string_value(json_object_get(value, "object"));
    const json_t *fits = json_object_get(value, "fits");
    struct plan_report r = {0};
    int rc = 0;

    if (!object || strcmp(object, "fine_tuning.plan") != 0 || !json_is_boolean(fits)) {
        rc = err_set(err, ERR_INVALID, "this is not a plan report: `object` or `fits` is missing");
        goto out;
    }
    r.fits = json_is_true(fits);
    if (!r.fits) {
        TRY(read_error(value, &r.error, err));
    } else {
        rc = job_spec_from_json(json_object_get(value, "spec"), &r.spec, err);
        if (rc != 0) {
            err_wrap(err, rc, "spec");
            goto out;
        }
        TRY(read_numbers(value, &r, err));
        TRY(read_notes(value, "warnings", &r.warnings, err));
    }
    TRY(read_notes(value, "alternatives", &r.alternatives, err));
    *out = r;
    return 0;
out:
    plan_report_fini(&r);
    return rc;
}

void plan_report_fini(struct plan_report *r)
{
    job_spec_fini(&r->spec);
    json_decref(r->warnings);
    json_decref(r->alternatives);
    memset(r, 0, sizeof(*r));
}
