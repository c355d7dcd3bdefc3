#include "worker/text/tokenizer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/tokenizer_parts.h"
#include "worker/text/utf8.h"

void token_list_add(struct token_list *l, int32_t id)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 64;
        l->ids = xrealloc(l->ids, (size_t)l->cap * sizeof(*l->ids));
    }
    l->ids[l->n++] = id;
}

void token_list_fini(struct token_list *l)
{
    free(l->ids);
    memset(l, 0, sizeof(*l));
}

/* Working memory of one call at a time. */
struct encoding_scratch {
    struct normalize_scratch normalize;
    struct pretokenize_scratch pieces;
    struct bpe_scratch bpe;
    struct unigram_scratch unigram;
};

static void scratch_destroy(struct encoding_scratch *s)
{
    if (!s)
        return;
    normalize_scratch_fini(&s->normalize);
    pretokenize_scratch_fini(&s->pieces);
    bpe_scratch_fini(&s->bpe);
    unigram_scratch_fini(&s->unigram);
    free(s);
}

/* The tokenizer is const to its users; what lies idle in it is nobody's. */
static struct encoding_scratch *scratch_take(const struct tokenizer *t)
{
    struct tokenizer *owner = (struct tokenizer *)t;

    for (int i = 0; i < TOKENIZER_IDLE; i++) {
        struct encoding_scratch *s = atomic_exchange(&owner->idle[i], NULL);
        if (s)
            return s;
    }
    return xcalloc(1, sizeof(struct encoding_scratch));
}

static void scratch_give_back(const struct tokenizer *t, struct encoding_scratch *s)
{
    struct tokenizer *owner = (struct tokenizer *)t;

    for (int i = 0; s && i < TOKENIZER_IDLE; i++) {
        struct encoding_scratch *none = NULL;
        if (atomic_compare_exchange_strong(&owner->idle[i], &none, s))
            s = NULL;
    }
    scratch_destroy(s);
}

/* One call of tokenizer_encode. */
struct encoding {
    const struct tokenizer *t;
    struct token_list *out;
    struct encoding_scratch *scratch;
    const char *text; /* its beginning */
    bool is_head;     /* of the part at hand: it begins the text */
    const char *part;
};

static int add_piece(void *ud, const char *piece, size_t n, struct err *err)
{
    struct encoding *e = ud;

    if (e->t->is_unigram)
        return unigram_encode(&e->t->unigram, piece, n, &e->scratch->unigram, e->out, err);
    return bpe_encode(&e->t->bpe, piece, n, &e->scratch->bpe, e->out, err);
}

static int add_normalized_part(void *ud, int32_t index, const char *text, size_t n, struct err *err)
{
    struct encoding *e = ud;

    if (index < 0)
        return pretokenizer_run(&e->t->pretokenizer, text, n, e->is_head && text == e->part,
                                &e->scratch->pieces, add_piece, e, err);
    token_list_add(e->out, e->t->added[index].id);
    return 0;
}

static int add_raw_part(void *ud, int32_t index, const char *text, size_t n, struct err *err)
{
    struct encoding *e = ud;
    size_t normal_n;

    if (index >= 0) {
        token_list_add(e->out, e->t->added[index].id);
        return 0;
    }
    e->is_head = text == e->text;
    int rc = normalizer_run(&e->t->normalizer, text, n, &e->scratch->normalize, &e->is_head,
                            &e->part, &normal_n, err);
    if (rc != 0)
        return rc;
    return added_set_split(&e->t->normalized_set, e->part, normal_n, add_normalized_part, e, err);
}

static void add_all(struct token_list *out, const struct token_list *ids)
{
    for (int64_t i = 0; i < ids->n; i++)
        token_list_add(out, ids->ids[i]);
}

void tokenizer_add_before(const struct tokenizer *t, struct token_list *out)
{
    add_all(out, &t->post.before);
}

void tokenizer_add_after(const struct tokenizer *t, struct token_list *out)
{
    add_all(out, &t->post.after);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool add_special,
                     struct token_list *out, struct err *err)
{
    struct encoding e = {.t = t, .out = out, .text = text};
    int64_t old_n = out->n;
    int rc = 0;

    if (bytes > TOKENIZER_MAX_TEXT)
        return err_set(err, ERR_INVALID, "a text of %zu bytes is too long; %d are allowed", bytes,
                       TOKENIZER_MAX_TEXT);
    size_t good = utf8_check(text, bytes);
    if (good < bytes)
        return err_set(err, ERR_INVALID, "the text is not valid UTF-8 at byte %zu", good);
    if (add_special)
        tokenizer_add_before(t, out);
    e.scratch = scratch_take(t);
    rc = added_set_split(&t->raw_set, text, bytes, add_raw_part, &e, err);
    if (add_special)
        tokenizer_add_after(t, out);
    if (rc != 0)
        out->n = old_n;
    scratch_give_back(t, e.scratch);
    return rc;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, bool skip_special,
                     struct buf *out, struct err *err)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= t->n_ids)
            return err_set(err, ERR_INVALID,
                           "token id %" PRId32 " at position %" PRId64
                           " is not in the vocabulary of %" PRId64,
                           ids[i], i, t->n_ids);
    return decoder_run(&t->decoder, ids, n, skip_special, out, err);
}

int64_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->n_ids;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

int32_t tokenizer_pad(const struct tokenizer *t)
{
    return t->pad;
}

void tokenizer_destroy(struct tokenizer *t)
{
    if (!t)
        return;
    added_set_fini(&t->raw_set);
    added_set_fini(&t->normalized_set);
    for (int32_t i = 0; i < t->n_added; i++)
        free(t->added[i].content);
    free(t->added);
    for (int i = 0; i < TOKENIZER_IDLE; i++)
        scratch_destroy(t->idle[i]);
    normalizer_fini(&t->normalizer);
    pretokenizer_fini(&t->pretokenizer);
    bpe_fini(&t->bpe);
    unigram_fini(&t->unigram);
    vocab_fini(&t->vocab);
    postprocessor_fini(&t->post);
    decoder_fini(&t->decoder);
    free(t);
}
