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

/* One call of tokenizer_encode_cut. */
struct encoding {
    const struct tokenizer *t;
    struct token_list *out;
    struct encoding_scratch *scratch;
    const char *text;      /* its beginning */
    const char *part;      /* the normalized part at hand, */
    enum text_place place; /* and where it stands */
    const size_t *cuts;    /* [n_cuts], of which `passed` lie behind us */
    size_t n_cuts, passed;
    int64_t *at;              /* [n_cuts] */
    struct token_list before; /* working memory: a part up to a cut */
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
        return pretokenizer_run(&e->t->pretokenizer, text, n,
                                text == e->part ? e->place : TEXT_FOLLOWS, &e->scratch->pieces,
                                add_piece, e, err);
    token_list_add(e->out, e->t->added[index].id);
    return 0;
}

/* Text without added tokens, but for normalized ones. */
static int add_text(struct encoding *e, const char *text, size_t n, enum text_place place,
                    struct err *err)
{
    size_t normal_n;

    e->place = place;
    int rc = normalizer_run(&e->t->normalizer, text, n, &e->scratch->normalize, &e->place, &e->part,
                            &normal_n, err);
    if (rc != 0)
        return rc;
    return added_set_split(&e->t->normalized_set, e->part, normal_n, add_normalized_part, e, err);
}

/* --- cuts --- */

/* Prefixes of a part are encoded to find cuts; beyond this many times its bytes the part is cut
 * without looking, so that many cuts in a text without added tokens take no quadratic time. */
enum { CUT_WORK = 16 }; /* of prefixes and of what is encoded again */

static void pass_cuts(struct encoding *e, const char *to)
{
    while (e->passed < e->n_cuts && e->text + e->cuts[e->passed] <= to)
        e->at[e->passed++] = e->out->n;
}

static bool begins_with(const struct token_list *ids, int64_t from, const struct token_list *start)
{
    return ids->n - from >= start->n &&
           (start->n == 0 ||
            memcmp(ids->ids + from, start->ids, (size_t)start->n * sizeof(*ids->ids)) == 0);
}

/* Does the part begin with the ids that its first n bytes have by themselves? *ids: how many. */
static int is_between_tokens(struct encoding *e, const char *text, size_t n, enum text_place place,
                             int64_t first, bool *is, int64_t *ids, struct err *err)
{
    struct token_list *out = e->out;

    e->before.n = 0;
    e->out = &e->before;
    int rc = add_text(e, text, n, place, err);
    e->out = out;
    *is = rc == 0 && begins_with(out, first, &e->before);
    *ids = e->before.n;
    return rc;
}

/* The next cut inside, or the end. */
static const char *next_cut(const struct encoding *e, const char *end)
{
    const char *cut = e->passed < e->n_cuts ? e->text + e->cuts[e->passed] : end;

    return cut < end ? cut : end;
}

/* Encode text from `start` on, up to `end` or, when *work is used up, to the next cut. Cuts that
 * lie between two tokens are passed. *done: where it came to; up to a cut that does not, what is
 * behind the last one that did is encoded again. */
static int add_stretch(struct encoding *e, const char *start, const char *end,
                       enum text_place place, size_t *work, const char **done, struct err *err)
{
    const char *stop = *work > 0 ? end : next_cut(e, end), *text = start, *cut;
    int64_t first = e->out->n, good = first, ids;
    int rc = 0;

    TRY(add_text(e, start, (size_t)(stop - start), place, err));
    while ((cut = next_cut(e, stop)) < stop) {
        size_t bytes = (size_t)(cut - start);
        bool between;
        *work -= bytes < *work ? bytes : *work;
        TRY(is_between_tokens(e, start, bytes, place, first, &between, &ids, err));
        if (!between || *work == 0) {
            e->out->n = good;
            TRY(add_text(e, text, (size_t)(cut - text), text == start ? place : TEXT_CONTINUES,
                         err));
            stop = cut;
            break;
        }
        text = cut;
        good = e->at[e->passed++] = first + ids;
    }
    *done = stop;
out:
    return rc;
}

static int add_cut_text(struct encoding *e, const char *text, size_t n, enum text_place place,
                        struct err *err)
{
    const char *end = text + n;
    size_t work = n * CUT_WORK;
    int rc = 0;

    while (text < end) {
        size_t left = (size_t)(end - text);
        work -= left < work ? left : work;
        TRY(add_stretch(e, text, end, place, &work, &text, err));
        pass_cuts(e, text);
        place = TEXT_CONTINUES;
    }
out:
    return rc;
}

/* With the white space that it swallows. A cut in that in front of the token is one in front. */
static void add_token(struct encoding *e, const struct added_token *token, const char *text,
                      size_t n)
{
    const char *content = n > 0 ? memmem(text, n, token->content, token->n) : NULL;

    if (content)
        pass_cuts(e, content);
    token_list_add(e->out, token->id);
}

static int add_raw_part(void *ud, int32_t index, const char *text, size_t n, struct err *err)
{
    struct encoding *e = ud;
    int rc = 0;

    pass_cuts(e, text);
    if (index >= 0)
        add_token(e, &e->t->added[index], text, n);
    else
        rc = add_cut_text(e, text, n, text == e->text ? TEXT_BEGINS : TEXT_FOLLOWS, err);
    if (rc == 0)
        pass_cuts(e, text + n);
    return rc;
}

/* --- for users --- */

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

int tokenizer_encode_cut(const struct tokenizer *t, const char *text, size_t bytes,
                         const size_t *cuts, size_t n_cuts, int64_t *at, struct token_list *out,
                         struct err *err)
{
    struct encoding e = {
        .t = t, .out = out, .text = text, .cuts = cuts, .n_cuts = n_cuts, .at = at};
    int64_t old_n = out->n;

    if (bytes > TOKENIZER_MAX_TEXT)
        return err_set(err, ERR_INVALID, "a text of %zu bytes is too long; %d are allowed", bytes,
                       TOKENIZER_MAX_TEXT);
    size_t good = utf8_check(text, bytes);
    if (good < bytes)
        return err_set(err, ERR_INVALID, "the text is not valid UTF-8 at byte %zu", good);
    e.scratch = scratch_take(t);
    int rc = added_set_split(&t->raw_set, text, bytes, add_raw_part, &e, err);
    if (rc == 0)
        pass_cuts(&e, text + bytes);
    else
        out->n = old_n;
    token_list_fini(&e.before);
    scratch_give_back(t, e.scratch);
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool add_special,
                     struct token_list *out, struct err *err)
{
    int64_t old_n = out->n;

    if (add_special)
        tokenizer_add_before(t, out);
    int rc = tokenizer_encode_cut(t, text, bytes, NULL, 0, NULL, out, err);
    if (rc == 0 && add_special)
        tokenizer_add_after(t, out);
    if (rc != 0)
        out->n = old_n;
    return rc;
}

bool tokenizer_ends_in_special(const struct tokenizer *t, const char *text, size_t bytes)
{
    for (int32_t i = 0; i < t->n_added; i++) {
        const struct added_token *a = &t->added[i];
        if (a->special && a->n > 0 && a->n <= bytes &&
            memcmp(text + bytes - a->n, a->content, a->n) == 0)
            return true;
    }
    return false;
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

bool tokenizer_stops_at(const struct tokenizer *t, int32_t id)
{
    for (int i = 0; i < t->n_stops; i++)
        if (t->stops[i] == id)
            return true;
    return id == t->eos;
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
