/*
 * One example to token ids, each marked as trained on or not.
 *
 *   text      special prefix, the text, special suffix, end-of-text; all of it is trained on
 *   prompt    special prefix, prompt, completion, special suffix, end-of-text
 *   messages  made of an instruction, for a model without a chat template: system prompt, questions
 *             and answers as paragraphs, special tokens and end-of-text as above
 *   messages  rendered by the model's chat template, which writes its special tokens itself: none
 *             are added, except an end-of-text token behind a conversation that ends with the
 *             assistant's answer and has no token in it that generation stops at
 *
 * Ids are those of the whole text, unless a token would lie on both sides of where an answer begins
 * or ends: then the text is cut there (tokenizer_encode_cut), since a model that is used gets the
 * prompt by itself. No first token is doubled that a text begins with, no end-of-text token that
 * text or suffix end with. What is trained on is told by place, never by id: an end-of-text token
 * is, also where it is the padding token too.
 *
 * What the assistant says is what the template puts in {% generation %} blocks, where it has any.
 * Otherwise it is found by rendering the messages before a turn with add_generation_prompt, and
 * those up to and with it without: what the second has more than the first. Both must be the
 * beginning of the whole rendering, or it is ERR_CONFLICT: the template writes a conversation's
 * beginning otherwise once it goes on (Qwen3's leaves out what was thought), so one example cannot
 * teach all its turns. The second may have an end-of-text token behind it that the whole
 * rendering has at its own end only (Phi-3).
 *
 * A turn found that way is trained on up to and with the special token that ends it, and not on
 * white space that the template writes behind that (the line break of ChatML). Generation stops at
 * the token, so nothing behind it is ever asked of the model; and being nearly certain, it would
 * only make a loss per token look smaller. Trainers differ: Axolotl trains on the end token alone,
 * LLaMA-Factory, Unsloth and TRL's template for Qwen3 on the line break too. A template's own marks
 * are followed, whichever they say. White space that ends a turn without such a token is trained
 * on, being all that ends it.
 *
 * LOSS_ON_AUTO and LOSS_ON_ASSISTANT train on a text, a completion (with its end-of-text) or the
 * assistant's turns whose weight is not 0; LOSS_ON_ALL on every token.
 *
 * A token that is not trained on is written as its complement, ~id, which is negative.
 */
#ifndef CASTOR_WORKER_TEXT_ENCODE_H
#define CASTOR_WORKER_TEXT_ENCODE_H

#include <stdbool.h>
#include <stdint.h>

#include "api/job_spec.h"
#include "core/err.h"
#include "worker/text/shapes.h"
#include "worker/text/template.h"
#include "worker/text/tokenizer.h"

struct example_encoder {
    const struct tokenizer *tokenizer; /* has an end-of-text token */
    const struct chat_template *chat;  /* NULL: the model has none */
    enum loss_on loss_on;
};

/* Append to `out`, which is as before on failure. ERR_INVALID: the example's fault;
 * ERR_CONFLICT: see above; ERR_UNSUPPORTED: the model cannot take such examples. */
int encode_example(const struct example_encoder *e, const struct example *example,
                   struct token_list *out, struct err *err);

static inline int32_t marked_id(int32_t marked)
{
    return marked < 0 ? ~marked : marked;
}

static inline bool marked_is_trained(int32_t marked)
{
    return marked >= 0;
}

#endif
