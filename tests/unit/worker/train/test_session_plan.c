/*
 * The rows of a micro-batch that a job leaves open, for a GPU that is not here: its nominal
 * profile, a session made by hand, and the planner's own seconds for every number of micro-batches.
 */
#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>

#include "core/alloc.h"
#include "worker/train/session.h"
#include "worker/train/trainer.h"

enum { BATCH = 16, FIRST_ROWS = 4 };

struct machine {
    struct device *device;
    struct device_profile profile;
    struct session session;
};

/* Layers whose weights weigh more than the few tokens of a row. */
static void make_model(struct model *out, int layers)
{
    struct decoder_config c = {0};
    struct err err = {0};
    json_t *j =
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "model_type", "opt", "hidden_size",
                  2048, "num_hidden_layers", layers, "num_attention_heads", 16, "ffn_dim", 8192,
                  "vocab_size", 8192, "max_position_embeddings", 8192, "word_embed_proj_dim", 2048);
    cr_assert_not_null(j);
    cr_assert_eq(decoder_config_parse(j, &c, &err), 0, "%s", err.msg);
    json_decref(j);
    model_init(out, &c);
}

static void open_machine(struct machine *m, enum device_kind kind, int64_t length)
{
    struct session *s = &m->session;
    struct err err = {0};

    *m = (struct machine){.profile = device_profile_nominal};
    cr_assert_eq(device_open(DEVICE_CPU, 0, NULL, &m->device, &err), 0, "%s", err.msg);
    make_model(&s->model, 8);
    job_spec_init(&s->spec);
    s->spec.hyper.batch_size.value = BATCH;
    s->spec.precision.compute = COMPUTE_BF16;
    s->spec.placement.policy = PLACE_CUDA;
    s->device = kind;
    s->seq_length = length;
}

static void close_machine(struct machine *m)
{
    job_spec_fini(&m->session.spec);
    model_fini(&m->session.model);
    device_close(m->device);
}

/* The plan of a job that leaves its rows open, or else of so many rows; NULL: none fits. */
static struct plan *plan_rows(struct machine *m, bool open, int64_t rows, size_t limit)
{
    struct session_memory memory = {.device = limit, .host.bytes = (size_t)64 << 30};
    struct plan *p = NULL;
    session_set_micro_batch(&m->session, rows);
    m->session.micro_batch_open = open;
    session_plan(&m->session, device_ops(m->device, DT_BF16), &m->profile, &memory, &p, NULL);
    return p;
}

/* Seconds of the plan with so many rows, INFINITY where it does not fit; the device bytes that it
 * claims. */
static double cost(struct machine *m, int64_t rows, size_t limit, size_t *bytes)
{
    struct plan *p = plan_rows(m, false, rows, limit);
    double seconds = p ? plan_seconds(p) : INFINITY;
    if (bytes && p)
        *bytes = p->claim[TIER_GPU];
    plan_destroy(p);
    return seconds;
}

/* Are so many rows faster than others by what makes it worth while? */
static bool faster(struct machine *m, int64_t rows, int64_t others, size_t limit)
{
    return cost(m, rows, limit, NULL) < 0.99 * cost(m, others, limit, NULL);
}

/* Rows of the plan that an open job gets; 0 = none. */
static int64_t chosen(struct machine *m, size_t limit)
{
    struct plan *p = plan_rows(m, true, FIRST_ROWS, limit);
    int64_t rows = p ? p->in.micro_batch : 0;
    if (p) {
        cr_expect_eq(m->session.micro_batch, rows);
        cr_expect_eq(m->session.spec.optimization.micro_batch_size.value, rows);
        cr_expect_eq(p->in.micro_batches, (BATCH + rows - 1) / rows);
    }
    plan_destroy(p);
    return rows;
}

Test(session_plan, a_gpu_takes_as_few_micro_batches_as_are_faster)
{
    struct machine m;
    open_machine(&m, DEVICE_CUDA, 512);
    cr_assert(faster(&m, 8, 4, 0) && faster(&m, 16, 8, 0));
    cr_expect_eq(chosen(&m, 0), 16);
    m.session.device = DEVICE_CPU; /* there nothing but the first rows is asked for */
    cr_expect_eq(chosen(&m, 0), 4);
    close_machine(&m);
}

Test(session_plan, a_gain_of_less_than_a_percent_is_left)
{
    struct machine m;
    open_machine(&m, DEVICE_CUDA, 2048);
    cr_assert_lt(cost(&m, 8, 0, NULL), cost(&m, 4, 0, NULL));
    cr_assert(!faster(&m, 8, 4, 0) && !faster(&m, 2, 4, 0));
    cr_expect_eq(chosen(&m, 0), 4);
    close_machine(&m);
}

/* More rows at a time fit, too, but only by making layers again. */
Test(session_plan, no_fewer_micro_batches_than_memory_has_room_for)
{
    struct machine m;
    size_t bytes[3] = {0};
    open_machine(&m, DEVICE_CUDA, 512);
    for (int k = 0; k < 2; k++)
        cost(&m, 4 << k, 0, &bytes[k]);
    cr_assert(bytes[0] < bytes[1] && faster(&m, 8, 4, bytes[1]) && !faster(&m, 8, 4, bytes[0]));
    cr_expect_eq(chosen(&m, bytes[0]), 4);
    close_machine(&m);
    open_machine(&m, DEVICE_CUDA, 2048);
    cost(&m, 2, 0, &bytes[2]);
    cr_assert(isfinite(cost(&m, 4, bytes[2], NULL)) && faster(&m, 2, 4, bytes[2]));
    cr_expect_eq(chosen(&m, bytes[2]), 2);
    close_machine(&m);
}

/* Float gradients of several micro-batches are twice the bytes of one's. */
Test(session_plan, one_micro_batch_may_fit_where_several_do_not)
{
    struct machine m;
    size_t bytes = 0;
    open_machine(&m, DEVICE_CUDA, 128);
    cost(&m, BATCH, 0, &bytes);
    for (int64_t rows = 1; rows < BATCH; rows *= 2)
        cr_assert(isinf(cost(&m, rows, bytes, NULL)), "%lld rows fit", (long long)rows);
    cr_expect_eq(chosen(&m, bytes), BATCH);
    cr_expect_eq(chosen(&m, bytes / 2), 0);
    cr_expect_eq(m.session.micro_batch, 1); /* what a refusal is about: the least that was tried */
    close_machine(&m);
}

/* Device memory so slow, beside layers that hardly pass over it, that sums of gradients cost most.
 */
Test(session_plan, rows_end_where_more_of_them_gain_nothing)
{
    struct machine m;
    open_machine(&m, DEVICE_CUDA, 8192);
    m.profile.memory_rate /= 1000;
    m.profile.layer_passes = 1;
    cr_assert(faster(&m, 8, 4, 0) && faster(&m, 16, 8, 0));
    cr_expect_eq(chosen(&m, 0), 8); /* 65,536 tokens */
    close_machine(&m);
}

/* Only what the job limits itself, and no further than the machine goes. */
Test(session_plan, limits_can_be_raised_to_what_the_machine_has)
{
    const struct session_memory memory = {.device = 3000, .host.bytes = 7000};
    struct machine m;
    size_t most[TIER_COUNT];

    open_machine(&m, DEVICE_CUDA, 64);
    struct spec_placement *place = &m.session.spec.placement;
    session_limits(&m.session, &memory, most);
    cr_expect(most[TIER_GPU] == 0 && most[TIER_HOST] == 0 && most[TIER_NVME] == 0);
    place->gpu_memory_limit = place->host_memory_limit = place->nvme_limit = 1000;
    session_limits(&m.session, &memory, most);
    cr_expect(most[TIER_GPU] == 3000 && most[TIER_HOST] == 7000);
    cr_expect_eq(most[TIER_NVME], 0, "there is no volume");
    place->nvme_path = xstrdup("fast");
    place->nvme_directory = xstrdup("/tmp");
    session_limits(&m.session, &memory, most);
    cr_expect_gt(most[TIER_NVME], 0);
    close_machine(&m);
}

static const char *told(struct machine *m, size_t left)
{
    static struct err err;
    struct session_memory memory = {.device = left, .host.bytes = (size_t)64 << 30};
    err_clear(&err);
    err_set(&err, ERR_DEVICE_OOM, "the arena needs more than is free");
    session_tell_fit(&m->session, device_ops(m->device, DT_BF16), &m->profile, &memory, &err);
    cr_expect_eq(err.code, ERR_DEVICE_OOM);
    cr_expect_str_eq(err.reason, "insufficient_memory");
    return err.msg;
}

/* When a device does not give what a plan claims. */
Test(session_plan, a_refused_claim_names_what_fits_in_what_is_left)
{
    struct machine m;
    size_t bytes = 0;
    open_machine(&m, DEVICE_CUDA, 128);
    cost(&m, 4, 0, &bytes);
    session_set_micro_batch(&m.session, 4);
    const char *text = told(&m, bytes);
    cr_expect(strstr(text, "more than is free. In what is left now the job fits, with") &&
                  strstr(text, "start it again"),
              "%s", text);
    text = told(&m, bytes / 2);
    cr_expect(strstr(text, "more than is free. In what is left now the job needs") &&
                  strstr(text, "MiB short; with placement.policy \"auto\" it fits"),
              "%s", text);
    text = told(&m, 1 << 20);
    cr_expect(strstr(text, "MiB short; even optimization.micro_batch_size 1 does not fit"), "%s",
              text);
    close_machine(&m);
}

/* Not to be without a limit. */
Test(session_plan, a_gpu_that_others_fill_has_no_memory)
{
    size_t gib = (size_t)1 << 30;
    cr_expect_eq(trainer_limit(DEVICE_CUDA, 80 * gib, 100 << 20), 1);
    cr_expect_eq(trainer_limit(DEVICE_CUDA, 80 * gib, 0), 1);
    size_t most = trainer_limit(DEVICE_CUDA, 80 * gib, 79 * gib);
    cr_expect(most > 78 * gib && most < 79 * gib);
    struct device_profile found = {.memory = 80 * (int64_t)gib, .memory_free = 79 * (int64_t)gib};
    cr_expect_eq(trainer_limit_alone(DEVICE_CUDA, &found), most);
    cr_expect_eq(trainer_limit(DEVICE_CPU, gib, 0), gib);
}

/* In the host's memory and so much of the device's; not where its own limits keep it from these. */
Test(session_plan, a_refused_job_fits_alone_or_not)
{
    struct machine m;
    open_machine(&m, DEVICE_CUDA, 128);
    model_fini(&m.session.model);
    make_model(&m.session.model, 1); /* which any machine has memory for */
    const struct op_table *ops = device_ops(m.device, DT_BF16);
    m.session.spec.placement.policy = PLACE_CPU;
    session_set_micro_batch(&m.session, 4);
    cr_assert(session_fits_alone(&m.session, ops, &m.profile, 0));
    cr_expect(session_fits_alone(&m.session, ops, &m.profile, (size_t)1 << 30));
    cr_expect(!session_fits_alone(&m.session, ops, &m.profile, 1 << 20));
    m.session.spec.placement.host_memory_limit = 1 << 20;
    cr_expect(!session_fits_alone(&m.session, ops, &m.profile, 0));
    close_machine(&m);
}
