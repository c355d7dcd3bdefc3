#include "worker/text/bpe.h"

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
    word_cache_fini(&s->words);
    memset(s, 0, sizeof(*s));
}

/* --- first symbols --- */

static struct bpe_symbol *need_symbols(struct bpe_scratch *s, size_t n)
{
    if (n > s->symbols_cap) {
        s->symbols_cap = n < 64 ? 64 : n;
        s->symbols = xrealloc(s->symbols, s->symbols_cap * sizeof(*s->symbols));
    }
    return s->symbols;
}

struct symbol_list {
    struct bpe_symbol *symbols;
    size_t n;
};

static void add_symbol(struct symbol_list *l, int32_t id)
{
    l->symbols[l->n] =
        (struct bpe_symbol){.id = id, .prev = (int32_t)l->n - 1, .next = (int32_t)l->n + 1};
    l->n++;
}

static int missing_unk(struct err *err)
{
    return err_set(err, ERR_INVALID,
                   "the tokenizer's vocabulary lacks a character of the text and its own "
                   "unk_token; the tokenizer's files are incomplete");
}

/* An unknown token stands at *pending until a known one follows: as the reference does, bytes of
 * byte_fallback overtake it. */
static int note_unknown(const struct bpe *m, struct symbol_list *l, bool *pending, struct err *err)
{
    if (m->unk_missing)
        return missing_unk(err);
    if (m->unk_id < 0)
        return 0;
    if (*pending && !m->fuse_unk)
        add_symbol(l, m->unk_id);
    *pending = true;
    return 0;
}

static void add_known(const struct bpe *m, struct symbol_list *l, bool *pending, int32_t id)
{
    if (*pending)
        add_symbol(l, m->unk_id);
    *pending = false;
    add_symbol(l, id);
}

static int32_t char_id(const struct bpe *m, const char *text, size_t n, size_t *bytes)
{
    uint32_t c = utf8_read(text, n, bytes);

    return c < BPE_PLANE ? m->char_id[c] : token_map_find(m->vocab, text, *bytes);
}

/* The tokens of a character's bytes; false if one is missing. */
static bool add_bytes(const struct bpe *m, struct symbol_list *l, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (m->byte_id[(unsigned char)text[i]] < 0)
            return false;
    for (size_t i = 0; i < n; i++)
        add_symbol(l, m->byte_id[(unsigned char)text[i]]);
    return true;
}

/* At most one symbol a byte, so `s` has room. */
static int first_symbols(const struct bpe *m, const char *piece, size_t n, struct bpe_scratch *s,
                         size_t *count, struct err *err)
{
    struct symbol_list l = {.symbols = need_symbols(s, n)};
    bool pending = false;
    int rc = 0;

    for (size_t i = 0, bytes = 1; i < n; i += bytes) {
        int32_t id = m->byte_level ? m->byte_id[(unsigned char)piece[i]]
                                   : char_id(m, piece + i, n - i, &bytes);
        if (id >= 0)
            add_known(m, &l, &pending, id);
        else if (!m->byte_fallback || !add_bytes(m, &l, piece + i, bytes))
            TRY(note_unknown(m, &l, &pending, err));
    }
    if (pending)
        add_symbol(&l, m->unk_id);
    *count = l.n;
out:
    return rc;
}

/* --- merging --- */

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

int bpe_encode_by_merging(const struct bpe *m, const char *word, size_t n, struct bpe_scratch *s,
                          struct token_list *out, struct err *err)
{
    size_t count = 0;
    int rc = first_symbols(m, word, n, s, &count, err);

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

/* --- words --- */

static int encode_word(const struct bpe *m, const char *word, size_t n, struct bpe_scratch *s,
                       struct token_list *out, struct err *err)
{
    uint64_t hash = token_map_hash(&m->direct, word, n);
    int32_t id = token_map_find_hashed(&m->direct, hash, word, n);
    int64_t from = out->n;

    if (id >= 0) {
        token_list_add(out, id);
        return 0;
    }
    if (word_cache_get(&s->words, hash, word, n, out))
        return 0;
    int rc = bpe_encode_by_merging(m, word, n, s, out, err);
    if (rc == 0)
        word_cache_put(&s->words, hash, word, n, out, from);
    return rc;
}

/* Where the first word of a text ends: in front of a mark whose left neighbour is known (an
 * unknown one may fuse with others) and never merges with it. */
static size_t word_end(const struct bpe *m, const char *text, size_t n)
{
    static const char mark[] = "\xE2\x96\x81";

    for (size_t i = 1; i + 3 <= n; i++) {
        const char *next = memchr(text + i, mark[0], n - i);
        if (!next)
            break;
        i = (size_t)(next - text);
        if (i + 3 > n || memcmp(next, mark, 3) != 0)
            continue;
        size_t before = utf8_step_back(text, i), bytes;
        uint32_t c = utf8_read(text + before, n - before, &bytes);
        if (c < BPE_PLANE && !m->joins_mark[c])
            return i;
    }
    return n;
}

int bpe_encode(const struct bpe *m, const char *piece, size_t n, struct bpe_scratch *s,
               struct token_list *out, struct err *err)
{
    int rc = 0;

    if (n == 0)
        return 0;
    if (n > BPE_MAX_PIECE_BYTES)
        return err_set(err, ERR_INVALID, "a word of %zu bytes is too long to tokenize", n);
    if (m->byte_level)
        return encode_word(m, piece, n, s, out, err);
    int32_t whole = m->ignore_merges ? token_map_find(m->vocab, piece, n) : -1;
    if (whole >= 0) {
        token_list_add(out, whole);
        return 0;
    }
    for (size_t length; rc == 0 && n > 0; piece += length, n -= length) {
        length = word_end(m, piece, n);
        rc = encode_word(m, piece, length, s, out, err);
    }
    return rc;
}
