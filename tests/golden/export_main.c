/*
 * Export by hand, for families_export.py: a model's weights in, the same weights out, as a job's
 * export writes them.
 *
 *   export_main MODEL_DIR OUT_DIR f32|bf16|f16
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/model/weights.h"

struct supply {
    struct weights_reader *reader;
    const struct model *m;
    float *data;
};

static int supply(void *ud, int64_t tensor, const void **data, enum dtype *from, struct err *err)
{
    struct supply *s = ud;

    s->data = xrealloc(s->data, (size_t)tensor_elements(&s->m->tensors[tensor]) * sizeof(float));
    *data = s->data;
    *from = DT_F32;
    return weights_read(s->reader, tensor, DT_F32, s->data, err);
}

static int export(const char *model_dir, const char *dir, enum dtype dtype, struct err *err)
{
    struct decoder_config config = {0};
    struct model m = {0};
    struct supply s = {.m = &m};
    int rc = 0;

    TRY(decoder_config_load(model_dir, &config, err));
    model_init(&m, &config);
    TRY(weights_open(model_dir, &m, &s.reader, err));
    TRY(fs_mkdir_p(dir, false, err));
    TRY(decoder_config_export(model_dir, dir, dtype, err));
    TRY(weights_write(dir, &m, dtype, supply, &s, err));
out:
    weights_close(s.reader);
    free(s.data);
    model_fini(&m);
    return rc;
}

int main(int argc, char **argv)
{
    enum dtype dtype = argc != 4                      ? DT_U8
                       : strcmp(argv[3], "bf16") == 0 ? DT_BF16
                       : strcmp(argv[3], "f16") == 0  ? DT_F16
                                                      : DT_F32;
    struct err err = {0};

    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL_DIR OUT_DIR f32|bf16|f16\n", argv[0]);
        return 2;
    }
    if (export(argv[1], argv[2], dtype, &err) != 0) {
        fprintf(stderr, "%s: %s\n", argv[1], err.msg);
        return 1;
    }
    return 0;
}
