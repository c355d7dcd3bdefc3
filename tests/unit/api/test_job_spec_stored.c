/* The stored form of a job: there and back, strict, and as an older release left it. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_spec.h"
#include "core/alloc.h"
#include "tests/unit/api/request.h"

static void fill(struct job_spec *spec)
{
    struct fault_list faults = {0};

    cr_assert(
        request_read(",\"validation_file\":\"file-b\",\"suffix\":\"s\",\"metadata\":{\"k\":\"v\"},"
                     "\"parallelism\":{\"data\":1},\"sample_prompts\":[\"p\"],"
                     "\"optimization\":{\"learning_rate\":0.1}",
                     spec, &faults) == 0);
    snprintf(spec->id, sizeof(spec->id), "ftjob-1");
    spec->created_at = 1763848337.5;
    spec->resolved = true;
    spec->model.commit = xstrdup("0123456789012345678901234567890123456789");
    spec->training_file.path = xstrdup("/x/y");
    spec->validation_file.path = xstrdup("/x/z");
    spec->training_file.filename = xstrdup("d\xc3\xa4ta.jsonl");
    spec->training_file.bytes = 123;
    spec->lora.enabled = true;
    spec->lora.quantize_base = BASE_QUANTIZE_INT8;
    spec->lora.target_modules = xcalloc(2, sizeof(char *));
    spec->lora.target_modules[0] = xstrdup("q_proj");
    spec->lora.n_target_modules = 1;
}

Test(job_spec_stored, stored_form_round_trips)
{
    struct job_spec spec = {0}, back = {0}, copy;
    struct err err = {0};
    char path[] = "/tmp/castor-spec-XXXXXX";

    fill(&spec);
    json_t *first = job_spec_to_json(&spec);
    cr_assert(job_spec_from_json(first, &back, &err) == 0, "%s", err.msg);
    json_t *second = job_spec_to_json(&back);
    cr_assert(json_equal(first, second));
    cr_assert_str_eq(back.lora.target_modules[0], "q_proj");
    cr_assert(back.lora.quantize_base == BASE_QUANTIZE_INT8);
    job_spec_copy(&copy, &back);
    job_spec_fini(&back);
    json_t *third = job_spec_to_json(&copy);
    cr_assert(json_equal(first, third));

    cr_assert(mkstemp(path) >= 0);
    cr_assert(job_spec_save(path, &copy, &err) == 0, "%s", err.msg);
    cr_assert(job_spec_load(path, &back, &err) == 0, "%s", err.msg);
    json_t *fourth = job_spec_to_json(&back);
    cr_assert(json_equal(first, fourth));
    remove(path);
    json_decref(first);
    json_decref(second);
    json_decref(third);
    json_decref(fourth);
    job_spec_fini(&spec);
    job_spec_fini(&back);
    job_spec_fini(&copy);
    job_spec_fini(&copy); /* idempotent */
}

/* Each member replaced by something odd, or one too many, must be an error. */
static void mangle(json_t *root, json_t *object, int depth)
{
    const char *key;
    json_t *value;
    json_t *members = json_copy(object); /* iterated while object changes */

    json_object_foreach(members, key, value)
    {
        struct job_spec spec = {0};
        struct err err = {0};

        json_object_set_new(object, key, json_pack("[f]", 1.5));
        cr_assert(job_spec_from_json(root, &spec, &err) != 0, "with a bad %s", key);
        json_object_set(object, key, value);
        if (json_is_object(value) && depth < 4)
            mangle(root, value, depth + 1);
    }
    json_decref(members);
    if (!json_object_get(object, "k")) {
        struct job_spec spec = {0};
        json_object_set_new(object, "surplus", json_true());
        cr_assert(job_spec_from_json(root, &spec, NULL) != 0, "surplus member at depth %d", depth);
        json_object_del(object, "surplus");
    }
}

Test(job_spec_stored, stored_form_is_read_strictly)
{
    struct job_spec spec = {0}, back = {0};
    struct err err = {0};

    fill(&spec);
    json_t *stored = job_spec_to_json(&spec);
    mangle(stored, stored, 0);
    cr_assert(job_spec_from_json(stored, &back, &err) == 0, "%s", err.msg);
    job_spec_fini(&back);
    json_decref(stored);
    stored = json_string("x");
    cr_assert(job_spec_from_json(stored, &back, &err) == ERR_INVALID);
    json_decref(stored);
    memset(&err, 0, sizeof(err));
    cr_assert(job_spec_load("/nonexistent/spec.json", &back, &err) == ERR_NOT_FOUND);
    job_spec_fini(&spec);
}

/* A job with every member other than its default, a member of a choice left out with the rest. */
static json_t *unusual_job(void)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};

    fill(&spec);
    json_t *stored = job_spec_to_json(&spec);
    job_spec_fini(&spec);
    cr_assert(request_read(",\"hyperparameters\":{\"n_epochs\":3,\"batch_size\":2},"
                           "\"dataset\":{\"packing\":false,\"min_examples\":1},"
                           "\"optimization\":{\"beta1\":0.5,\"beta2\":0.5,\"epsilon\":1e-3,"
                           "\"schedule\":\"cosine\",\"max_grad_norm\":3,\"keep_checkpoints\":9,"
                           "\"export\":\"best\",\"early_stopping\":{\"patience\":4}},"
                           "\"placement\":{\"policy\":\"cpu\"},\"sample_tokens\":5",
                           &spec, &faults) == 0,
              "%s", faults.n ? faults.items[0].message : "");
    json_t *more = job_spec_to_json(&spec);
    const char *const groups[] = {"hyperparameters", "dataset", "optimization", "placement",
                                  "sample_tokens"};
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
        json_object_set(stored, groups[i], json_object_get(more, groups[i]));
    json_decref(more);
    job_spec_fini(&spec);
    return stored;
}

/* Each member of `object`, a part of root, removed in turn: reads as if it had its default there.
 * Returns how many had another. */
static int remove_each(json_t *root, json_t *object, const json_t *defaults, int depth)
{
    json_t *members = json_copy(object), *value; /* iterated while object changes */
    const char *key;
    int changed = 0;

    json_object_foreach(members, key, value)
    {
        struct job_spec spec = {0};
        struct err err = {0};
        json_t *initial = json_object_get(defaults, key);
        bool choice = depth == 0 && (!strcmp(key, "lora") || !strcmp(key, "parallelism"));

        if (depth == 0 && (!strcmp(key, "v") || !strcmp(key, "id") || !strcmp(key, "created_at")))
            continue;
        json_object_del(object, key);
        cr_assert(job_spec_from_json(root, &spec, &err) == 0, "without %s: %s", key, err.msg);
        json_t *got = job_spec_to_json(&spec);
        if (choice)
            json_object_set_new(object, key, *key == 'l' ? json_null() : json_string("auto"));
        else if (initial)
            json_object_set(object, key, initial);
        cr_assert(json_equal(root, got), "without %s", key);
        changed += !json_equal(json_object_get(object, key), value);
        json_object_set(object, key, value);
        json_decref(got);
        job_spec_fini(&spec);
        if (json_is_object(value))
            changed += remove_each(root, value, initial, depth + 1);
    }
    json_decref(members);
    return changed;
}

/* As a release before the member has written it. */
Test(job_spec_stored, a_member_missing_in_the_stored_form_has_its_default)
{
    struct job_spec spec;
    json_t *stored = unusual_job();

    job_spec_init(&spec);
    spec.lora.enabled = true;
    spec.parallelism.is_auto = false;
    json_t *defaults = job_spec_to_json(&spec);
    cr_assert_geq(remove_each(stored, stored, defaults, 0), 40);
    json_decref(defaults);
    job_spec_fini(&spec);
    for (int i = 0; i < 3; i++) {
        const char *const needed[] = {"v", "id", "created_at"};
        json_t *value = json_incref(json_object_get(stored, needed[i]));
        json_object_del(stored, needed[i]);
        cr_assert(job_spec_from_json(stored, &spec, NULL) != 0, "without %s", needed[i]);
        json_object_set_new(stored, needed[i], value);
    }
    json_decref(stored);
}

/* Whoever runs the job would have nothing to look for. */
Test(job_spec_stored, a_job_directory_says_where_model_and_data_are)
{
    struct job_spec spec = {0}, back = {0};
    struct err err = {0};
    char path[] = "/tmp/castor-spec-XXXXXX";

    fill(&spec);
    free(spec.model.path);
    free(spec.model.repo);
    spec.model.path = spec.model.repo = NULL;
    cr_assert(mkstemp(path) >= 0);
    cr_assert(job_spec_save(path, &spec, &err) == 0, "%s", err.msg);
    cr_expect(job_spec_load(path, &back, &err) == ERR_INVALID);
    cr_expect_str_eq(err.param, "base_model");
    cr_expect_not_null(strstr(err.msg, path), "%s", err.msg);
    spec.model.path = xstrdup("/data/model");
    free(spec.validation_file.path);
    spec.validation_file.path = NULL;
    spec.validation_file.repo = xstrdup("org/data");
    cr_assert(job_spec_save(path, &spec, NULL) == 0);
    err_clear(&err);
    cr_expect(job_spec_load(path, &back, &err) == ERR_INVALID);
    cr_expect_str_eq(err.param, "validation_file");
    spec.validation_file.revision = xstrdup("main");
    cr_assert(job_spec_save(path, &spec, NULL) == 0);
    cr_expect(job_spec_load(path, &back, &err) == 0, "%s", err.msg);
    job_spec_fini(&back);
    free(spec.training_file.path);
    spec.training_file.path = NULL;
    cr_assert(job_spec_save(path, &spec, NULL) == 0);
    err_clear(&err);
    cr_expect(job_spec_load(path, &back, &err) == ERR_INVALID);
    cr_expect_str_eq(err.param, "training_file");
    remove(path);
    job_spec_fini(&spec);
    job_spec_fini(&back);
}
