/*
 * Which files of a repository a trainer needs, by name only: the configuration and tokenizer files
 * that are there, and one form of the weights, in transformers' order: model.safetensors, its
 * shards, pytorch_model.bin, its shards. Everything else (other frameworks' weights, duplicates,
 * Python code, READMEs) is left where it is. Pure functions.
 */
#ifndef CASTOR_WORKER_HUB_SELECT_H
#define CASTOR_WORKER_HUB_SELECT_H

#include <jansson.h>
#include <stdbool.h>

#include "core/err.h"
#include "worker/hub/listing.h"

/* Borrows from the listing, which must outlive it. Each list is sorted and without repetition. */
struct selection {
    const struct listing_file **metadata; /* with the index, where there is one */
    int64_t n_metadata;
    const struct listing_file *index; /* NULL = the weights are one file */
    const struct listing_file **weights;
    int64_t n_weights; /* 0 until select_shards where there is an index */
};

/* ERR_UNSUPPORTED no_weights; ERR_CORRUPT for a metadata file of an absurd size. */
int select_files(const struct listing *l, struct selection *out, struct err *err);
/* The i-th name of a file that other programs look for at the top of a model's repository, NULL
 * behind the last. */
const char *select_known_name(int i);
/* The weight files that the index (its JSON) names. ERR_CORRUPT for a name that is not a plain file
 * of the listing, with the index's own suffix. */
int select_shards(const struct listing *l, const json_t *index, struct selection *s,
                  struct err *err);
int64_t select_weight_bytes(const struct selection *s);
void select_fini(struct selection *s);

#endif
