#include "worker/text/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/utf8.h"

/* Up to here scanning for the lowest rank is cheaper than a heap. */
enum { SHORT_PIECE = 40 };

struct bpe_symbol {
    int32_t id; /* -1: merged into its left neighbour */
    int32_t prev, next;
};

void bpe_scratch_fini(struct bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    memset(s, 0, sizeof(*s));
}

/* --- the byte alphabet ------------------------------------------------------------------------ */

static bool stands_for_itself(unsigned byte)
{
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/* The byte that character c stands for, or -1. */
static int byte_of_character(uint32_t c)
{
    if (c < 256)
        return stands_for_itself(c) ? (int)c : -1;
    if (c >= 256 + 68)
        return -1;
    /* The c-256th byte that does not stand for itself: 0..32, 127..160, 173. */
    c -= 256;
    return c <= 32 ? (int)c : c <= 66 ? (int)c + 127 - 33 : 173;
}

bool bpe_token_to_bytes(const char *token, size_t n, struct buf *out)
{
    size_t old_len = out->len;

    for (size_t i = 0, bytes; i < n; i += bytes) {
        int byte = byte_of_character(utf8_read(token + i, n - i, &bytes));
        if (byte < 0) {
            out->len = old_len;
            return false;
        }
        buf_add_char(out, (char)byte);
    }
    return true;
}

/* --- merging ---------------------------------------------------------------------------------- */

static struct bpe_symbol *need_symbols(struct bpe_scratch *s, size_t n)
{
    if (n > s->symbols_cap) {
        s->symbols_cap = n < 64 ? 64 : n;
        s->symbols = xrealloc(s->symbols, s->symbols_cap * sizeof(*s->symbols));
    }
    return s->symbols;
}

/* The piece's first symbols: one a byte, unknown ones as unk (fused if asked for) or left out. */
static int first_symbols(const struct bpe *m, const char *piece, size_t n, struct bpe_scratch *s,
                         size_t *count, struct err *err)
{
    struct bpe_symbol *symbols = need_symbols(s, n);
    size_t k = 0;
    bool after_unk = false;

    for (size_t i = 0; i < n; i++) {
        int32_t id = m->byte_id[(unsigned char)piece[i]];
        if (id < 0) {
            if (m->unk_missing)
                return err_set(err, ERR_INVALID,
                               "the tokenizer's vocabulary lacks byte 0x%02X and its own "
                               "unk_token; the tokenizer's files are incomplete",
                               (unsigned char)piece[i]);
            if (m->unk_id < 0 || (after_unk && m->fuse_unk))
                continue;
            id = m->unk_id;
            after_unk = true;
        } else {
            after_unk = false;
        }
        symbols[k].id = id;
        symbols[k].prev = (int32_t)k - 1;
        symbols[k].next = (int32_t)k + 1;
        k++;
    }
    *count = k;
    return 0;
}

/* Merge n symbols held in an array, always rescanning; returns how many are left, in front. */
static size_t merge_short(const struct bpe *m, struct bpe_symbol *symbols, size_t n)
{
    struct pair_value pairs[SHORT_PIECE]; /* of symbol i and i + 1 */
    const struct pair_value none = {UINT32_MAX, -1};
    const struct pair_value *found;

    for (size_t i = 0; i + 1 < n; i++) {
        found = pair_map_find(&m->merges, symbols[i].id, symbols[i + 1].id);
        pairs[i] = found ? *found : none;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (pairs[i].rank < pairs[best].rank)
                best = i;
        if (pairs[best].rank == UINT32_MAX)
            break;
        symbols[best].id = pairs[best].id;
        n--;
        for (size_t i = best + 1; i < n; i++) {
            symbols[i].id = symbols[i + 1].id;
            pairs[i - 1] = pairs[i];
        }
        if (best + 1 < n) {
            found = pair_map_find(&m->merges, symbols[best].id, symbols[best + 1].id);
            pairs[best] = found ? *found : none;
        }
        if (best > 0) {
            found = pair_map_find(&m->merges, symbols[best - 1].id, symbols[best].id);
            pairs[best - 1] = found ? *found : none;
        }
    }
    return n;
}

static void heap_sift_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t moving = heap[i];

    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= moving)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

static void heap_push(struct bpe_scratch *s, uint64_t entry)
{
    if (s->heap_n == s->heap_cap) {
        s->heap_cap = s->heap_cap ? s->heap_cap * 2 : 128;
        s->heap = xrealloc(s->heap, s->heap_cap * sizeof(*s->heap));
    }
    size_t i = s->heap_n++;
    while (i > 0 && s->heap[(i - 1) / 2] > entry) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = entry;
}

static uint64_t heap_pop(struct bpe_scratch *s)
{
    uint64_t top = s->heap[0];

    s->heap[0] = s->heap[--s->heap_n];
    heap_sift_down(s->heap, s->heap_n, 0);
    return top;
}

/* Merge n symbols through the heap; returns how many are left, linked by `next` from symbol 0.
 * Heap entries are rank << 32 | position of the left symbol; an entry is stale when its pair has
 * another rank by now. */
static void merge_long(const struct bpe *m, struct bpe_symbol *symbols, size_t n,
                       struct bpe_scratch *s)
{
    const struct pair_value *found;
    int32_t end = (int32_t)n;

    s->heap_n = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        found = pair_map_find(&m->merges, symbols[i].id, symbols[i + 1].id);
        if (found)
            heap_push(s, (uint64_t)found->rank << 32 | i);
    }
    while (s->heap_n > 0) {
        uint64_t top = heap_pop(s);
        int32_t left = (int32_t)(uint32_t)top;
        int32_t right = symbols[left].next;
        if (symbols[left].id < 0 || right == end)
            continue;
        found = pair_map_find(&m->merges, symbols[left].id, symbols[right].id);
        if (!found || found->rank != (uint32_t)(top >> 32))
            continue;
        symbols[left].id = found->id;
        symbols[left].next = symbols[right].next;
        symbols[right].id = -1;
        int32_t prev = symbols[left].prev, next = symbols[left].next;
        if (next != end) {
            symbols[next].prev = left;
            found = pair_map_find(&m->merges, symbols[left].id, symbols[next].id);
            if (found)
                heap_push(s, (uint64_t)found->rank << 32 | (uint32_t)left);
        }
        if (prev >= 0) {
            found = pair_map_find(&m->merges, symbols[prev].id, symbols[left].id);
            if (found)
                heap_push(s, (uint64_t)found->rank << 32 | (uint32_t)prev);
        }
    }
}

static int encode_by_merging(const struct bpe *m, const char *piece, size_t n,
                             struct bpe_scratch *s, struct token_list *out, struct err *err)
{
    size_t count = 0;
    int rc = first_symbols(m, piece, n, s, &count, err);

    if (rc != 0)
        return rc;
    if (count <= SHORT_PIECE) {
        count = merge_short(m, s->symbols, count);
        for (size_t i = 0; i < count; i++)
            token_list_add(out, s->symbols[i].id);
    } else {
        merge_long(m, s->symbols, count, s);
        for (size_t i = 0; i < count; i = (size_t)s->symbols[i].next)
            token_list_add(out, s->symbols[i].id);
    }
    return 0;
}

int bpe_encode(const struct bpe *m, const char *piece, size_t n, struct bpe_scratch *s,
               struct token_list *out, struct err *err)
{
    if (n == 0)
        return 0;
    if (n > BPE_MAX_PIECE_BYTES)
        return err_set(err, ERR_INVALID, "a word of %zu bytes is too long to tokenize", n);
    int32_t id = token_map_find(&m->direct, piece, n);
    if (id >= 0) {
        token_list_add(out, id);
        return 0;
    }
    return encode_by_merging(m, piece, n, s, out, err);
}

/* --- loading ---------------------------------------------------------------------------------- */

static int refuse_token(struct err *err, const char *token, const char *why)
{
    return err_set(err, ERR_INVALID, "the tokenizer's vocabulary is not usable: token '%.80s' %s",
                   token, why);
}

static int load_vocab(struct bpe *m, const json_t *vocab, struct err *err)
{
    unsigned char *seen = NULL;
    size_t key_bytes = 0;
    const char *token;
    json_t *value;
    int rc = 0;

    if (!json_is_object(vocab))
        return err_set(err, ERR_INVALID, "the tokenizer's vocab is not a JSON object");
    seen = xcalloc(BPE_MAX_ID, 1);
    json_object_foreach((json_t *)vocab, token, value)
    {
        size_t n = strlen(token);
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= BPE_MAX_ID)
            rc = refuse_token(err, token, "has an id that is not a whole number below 4194304");
        else if (n > BPE_MAX_TOKEN_BYTES)
            rc = refuse_token(err, token, "is longer than 65536 bytes");
        else if (seen[id])
            rc = refuse_token(err, token, "has the id of another token");
        if (rc != 0)
            goto out;
        seen[id] = 1;
        key_bytes += n;
    }
    TRY(token_map_init(&m->vocab, (int64_t)json_object_size(vocab), key_bytes, err));
    TRY(token_map_init(&m->direct, (int64_t)json_object_size(vocab), key_bytes, err));
    json_object_foreach((json_t *)vocab, token, value)
    {
        int32_t id = (int32_t)json_integer_value(value);
        token_map_add(&m->vocab, token, strlen(token), id);
        if (id >= m->n_ids)
            m->n_ids = id + 1;
    }
    for (unsigned byte = 0; byte < 256; byte++)
        m->byte_id[byte] = -1;
    for (uint32_t c = 0; c < 256 + 68; c++) {
        char text[4];
        int byte = byte_of_character(c);
        if (byte >= 0)
            m->byte_id[byte] = token_map_find(&m->vocab, text, utf8_write(c, text));
    }
out:
    free(seen);
    return rc;
}

static int add_merge(struct bpe *m, uint32_t rank, const char *a, size_t a_len, const char *b,
                     size_t b_len, struct buf *joined, struct err *err)
{
    int32_t left = token_map_find(&m->vocab, a, a_len);
    int32_t right = token_map_find(&m->vocab, b, b_len);

    buf_clear(joined);
    buf_add(joined, a, a_len);
    buf_add(joined, b, b_len);
    int32_t id = token_map_find(&m->vocab, joined->data, joined->len);
    if (left < 0 || right < 0 || id < 0)
        return err_set(err, ERR_INVALID,
                       "merge %u of the tokenizer ('%.40s' with '%.40s') uses a token that is not "
                       "in its vocabulary; the files do not belong together",
                       rank + 1, a, b);
    pair_map_set(&m->merges, left, right, (struct pair_value){rank, id});
    return 0;
}

/* One "left right" line. */
static int add_merge_line(struct bpe *m, uint32_t rank, const char *line, size_t n,
                          struct buf *joined, struct err *err)
{
    const char *space = memchr(line, ' ', n);

    if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - line)))
        return err_set(err, ERR_INVALID,
                       "merge %u of the tokenizer is not two tokens with one space between",
                       rank + 1);
    return add_merge(m, rank, line, (size_t)(space - line), space + 1,
                     n - (size_t)(space + 1 - line), joined, err);
}

static int load_merges_json(struct bpe *m, const json_t *merges, struct err *err)
{
    struct buf joined = {0};
    uint32_t rank = 0;
    json_t *entry;
    size_t i;
    int rc = 0;

    if (!json_is_array(merges))
        return err_set(err, ERR_INVALID, "the tokenizer's merges are not a JSON array");
    TRY(pair_map_init(&m->merges, (int64_t)json_array_size(merges), err));
    json_array_foreach(merges, i, entry)
    {
        const json_t *a = json_array_get(entry, 0), *b = json_array_get(entry, 1);
        if (json_is_string(entry)) {
            if (strncmp(json_string_value(entry), "#version", 8) == 0)
                continue;
            TRY(add_merge_line(m, rank, json_string_value(entry), json_string_length(entry),
                               &joined, err));
        } else if (json_array_size(entry) == 2 && json_is_string(a) && json_is_string(b)) {
            TRY(add_merge(m, rank, json_string_value(a), json_string_length(a),
                          json_string_value(b), json_string_length(b), &joined, err));
        } else {
            rc = err_set(err, ERR_INVALID, "merge %u of the tokenizer is not a pair of strings",
                         rank + 1);
            goto out;
        }
        rank++;
    }
out:
    buf_fini(&joined);
    return rc;
}

static int load_merges_text(struct bpe *m, const char *text, size_t n, struct err *err)
{
    struct buf joined = {0};
    const char *end = text + n;
    int64_t lines = 0;
    uint32_t rank = 0;
    int rc = 0;

    for (const char *p = text; p < end; p++)
        lines += *p == '\n';
    TRY(pair_map_init(&m->merges, lines + 1, err));
    while (text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *stop = newline ? newline : end;
        size_t length = (size_t)(stop - text);
        if (length > 0 && text[length - 1] == '\r')
            length--;
        if (length > 0 && !(length >= 8 && memcmp(text, "#version", 8) == 0))
            TRY(add_merge_line(m, rank++, text, length, &joined, err));
        text = stop + 1;
    }
out:
    buf_fini(&joined);
    return rc;
}

/* Find the tokens that a piece of their own bytes becomes: those need no merging. With
 * ignore_merges the model says that every token is one. */
static int fill_direct(struct bpe *m, const json_t *vocab, struct err *err)
{
    struct bpe_scratch scratch = {0};
    struct token_list ids = {0};
    struct buf bytes = {0};
    const char *token;
    json_t *value;
    int rc = 0;

    json_object_foreach((json_t *)vocab, token, value)
    {
        int32_t id = (int32_t)json_integer_value(value);
        buf_clear(&bytes);
        if (!bpe_token_to_bytes(token, strlen(token), &bytes) || bytes.len == 0)
            continue;
        if (!m->ignore_merges) {
            ids.n = 0;
            if (encode_by_merging(m, bytes.data, bytes.len, &scratch, &ids, NULL) != 0)
                continue; /* holds an unknown byte */
            if (ids.n != 1 || ids.ids[0] != id)
                continue;
        }
        token_map_add(&m->direct, bytes.data, bytes.len, id);
    }
    bpe_scratch_fini(&scratch);
    token_list_fini(&ids);
    buf_fini(&bytes);
    return rc;
}

static int refuse_option(const json_t *model, const char *name, struct err *err)
{
    const json_t *value = json_object_get(model, name);

    if (!value || json_is_null(value) || json_is_false(value) ||
        (json_is_string(value) && json_string_length(value) == 0) ||
        (json_is_number(value) && json_number_value(value) == 0))
        return 0;
    return err_set(err, ERR_UNSUPPORTED,
                   "this tokenizer's BPE model sets %s, which is not supported; use a model with a "
                   "byte-level BPE tokenizer",
                   name);
}

int bpe_init_from_json(struct bpe *m, const json_t *model, struct err *err)
{
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *unk = json_object_get(model, "unk_token");
    struct bpe bpe = {.unk_id = -1};
    int rc = 0;

    TRY(refuse_option(model, "dropout", err));
    TRY(refuse_option(model, "continuing_subword_prefix", err));
    TRY(refuse_option(model, "end_of_word_suffix", err));
    TRY(refuse_option(model, "byte_fallback", err));
    bpe.fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    bpe.ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    TRY(load_vocab(&bpe, vocab, err));
    if (json_is_string(unk)) {
        bpe.unk_id = token_map_find(&bpe.vocab, json_string_value(unk), json_string_length(unk));
        bpe.unk_missing = bpe.unk_id < 0;
    }
    TRY(load_merges_json(&bpe, json_object_get(model, "merges"), err));
    TRY(fill_direct(&bpe, vocab, err));
    *m = bpe;
    return 0;
out:
    bpe_fini(&bpe);
    return rc;
}

int bpe_init_from_files(struct bpe *m, const json_t *vocab, const char *merges, size_t n,
                        struct err *err)
{
    struct bpe bpe = {.unk_id = -1};
    int rc = 0;

    TRY(load_vocab(&bpe, vocab, err));
    TRY(load_merges_text(&bpe, merges, n, err));
    TRY(fill_direct(&bpe, vocab, err));
    *m = bpe;
    return 0;
out:
    bpe_fini(&bpe);
    return rc;
}

void bpe_fini(struct bpe *m)
{
    token_map_fini(&m->vocab);
    token_map_fini(&m->direct);
    pair_map_fini(&m->merges);
    memset(m, 0, sizeof(*m));
}
