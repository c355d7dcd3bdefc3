/* What tests of data sets share: the golden tokenizer, options, files and batches. Functions fail
 * the test themselves. */
#ifndef CASTOR_TESTS_TEXT_DATASET_RIG_H
#define CASTOR_TESTS_TEXT_DATASET_RIG_H

#include "tests/unit/worker/text/scratch_dir.h"
#include "worker/text/dataset.h"

/* Of the golden tokenizer: <s>, </s>, <pad>; its template is "<s> $A </s>". */
enum { BOS = 0, EOS = 1, PAD = 2 };

struct tokenizer *rig_tokenizer(void);
/* Packed rows of 16; the tokenized set goes to the directory of temporary files. */
struct dataset_options rig_options(void);

/* A file of n texts "<i> <i> ..." of varying length; the longest has 60 words. */
struct dataset *rig_load_numbers(const struct tokenizer *t, int n, struct dataset_options o);
/* The i-th of them has so many words. */
int rig_number_words(int i);
struct dataset *rig_load_text(const struct tokenizer *t, const char *text,
                              struct dataset_options o);

void batch_init(struct batch *b, int64_t B, int64_t T);
void batch_fini(struct batch *b);
/* dataset_fill, which must not fail. */
void rig_fill(const struct dataset *d, int64_t epoch, int64_t row, struct batch *b);

#endif
