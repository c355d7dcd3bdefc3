/*
 * Export: the fine-tuned model as a Hugging Face directory, made from a checkpoint, so that it
 * needs neither the device nor memory for the whole model: config.json and the tokenizer's files of
 * the base model, model.safetensors with the family's own names, and castor.json, which says what
 * was trained from what.
 *
 * A job with adapters leaves what its spec asks for: `adapter` a PEFT directory
 * (adapter_model.safetensors, adapter_config.json), `merged` a model directory with the adapters
 * added to the weights, `both` the latter with the former in adapter/. In either the tokenizer.
 * Where the base was quantised, `merged` has the decoded weights: what the adapters were trained
 * beside, rounded to the compute type once, behind the sum.
 */
#ifndef CASTOR_WORKER_TRAIN_EXPORT_H
#define CASTOR_WORKER_TRAIN_EXPORT_H

#include <stdint.h>

#include "api/job_spec.h"
#include "core/err.h"
#include "worker/model/model.h"

/* JOBDIR/output from JOBDIR/checkpoints/step-N; written aside and renamed, an older output is
 * replaced. */
int export_model(const char *jobdir, int64_t step, const char *base_dir, const struct model *model,
                 const struct job_spec *spec, struct err *err);

#endif
