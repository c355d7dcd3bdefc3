#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_spec.h"
#include "core/buf.h"
#include "core/json.h"
#include "tests/unit/api/request.h"

/* `more` is refused with exactly one fault, of this param and code. */
static void refused(const char *more, const char *param, const char *code)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};

    cr_assert(request_read(more, &spec, &faults) == ERR_INVALID, "accepted: %s", more);
    cr_assert(faults.n == 1, "%s gives %ld faults, the second: %s", more, (long)faults.n,
              faults.items[1].message);
    cr_assert_str_eq(faults.items[0].param, param, "%s: param %s", more, faults.items[0].param);
    cr_assert_str_eq(faults.items[0].code, code, "%s: code %s", more, faults.items[0].code);
    cr_assert(strlen(faults.items[0].message) > 10);
    cr_assert(spec.model.name == NULL, "the spec was touched on failure");
    fault_list_fini(&faults);
}

static void accepted(const char *more)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};

    cr_assert(request_read(more, &spec, &faults) == 0, "%s: %s", more,
              faults.n ? faults.items[0].message : "?");
    job_spec_fini(&spec);
}

Test(job_spec, minimal_request_has_the_documented_defaults)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};

    cr_assert(request_read("", &spec, &faults) == 0);
    cr_assert_str_eq(spec.model.repo, "org/name");
    cr_assert_str_eq(spec.model.revision, "main");
    cr_assert_str_eq(spec.training_file.id, "file-abc");
    cr_assert_null(spec.validation_file.id);
    cr_assert(spec.hyper.n_epochs.is_auto && spec.hyper.batch_size.is_auto &&
              spec.hyper.learning_rate_multiplier.is_auto);
    cr_assert(spec.optimization.beta1 == 0.9 && spec.optimization.beta2 == 0.999);
    cr_assert(spec.optimization.epsilon == 1e-8 && spec.optimization.max_grad_norm == 1.0);
    cr_assert(spec.optimization.schedule == LR_LINEAR && spec.optimization.keep_checkpoints == 3);
    cr_assert(spec.optimization.learning_rate.is_auto && spec.optimization.dropout.is_auto);
    cr_assert(spec.dataset.packing);
    cr_assert(spec.dataset.min_examples == 10 && spec.sample_tokens == 64);
    cr_assert(spec.parallelism.is_auto && spec.parallelism.data == 1);
    cr_assert(spec.placement.policy == PLACE_AUTO && !spec.lora.enabled);
    cr_assert(spec.seed >= 0 && spec.seed <= 2147483647);
    cr_assert_str_eq(placement_policy_name(PLACE_CUDA), "cuda");
    cr_assert_str_eq(compute_dtype_name(COMPUTE_BF16), "bf16");
    job_spec_fini(&spec);
}

Test(job_spec, every_request_member_reaches_the_spec)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};
    bool dry_run = false;
    json_t *body = request_parse(
        "{\"model\":\"hf://org/name@v1.0\",\"training_file\":\"file-a\","
        "\"validation_file\":\"file-b\",\"suffix\":\"my_Suffix-1\",\"seed\":7,"
        "\"metadata\":{\"k\":\"v\"},\"integrations\":null,\"dry_run\":true,"
        "\"method\":{\"type\":\"supervised\",\"supervised\":{\"hyperparameters\":"
        "{\"n_epochs\":3,\"batch_size\":\"auto\",\"learning_rate_multiplier\":0.5}}},"
        "\"hyperparameters\":{\"n_epochs\":3,\"batch_size\":8},"
        "\"dataset\":{\"format\":\"plain\",\"max_seq_length\":128,\"packing\":true,"
        "\"max_examples\":100,\"min_examples\":1},"
        "\"optimization\":{\"learning_rate\":3e-4,\"schedule\":\"cosine\",\"warmup_ratio\":0.1,"
        "\"max_steps\":12,\"micro_batch_size\":2,\"early_stopping\":{\"patience\":4,"
        "\"min_delta\":0.01},\"dropout\":0},"
        "\"precision\":{\"compute\":\"fp32\"},\"parallelism\":{\"data\":1},"
        "\"placement\":{\"policy\":\"cuda\",\"gpu_memory_limit\":\"1.5GiB\"},"
        "\"resources\":{\"device\":\"cpu\",\"gpus\":1},\"scheduling\":{\"priority\":-5,"
        "\"max_restarts\":2},\"sample_prompts\":[\"a\",\"b\"],\"sample_tokens\":5}");

    int rc = job_spec_from_request(body, &spec, &dry_run, &faults);
    cr_assert(rc == ERR_INVALID && faults.n == 1); /* batch_size differs */
    cr_assert_str_eq(faults.items[0].code, "conflicting_parameters");
    cr_assert_str_eq(faults.items[0].param, "hyperparameters.batch_size");
    fault_list_fini(&faults);
    json_object_del(json_object_get(body, "hyperparameters"), "batch_size");
    cr_assert(job_spec_from_request(body, &spec, &dry_run, &faults) == 0, "%s",
              faults.n ? faults.items[0].message : "");
    cr_assert(dry_run);
    cr_assert_str_eq(spec.model.name, "hf://org/name@v1.0");
    cr_assert_str_eq(spec.model.revision, "v1.0");
    cr_assert_str_eq(spec.validation_file.id, "file-b");
    cr_assert_str_eq(spec.suffix, "my_Suffix-1");
    cr_assert(spec.seed == 7 && json_object_size(spec.metadata) == 1);
    cr_assert(!spec.hyper.n_epochs.is_auto && spec.hyper.n_epochs.value == 3);
    cr_assert(spec.hyper.batch_size.is_auto);
    cr_assert(spec.hyper.learning_rate_multiplier.value == 0.5);
    cr_assert(spec.dataset.format == DATA_PLAIN && spec.dataset.packing);
    cr_assert(spec.dataset.max_seq_length == 128 && spec.dataset.min_examples == 1);
    cr_assert(spec.optimization.learning_rate.value == 3e-4);
    cr_assert(spec.optimization.schedule == LR_COSINE && spec.optimization.warmup_ratio == 0.1);
    cr_assert(spec.optimization.max_steps == 12);
    cr_assert(spec.optimization.early_stopping.patience == 4);
    cr_assert(!spec.optimization.dropout.is_auto && spec.optimization.dropout.value == 0);
    cr_assert(spec.precision.compute == COMPUTE_FP32 && !spec.parallelism.is_auto);
    cr_assert(spec.placement.policy == PLACE_CUDA);
    cr_assert(spec.placement.gpu_memory_limit == 1610612736);
    cr_assert(spec.resources.device == DEVICE_ONLY_CPU && spec.scheduling.priority == -5);
    cr_assert(spec.n_sample_prompts == 2 && spec.sample_tokens == 5);
    job_spec_fini(&spec);
    json_decref(body);
}

Test(job_spec, old_hyperparameters_are_taken)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};

    cr_assert(request_read(",\"hyperparameters\":{\"n_epochs\":4,\"learning_rate_multiplier\":2}",
                           &spec, &faults) == 0);
    cr_assert(spec.hyper.n_epochs.value == 4 && !spec.hyper.n_epochs.is_auto);
    cr_assert(spec.hyper.learning_rate_multiplier.value == 2);
    job_spec_fini(&spec);
}

static const struct {
    const char *more, *param, *code;
} BAD_MEMBERS[] = {
    {",\"n_epochs\":3", "n_epochs", "unknown_parameter"},
    {",\"optimization\":{\"lr\":1}", "optimization.lr", "unknown_parameter"},
    {",\"optimization\":{\"early_stopping\":{\"x\":1}}", "optimization.early_stopping.x",
     "unknown_parameter"},
    {",\"a.b\":1", "a.b", "unknown_parameter"},
    {",\"optimization.beta1\":0.5", "optimization.beta1", "unknown_parameter"},
    {",\"method\":{\"type\":\"supervised\",\"supervised\":{\"hyperparameters\":{\"x\":1}}}",
     "method.supervised.hyperparameters.x", "unknown_parameter"},
    {",\"method\":{\"type\":\"supervised\",\"dpo\":{}}", "method.dpo", "unknown_parameter"},
    {",\"method\":{\"supervised\":{}}", "method.type", "missing_required_parameter"},
    {",\"method\":{\"type\":\"magic\"}", "method.type", "invalid_value"},
    {",\"method\":3", "method", "invalid_type"},
    {",\"hyperparameters\":{\"n_epochs\":0}", "hyperparameters.n_epochs", "invalid_value"},
    {",\"hyperparameters\":{\"n_epochs\":51}", "hyperparameters.n_epochs", "invalid_value"},
    {",\"hyperparameters\":{\"n_epochs\":1.5}", "hyperparameters.n_epochs", "invalid_value"},
    {",\"hyperparameters\":{\"n_epochs\":\"3\"}", "hyperparameters.n_epochs", "invalid_value"},
    {",\"hyperparameters\":{\"n_epochs\":true}", "hyperparameters.n_epochs", "invalid_type"},
    {",\"hyperparameters\":{\"n_epochs\":1e300}", "hyperparameters.n_epochs", "invalid_value"},
    {",\"hyperparameters\":{\"learning_rate_multiplier\":0}",
     "hyperparameters.learning_rate_multiplier", "invalid_value"},
    {",\"hyperparameters\":[]", "hyperparameters", "invalid_type"},
    {",\"seed\":-1", "seed", "invalid_value"},
    {",\"seed\":2147483648", "seed", "invalid_value"},
    {",\"seed\":9223372036854775807", "seed", "invalid_value"},
    {",\"suffix\":\"\"", "suffix", "invalid_value"},
    {",\"suffix\":\"a b\"", "suffix", "invalid_value"},
    {",\"suffix\":5", "suffix", "invalid_type"},
    {",\"metadata\":[]", "metadata", "invalid_type"},
    {",\"metadata\":{\"a\":1}", "metadata.a", "invalid_type"},
    {",\"integrations\":{}", "integrations", "unsupported_integration"},
    {",\"validation_file\":\"abc\"", "validation_file", "invalid_value"},
    {",\"validation_file\":\"file-../x\"", "validation_file", "invalid_value"},
    {",\"dataset\":{\"packing\":1}", "dataset.packing", "invalid_type"},
    {",\"dataset\":{\"format\":\"csv\"}", "dataset.format", "invalid_value"},
    {",\"dataset\":{\"max_seq_length\":1}", "dataset.max_seq_length", "invalid_value"},
    {",\"dataset\":{\"max_examples\":3}", "dataset.max_examples", "conflicting_parameters"},
    {",\"dataset\":{\"validation_fraction\":0.6}", "dataset.validation_fraction", "invalid_value"},
    {",\"dataset\":{\"validation_fraction\":0.1},\"validation_file\":\"file-b\"",
     "dataset.validation_fraction", "conflicting_parameters"},
    {",\"optimization\":{\"beta1\":1}", "optimization.beta1", "invalid_value"},
    {",\"optimization\":{\"epsilon\":0}", "optimization.epsilon", "invalid_value"},
    {",\"optimization\":{\"dropout\":1.0}", "optimization.dropout", "invalid_value"},
    {",\"placement\":{\"gpu_memory_limit\":\"40 Gigs\"}", "placement.gpu_memory_limit",
     "invalid_value"},
    {",\"placement\":{\"gpu_memory_limit\":\"1e9\"}", "placement.gpu_memory_limit",
     "invalid_value"},
    {",\"placement\":{\"gpu_memory_limit\":-1}", "placement.gpu_memory_limit", "invalid_value"},
    {",\"placement\":{\"gpu_memory_limit\":\"99999999TiB\"}", "placement.gpu_memory_limit",
     "invalid_value"},
    {",\"placement\":\"cpu\"", "placement", "invalid_type"},
    {",\"parallelism\":\"all\"", "parallelism", "invalid_value"},
    {",\"parallelism\":4", "parallelism", "invalid_type"},
    {",\"sample_prompts\":\"x\"", "sample_prompts", "invalid_type"},
    {",\"sample_prompts\":[\"x\",2]", "sample_prompts[1]", "invalid_type"},
    {",\"sample_prompts\":[\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\"]", "sample_prompts",
     "invalid_value"},
    {",\"dry_run\":\"yes\"", "dry_run", "invalid_type"},
};

Test(job_spec, bad_members_are_faults_with_their_path)
{
    for (size_t i = 0; i < sizeof(BAD_MEMBERS) / sizeof(BAD_MEMBERS[0]); i++)
        refused(BAD_MEMBERS[i].more, BAD_MEMBERS[i].param, BAD_MEMBERS[i].code);
}

Test(job_spec, what_is_not_built_is_refused_by_name)
{
    static const struct {
        const char *more, *param, *code;
    } cases[] = {
        {",\"method\":{\"type\":\"dpo\",\"dpo\":{}}", "method.type", "unsupported_method"},
        {",\"method\":{\"type\":\"reinforcement\"}", "method.type", "unsupported_method"},
        {",\"integrations\":[{\"type\":\"wandb\"}]", "integrations", "unsupported_integration"},
        {",\"webhook\":{\"url\":\"https://example.org\"}", "webhook", "unsupported_webhook"},
        {",\"parallelism\":{\"zero\":1}", "parallelism.zero", "unsupported_parallelism"},
        {",\"parallelism\":{\"data\":2}", "parallelism.data", "unsupported_parallelism"},
        {",\"placement\":{\"nvme_limit\":1}", "placement.nvme_path", "missing_required_parameter"},
        {",\"resources\":{\"gpus\":2}", "resources.gpus", "unsupported_resources"},
        {",\"resources\":{\"nodes\":2}", "resources.nodes", "unsupported_resources"},
        {",\"resources\":{\"backend\":\"slurm\"}", "resources.backend", "unsupported_resources"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        refused(cases[i].more, cases[i].param, cases[i].code);
    accepted(",\"integrations\":[],\"webhook\":null,\"lora\":null,\"parallelism\":\"auto\"");
    accepted(",\"method\":null,\"metadata\":null,\"suffix\":null,\"validation_file\":null");
    accepted(",\"scheduling\":{\"max_restarts\":3,\"max_runtime_seconds\":60}");
    accepted(",\"hyperparameters\":{\"n_epochs\":3.0}");
}

Test(job_spec, lora_is_an_object_of_its_own)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};

    cr_assert(request_read(",\"lora\":{}", &spec, &faults) == 0);
    cr_expect(spec.lora.enabled && spec.lora.rank == 16 && spec.lora.alpha == 32);
    cr_expect(spec.lora.n_target_modules == 0 && spec.lora.export == LORA_EXPORT_ADAPTER);
    cr_expect(spec.lora.quantize_base == BASE_QUANTIZE_NONE);
    job_spec_fini(&spec);
    cr_assert(request_read(",\"lora\":{\"rank\":4,\"alpha\":1.5,\"dropout\":0.1,\"rslora\":true,"
                           "\"target_modules\":[\"q_proj\",\"fc1\"],\"export\":\"both\","
                           "\"quantize_base\":\"nf4\"}",
                           &spec, &faults) == 0);
    cr_expect(spec.lora.rank == 4 && spec.lora.alpha == 1.5 && spec.lora.dropout == 0.1);
    cr_expect(spec.lora.rslora && spec.lora.export == LORA_EXPORT_BOTH);
    cr_expect(spec.lora.quantize_base == BASE_QUANTIZE_NF4);
    cr_expect_str_eq(spec.lora.target_modules[1], "fc1");
    job_spec_fini(&spec);
    accepted(",\"lora\":{\"target_modules\":\"all-linear\"}");
    accepted(",\"lora\":{\"target_modules\":\"auto\"}");
    refused(",\"lora\":{\"export\":\"gguf\"}", "lora.export", "invalid_value");
    accepted(",\"lora\":{\"quantize_base\":\"int8\"}");
    refused(",\"lora\":{\"quantize_base\":\"fp4\"}", "lora.quantize_base", "invalid_value");
    refused(",\"lora\":{\"quantize_base\":4}", "lora.quantize_base", "invalid_type");
    refused(",\"lora\":{\"alpha\":0}", "lora.alpha", "invalid_value");
    refused(",\"lora\":{\"dropout\":1}", "lora.dropout", "invalid_value");
    refused(",\"lora\":{\"target_modules\":[]}", "lora.target_modules", "invalid_value");
    refused(",\"lora\":{\"dora\":true}", "lora.dora", "unknown_parameter");
}

Test(job_spec, all_faults_of_a_body_are_reported_at_once)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};
    json_t *body = request_parse("{\"seed\":-1,\"suffix\":\"*\",\"lora\":{\"rank\":0,\"x\":1}}");

    cr_assert(job_spec_from_request(body, &spec, NULL, &faults) == ERR_INVALID);
    cr_assert(faults.n == 6, "%ld", (long)faults.n);
    json_decref(body);
    fault_list_fini(&faults);
    body = json_integer(3);
    cr_assert(job_spec_from_request(body, &spec, NULL, &faults) == ERR_INVALID);
    cr_assert(faults.n >= 1);
    json_decref(body);
    fault_list_fini(&faults);
}

Test(job_spec, tensor_layouts_and_gpus_must_multiply)
{
    struct fault_list faults = {0};
    struct job_spec spec = {0};
    bool found = false;

    request_read(",\"parallelism\":{\"tensor\":{\"mode\":\"2.5d\",\"size\":9,\"depth\":2},"
                 "\"data\":65536,\"pipeline\":{\"stages\":65536},\"context\":65536},"
                 "\"resources\":{\"gpus\":18}",
                 &spec, &faults);
    for (int64_t i = 0; i < faults.n; i++)
        found |= strcmp(faults.items[i].code, "invalid_parallelism") == 0 &&
                 strstr(faults.items[i].message, "18 is the next larger");
    cr_assert(found);
    fault_list_fini(&faults);
}

Test(job_spec, limits_of_metadata_and_prompts)
{
    struct buf more = {0};

    buf_add_str(&more, ",\"metadata\":{");
    for (int i = 0; i < 16; i++)
        buf_printf(&more, "%s\"k%d\":\"v\"", i ? "," : "", i);
    buf_add_str(&more, "}");
    accepted(buf_str(&more));
    more.len--;
    buf_add_str(&more, ",\"k16\":\"v\"}");
    refused(buf_str(&more), "metadata", "invalid_value");
    buf_clear(&more);
    buf_printf(&more, ",\"metadata\":{\"k\":\"%0512d\"}", 0);
    accepted(buf_str(&more));
    buf_clear(&more);
    buf_printf(&more, ",\"metadata\":{\"k\":\"%0513d\"}", 0);
    refused(buf_str(&more), "metadata.k", "invalid_value");
    buf_clear(&more);
    buf_printf(&more, ",\"suffix\":\"%065d\"", 0);
    refused(buf_str(&more), "suffix", "invalid_value");
    buf_clear(&more);
    buf_printf(&more, ",\"sample_prompts\":[\"%033000d\"]", 0);
    refused(buf_str(&more), "sample_prompts[0]", "invalid_value");
    buf_fini(&more);
}

Test(job_spec, model_references)
{
    static const char *const good[] = {
        "gpt2",          "org/name",
        "org/name@main", "hf://org/n.a_m-e@refs/pr/1",
        "a/b@v1.0",      "org/name@0123456789012345678901234567890123456789",
        "/srv/models/x",
    };
    static const char *const bad[] = {
        "",
        "/",
        "a/b/c",
        "../x",
        "a/..",
        "org/-x",
        "org/x.",
        "a--b",
        "x.git",
        "a b",
        "@main",
        "org/name@",
        "org/name@../x",
        "org/name@a b",
        "hf://",
        "https://x/y",
        "/a/../b",
        "/a/..",
        "org/name@/x",
        "\xc3\xa4/x",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        "aaaaaaa",
    };
    struct fault_list faults = {0};
    struct job_spec spec = {0};

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]) + sizeof(bad) / sizeof(bad[0]); i++) {
        bool is_good = i < sizeof(good) / sizeof(good[0]);
        const char *name = is_good ? good[i] : bad[i - sizeof(good) / sizeof(good[0])];
        json_t *body = json_pack("{s:s, s:s}", "model", name, "training_file", "file-a");
        int rc = job_spec_from_request(body, &spec, NULL, &faults);
        cr_assert((rc == 0) == is_good, "'%s'", name);
        cr_assert(is_good || strcmp(faults.items[0].param, "model") == 0);
        json_decref(body);
        job_spec_fini(&spec);
        fault_list_fini(&faults);
    }
    json_t *body =
        request_parse("{\"model\":\"ft:a/b:org:s:12345678\",\"training_file\":\"file-a\"}");
    cr_assert(job_spec_from_request(body, &spec, NULL, &faults) == ERR_INVALID);
    cr_assert_str_eq(faults.items[0].code, "unsupported_model");
    json_decref(body);
    fault_list_fini(&faults);
}

Test(job_spec, numbers_that_json_cannot_hold_are_errors_not_crashes)
{
    static const char *const texts[] = {
        "{\"seed\":1e400}",
        "{\"seed\":NaN}",
        "{\"seed\":Infinity}",
        "{\"seed\":-1e999}",
        "{\"seed\":9223372036854775808}",
        "{\"seed\":-99999999999999999999}",
    };

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct err err = {0};
        json_t *value = NULL;
        cr_assert(json_parse_limited(texts[i], strlen(texts[i]), 1000, 32, &value, &err) ==
                      ERR_INVALID,
                  "%s", texts[i]);
    }
}

/* Somewhere below: what dataset.column_mapping may name, as the published document has it. */
static const json_t *find_mapping(const json_t *value)
{
    const json_t *found =
        json_object_get(json_object_get(value, "column_mapping"), "propertyNames");
    const char *key;
    json_t *inner;
    size_t i;

    if (found)
        return json_object_get(found, "enum");
    json_object_foreach((json_t *)value, key, inner) if (!found) found = find_mapping(inner);
    json_array_foreach((json_t *)value, i, inner) if (!found) found = find_mapping(inner);
    return found;
}

Test(job_spec, the_published_document_names_the_members_of_examples)
{
    json_t *document = json_load_file("api/openapi.json", 0, NULL);
    const json_t *names = find_mapping(document);
    size_t n = 0;

    cr_assert(json_is_array(names));
    for (; example_members[n]; n++)
        cr_expect_str_eq(json_string_value(json_array_get(names, n)), example_members[n]);
    cr_expect_eq(json_array_size(names), n);
    json_decref(document);
}
