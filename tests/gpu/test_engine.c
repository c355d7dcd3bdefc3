/*
 * The engine on a GPU, without a server.
 *
 *   test_engine goldens [--device cpu] DIRECTORY...   models of tests/golden, each in every type
 * that the device computes in, against PyTorch test_engine memory more memory than there is
 *   test_engine fault DIRECTORY                       a kernel that reads where nothing is
 *
 * Prints `N passed, N failed`; exit status 0 when none failed.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "tests/gpu/engine.h"
#include "worker/model/weights.h"

static int passed, failed;

static bool expect(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool expect(bool ok, const char *fmt, ...)
{
    va_list args;
    passed += ok;
    failed += !ok;
    if (ok)
        return true;
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    putchar('\n');
    return false;
}

/* --- goldens --- */

/* In float32 every value, of its tensor's largest: what the CPU's float tables are held to. In 16
 * bits by norm: a logit lies some 25 roundings deep, each of 2^-9 (bf16) or 2^-12 (f16) of a value;
 * four times the square root of that many is allowed. A gradient lies twice as deep and passes
 * norms of small variance: the CPU's bfloat16 table measures up to 6.8 % over all models. */
struct tolerance {
    enum dtype compute;
    bool by_norm;
    double forward, gradient;
};
static const struct tolerance tolerances[] = {
    {DT_F32, false, 1e-5, 1e-5},
    {DT_BF16, true, 0.04, 0.08},
    {DT_F16, true, 0.005, 0.01},
};

static double distance(const double *got, const double *want, int64_t n, bool by_norm)
{
    double largest = 0, difference = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(got[i]))
            return INFINITY;
        largest = by_norm ? hypot(largest, want[i]) : fmax(largest, fabs(want[i]));
        difference = by_norm ? hypot(difference, got[i] - want[i])
                             : fmax(difference, fabs(got[i] - want[i]));
    }
    return largest > 0 ? difference / largest : difference;
}

/* Row 0 of the batch: sampling looks at one row. */
static double logits_error(struct engine *e, const struct tolerance *t)
{
    int64_t vocab = e->model.config.vocab, n;
    double *want = engine_golden(e, "logits", &n);
    double *got = xcalloc((size_t)(ENGINE_LENGTH * vocab), sizeof *got);
    float *logits = xcalloc((size_t)vocab, sizeof *logits);
    struct err err = {0};

    for (int64_t at = 0; at < ENGINE_LENGTH; at++) {
        engine_must(executor_logits(e->executor, at, logits, &err), &err);
        for (int64_t v = 0; v < vocab; v++)
            got[at * vocab + v] = (double)logits[v];
    }
    double error = distance(got, want, ENGINE_LENGTH * vocab, t->by_norm);
    free(want);
    free(got);
    free(logits);
    return error;
}

static double golden_loss(struct engine *e)
{
    int64_t n;
    double *rows = engine_golden(e, "row_loss", &n), sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += rows[i];
    free(rows);
    return sum;
}

/* Tensor by tensor in float32; in 16 bits all of them as one vector, since some have no gradient
 * but that of their roundings. */
static double gradient_error(struct engine *e, const char *directory, const struct tolerance *t)
{
    double *got = engine_gradients(e), worst = 0;
    double *want = xcalloc((size_t)e->model.n_params, sizeof *want);
    char *path = xasprintf("%s/grads", directory);
    struct weights_reader *reader = NULL;
    struct err err = {0};
    int64_t at = 0;

    engine_must(weights_open(path, &e->model, &reader, &err), &err);
    for (int64_t k = 0; k < e->model.n_tensors; k++) {
        int64_t n = tensor_elements(&e->model.tensors[k]);
        engine_must(weights_read(reader, k, DT_F64, want + at, &err), &err);
        if (!t->by_norm)
            worst = fmax(worst, distance(got + at, want + at, n, false));
        at += n;
    }
    if (t->by_norm)
        worst = distance(got, want, at, true);
    weights_close(reader);
    free(path);
    free(got);
    free(want);
    return worst;
}

static void check_golden(enum device_kind kind, const char *directory, const struct tolerance *t,
                         int64_t micro_batch)
{
    const char *type = dtype_name(t->compute);
    struct step_result eval, step;
    struct err err = {0};
    struct engine e;

    engine_open(&e, kind, t->compute, directory, micro_batch);
    engine_fill(&e, 0, -1);
    double want = golden_loss(&e), logits = logits_error(&e, t);
    expect(logits <= t->forward, "%s %s: logits are off by %.3g, allowed %.3g", directory, type,
           logits, t->forward);
    if (micro_batch == ENGINE_ROWS) {
        engine_must(executor_eval(e.executor, &eval, &err), &err);
        expect(fabs(eval.loss_sum - want) <= t->forward * want, "%s %s: the loss is %.9g, not %.9g",
               directory, type, eval.loss_sum, want);
    }
    engine_fill(&e, 1, -1);
    engine_must(engine_step(&e, 1, &step, &err), &err);
    expect(fabs(step.loss_sum - want) <= t->forward * want,
           "%s %s: the loss in training is %.9g, not %.9g", directory, type, step.loss_sum, want);
    double gradient = gradient_error(&e, directory, t);
    expect(gradient <= t->gradient, "%s %s: gradients are off by %.3g, allowed %.3g", directory,
           type, gradient, t->gradient);
    printf("%-32s %-4s micro-batch %d: logits %.2g, loss %.2g, gradients %.2g\n", directory, type,
           (int)micro_batch, logits, fabs(step.loss_sum - want) / want, gradient);
    engine_close(&e);
}

static int goldens(enum device_kind kind, int n, char **directories)
{
    for (int i = 0; i < n; i++)
        for (size_t k = 0; k < sizeof tolerances / sizeof tolerances[0]; k++) {
            if (kind == DEVICE_CPU && tolerances[k].compute == DT_F16)
                continue;
            check_golden(kind, directories[i], &tolerances[k], ENGINE_ROWS);
            check_golden(kind, directories[i], &tolerances[k], 1);
        }
    return failed > 0;
}

/* --- faults --- */

static int memory(void)
{
    struct device *d = NULL;
    struct err err = {0};
    void *p = NULL;

    engine_must(device_open(DEVICE_CUDA, 0, NULL, &d, &err), &err);
    int rc = device_alloc(d, d->memory_total + 1, "more than there is", &p, &err);
    printf("%s\n", err.msg);
    expect(rc == ERR_DEVICE_OOM, "asking for more than there is gave %d", rc);
    expect(strstr(err.msg, "more than there is") && strstr(err.msg, "free"),
           "it does not say what was asked and what was free");
    err_clear(&err);
    engine_must(device_alloc(d, 1 << 20, "what there is", &p, &err), &err);
    expect(p != NULL, "nothing came after that");
    device_free(d, p, 1 << 20);
    device_close(d);
    return failed > 0;
}

/* Rotary positions far behind the table's end: layers read there, the embedding does not. The
 * device is of no use afterwards, so nothing is closed. */
static int fault(const char *directory)
{
    struct step_result step;
    struct err err = {0};
    struct engine e;

    engine_open(&e, DEVICE_CUDA, DT_F32, directory, ENGINE_ROWS);
    engine_fill(&e, 1, -1);
    engine_must(engine_step(&e, 1, &step, &err), &err);
    engine_fill(&e, 0, 1 << 30);
    int rc = engine_step(&e, 2, &step, &err);
    printf("%s\n", err.msg);
    expect(rc == ERR_DEVICE, "a read of no memory gave %d", rc);
    expect(strstr(err.msg, "step 2, train FORWARD block 1 "),
           "it does not name step, instruction and block");
    printf("%d passed, %d failed\n", passed, failed);
    fflush(stdout);
    _exit(failed > 0);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int status = 2, first = 2;

    if (strcmp(what, "goldens") == 0) {
        bool cpu = argc > 3 && strcmp(argv[2], "--device") == 0 && strcmp(argv[3], "cpu") == 0;
        first += cpu ? 2 : 0;
        status = goldens(cpu ? DEVICE_CPU : DEVICE_CUDA, argc - first, argv + first);
    } else if (strcmp(what, "memory") == 0) {
        status = memory();
    } else if (strcmp(what, "fault") == 0 && argc == 3) {
        status = fault(argv[2]);
    } else {
        fputs("usage: test_engine goldens [--device cpu] DIRECTORY... | memory | fault DIRECTORY\n",
              stderr);
        return status;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return status;
}
