#include "worker/train/export.h"

#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"
#include "worker/train/checkpoint.h"

enum { SMALL_FILE_MAX = 64 << 20 };

static const char *const copied_files[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
};

static int copy_file(const char *from_dir, const char *to_dir, const char *name, struct err *err)
{
    char *from = fs_join(from_dir, name);
    char *to = fs_join(to_dir, name);
    struct buf content = {0};
    int rc = 0;

    if (fs_exists(from)) {
        TRY(fs_read_file(from, SMALL_FILE_MAX, &content, err));
        TRY(fs_write_file_atomic(to, buf_str(&content), content.len, err));
    }
out:
    buf_fini(&content);
    free(from);
    free(to);
    return rc;
}

static int write_json(const char *dir, const char *name, const json_t *j, struct err *err)
{
    char *path = fs_join(dir, name);
    char *text = json_dumps(j, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    int rc = fs_write_file_atomic(path, text, strlen(text), err);
    free(text);
    free(path);
    return rc;
}

/* The base model's config with the type that the exported weights have. */
static int write_config(const char *base_dir, const char *dir, enum dtype dtype, struct err *err)
{
    char *path = fs_join(base_dir, "config.json");
    const char *name = dtype == DT_F32 ? "float32" : dtype == DT_BF16 ? "bfloat16" : "float16";
    json_t *j = NULL;
    int rc = 0;

    TRY(json_parse_file(path, SMALL_FILE_MAX, JSON_MAX_DEPTH_FILE, &j, err));
    const char *key = json_object_get(j, "dtype") ? "dtype" : "torch_dtype";
    json_object_set_new(j, key, json_string(name));
    TRY(write_json(dir, "config.json", j, err));
out:
    json_decref(j);
    free(path);
    return rc;
}

/* Tensors straight from the checkpoint: the master where there is one. */
struct source {
    const struct model *model;
    const struct safetensors_file *file;
    void *data;
};

static int read_tensor(void *ud, int64_t tensor, const void **data, enum dtype *from,
                       struct err *err)
{
    struct source *s = ud;
    char name[96];
    int rc = 0;

    checkpoint_tensor_name(s->model, tensor, "master", name);
    const struct safetensor *t = safetensors_find(s->file, name);
    if (!t) {
        checkpoint_tensor_name(s->model, tensor, "param", name);
        t = safetensors_find(s->file, name);
    }
    if (!t)
        return err_set(err, ERR_CORRUPT, "%s has no tensor %s", s->file->path, name);
    free(s->data);
    s->data = NULL;
    TRY(alloc_try(&s->data, t->bytes, 1, name, err));
    TRY(safetensors_read(s->file, t, 0, t->bytes, s->data, err));
    *data = s->data;
    *from = t->dtype;
out:
    return rc;
}

static int write_weights(const char *jobdir, int64_t step, const struct model *model,
                         enum dtype dtype, const char *dir, struct err *err)
{
    char *checkpoint = job_dir_checkpoint(jobdir, step);
    char *path = fs_join(checkpoint, "state.safetensors");
    struct safetensors_file file = {.fd = -1};
    struct source source = {.model = model, .file = &file};
    bool opened = false;
    int rc = 0;

    TRY(safetensors_open(path, &file, err));
    opened = true;
    TRY(weights_write(dir, model, dtype, read_tensor, &source, err));
out:
    free(source.data);
    if (opened)
        safetensors_close(&file);
    free(path);
    free(checkpoint);
    return rc;
}

static int write_origin(const char *dir, const struct job_spec *spec, int64_t step, struct err *err)
{
    json_t *j = json_pack("{s:s, s:I, s:s, s:s*, s:s*}", "job", spec->id, "step", (json_int_t)step,
                          "base_model", spec->model.name, "revision", spec->model.revision,
                          "commit", spec->model.commit);
    int rc = write_json(dir, "castor.json", j, err);
    json_decref(j);
    return rc;
}

int export_model(const char *jobdir, int64_t step, const char *base_dir, const struct model *model,
                 const struct job_spec *spec, struct err *err)
{
    char *tmp = fs_join(jobdir, "tmp-output");
    char *final = job_dir_output(jobdir);
    enum dtype dtype = spec->precision.compute == COMPUTE_BF16   ? DT_BF16
                       : spec->precision.compute == COMPUTE_FP16 ? DT_F16
                                                                 : DT_F32;
    int rc = 0;

    TRY(fs_remove_tree(tmp, err));
    TRY(fs_mkdir_p(tmp, false, err));
    TRY(write_config(base_dir, tmp, dtype, err));
    for (size_t f = 0; f < sizeof copied_files / sizeof copied_files[0]; f++)
        TRY(copy_file(base_dir, tmp, copied_files[f], err));
    TRY(write_weights(jobdir, step, model, dtype, tmp, err));
    TRY(write_origin(tmp, spec, step, err));
    TRY(fs_remove_tree(final, err));
    TRY(fs_rename_sync(tmp, final, err));
out:
    if (rc)
        fs_remove_tree(tmp, NULL);
    free(tmp);
    free(final);
    return rc ? err_wrap(err, rc, "exporting step %lld", (long long)step) : 0;
}
