#include "worker/text/unigram.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/utf8.h"

static const double UNK_PENALTY = 10.0;

/* The best cut of what lies before a position. */
struct unigram_step {
    double score;
    int32_t id;
    int32_t length; /* of the last part; 0: no cut ends here */
};

void unigram_scratch_fini(struct unigram_scratch *s)
{
    free(s->steps);
    word_cache_fini(&s->words);
    memset(s, 0, sizeof(*s));
}

/* --- loading --- */

struct entry {
    const char *token;
    size_t n;
    int32_t id;
};

static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int order = memcmp(x->token, y->token, x->n < y->n ? x->n : y->n);

    return order != 0 ? order : (x->n > y->n) - (x->n < y->n);
}

/* A node whose children are still to be made: the entries that begin with its path. */
struct range {
    int32_t node;
    size_t from, to, depth;
};

/* Lay out the trie level by level, so that siblings are neighbours. `queue` has room for a range a
 * node. */
static void build_trie(struct unigram *m, const struct entry *entries, size_t n,
                       struct range *queue)
{
    int32_t n_nodes = 1;

    m->nodes[0] = (struct unigram_node){.id = -1};
    queue[0] = (struct range){0, 0, n, 0};
    for (int32_t q = 0; q < n_nodes; q++) {
        struct range r = queue[q];
        struct unigram_node *node = &m->nodes[r.node];
        node->first_child = n_nodes;
        if (r.from < r.to && entries[r.from].n == r.depth)
            node->id = entries[r.from++].id;
        while (r.from < r.to) {
            uint8_t byte = (uint8_t)entries[r.from].token[r.depth];
            size_t stop = r.from;
            while (stop < r.to && (uint8_t)entries[stop].token[r.depth] == byte)
                stop++;
            m->nodes[n_nodes] = (struct unigram_node){.id = -1, .byte = byte};
            queue[n_nodes] = (struct range){n_nodes, r.from, stop, r.depth + 1};
            node->n_children++;
            n_nodes++;
            r.from = stop;
        }
    }
    for (int byte = 0; byte < 256; byte++)
        m->second[byte] = -1;
    for (int32_t i = 0; i < m->nodes[0].n_children; i++)
        m->second[m->nodes[1 + i].byte] = 1 + i;
}

static int make_trie(struct unigram *m, struct err *err)
{
    void *entries = NULL, *queue = NULL, *nodes = NULL;
    size_t n = 0, bytes = 0;
    struct entry e;
    uint64_t cursor = 0;
    int rc = 0;

    TRY(alloc_try(&entries, (size_t)m->vocab->n + 1, sizeof(e), "the vocabulary", err));
    while (token_map_next(m->vocab, &cursor, &e.token, &e.n, &e.id)) {
        if (e.n > UNIGRAM_MAX_TOKEN_BYTES) {
            rc = err_set(err, ERR_INVALID,
                         "the tokenizer's vocabulary is not usable: token '%.80s' is longer than "
                         "%d bytes",
                         e.token, UNIGRAM_MAX_TOKEN_BYTES);
            goto out;
        }
        if (e.n > 0)
            ((struct entry *)entries)[n++] = e;
        bytes += e.n;
    }
    if (bytes > UNIGRAM_MAX_BYTES) {
        rc = err_set(err, ERR_INVALID,
                     "the tokenizer's vocabulary is not usable: its tokens have more than %d bytes",
                     UNIGRAM_MAX_BYTES);
        goto out;
    }
    qsort(entries, n, sizeof(e), compare_entries);
    TRY(alloc_try(&nodes, bytes + 1, sizeof(*m->nodes), "the vocabulary", err));
    m->nodes = nodes;
    TRY(alloc_try(&queue, bytes + 1, sizeof(struct range), "the vocabulary", err));
    build_trie(m, entries, n, queue);
out:
    free(entries);
    free(queue);
    return rc;
}

static int read_scores(struct unigram *m, const json_t *pairs, struct err *err)
{
    double min = INFINITY;
    void *scores = NULL;
    int rc = alloc_try(&scores, json_array_size(pairs) + 1, sizeof(double), "the vocabulary", err);

    if (rc != 0)
        return rc;
    m->scores = scores;
    for (size_t i = 0; i < json_array_size(pairs); i++) {
        m->scores[i] = json_number_value(json_array_get(json_array_get(pairs, i), 1));
        if (m->scores[i] < min)
            min = m->scores[i];
    }
    m->unk_score = min - UNK_PENALTY;
    return 0;
}

static void find_bytes(struct unigram *m, const json_t *model)
{
    char text[8];

    m->byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    for (int byte = 0; byte < 256; byte++) {
        snprintf(text, sizeof(text), "<0x%02X>", byte);
        m->byte_id[byte] = token_map_find(m->vocab, text, strlen(text));
    }
}

int unigram_init(struct unigram *m, const json_t *model, const struct token_map *vocab,
                 struct err *err)
{
    const json_t *pairs = json_object_get(model, "vocab"), *unk = json_object_get(model, "unk_id");
    struct unigram u = {.vocab = vocab, .unk_id = -1};
    int rc = 0;

    if (unk && !json_is_null(unk)) {
        json_int_t id = json_integer_value(unk);
        if (!json_is_integer(unk) || id < 0 || id >= (json_int_t)json_array_size(pairs))
            return err_set(err, ERR_INVALID,
                           "the tokenizer's unk_id is not in its vocabulary; the file is damaged");
        u.unk_id = (int32_t)id;
    }
    TRY(read_scores(&u, pairs, err));
    TRY(make_trie(&u, err));
    find_bytes(&u, model);
    *m = u;
    return 0;
out:
    unigram_fini(&u);
    return rc;
}

void unigram_fini(struct unigram *m)
{
    free(m->nodes);
    free(m->scores);
    memset(m, 0, sizeof(*m));
}

/* --- encoding --- */

static int32_t find_child(const struct unigram *m, int32_t node, uint8_t byte)
{
    const struct unigram_node *children = &m->nodes[m->nodes[node].first_child];
    int32_t low = 0, high = m->nodes[node].n_children;

    while (low < high) {
        int32_t mid = (low + high) / 2;
        if (children[mid].byte < byte)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == m->nodes[node].n_children || children[low].byte != byte)
        return -1;
    return m->nodes[node].first_child + low;
}

static void offer(struct unigram_step *at, size_t length, int32_t id, double score)
{
    if (at->length == 0 || score > at->score)
        *at = (struct unigram_step){score, id, (int32_t)length};
}

/* Fill steps[1..n]. */
static int find_best_cut(const struct unigram *m, const char *piece, size_t n,
                         struct unigram_step *steps, struct err *err)
{
    memset(steps, 0, (n + 1) * sizeof(*steps));
    for (size_t start = 0, bytes; start < n; start += bytes) {
        double score = steps[start].score;
        bool alone = false;
        utf8_read(piece + start, n - start, &bytes);
        int32_t node = m->second[(uint8_t)piece[start]];
        for (size_t stop = start + 1; node >= 0; stop++) {
            int32_t id = m->nodes[node].id;
            if (id >= 0) {
                offer(&steps[stop], stop - start, id, m->scores[id] + score);
                alone |= stop - start == bytes;
            }
            if (stop == n)
                break;
            node = find_child(m, node, (uint8_t)piece[stop]);
        }
        if (alone)
            continue;
        if (m->unk_id < 0)
            return err_set(err, ERR_INVALID,
                           "the text has a character that the tokenizer does not know, and it has "
                           "no unknown token");
        offer(&steps[start + bytes], bytes, m->unk_id, m->unk_score + score);
    }
    return 0;
}

static void add_part(const struct unigram *m, const char *part, size_t n, struct token_list *out)
{
    int32_t id = token_map_find(m->vocab, part, n);
    bool bytes = id < 0 && m->byte_fallback;

    for (size_t i = 0; bytes && i < n; i++)
        bytes = m->byte_id[(uint8_t)part[i]] >= 0;
    if (!bytes)
        token_list_add(out, id >= 0 ? id : m->unk_id);
    for (size_t i = 0; bytes && i < n; i++)
        token_list_add(out, m->byte_id[(uint8_t)part[i]]);
}

/* Turn the links around, so that they can be followed from the start: steps[i] then tells the part
 * that begins at i. */
static void turn_around(struct unigram_step *steps, size_t n)
{
    struct unigram_step next = steps[n];

    for (size_t at = n; at > 0;) {
        size_t from = at - (size_t)next.length;
        struct unigram_step before = steps[from];
        steps[from] = next;
        next = before;
        at = from;
    }
}

static void add_parts(const struct unigram *m, const char *piece, size_t n,
                      const struct unigram_step *steps, struct token_list *out)
{
    for (size_t at = 0, stop; at < n; at = stop) {
        int32_t id = steps[at].id;
        stop = at + (size_t)steps[at].length;
        if (id != m->unk_id) {
            token_list_add(out, id);
            continue;
        }
        while (stop < n && steps[stop].id == m->unk_id)
            stop += (size_t)steps[stop].length;
        add_part(m, piece + at, stop - at, out);
    }
}

int unigram_encode(const struct unigram *m, const char *piece, size_t n, struct unigram_scratch *s,
                   struct token_list *out, struct err *err)
{
    uint64_t hash = token_map_hash(m->vocab, piece, n);
    int64_t from = out->n;

    if (n == 0 || word_cache_get(&s->words, hash, piece, n, out))
        return 0;
    if (n >= INT32_MAX / 2)
        return err_set(err, ERR_INVALID, "a word of %zu bytes is too long to tokenize", n);
    if (n + 1 > s->cap) {
        s->cap = n + 1 < 256 ? 256 : n + 1;
        s->steps = xrealloc(s->steps, s->cap * sizeof(*s->steps));
    }
    int rc = find_best_cut(m, piece, n, s->steps, err);
    if (rc != 0)
        return rc;
    turn_around(s->steps, n);
    add_parts(m, piece, n, s->steps, out);
    word_cache_put(&s->words, hash, piece, n, out, from);
    return 0;
}
