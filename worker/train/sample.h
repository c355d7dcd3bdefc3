/*
 * Sampling: text from the model in training, for people to look at. Temperature 0.8 over the 40
 * most likely tokens, drawn by the counter-based generator from (seed, training step, prompt,
 * position), so a resumed run writes the same samples.
 */
#ifndef CASTOR_WORKER_TRAIN_SAMPLE_H
#define CASTOR_WORKER_TRAIN_SAMPLE_H

#include <stdint.h>

#include "core/buf.h"
#include "core/err.h"
#include "worker/text/tokenizer.h"
#include "worker/train/executor.h"

struct sample_request {
    const char *prompt;
    int64_t prompt_index;
    int64_t max_tokens; /* new ones */
    uint64_t seed;
    int64_t step;
};

/* Appends the completion, without the prompt: to where generation with this tokenizer ends, or the
 * limits of request and sequence do. No step may be in flight. */
int sample_text(struct executor *e, const struct plan *plan, const struct tokenizer *tokenizer,
                const struct sample_request *request, struct buf *out, struct err *err);

/* One draw from logits: `unit` in [0, 1). Exposed for tests. */
int32_t sample_token(const float *logits, int64_t vocab, float unit);

#endif
