/*
 * Data sets: a file becomes tokenized examples, examples become rows of fixed length, rows become
 * batches.
 *
 * Formats: JSONL in the shapes of worker/text/shapes.h (texts, prompts with completions,
 * instructions, conversations), CSV with a header row (but no conversations), plain text (an
 * example is a paragraph: lines without a blank one between), each of them also compressed by gzip
 * or zstd, and Parquet. A set is one file or several, one behind the other. worker/text/encode.h
 * says which tokens an example becomes and which of them are trained on; the others are input only:
 * their targets are TARGET_IGNORE.
 *
 * Where a chat template writes earlier turns otherwise once a conversation goes on, each answer of
 * the assistant becomes an example of its own, with what was said before it as a model that is used
 * gets it.
 *
 * An example longer than a row is cut into several, each a new example; a cut never leaves a last
 * part of one token, since that one could not be a target. A part without any target (of a long
 * prompt) is left out.
 *
 * Packing puts examples one behind the other in rows of max_seq_length tokens (first fit in
 * shuffled order, worker/text/rows.h); attention and positions start again at each example. Without
 * packing every row holds one example.
 *
 * Order: epoch e visits rows in a permutation that is a pure function of (seed, e); so the data
 * cursor of a checkpoint is (epoch, row index) and nothing else.
 *
 * Memory does not grow with the set: a file is read as a stream and tokenized once, into files
 * without names in scratch_dir (4 bytes a token, 48 an example at most; worker/text/token_store.h),
 * from which batches are read. A loaded dataset is immutable (dataset_split changes it: before
 * anyone else has it); batches are filled into caller's buffers, from any thread.
 */
#ifndef CASTOR_WORKER_TEXT_DATASET_H
#define CASTOR_WORKER_TEXT_DATASET_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/job_spec.h"
#include "core/err.h"
#include "worker/text/tokenizer.h"

enum { TARGET_IGNORE = -100 };

struct chat_template;
struct dataset;

struct dataset_options {
    enum data_format
        format; /* DATA_AUTO: by the file's first line, then by each object's members */
    enum loss_on loss_on;
    const json_t *mapping;            /* of columns (worker/text/columns.h), or NULL */
    const struct chat_template *chat; /* for conversations; NULL: the model has none */
    int64_t max_seq_length;           /* row length in tokens, > 1           */
    bool packing;
    int64_t max_examples, min_examples; /* of the file, before cutting; 0 = no bound */
    uint64_t seed;                      /* of packing and order */
    const char *scratch_dir;            /* for the tokenized set: on a disk, with room for it */
    const char *param;                  /* "training_file" | "validation_file", for errors */
    const char *name;                   /* the client's name for the set, for messages */
};

struct dataset_stats {
    int64_t examples;                    /* after cutting at max_seq_length */
    int64_t sources;                     /* lines or paragraphs of the file */
    int64_t tokens, target_tokens, rows; /* parts without a target are not counted */
    int64_t longest_example;             /* in tokens, before cutting */
};

/* What a bad line looks like; used by `castor-worker --check`, which wants all of them. Return
 * non-zero to stop. */
typedef int (*dataset_fault_fn)(void *ud, int64_t line, const char *message);

/* Load and tokenize the files. On the first bad line: ERR_INVALID with reason invalid_training_file
 * or invalid_validation_file, its number and what is wrong; too few examples: reason
 * invalid_n_examples. A tokenizer without an end-of-text token is ERR_UNSUPPORTED; no room in
 * scratch_dir is ERR_NOSPACE, reason disk_full. */
int dataset_load(const char *const *paths, int64_t n_paths, const struct tokenizer *tokenizer,
                 const struct dataset_options *options, struct dataset **out, struct err *err);
void dataset_destroy(struct dataset *d);
void dataset_get_stats(const struct dataset *d, struct dataset_stats *out);

/* What a data file is. */
struct dataset_summary {
    const char *format; /* "jsonl", "csv", "parquet", "plain", or "empty" */
    const char *shape; /* "text", "prompt", "messages", "mixed", or "columns": it takes a mapping to
                          make examples of them; "none" without a good line */
    int64_t examples;  /* the good ones */
    int64_t bytes;     /* of the file */
};

/* Check a file without a tokenizer: every bad line goes to fn. A file whose first object has no
 * shape is taken for columns that a job will map. Returns 0 also where there were bad lines, and
 * where fn stopped it; an error is about the file as a whole. */
int dataset_check(const char *path, enum data_format format, dataset_fault_fn fn, void *ud,
                  struct dataset_summary *out, struct err *err);

/* Split the last `fraction` of the file's examples (at least one) off into a set of its own, before
 * packing. At least one stays; `d` is unchanged on failure. */
int dataset_split(struct dataset *d, double fraction, struct dataset **validation, struct err *err);

/* One batch of B rows of T tokens. All arrays are the caller's, (B, T), row-major. */
struct batch {
    int64_t B, T;     /* T = max_seq_length */
    int32_t *tokens;  /* input ids; padding rows and tails hold the pad id (0 when there is none) */
    int32_t *targets; /* the next token, or TARGET_IGNORE */
    int32_t *positions; /* 0-based within the example; 0 in padding */
    int32_t *first_key; /* index in the row of the example's first token: attention sees no earlier;
                           padding sees itself only */
    int64_t n_tokens;   /* that are not padding */
    int64_t n_targets;  /* that are not TARGET_IGNORE */
};

/* Fill rows [first_row, first_row + B) of epoch's order; rows past the end are padding
 * (TARGET_IGNORE throughout). ERR_IO: the disk fails; the batch is of no use then. */
int dataset_fill(const struct dataset *d, int64_t epoch, int64_t first_row, struct batch *batch,
                 struct err *err);

#endif
