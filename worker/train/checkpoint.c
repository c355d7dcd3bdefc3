#include "worker/train/checkpoint.h"

#include <assert.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "kernels/master.h"
#include "worker/model/adapter.h"
#include "worker/model/safetensors.h"
#include "worker/model/weights.h"

enum { CHECKPOINT_VERSION = 1, CHECKPOINT_JSON_MAX = 1 << 20, MAX_KEPT = 100000 };

void checkpoint_tensor_name(const struct model *m, int64_t tensor, const char *part, char out[96])
{
    const struct tensor_desc *t = &m->tensors[tensor];
    snprintf(out, 96, "%s.%lld.%s", tensor_role_name(t->role), (long long)t->layer, part);
}

/* A part of a payload: the parameter, or one of the optimizer state's. */
static const char *part_name(enum payload p, const struct chunk_part *part)
{
    static const char *const names[PART_COUNT] = {[PART_MASTER] = "master",
                                                  [PART_M] = "m",
                                                  [PART_V] = "v",
                                                  [PART_M_EXPONENT] = "m_exponent",
                                                  [PART_V_EXPONENT] = "v_exponent"};
    if (p == PAYLOAD_PARAM)
        return "param";
    return part->part == PART_MASTER && part->type == DT_I16 ? "remainder" : names[part->part];
}

/* One member's slice of one part of a payload. */
struct slice {
    enum payload payload;
    struct chunk_part part; /* of PARAM only its type */
    char name[96];
    size_t offset, bytes; /* in the payload */
};
typedef int (*slice_fn)(void *ud, int64_t tensor, const struct slice *s, struct err *err);

static int each_slice(const struct plan *p, int64_t chunk, enum payload payload, slice_fn fn,
                      void *ud, struct err *err)
{
    const struct chunk *c = &p->chunks.chunks[chunk];
    struct chunk_part parts[PART_COUNT] = {{PART_COUNT, p->types.compute, 1}};
    int n_parts = payload == PAYLOAD_PARAM ? 1 : chunk_state_parts(p->types, parts);
    size_t at = 0;
    int rc = 0;

    for (int part = 0; part < n_parts; part++) {
        for (int64_t k = 0; k < c->n_members; k++) {
            const struct chunk_member *m = &c->members[k];
            struct slice s = {.payload = payload, .part = parts[part]};
            s.offset = at + chunk_part_bytes(&s.part, m->offset);
            s.bytes = chunk_part_bytes(&s.part, m->elements);
            checkpoint_tensor_name(p->in.model, m->tensor, part_name(payload, &s.part), s.name);
            TRY(fn(ud, m->tensor, &s, err));
        }
        at += chunk_part_bytes(&parts[part], c->n);
    }
out:
    return rc;
}

/* --- saving --- */

struct saving {
    const struct plan *plan;
    struct safetensors_writer *writer;
    const char *payload;
};

static int declare_slice(void *ud, int64_t tensor, const struct slice *s, struct err *err)
{
    struct saving *save = ud;
    const struct tensor_desc *t = &save->plan->in.model->tensors[tensor];
    int64_t shape[2] = {t->rows, t->cols}, count = chunk_part_count(&s->part, tensor_elements(t));
    if (s->part.every > 1)
        return safetensors_writer_declare(save->writer, s->name, s->part.type, 1, &count, err);
    return safetensors_writer_declare(save->writer, s->name, s->part.type, 2, shape, err);
}

static int write_slice(void *ud, int64_t tensor, const struct slice *s, struct err *err)
{
    struct saving *save = ud;
    return safetensors_writer_data(save->writer, save->payload + s->offset, s->bytes, err);
}

static int save_payload(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                        struct err *err)
{
    struct saving *save = ud;
    save->payload = host;
    return each_slice(save->plan, chunk, payload, write_slice, save, err);
}

static int declare_all(struct saving *save, struct err *err)
{
    const struct instr_list *l = &save->plan->lists[LIST_SAVE];
    int rc = 0;
    for (int64_t n = 0; n < l->n; n++) {
        const struct instr *i = &l->items[n];
        if (i->op == INSTR_EVICT && i->slice <= 0) /* a payload comes once, not slice by slice */
            TRY(each_slice(save->plan, i->chunk, i->payload, declare_slice, save, err));
    }
out:
    return rc;
}

static int save_state(const char *path, const struct plan *plan, struct executor *e,
                      struct err *err)
{
    struct saving save = {.plan = plan};
    int rc = 0;
    TRY(safetensors_writer_create(path, &save.writer, err));
    TRY(declare_all(&save, err));
    TRY(executor_transfer(e, LIST_SAVE, save_payload, &save, err));
    TRY(safetensors_writer_finish(save.writer, err));
out:
    safetensors_writer_destroy(save.writer);
    return rc;
}

struct run_field {
    const char *key;
    size_t offset;
    bool optional; /* 0, or NaN, where it is absent */
};
static const struct run_field run_ints[] = {
    {"step", offsetof(struct run_state, step)},
    {"trained_tokens", offsetof(struct run_state, trained_tokens)},
    {"target_tokens", offsetof(struct run_state, target_tokens)},
    {"best_step", offsetof(struct run_state, best_step)},
    {"without_gain", offsetof(struct run_state, without_gain)},
    {"eval_step", offsetof(struct run_state, eval_step)},
    {"loss_scale_good", offsetof(struct run_state, loss_scale_good), true},
    {"skipped_steps", offsetof(struct run_state, skipped_steps), true},
};
static const struct run_field run_reals[] = {
    {"train_loss", offsetof(struct run_state, train_loss)},
    {"train_accuracy", offsetof(struct run_state, train_accuracy)},
    {"valid_loss", offsetof(struct run_state, valid_loss)},
    {"valid_accuracy", offsetof(struct run_state, valid_accuracy)},
    {"best_loss", offsetof(struct run_state, best_loss)},
    {"loss_scale", offsetof(struct run_state, loss_scale)},
};
enum { N_RUN_INTS = 8, N_RUN_REALS = 6 };

static int save_json(const char *path, const struct plan *plan, const struct run_state *run,
                     uint64_t seed, struct err *err)
{
    json_t *j = json_pack("{s:i, s:I, s:s, s:s, s:s, s:s, s:I}", "v", CHECKPOINT_VERSION, "seed",
                          (json_int_t)seed, "family", plan->in.model->config.family, "compute",
                          dtype_name(plan->types.compute), "master", dtype_name(plan->types.master),
                          "moments", dtype_name(plan->types.moment), "micro_batch",
                          (json_int_t)plan->in.micro_batch);
    for (int k = 0; k < N_RUN_INTS; k++)
        json_object_set_new(
            j, run_ints[k].key,
            json_integer(*(const int64_t *)((const char *)run + run_ints[k].offset)));
    for (int k = 0; k < N_RUN_REALS; k++) {
        double x = *(const double *)((const char *)run + run_reals[k].offset);
        json_object_set_new(j, run_reals[k].key, isfinite(x) ? json_real(x) : json_null());
    }
    char *line = json_to_line(j);
    int rc = fs_write_file_atomic(path, line, strlen(line), err);
    free(line);
    json_decref(j);
    return rc;
}

int checkpoint_save(const char *jobdir, const struct plan *plan, struct executor *e,
                    const struct run_state *run, uint64_t seed, int64_t *bytes, struct err *err)
{
    char *parent = job_dir_checkpoints(jobdir);
    char *tmp = xasprintf("%s/tmp-step-%lld", parent, (long long)run->step);
    char *state = fs_join(tmp, "state.safetensors");
    char *json = fs_join(tmp, "checkpoint.json");
    char *final = job_dir_checkpoint(jobdir, run->step);
    char *saved = fs_join(final, "state.safetensors");
    int64_t size = 0;
    int rc = 0;

    if (fs_exists(final)) {
        TRY(fs_file_size(saved, bytes, err));
        goto out;
    }
    TRY(fs_remove_tree(tmp, err));
    TRY(fs_mkdir_p(tmp, false, err));
    TRY(save_state(state, plan, e, err));
    TRY(save_json(json, plan, run, seed, err));
    TRY(fs_file_size(state, &size, err));
    TRY(fs_sync_dir(tmp, err));
    TRY(fs_rename_sync(tmp, final, err));
    *bytes = size;
out:
    if (rc)
        fs_remove_tree(tmp, NULL);
    free(parent);
    free(tmp);
    free(state);
    free(json);
    free(final);
    free(saved);
    return rc ? err_wrap(err, rc, "checkpoint of step %lld", (long long)run->step) : 0;
}

/* --- loading --- */

struct loading {
    const struct plan *plan;
    const struct safetensors_file *file; /* a checkpoint: what trains; or NULL */
    struct weights_reader *weights;      /* published weights: what is frozen, or everything */
    uint64_t seed;                       /* of adapters that begin */
    char *payload;
};

static int read_saved(const struct loading *l, const char *name, enum dtype type, void *out,
                      size_t bytes, struct err *err)
{
    const struct safetensor *t = safetensors_find(l->file, name);
    if (!t || t->dtype != type || t->bytes != bytes)
        return err_set(err, ERR_CORRUPT,
                       "%s: tensor %s is missing or of another type or size; the checkpoint does "
                       "not belong to this job",
                       l->file->path, name);
    return safetensors_read(l->file, t, 0, bytes, out, err);
}

/* The same master, from what the plan of the attempt that saved it kept of it. */
static int read_other_master(const struct loading *l, int64_t tensor, const struct slice *s,
                             struct err *err)
{
    const struct model *m = l->plan->in.model;
    size_t n = (size_t)tensor_elements(&m->tensors[tensor]);
    void *at = l->payload + s->offset, *whole = NULL, *param = NULL, *remainder = NULL;
    char name[96];
    int rc = 0;

    if (s->part.type == DT_I16) {
        TRY(alloc_try(&whole, n, sizeof(float), s->name, err));
        checkpoint_tensor_name(m, tensor, "master", name);
        TRY(read_saved(l, name, DT_F32, whole, n * sizeof(float), err));
        master_remainders(at, whole, (int64_t)n);
        goto out;
    }
    TRY(alloc_try(&param, n, sizeof(uint16_t), s->name, err));
    TRY(alloc_try(&remainder, n, sizeof(int16_t), s->name, err));
    checkpoint_tensor_name(m, tensor, "param", name);
    TRY(read_saved(l, name, DT_BF16, param, n * sizeof(uint16_t), err));
    checkpoint_tensor_name(m, tensor, "remainder", name);
    TRY(read_saved(l, name, DT_I16, remainder, n * sizeof(int16_t), err));
    master_join(at, param, remainder, (int64_t)n);
out:
    free(whole);
    free(param);
    free(remainder);
    return rc;
}

static int read_slice(void *ud, int64_t tensor, const struct slice *s, struct err *err)
{
    const struct loading *l = ud;
    bool master = s->payload == PAYLOAD_STATE && s->part.part == PART_MASTER;
    if (master && l->plan->types.compute == DT_BF16 && !safetensors_find(l->file, s->name))
        return read_other_master(l, tensor, s, err);
    return read_saved(l, s->name, s->part.type, l->payload + s->offset, s->bytes, err);
}

static int begin_tensor(const struct loading *l, int64_t tensor, enum dtype type, void *out,
                        struct err *err)
{
    if (!tensor_is_adapter(&l->plan->in.model->tensors[tensor]))
        return weights_read(l->weights, tensor, type, out, err);
    adapter_init(l->plan->in.model, tensor, l->seed, type, out);
    return 0;
}

/* A trained parameter beside its master, or what it lacks of a split one: as updates round them,
 * which published bfloat16 weights do not need. */
static int begin_beside_master(const struct loading *l, int64_t tensor, const struct slice *s,
                               struct err *err)
{
    const struct tensor_desc *t = &l->plan->in.model->tensors[tensor];
    int64_t n = tensor_elements(t);
    void *at = l->payload + s->offset, *master = NULL;
    int rc = 0;

    if (!tensor_is_adapter(t) && weights_are(l->weights, tensor, DT_BF16))
        return s->payload == PAYLOAD_PARAM ? weights_read(l->weights, tensor, DT_BF16, at, err)
                                           : 0; /* it lacks nothing */
    TRY(alloc_try(&master, (size_t)n, sizeof(float), s->name, err));
    TRY(begin_tensor(l, tensor, DT_F32, master, err));
    if (s->payload == PAYLOAD_PARAM)
        master_round(DT_BF16, at, master, n);
    else
        master_remainders(at, master, n);
out:
    free(master);
    return rc;
}

static int read_weight(void *ud, int64_t tensor, const struct slice *s, struct err *err)
{
    struct loading *l = ud;
    const struct chunk_types *types = &l->plan->types;
    bool param = s->payload == PAYLOAD_PARAM;
    bool trained = l->plan->in.model->tensors[tensor].trainable;

    if (!param && s->part.part != PART_MASTER)
        return 0; /* moments start at zero */
    if (param ? trained && chunk_has_master(*types) && s->part.type == DT_BF16
              : s->part.type == DT_I16)
        return begin_beside_master(l, tensor, s, err);
    return begin_tensor(l, tensor, s->part.type, l->payload + s->offset, err);
}

static int load_quantized(struct loading *l, const struct chunk *c, struct err *err)
{
    int rc = 0;

    for (int64_t k = 0; k < c->n_members; k++)
        TRY(weights_read_quantized(l->weights, c->members[k].tensor, c->quant,
                                   l->payload + chunk_param_at(c, k, l->plan->types),
                                   (float *)(void *)(l->payload + chunk_scales_at(c, k)), err));
out:
    return rc;
}

static int load_payload(void *ud, int64_t chunk, enum payload payload, void *host, size_t bytes,
                        struct err *err)
{
    struct loading *l = ud;
    bool moments = payload == PAYLOAD_STATE && !chunk_has_master(l->plan->types);
    if (moments && !l->file)
        return PAYLOAD_IS_ZERO; /* they start so */
    l->payload = host;
    memset(host, 0, bytes); /* the gaps between tensors */
    const struct chunk *c = &l->plan->chunks.chunks[chunk];
    if (c->quant != QUANT_NONE)
        return load_quantized(l, c, err);
    bool saved = l->file && c->trainable;
    return each_slice(l->plan, chunk, payload, saved ? read_slice : read_weight, l, err);
}

int checkpoint_load_weights(struct weights_reader *weights, uint64_t seed, const struct plan *plan,
                            struct executor *e, struct err *err)
{
    struct loading l = {.plan = plan, .weights = weights, .seed = seed};
    return executor_transfer(e, LIST_LOAD, load_payload, &l, err);
}

static int load_json(const char *path, const struct plan *plan, uint64_t seed,
                     struct run_state *run, struct err *err)
{
    struct run_state r = {0};
    const char *compute = NULL;
    int64_t version = 0, saved_seed = 0;
    json_t *j = NULL;
    int rc = 0;

    TRY(json_parse_file(path, CHECKPOINT_JSON_MAX, JSON_MAX_DEPTH_FILE, &j, err));
    TRY(json_get_int64(j, "", "v", true, CHECKPOINT_VERSION, CHECKPOINT_VERSION, &version, err));
    TRY(json_get_int64(j, "", "seed", true, INT64_MIN, INT64_MAX, &saved_seed, err));
    TRY(json_get_string(j, "", "compute", true, &compute, err));
    if ((uint64_t)saved_seed != seed || strcmp(compute, dtype_name(plan->types.compute)) != 0) {
        rc = err_set(err, ERR_CONFLICT,
                     "%s was made with seed %lld and %s, the job has seed %llu and %s", path,
                     (long long)saved_seed, compute, (unsigned long long)seed,
                     dtype_name(plan->types.compute));
        goto out;
    }
    for (int k = 0; k < N_RUN_INTS; k++)
        TRY(json_get_int64(j, "", run_ints[k].key, !run_ints[k].optional, -1, INT64_MAX,
                           (int64_t *)((char *)&r + run_ints[k].offset), err));
    for (int k = 0; k < N_RUN_REALS; k++) {
        double *x = (double *)((char *)&r + run_reals[k].offset);
        *x = NAN;
        TRY(json_get_double(j, "", run_reals[k].key, false, -1e300, 1e300, x, err));
    }
    *run = r;
out:
    json_decref(j);
    return rc;
}

int checkpoint_micro_batch(const char *jobdir, int64_t step, int64_t *rows, struct err *err)
{
    char *dir = job_dir_checkpoint(jobdir, step);
    char *path = fs_join(dir, "checkpoint.json");
    int64_t found = 0;
    json_t *j = NULL;
    int rc = 0;

    TRY(json_parse_file(path, CHECKPOINT_JSON_MAX, JSON_MAX_DEPTH_FILE, &j, err));
    TRY(json_get_int64(j, "", "micro_batch", false, 1, INT32_MAX, &found, err));
    *rows = found;
out:
    json_decref(j);
    free(path);
    free(dir);
    return rc;
}

int checkpoint_load(const char *jobdir, int64_t step, struct weights_reader *weights,
                    const struct plan *plan, struct executor *e, uint64_t seed,
                    struct run_state *run, struct err *err)
{
    char *dir = job_dir_checkpoint(jobdir, step);
    char *state = fs_join(dir, "state.safetensors");
    char *json = fs_join(dir, "checkpoint.json");
    struct safetensors_file file = {.fd = -1};
    struct run_state r;
    bool opened = false;
    int rc = 0;

    TRY(load_json(json, plan, seed, &r, err));
    TRY(safetensors_open(state, &file, err));
    opened = true;
    struct loading l = {.plan = plan, .file = &file, .weights = weights};
    TRY(executor_transfer(e, LIST_LOAD, load_payload, &l, err));
    *run = r;
out:
    if (opened)
        safetensors_close(&file);
    free(dir);
    free(state);
    free(json);
    return rc ? err_wrap(err, rc, "resuming from step %lld", (long long)step) : 0;
}

/* --- retention --- */

static int newest_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* Out of sight first: what is called step-N is complete, whenever the process dies. */
static int remove_one(const char *jobdir, const char *parent, int64_t step, struct err *err)
{
    char *dir = job_dir_checkpoint(jobdir, step);
    char *tmp = xasprintf("%s/tmp-step-%lld", parent, (long long)step);
    int rc = 0;

    TRY(fs_remove_tree(tmp, err));
    TRY(fs_rename_sync(dir, tmp, err));
    TRY(fs_remove_tree(tmp, err));
out:
    free(tmp);
    free(dir);
    return rc;
}

int checkpoint_prune(const char *jobdir, int64_t keep, int64_t best_step, struct err *err)
{
    char *parent = job_dir_checkpoints(jobdir);
    int64_t *steps = NULL, n = 0;
    int rc = 0;
    DIR *d = opendir(parent);

    for (struct dirent *f; d && n < MAX_KEPT && (f = readdir(d));) {
        long long step;
        char rest;
        if (sscanf(f->d_name, "step-%lld%c", &step, &rest) != 1)
            continue;
        steps = xrealloc(steps, (size_t)(n + 1) * sizeof *steps);
        steps[n++] = step;
    }
    if (n > 0)
        qsort(steps, (size_t)n, sizeof *steps, newest_first);
    for (int64_t k = keep < 1 ? 1 : keep; k < n; k++) {
        if (steps[k] == best_step)
            continue;
        rc = remove_one(jobdir, parent, steps[k], err);
        if (rc)
            break;
    }
    if (d)
        closedir(d);
    free(steps);
    free(parent);
    return rc;
}
