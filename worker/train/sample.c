#include "worker/train/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/rng.h"

enum { TOP_K = 40 };
static const float temperature = 0.8f;

/* The TOP_K largest logits in descending order; of equal ones the lower id comes first. */
static int64_t find_top(const float *logits, int64_t vocab, int32_t ids[TOP_K])
{
    int64_t n = 0;
    for (int64_t v = 0; v < vocab; v++) {
        if (n == TOP_K && logits[v] <= logits[ids[n - 1]])
            continue;
        int64_t at = n < TOP_K ? n++ : n - 1;
        while (at > 0 && logits[v] > logits[ids[at - 1]]) {
            ids[at] = ids[at - 1];
            at--;
        }
        ids[at] = (int32_t)v;
    }
    return n;
}

int32_t sample_token(const float *logits, int64_t vocab, float unit)
{
    int32_t ids[TOP_K];
    double weight[TOP_K], sum = 0;
    int64_t n = find_top(logits, vocab, ids);

    for (int64_t k = 0; k < n; k++)
        sum += weight[k] = exp((double)(logits[ids[k]] - logits[ids[0]]) / temperature);
    double left = (double)unit * sum;
    for (int64_t k = 0; k < n - 1; k++) {
        left -= weight[k];
        if (left < 0)
            return ids[k];
    }
    return ids[n - 1];
}

/* The sequence so far as row 0, one example from its first token on. */
static void lay_row(struct executor *e, const struct token_list *tokens)
{
    struct batch b;
    executor_batch(e, 0, 0, &b);
    memset(b.tokens, 0, (size_t)(b.B * b.T) * sizeof *b.tokens);
    memset(b.first_key, 0, (size_t)(b.B * b.T) * sizeof *b.first_key);
    for (int64_t i = 0; i < b.B * b.T; i++) {
        b.targets[i] = TARGET_IGNORE;
        b.positions[i] = (int32_t)(i % b.T);
    }
    memcpy(b.tokens, tokens->ids, (size_t)tokens->n * sizeof *b.tokens);
}

int sample_text(struct executor *e, const struct plan *plan, const struct tokenizer *tokenizer,
                const struct sample_request *request, struct buf *out, struct err *err)
{
    int64_t vocab = plan->in.model->config.vocab;
    int64_t room = plan->in.seq_length;
    struct rng_stream stream = {.seed = request->seed,
                                .step = (uint32_t)request->step,
                                .site = (uint32_t)request->prompt_index,
                                .use = RNG_USE_SAMPLE};
    struct token_list tokens = {0};
    float *logits = xcalloc((size_t)vocab, sizeof *logits);
    int rc = 0;

    TRY(tokenizer_encode(tokenizer, request->prompt, strlen(request->prompt), true, &tokens, err));
    if (tokens.n == 0) /* an empty prompt starts a text */
        token_list_add(&tokens, tokenizer_bos(tokenizer) >= 0 ? tokenizer_bos(tokenizer) : 0);
    if (tokens.n > room - 1)
        tokens.n = room - 1;
    int64_t prompt = tokens.n;
    for (int64_t k = 0; k < request->max_tokens && tokens.n < room; k++) {
        lay_row(e, &tokens);
        TRY(executor_logits(e, tokens.n - 1, logits, err));
        int32_t id = sample_token(logits, vocab, rng_to_unit(rng_draw(stream, (uint64_t)k)));
        if (tokenizer_stops_at(tokenizer, id) || id >= tokenizer_vocab_size(tokenizer))
            break;
        token_list_add(&tokens, id);
    }
    TRY(tokenizer_decode(tokenizer, tokens.ids + prompt, tokens.n - prompt, true, out, err));
out:
    token_list_fini(&tokens);
    free(logits);
    return rc ? err_wrap(err, rc, "sampling") : 0;
}
