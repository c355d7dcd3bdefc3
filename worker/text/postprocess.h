/*
 * Post-processors: the special tokens that stand before and behind an encoded text.
 *
 * TemplateProcessing (its template for a single text), RobertaProcessing, BertProcessing and
 * ByteLevel (which only moves offsets) all come down to ids in front and ids behind; a Sequence
 * puts the later ones outside.
 */
#ifndef CASTOR_WORKER_TEXT_POSTPROCESS_H
#define CASTOR_WORKER_TEXT_POSTPROCESS_H

#include <jansson.h>

#include "core/err.h"
#include "worker/text/tokenizer.h"

struct postprocessor {
    struct token_list before, after;
};

/* From the "post_processor" member of tokenizer.json; null or absent adds nothing. Ids must be
 * below n_ids. */
int postprocessor_init(struct postprocessor *p, const json_t *json, int64_t n_ids, struct err *err);
void postprocessor_fini(struct postprocessor *p);

#endif
