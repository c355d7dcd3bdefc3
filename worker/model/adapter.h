/*
 * Low-rank adapters (Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022):
 * beside a frozen matrix W two small ones are trained,
 *
 *   y = x W^T + bias + scale (dropout(x) A^T) B^T,    A (rank, in), B (out, rank)
 *
 * with scale = alpha / rank, or alpha / sqrt(rank) (Kalajdzievski, "A rank stabilization scaling
 * factor for fine-tuning with LoRA", 2023). Everything else is frozen.
 *
 * Modules are named as PEFT (github.com/huggingface/peft) names them: by the family's own names of
 * its linear layers. Where several of them lie stacked in one of our matrices (q, k, v; gate, up),
 * their A lie stacked too, so one product makes the inner activations of all, and so do their B.
 * They share one dropout mask, where PEFT draws one each; the masks of one module have the same
 * distribution. A module that the family itself stacks (c_attn, query_key_value, qkv_proj) has one
 * A and one B, the rows of B in our order.
 */
#ifndef CASTOR_WORKER_MODEL_ADAPTER_H
#define CASTOR_WORKER_MODEL_ADAPTER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "worker/model/family.h"
#include "worker/model/model.h"
#include "worker/model/weights.h"

struct adapter_config {
    int64_t rank;
    double alpha, dropout;
    bool rslora; /* scale by alpha / sqrt(rank) */
    /* Modules: names as PEFT matches them ("q_proj", "mlp.fc1", "layers.0.mlp.fc1"), or
     * "all-linear" alone. None: what PEFT adapts in this family when it is not told. */
    const char *const *targets;
    int64_t n_targets;
};

/* Freeze the weights and add adapters beside the modules that the targets name. ERR_INVALID with
 * param lora.target_modules or lora.rank; then the model is as it was. */
int model_adapt(struct model *m, const struct adapter_config *c, struct err *err);

/* The row of model.adapters about a matrix; NULL where none can stand. */
const struct adaptable *model_adaptable(const struct model *m, enum tensor_role matrix);
bool tensor_is_adapter(const struct tensor_desc *t);

/* The tensor that is A of a weight's adapter; B is the next one. -1: it has none. */
int64_t adapter_of(const struct model *m, int64_t weight);
/* w (rows, cols) += scale B A in the parts that the weight's adapter adapts; float32, host memory,
 * ops of a CPU. */
int adapter_merge(const struct model *m, int64_t weight, const float *a, const float *b,
                  const struct op_table *ops, struct stream *stream, float *w, struct err *err);

/* What training starts from: A uniform in +-1/sqrt(in) (He et al., 2015, with a = sqrt(5), as PEFT
 * and PyTorch's linear layers have it), a function of seed, tensor and index; B zero. */
void adapter_init(const struct model *m, int64_t tensor, uint64_t seed, enum dtype to, void *out);

/* The path of the module in transformers' model that is a part of a weight,
 * "model.layers.0.self_attn.q_proj". A fresh string. */
char *adapter_module(const struct model *m, enum tensor_role matrix, int64_t layer, int64_t part);

/* One module's A or B: rows of one of our tensors under the name that PEFT's files give it. */
struct adapter_slice {
    const char *name; /* "base_model.model.<module>.lora_A.weight" */
    int64_t tensor, first_row, rows;
    enum file_layout layout; /* of B's rows: FILE_ROWS or FILE_GROUPED_QKV; of A FILE_ROWS */
};
typedef int (*adapter_slice_fn)(void *ud, const struct adapter_slice *s, struct err *err);
/* All of them, tensor by tensor. */
int adapters_each(const struct model *m, adapter_slice_fn fn, void *ud, struct err *err);

/* adapter_model.safetensors in DIR, in `to`, as PEFT loads it. */
int adapters_write(const char *dir, const struct model *m, enum dtype to, weights_source_fn source,
                   void *ud, struct err *err);
/* The last components of the adapted modules' names, each once: what stands for the family's
 * default and for "all-linear" in PEFT's target_modules. For json_decref. */
json_t *adapters_target_modules(const struct model *m);
/* adapter_config.json: what PEFT needs to know. base_model and revision may be NULL. For
 * json_decref. */
json_t *adapters_config(const struct model *m, const json_t *target_modules, const char *base_model,
                        const char *revision);

#endif
