#include "worker/train/export.h"

#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "kernels/device.h"
#include "kernels/master.h"
#include "worker/model/adapter.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"
#include "worker/train/checkpoint.h"
#include "worker/train/session.h"

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

/* Where tensors come from: the checkpoint, which has what was trained, and with adapters the base
 * model for the rest. */
struct source {
    const struct model *model;
    enum dtype to; /* written */
    struct safetensors_file file;
    struct weights_reader *base; /* with adapters, for whole models */
    struct device *device;       /* the CPU that adds adapters to weights */
    struct stream *stream;
    void *data;
};

static int open_source(struct source *s, const char *jobdir, int64_t step, const char *base_dir,
                       bool merge, struct err *err)
{
    char *checkpoint = job_dir_checkpoint(jobdir, step);
    char *path = fs_join(checkpoint, "state.safetensors");
    struct device_options options = {0};
    int rc = 0;

    TRY(safetensors_open(path, &s->file, err));
    if (!merge)
        goto out;
    TRY(weights_open(base_dir, s->model, &s->base, err));
    TRY(device_open(DEVICE_CPU, 0, &options, &s->device, err));
    TRY(device_stream_create(s->device, 0, &s->stream, err));
out:
    free(path);
    free(checkpoint);
    return rc;
}

static void close_source(struct source *s)
{
    if (s->stream)
        device_stream_destroy(s->device, s->stream);
    if (s->device)
        device_close(s->device);
    weights_close(s->base);
    if (s->file.fd >= 0)
        safetensors_close(&s->file);
    free(s->data);
}

static const struct safetensor *find_part(const struct source *s, int64_t tensor, const char *part)
{
    char name[96];
    checkpoint_tensor_name(s->model, tensor, part, name);
    return safetensors_find(&s->file, name);
}

static int read_part(const struct source *s, const struct safetensor *t, void **data,
                     struct err *err)
{
    void *all = NULL;
    int rc = 0;

    TRY(alloc_try(&all, t->bytes, 1, t->name, err));
    TRY(safetensors_read(&s->file, t, 0, t->bytes, all, err));
    *data = all;
    all = NULL;
out:
    free(all);
    return rc;
}

/* A master that is split over two parts of the checkpoint. */
static int read_split(const struct source *s, const struct safetensor *param,
                      const struct safetensor *remainder, void **data, struct err *err)
{
    size_t n = param->bytes / sizeof(uint16_t);
    void *high = NULL, *low = NULL, *all = NULL;
    int rc = 0;

    if (param->dtype != DT_BF16 || remainder->bytes != param->bytes)
        return err_set(err, ERR_CORRUPT, "%s: %s and %s do not belong together", s->file.path,
                       param->name, remainder->name);
    TRY(read_part(s, param, &high, err));
    TRY(read_part(s, remainder, &low, err));
    TRY(alloc_try(&all, n, sizeof(float), param->name, err));
    master_join(all, high, low, (int64_t)n);
    *data = all;
    all = NULL;
out:
    free(high);
    free(low);
    free(all);
    return rc;
}

/* The parameter itself where that is what is written; else its master, if it has one. */
static int read_trained(struct source *s, int64_t tensor, enum dtype to, void **data,
                        enum dtype *from, struct err *err)
{
    const struct safetensor *param = find_part(s, tensor, "param");
    const struct safetensor *master = find_part(s, tensor, "master");
    const struct safetensor *remainder = find_part(s, tensor, "remainder");
    const struct safetensor *t;
    int rc = 0;

    if (!param)
        return err_set(err, ERR_CORRUPT, "%s lacks a parameter of %s", s->file.path,
                       tensor_role_name(s->model->tensors[tensor].role));
    if (remainder && param->dtype != to) {
        TRY(read_split(s, param, remainder, data, err));
        *from = DT_F32;
        goto out;
    }
    t = master && param->dtype != to ? master : param;
    TRY(read_part(s, t, data, err));
    *from = t->dtype;
out:
    return rc;
}

/* A part of an adapter as float32. */
static int read_adapter(struct source *s, int64_t tensor, float **out, struct err *err)
{
    int64_t n = tensor_elements(&s->model->tensors[tensor]);
    enum dtype from;
    void *data = NULL;
    int rc = 0;

    TRY(read_trained(s, tensor, DT_F32, &data, &from, err));
    *out = xcalloc((size_t)n, sizeof(float));
    dtype_convert(DT_F32, *out, from, data, n);
out:
    free(data);
    return rc;
}

/* A weight of the base model as training saw it: from its codes where it lay quantised. */
static int read_base(struct source *s, int64_t tensor, float *w, struct err *err)
{
    const struct tensor_desc *t = &s->model->tensors[tensor];
    int64_t n = tensor_elements(t);
    char *codes = NULL;
    int rc = 0;

    TRY(weights_read(s->base, tensor, DT_F32, w, err));
    if (t->quant == QUANT_NONE)
        goto out;
    codes = xmalloc(quant_bytes(t->quant, n));
    float *scales = (float *)(void *)(codes + quant_scales_at(t->quant, n));
    quant_encode(t->quant, n, w, codes, scales);
    quant_decode(t->quant, codes, scales, 0, n, DT_F32, w);
out:
    free(codes);
    return rc;
}

/* A weight of the base model with its adapter added, in float32. */
static int read_merged(struct source *s, int64_t tensor, void **data, struct err *err)
{
    int64_t adapter = adapter_of(s->model, tensor);
    size_t bytes = (size_t)tensor_elements(&s->model->tensors[tensor]) * sizeof(float);
    float *a = NULL, *b = NULL;
    void *w = NULL;
    int rc = 0;

    TRY(alloc_try(&w, bytes, 1, tensor_role_name(s->model->tensors[tensor].role), err));
    TRY(read_base(s, tensor, w, err));
    if (adapter >= 0) {
        TRY(read_adapter(s, adapter, &a, err));
        TRY(read_adapter(s, adapter + 1, &b, err));
        TRY(adapter_merge(s->model, tensor, a, b, device_ops(s->device, DT_F32), s->stream, w,
                          err));
        TRY(device_stream_sync(s->device, s->stream, err));
    }
    *data = w;
    w = NULL;
out:
    free(w);
    free(a);
    free(b);
    return rc;
}

static int read_tensor(void *ud, int64_t tensor, const void **data, enum dtype *from,
                       struct err *err)
{
    struct source *s = ud;
    int rc = 0;

    free(s->data);
    s->data = NULL;
    if (s->model->tensors[tensor].trainable) {
        TRY(read_trained(s, tensor, s->to, &s->data, from, err));
    } else {
        TRY(read_merged(s, tensor, &s->data, err));
        *from = DT_F32;
    }
    *data = s->data;
out:
    return rc;
}

static int write_adapter(struct source *s, const struct job_spec *spec, const char *dir,
                         struct err *err)
{
    const struct spec_model *base = &spec->model;
    json_t *modules = json_array(), *config = NULL;
    int rc = 0;

    for (int64_t i = 0; i < spec->lora.n_target_modules; i++)
        json_array_append_new(modules, json_string(spec->lora.target_modules[i]));
    config = adapters_config(s->model, modules, base->path ? base->path : base->repo,
                             base->commit ? base->commit : base->revision);
    TRY(fs_mkdir_p(dir, false, err));
    TRY(write_json(dir, "adapter_config.json", config, err));
    s->to = DT_F32;
    TRY(adapters_write(dir, s->model, s->to, read_tensor, s, err));
out:
    json_decref(config);
    json_decref(modules);
    return rc;
}

static int write_model(struct source *s, const char *base_dir, const struct job_spec *spec,
                       const char *dir, struct err *err)
{
    int rc = 0;

    s->to = session_dtype(spec);
    TRY(decoder_config_export(base_dir, dir, s->to, err));
    TRY(weights_write(dir, s->model, s->to, read_tensor, s, err));
out:
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
    char *tmp = fs_join(jobdir, "tmp-output"), *inner = fs_join(tmp, "adapter");
    char *final = job_dir_output(jobdir);
    bool adapted = spec->lora.enabled;
    bool whole = !adapted || spec->lora.export != LORA_EXPORT_ADAPTER;
    struct source source = {.model = model, .file.fd = -1};
    int rc = 0;

    TRY(fs_remove_tree(tmp, err));
    TRY(fs_mkdir_p(tmp, false, err));
    TRY(open_source(&source, jobdir, step, base_dir, adapted && whole, err));
    if (whole)
        TRY(write_model(&source, base_dir, spec, tmp, err));
    for (size_t f = 0; f < sizeof copied_files / sizeof copied_files[0]; f++)
        TRY(copy_file(base_dir, tmp, copied_files[f], err));
    if (adapted && spec->lora.export != LORA_EXPORT_MERGED)
        TRY(write_adapter(&source, spec, whole ? inner : tmp, err));
    TRY(write_origin(tmp, spec, step, err));
    TRY(fs_remove_tree(final, err));
    TRY(fs_rename_sync(tmp, final, err));
out:
    close_source(&source);
    if (rc)
        fs_remove_tree(tmp, NULL);
    free(inner);
    free(tmp);
    free(final);
    return rc ? err_wrap(err, rc, "exporting step %lld", (long long)step) : 0;
}
