/*
 * Weights between Hugging Face files and our tensors.
 *
 * Reading: model.safetensors, or model.safetensors.index.json with its shards, or else PyTorch's
 * pytorch_model.bin, or its index with shards. Every one of our tensors must be found, every tensor
 * of the files must be known (or in the family's ignore list): missing and unexpected names are
 * errors that list them. Any floating type converts to the wanted one on the way.
 *
 * Writing: one model.safetensors (or shards of at most 5 GB with an index) with the family's names,
 * as transformers reads them.
 */
#ifndef CASTOR_WORKER_MODEL_WEIGHTS_H
#define CASTOR_WORKER_MODEL_WEIGHTS_H

#include <stdint.h>

#include "core/err.h"
#include "kernels/dtype.h"
#include "worker/model/model.h"

struct weights_reader;

/* Opens the files of MODEL_DIR, checks names, shapes and types against the model. Reads headers
 * only. */
int weights_open(const char *model_dir, const struct model *m, struct weights_reader **out,
                 struct err *err);
void weights_close(struct weights_reader *r);

/* The whole tensor, rows x cols, as `to`, into host memory. */
int weights_read(struct weights_reader *r, int64_t tensor, enum dtype to, void *out,
                 struct err *err);

/* The whole tensor quantised, from float32: the reader keeps memory for the largest so far. */
int weights_read_quantized(struct weights_reader *r, int64_t tensor, enum quant_format format,
                           void *codes, float *scales, struct err *err);
/* Is all of the tensor of this type in the files? */
bool weights_are(const struct weights_reader *r, int64_t tensor, enum dtype type);

/* Supplies tensor data for export: rows x cols of `from`, host memory, valid until the next call.
 */
typedef int (*weights_source_fn)(void *ud, int64_t tensor, const void **data, enum dtype *from,
                                 struct err *err);

/* Write all tensors to DIR in `to`. The index, where there is one, is written last. DIR must not
 * hold weights already: an index of an older export would survive a smaller new one. */
int weights_write(const char *dir, const struct model *m, enum dtype to, weights_source_fn source,
                  void *ud, struct err *err);
/* The same with another limit on a shard; a tensor larger than that has a shard of its own. */
int weights_write_sharded(const char *dir, const struct model *m, enum dtype to, size_t shard_bytes,
                          weights_source_fn source, void *ud, struct err *err);

#endif
