/* What a session settles before a device is touched, on the small model of the demo. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "kernels/registry.h"
#include "worker/train/session.h"
#include "worker/train/trainer.h"

#define MODEL "tests/hub/root/models/castor/opt-3m"
#define DATA  "tests/hub/data/jargon-validation.jsonl"

static char directory[64];

static void setup(void)
{
    snprintf(directory, sizeof(directory), "/tmp/castor-session-XXXXXX");
    cr_assert(mkdtemp(directory));
}

static void teardown(void)
{
    fs_remove_tree(directory, NULL);
}

TestSuite(session, .init = setup, .fini = teardown);

static void prepare(enum job_device device, struct session *out)
{
    struct session_options options = {.scratch_dir = directory};
    struct job_spec spec;
    struct err err = {0};

    job_spec_init(&spec);
    spec.model.name = xstrdup(MODEL);
    spec.model.path = xstrdup(MODEL);
    spec.training_file.id = xstrdup("file-1");
    spec.training_file.path = xstrdup(DATA);
    spec.training_file.filename = xstrdup("data.jsonl");
    spec.resources.device = device;
    cr_assert_eq(session_prepare(&spec, &options, out, &err), 0, "%s", err.msg);
    job_spec_fini(&spec);
}

Test(session, a_device_left_open_becomes_what_the_machine_has)
{
    bool gpu = device_count(DEVICE_CUDA) > 0;
    struct session s;

    prepare(DEVICE_AUTO, &s);
    cr_expect_eq(s.spec.resources.device, gpu ? DEVICE_ONLY_GPU : DEVICE_ONLY_CPU);
    session_fini(&s);
}

Test(session, a_device_that_was_asked_for_stays)
{
    const enum job_device asked[] = {DEVICE_ONLY_CPU, DEVICE_ONLY_GPU};

    for (int i = 0; i < 2; i++) {
        struct session s;
        prepare(asked[i], &s);
        cr_expect_eq(s.spec.resources.device, asked[i]);
        session_fini(&s);
    }
}

static const struct op_table *all_but_bf16(struct device *d, enum dtype compute)
{
    return compute == DT_BF16 ? NULL : device_kind_ops(DEVICE_CPU, DT_F32);
}

Test(session, a_gpu_without_bf16_refuses_it_and_names_fp16)
{
    static const struct device_impl impl = {.ops = all_but_bf16};
    struct device old = {.kind = DEVICE_CUDA, .name = "Imaginary", .impl = &impl};
    static const char *const instead[] = {
        [COMPUTE_BF16] = "\"fp16\"", [COMPUTE_FP16] = NULL, [COMPUTE_FP8] = "\"auto\""};

    for (enum compute_dtype c = COMPUTE_BF16; c <= COMPUTE_FP8; c++) {
        struct job_spec spec;
        struct err err = {0};
        const struct op_table *ops = NULL;
        job_spec_init(&spec);
        spec.precision.compute = c;
        int rc = trainer_pick_ops(&old, &spec, &ops, &err);
        cr_expect_eq(rc, instead[c] ? ERR_UNSUPPORTED : 0);
        cr_expect_eq(ops != NULL, rc == 0);
        if (instead[c]) {
            cr_expect(strstr(err.msg, instead[c]) != NULL, "%s", err.msg);
            cr_expect_str_eq(err.param, "precision.compute");
        }
        job_spec_fini(&spec);
    }
}

Test(session, a_job_for_a_gpu_is_refused_where_there_is_none)
{
    struct device *device = NULL;
    struct session s;
    struct err err = {0};

    if (device_count(DEVICE_CUDA) > 0)
        cr_skip_test("there is a GPU");
    prepare(DEVICE_ONLY_GPU, &s);
    cr_expect_eq(trainer_open_device(&s.spec, &device, &err), ERR_UNSUPPORTED);
    cr_expect_str_eq(err.param, "resources.device");
    cr_expect_str_eq(err.reason, "no_gpu");
    session_fini(&s);
}
