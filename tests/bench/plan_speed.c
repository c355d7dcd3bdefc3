/*
 * How long the planner thinks about large models, and what it decides: one line a case. No weights,
 * no device memory; the times are those of an H100 with 16 cores.
 */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/err.h"
#include "kernels/device.h"
#include "worker/plan/plan.h"

struct shape {
    const char *name, *config;
};
static const struct shape opt_6b7 = {
    "OPT-6.7b", "{\"model_type\":\"opt\",\"hidden_size\":4096,\"num_hidden_layers\":32,"
                "\"num_attention_heads\":32,\"ffn_dim\":16384,\"vocab_size\":50272,"
                "\"max_position_embeddings\":2048,\"word_embed_proj_dim\":4096}"};
static const struct shape opt_13b = {
    "OPT-13b", "{\"model_type\":\"opt\",\"hidden_size\":5120,\"num_hidden_layers\":40,"
               "\"num_attention_heads\":40,\"ffn_dim\":20480,\"vocab_size\":50272,"
               "\"max_position_embeddings\":2048,\"word_embed_proj_dim\":5120}"};
static const struct shape opt_66b = {
    "OPT-66b", "{\"model_type\":\"opt\",\"hidden_size\":9216,\"num_hidden_layers\":64,"
               "\"num_attention_heads\":72,\"ffn_dim\":36864,\"vocab_size\":50272,"
               "\"max_position_embeddings\":2048,\"word_embed_proj_dim\":9216}"};
static const struct shape llama_70b = {
    "Llama-70b", "{\"model_type\":\"llama\",\"hidden_size\":8192,\"num_hidden_layers\":80,"
                 "\"num_attention_heads\":64,\"num_key_value_heads\":8,"
                 "\"intermediate_size\":28672,\"vocab_size\":128256,"
                 "\"max_position_embeddings\":8192}"};

struct bench_case {
    const struct shape *shape;
    int64_t rows, gpu_gib, host_gib, nvme_gib; /* rows of 2048 tokens, one a micro-batch */
    enum placement_policy policy;
};
static const struct bench_case cases[] = {
    {&opt_6b7, 4, 24, 125, 0, PLACE_CPU},      {&opt_6b7, 4, 24, 125, 0, PLACE_AUTO},
    {&opt_6b7, 32, 24, 125, 0, PLACE_AUTO},    {&opt_6b7, 16, 24, 60, 500, PLACE_AUTO},
    {&opt_13b, 16, 78, 125, 0, PLACE_AUTO},    {&opt_66b, 16, 78, 1024, 0, PLACE_AUTO},
    {&opt_66b, 16, 78, 512, 2048, PLACE_AUTO}, {&llama_70b, 16, 78, 1200, 0, PLACE_AUTO},
    {&llama_70b, 32, 16, 1200, 0, PLACE_CPU},  {&llama_70b, 16, 78, 125, 0, PLACE_AUTO},
    {&opt_6b7, 4, 6, 5, 500, PLACE_AUTO},      {&llama_70b, 16, 78, 125, 2048, PLACE_AUTO},
};

static int build(const struct bench_case *c, const struct op_table *ops, struct model *m,
                 struct plan **out, struct err *err)
{
    struct plan_input in = {.model = m,
                            .ops = ops,
                            .profile = &device_profile_nominal,
                            .policy = c->policy,
                            .clip = true,
                            .force = PLAN_CHOICES_AUTO,
                            .micro_batch = 1,
                            .micro_batches = c->rows,
                            .seq_length = 2048,
                            .head_rows = 1024};
    int64_t axes[AXIS_COUNT] = {1, 1, 1, 1, 1, 1};
    in.limit[TIER_GPU] = (size_t)c->gpu_gib << 30;
    in.limit[TIER_HOST] = (size_t)c->host_gib << 30;
    in.limit[TIER_NVME] = (size_t)c->nvme_gib << 30;
    int rc = mesh_init(&in.mesh, axes, err);
    return rc ? rc : plan_build(&in, out, err);
}

static int run(const struct bench_case *c, const struct op_table *ops, struct err *err)
{
    json_t *j = json_loads(c->shape->config, 0, NULL);
    struct decoder_config config = {0};
    struct plan_simulation sim;
    struct model m = {0};
    struct plan *p = NULL;
    int rc = 0;

    TRY(decoder_config_parse(j, &config, err));
    model_init(&m, &config);
    printf("%-10s %3lld rows, %3lld + %4lld + %4lld GiB, %-4s ", c->shape->name, (long long)c->rows,
           (long long)c->gpu_gib, (long long)c->host_gib, (long long)c->nvme_gib,
           placement_policy_name(c->policy));
    clock_t start = clock();
    if (build(c, ops, &m, &p, err) != 0) {
        printf("%6.2f s: %s\n", (double)(clock() - start) / CLOCKS_PER_SEC, err->msg);
        err_clear(err);
        goto out;
    }
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    TRY(plan_simulate(p, LIST_TRAIN, &sim, err));
    printf("%6.2f s: step %.2f s (at least %.2f), group %lld, %lld of %lld resident, on disk "
           "states of %lld and parameters of %lld, %lld kept, turn %lld, %lld instructions\n",
           seconds, sim.seconds, sim.bound, (long long)p->chosen.group,
           (long long)p->chosen.resident, (long long)p->chunks.n_chunks, (long long)p->chosen.nvme,
           (long long)p->chosen.nvme_params, (long long)p->chosen.keep, (long long)p->chosen.turn,
           (long long)p->lists[LIST_TRAIN].n);
out:
    plan_destroy(p);
    model_fini(&m);
    decoder_config_fini(&config);
    json_decref(j);
    return rc;
}

int main(void)
{
    struct device *d = NULL;
    struct err err = {0};
    int rc = 0;

    TRY(device_open(DEVICE_CPU, 0, NULL, &d, &err));
    setlinebuf(stdout);
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++)
        TRY(run(&cases[k], device_ops(d, DT_BF16), &err));
out:
    if (rc)
        fprintf(stderr, "plan_speed: %s\n", err.msg);
    if (d)
        device_close(d);
    return rc ? 1 : 0;
}
