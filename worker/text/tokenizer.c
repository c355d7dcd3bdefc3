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

/* One call of tokenizer_encode. */
struct encoding {
    const struct tokenizer *t;
    struct token_list *out;
    struct buf normalized;
    struct pretokenize_scratch pieces;
    struct bpe_scratch bpe;
};

static int add_piece(void *ud, const char *piece, size_t n, struct err *err)
{
    struct encoding *e = ud;

    return bpe_encode(&e->t->bpe, piece, n, &e->bpe, e->out, err);
}

static int add_normalized_part(void *ud, int32_t index, const char *text, size_t n, struct err *err)
{
    struct encoding *e = ud;

    if (index < 0)
        return pretokenizer_run(&e->t->pretokenizer, text, n, &e->pieces, add_piece, e, err);
    token_list_add(e->out, e->t->added[index].id);
    return 0;
}

static int add_raw_part(void *ud, int32_t index, const char *text, size_t n, struct err *err)
{
    struct encoding *e = ud;
    const char *normal;
    size_t normal_n;

    if (index >= 0) {
        token_list_add(e->out, e->t->added[index].id);
        return 0;
    }
    int rc = normalizer_run(&e->t->normalizer, text, n, &e->normalized, &normal, &normal_n, err);
    if (rc != 0)
        return rc;
    return added_set_split(&e->t->normalized_set, normal, normal_n, add_normalized_part, e, err);
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
    struct encoding e = {.t = t, .out = out};
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
    rc = added_set_split(&t->raw_set, text, bytes, add_raw_part, &e, err);
    if (add_special)
        tokenizer_add_after(t, out);
    if (rc != 0)
        out->n = old_n;
    buf_fini(&e.normalized);
    pretokenize_scratch_fini(&e.pieces);
    bpe_scratch_fini(&e.bpe);
    return rc;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, bool skip_special,
                     struct buf *out, struct err *err)
{
    struct buf bytes = {0};

    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= t->n_ids)
            return err_set(err, ERR_INVALID,
                           "token id %" PRId32 " at position %" PRId64
                           " is not in the vocabulary of %" PRId64,
                           ids[i], i, t->n_ids);
    for (int64_t i = 0; i < n; i++)
        if (t->decode.length[ids[i]] > 0 && !(skip_special && t->decode.special[ids[i]]))
            buf_add(&bytes, t->decode.bytes.data + t->decode.offset[ids[i]],
                    t->decode.length[ids[i]]);
    utf8_add_lossy(out, buf_str(&bytes), bytes.len);
    buf_fini(&bytes);
    return 0;
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
    pretokenizer_fini(&t->pretokenizer);
    bpe_fini(&t->bpe);
    postprocessor_fini(&t->post);
    decode_table_fini(&t->decode);
    free(t);
}
