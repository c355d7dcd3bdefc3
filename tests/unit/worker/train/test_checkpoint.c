#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "api/job_dir.h"
#include "core/fs.h"
#include "tests/unit/worker/train/rig.h"
#include "worker/train/checkpoint.h"

static const struct rig_options options = {.compute = DT_F32, .micro_batch = 2, .dropout = 0.1};
static const struct run_state behind_three = {.step = 3,
                                              .trained_tokens = 123,
                                              .target_tokens = 100,
                                              .train_loss = 4.25,
                                              .train_accuracy = NAN,
                                              .valid_loss = NAN,
                                              .valid_accuracy = 0.5,
                                              .best_loss = 0.1 + 0.2,
                                              .best_step = 2,
                                              .without_gain = 1,
                                              .eval_step = -1};

static void save(struct rig *r, const char *dir, int64_t step)
{
    struct run_state run = behind_three;
    struct err err = {0};
    int64_t bytes = 0, on_disk = 0;
    run.step = step;
    cr_assert_eq(checkpoint_save(dir, r->plan, r->executor, &run, 5, &bytes, &err), 0, "%s",
                 err.msg);
    char *path = job_dir_checkpoint(dir, step);
    char *state = fs_join(path, "state.safetensors");
    cr_expect_eq(fs_file_size(state, &on_disk, NULL), 0);
    cr_expect_eq(bytes, on_disk);
    free(state);
    free(path);
}

static bool same(double a, double b)
{
    return a == b || (isnan(a) && isnan(b));
}

static void goes_on_bit_for_bit(const struct rig_options *o)
{
    struct rig a, b;
    struct run_state run;
    struct err err = {0};
    char *dir = rig_make_dir();
    rig_open(&a, o);
    for (int step = 1; step <= 3; step++)
        rig_step(&a, step, 1e-2);
    save(&a, dir, 3);
    rig_open(&b, o);
    cr_assert_eq(checkpoint_load(dir, 3, NULL, b.plan, b.executor, 5, &run, &err), 0, "%s",
                 err.msg);
    cr_expect_eq(run.step, 3);
    cr_expect_eq(run.trained_tokens, 123);
    cr_expect_eq(run.target_tokens, 100);
    cr_expect_eq(run.best_step, 2);
    cr_expect_eq(run.without_gain, 1);
    cr_expect_eq(run.eval_step, -1);
    cr_expect(same(run.train_loss, 4.25) && same(run.train_accuracy, NAN));
    cr_expect(same(run.valid_loss, NAN) && same(run.valid_accuracy, 0.5));
    cr_expect_eq(run.best_loss, 0.1 + 0.2); /* to the last bit */
    rig_expect_same(&a, &b, 4, 5);
    rig_close(&a);
    rig_close(&b);
    rig_remove_dir(dir);
}

Test(checkpoint, a_loaded_one_goes_on_bit_for_bit)
{
    goes_on_bit_for_bit(&options);
}

Test(checkpoint, with_bf16_moments_too)
{
    struct rig_options small = options;
    small.moments = MOMENTS_BF16;
    goes_on_bit_for_bit(&small);
}

Test(checkpoint, with_split_masters_too)
{
    struct rig_options split = options;
    split.compute = DT_BF16;
    split.master = MASTER_SPLIT;
    goes_on_bit_for_bit(&split);
}

/* Whole, then split, then whole again, beside one that stays whole. */
Test(checkpoint, masters_may_be_split_behind_one_and_whole_behind_the_next)
{
    struct rig_options whole = options, split;
    struct rig a, b, c;
    struct run_state run;
    struct err err = {0};
    char *dir = rig_make_dir();
    size_t n, m;

    whole.compute = DT_BF16;
    split = whole;
    split.master = MASTER_SPLIT;
    rig_open(&a, &whole);
    rig_open(&b, &split);
    rig_open(&c, &whole);
    for (int step = 1; step <= 3; step++)
        rig_step(&a, step, 1e-2);
    save(&a, dir, 3);
    cr_assert_eq(checkpoint_load(dir, 3, NULL, b.plan, b.executor, 5, &run, &err), 0, "%s",
                 err.msg);
    for (int step = 4; step <= 5; step++) {
        struct step_result x = rig_step(&a, step, 1e-2), y = rig_step(&b, step, 1e-2);
        cr_expect(x.loss_sum == y.loss_sum && x.grad_norm == y.grad_norm);
    }
    save(&b, dir, 5);
    cr_assert_eq(checkpoint_load(dir, 5, NULL, c.plan, c.executor, 5, &run, &err), 0, "%s",
                 err.msg);
    char *want = rig_payloads(&a, &n), *got = rig_payloads(&c, &m);
    cr_expect(n == m && memcmp(want, got, n) == 0);
    free(want);
    free(got);
    rig_close(&a);
    rig_close(&b);
    rig_close(&c);
    rig_remove_dir(dir);
}

Test(checkpoint, with_fp8_moments_too)
{
    struct rig_options small = options;
    small.moments = MOMENTS_FP8;
    goes_on_bit_for_bit(&small);
    small.compute = DT_BF16;
    small.master = MASTER_SPLIT;
    goes_on_bit_for_bit(&small);
}

/* Fewer bytes, and a few steps end where those with float moments do, but for their rounding.
 * `bytes`: of 128 elements, parameter and moments. */
static void train_as_float_ones_do(enum moment_kind moments, double off, size_t bytes)
{
    struct rig_options o = {.compute = DT_F32, .micro_batch = 2}, small = o;
    struct rig a, b;
    size_t n, m;
    small.moments = moments;
    rig_open(&a, &o);
    rig_open(&b, &small);
    for (int step = 1; step <= 8; step++) {
        double x = rig_step(&a, step, 1e-3).loss_sum, y = rig_step(&b, step, 1e-3).loss_sum;
        cr_expect(step <= 2 ? x == y /* an update reads what it has not rounded yet */
                            : fabs(x - y) < off * x && x != y,
                  "step %d: %g, %g", step, x, y);
    }
    free(rig_payloads(&a, &n));
    free(rig_payloads(&b, &m));
    cr_expect_eq(12 * 128 * m, bytes * n);
    rig_close(&a);
    rig_close(&b);
}

Test(checkpoint, bf16_moments_train_as_float_ones_do)
{
    train_as_float_ones_do(MOMENTS_BF16, 1e-3, 8 * 128);
}

Test(checkpoint, fp8_moments_train_as_float_ones_do)
{
    train_as_float_ones_do(MOMENTS_FP8, 1e-2, 6 * 128 + 2);
}

Test(checkpoint, parts_are_named_by_tensor_and_fit_any_plan)
{
    struct rig a, b;
    struct run_state run;
    struct err err = {0};
    char name[96];
    char *dir = rig_make_dir();
    rig_open(&a, &options);
    rig_step(&a, 1, 1e-2);
    save(&a, dir, 1);
    char *path = job_dir_checkpoint(dir, 1);
    char *state = fs_join(path, "state.safetensors");
    struct safetensors_file f;
    cr_assert_eq(safetensors_open(state, &f, &err), 0, "%s", err.msg);
    cr_expect_eq(f.n_tensors, 3 * a.model.n_tensors); /* in float the parameter is the master */
    for (int64_t t = 0; t < a.model.n_tensors; t++) {
        static const char *const parts[] = {"param", "m", "v"};
        for (int k = 0; k < 3; k++) {
            checkpoint_tensor_name(&a.model, t, parts[k], name);
            const struct safetensor *s = safetensors_find(&f, name);
            cr_assert_not_null(s, "%s", name);
            cr_expect_eq(s->shape[0], a.model.tensors[t].rows);
            cr_expect_eq(s->shape[1], a.model.tensors[t].cols);
        }
    }
    cr_expect_str_eq(name, "final_norm_b.-1.v");
    safetensors_close(&f);
    struct rig_options other = {.compute = DT_F32, .micro_batch = 1};
    rig_open(&b, &other);
    cr_expect_eq(checkpoint_load(dir, 1, NULL, b.plan, b.executor, 5, &run, &err), 0, "%s",
                 err.msg);
    free(state);
    free(path);
    rig_close(&a);
    rig_close(&b);
    rig_remove_dir(dir);
}

static void spoil(const char *dir, const char *name, const char *text)
{
    char *path = job_dir_checkpoint(dir, 1);
    char *file = fs_join(path, name);
    cr_assert_eq(fs_write_file_atomic(file, text, strlen(text), NULL), 0);
    free(file);
    free(path);
}

Test(checkpoint, what_does_not_belong_to_the_job_is_refused)
{
    struct rig r, wide;
    struct run_state run = {.step = 77};
    struct err err = {0};
    char *dir = rig_make_dir();
    rig_open(&r, &options);
    save(&r, dir, 1);
    cr_expect_eq(checkpoint_load(dir, 2, NULL, r.plan, r.executor, 5, &run, NULL), ERR_NOT_FOUND);
    cr_expect_eq(checkpoint_load(dir, 1, NULL, r.plan, r.executor, 6, &run, &err), ERR_CONFLICT);
    cr_expect(strstr(err.msg, "seed 5"), "%s", err.msg);
    struct rig_options in_double = {.compute = DT_F64, .micro_batch = 2};
    rig_open(&wide, &in_double);
    cr_expect_eq(checkpoint_load(dir, 1, NULL, wide.plan, wide.executor, 5, &run, NULL),
                 ERR_CONFLICT);
    rig_close(&wide);
    spoil(dir, "state.safetensors", "{}");
    cr_expect_eq(checkpoint_load(dir, 1, NULL, r.plan, r.executor, 5, &run, NULL), ERR_CORRUPT);
    spoil(dir, "checkpoint.json", "{\"v\":1}");
    cr_expect_eq(checkpoint_load(dir, 1, NULL, r.plan, r.executor, 5, &run, NULL), ERR_INVALID);
    cr_expect_eq(run.step, 77);
    rig_close(&r);
    rig_remove_dir(dir);
}

Test(checkpoint, a_tensor_of_another_shape_is_refused)
{
    struct rig r;
    struct run_state run;
    struct err err = {0};
    struct safetensors_writer *w = NULL;
    char name[96];
    char *dir = rig_make_dir();
    rig_open(&r, &options);
    save(&r, dir, 1);
    char *path = job_dir_checkpoint(dir, 1);
    char *state = fs_join(path, "state.safetensors");
    cr_assert_eq(safetensors_writer_create(state, &w, &err), 0);
    checkpoint_tensor_name(&r.model, 0, "param", name);
    cr_assert_eq(safetensors_writer_declare(w, name, DT_F32, 2, (int64_t[]){1, 1}, &err), 0);
    cr_assert_eq(safetensors_writer_data(w, &(float){1}, sizeof(float), &err), 0);
    cr_assert_eq(safetensors_writer_finish(w, &err), 0);
    safetensors_writer_destroy(w);
    cr_expect_eq(checkpoint_load(dir, 1, NULL, r.plan, r.executor, 5, &run, &err), ERR_CORRUPT);
    cr_expect(strstr(err.msg, name) && strstr(err.msg, "step 1"), "%s", err.msg);
    free(state);
    free(path);
    rig_close(&r);
    rig_remove_dir(dir);
}

static bool there(const char *dir, int64_t step)
{
    char *path = job_dir_checkpoint(dir, step);
    bool yes = fs_exists(path);
    free(path);
    return yes;
}

Test(checkpoint, pruning_keeps_the_newest_and_the_best)
{
    char *dir = rig_make_dir();
    static const int64_t steps[] = {9, 10, 100, 2, 30};
    for (int k = 0; k < 5; k++) {
        char *path = job_dir_checkpoint(dir, steps[k]);
        cr_assert_eq(fs_mkdir_p(path, false, NULL), 0);
        free(path);
    }
    cr_expect_eq(checkpoint_prune(dir, 2, 9, NULL), 0);
    cr_expect(there(dir, 100) && there(dir, 30) && there(dir, 9));
    cr_expect(!there(dir, 10) && !there(dir, 2));
    cr_expect_eq(checkpoint_prune(dir, 0, 0, NULL), 0); /* never the newest one */
    cr_expect(there(dir, 100) && !there(dir, 30) && !there(dir, 9));
    rig_remove_dir(dir);
    cr_expect_eq(checkpoint_prune("/nonexistent", 2, 0, NULL), 0);
}

/* Writes beyond `bytes` of a file fail from now on. */
static void limit_files(rlim_t bytes)
{
    struct rlimit l = {0};
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &l), 0);
    l.rlim_cur = bytes;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &l), 0);
}

Test(checkpoint, one_that_cannot_be_written_leaves_nothing)
{
    struct rig r;
    struct run_state run = behind_three;
    struct err err = {0};
    int64_t bytes = -5;
    char *dir = rig_make_dir();
    char *parent = job_dir_checkpoints(dir);
    char *tmp = fs_join(parent, "tmp-step-3");
    rig_open(&r, &options);
    save(&r, dir, 1);
    limit_files(50000);
    cr_expect_neq(checkpoint_save(dir, r.plan, r.executor, &run, 5, &bytes, &err), 0);
    cr_expect(strstr(err.msg, "checkpoint of step 3") && strstr(err.msg, "state.safetensors"), "%s",
              err.msg);
    cr_expect_eq(bytes, -5);
    cr_expect(!there(dir, 3) && !fs_exists(tmp) && there(dir, 1));
    limit_files(RLIM_INFINITY);
    err_clear(&err);
    cr_expect_eq(checkpoint_load(dir, 1, NULL, r.plan, r.executor, 5, &run, &err), 0, "%s",
                 err.msg);
    cr_assert_eq(fs_write_file_atomic(tmp, "x", 1, NULL), 0); /* somebody's leftover */
    save(&r, dir, 3);
    free(tmp);
    free(parent);
    rig_close(&r);
    rig_remove_dir(dir);
}

Test(checkpoint, a_step_that_has_one_keeps_it)
{
    struct rig r;
    char *dir = rig_make_dir();
    rig_open(&r, &options);
    save(&r, dir, 1);
    spoil(dir, "checkpoint.json", "mark");
    save(&r, dir, 1);
    char *path = job_dir_checkpoint(dir, 1);
    char *json = fs_join(path, "checkpoint.json");
    struct buf text = {0};
    cr_assert_eq(fs_read_file(json, 100000, &text, NULL), 0);
    cr_expect_str_eq(buf_str(&text), "mark");
    buf_fini(&text);
    free(json);
    free(path);
    rig_close(&r);
    rig_remove_dir(dir);
}
