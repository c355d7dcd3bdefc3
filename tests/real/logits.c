/* Our logits of a whole model against those that transformers computed from the same directory:
 * CASTOR_MODEL and CASTOR_BATCH, a file of tests/real/real_test.py. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "tests/unit/worker/model/golden.h"

Test(real, logits)
{
    const char *model = getenv("CASTOR_MODEL"), *batch = getenv("CASTOR_BATCH");
    struct golden_check c = {.rtol = 1e-4};
    struct decoder_config config;
    struct safetensors_file f;
    struct err err = {0};
    struct rig r;
    int64_t n;

    cr_assert(model && batch, "set CASTOR_MODEL and CASTOR_BATCH");
    cr_assert_eq(safetensors_open(batch, &f, &err), 0, "%s", err.msg);
    const struct safetensor *tokens = safetensors_find(&f, "tokens");
    cr_assert_not_null(tokens);
    cr_assert_eq(decoder_config_load(model, &config, &err), 0, "%s", err.msg);
    rig_open(&r, &config, DT_F32, false, tokens->shape[0], tokens->shape[1]);
    rig_load(&r, model);
    golden_load_batch(&r, &f);
    int64_t rows = r.B * r.T;
    double *logits = xcalloc((size_t)(rows * r.m.config.vocab), sizeof(double));
    double *want = golden_load(&f, "logits", &n);
    cr_assert_eq(n, rows * r.m.config.vocab);
    rig_logits(&r, 0, rows, logits);
    golden_compare(&c, "logits", logits, want, n);
    fprintf(stderr, "largest difference %.2g of the largest logit\n", c.worst * c.rtol);
    free(logits);
    free(want);
    safetensors_close(&f);
    rig_close(&r);
}
