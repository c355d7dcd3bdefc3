/* BPE's tables from a tokenizer's files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/bpe.h"
#include "worker/text/byte_alphabet.h"
#include "worker/text/utf8.h"

static void fill_alphabet_ids(struct bpe *m)
{
    char text[4];

    for (uint32_t c = 0; c < BYTE_ALPHABET_END; c++) {
        int byte = byte_alphabet_byte(c);
        if (byte >= 0)
            m->byte_id[byte] = token_map_find(m->vocab, text, utf8_write(c, text));
    }
}

static void fill_fallback_ids(struct bpe *m)
{
    char text[8];

    for (int byte = 0; byte < 256; byte++) {
        snprintf(text, sizeof(text), "<0x%02X>", byte);
        m->byte_id[byte] = token_map_find(m->vocab, text, strlen(text));
    }
}

static int fill_char_ids(struct bpe *m, struct err *err)
{
    void *ids = NULL, *joins = NULL;
    char text[4];
    int rc = 0;

    TRY(alloc_try(&ids, BPE_PLANE, sizeof(*m->char_id), "the vocabulary", err));
    m->char_id = ids;
    TRY(alloc_try(&joins, BPE_PLANE, 1, "the vocabulary", err));
    m->joins_mark = joins;
    for (uint32_t c = 0; c < BPE_PLANE; c++)
        m->char_id[c] = token_map_find(m->vocab, text, utf8_write(c, text));
    /* Unknown characters keep the mark behind them, so that they can fuse. */
    for (uint32_t c = 0; c < BPE_PLANE; c++)
        m->joins_mark[c] = m->char_id[c] < 0 || m->char_id[BPE_MARK] < 0;
out:
    return rc;
}

/* Characters in front of a mark within what a merge makes. */
static void note_joins(struct bpe *m, const char *token, size_t n)
{
    uint32_t before = UINT32_MAX;

    for (size_t i = 0, bytes; i < n; i += bytes) {
        uint32_t c = utf8_read(token + i, n - i, &bytes);
        if (c == BPE_MARK && before < BPE_PLANE)
            m->joins_mark[before] = 1;
        before = c;
    }
}

static int add_merge(struct bpe *m, uint32_t rank, const char *a, size_t a_len, const char *b,
                     size_t b_len, struct buf *joined, struct err *err)
{
    int32_t left = token_map_find(m->vocab, a, a_len);
    int32_t right = token_map_find(m->vocab, b, b_len);

    buf_clear(joined);
    buf_add(joined, a, a_len);
    buf_add(joined, b, b_len);
    int32_t id = token_map_find(m->vocab, joined->data, joined->len);
    if (left < 0 || right < 0 || id < 0)
        return err_set(err, ERR_INVALID,
                       "merge %u of the tokenizer ('%.40s' with '%.40s') uses a token that is not "
                       "in its vocabulary; the files do not belong together",
                       rank + 1, a, b);
    pair_map_set(&m->merges, left, right, (struct pair_value){rank, id});
    if (m->joins_mark)
        note_joins(m, joined->data, joined->len);
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

/* Find the tokens that a word of their own text becomes: those need no merging. At byte level,
 * ignore_merges says that every token is one. */
static int fill_direct(struct bpe *m, struct err *err)
{
    bool every = m->byte_level && m->ignore_merges;
    struct bpe_scratch scratch = {0};
    struct token_list ids = {0};
    struct buf bytes = {0};
    const char *token;
    uint64_t cursor = 0;
    int32_t id;
    size_t n;
    int rc = 0;

    TRY(token_map_init(&m->direct, m->vocab->n, m->vocab->arena_len, err));
    while (token_map_next(m->vocab, &cursor, &token, &n, &id)) {
        if (m->byte_level) {
            buf_clear(&bytes);
            if (!byte_alphabet_to_bytes(token, n, &bytes))
                continue;
            token = buf_str(&bytes);
            n = bytes.len;
        }
        if (n == 0)
            continue;
        ids.n = 0;
        if (!every && (bpe_encode_by_merging(m, token, n, &scratch, &ids, NULL) != 0 ||
                       ids.n != 1 || ids.ids[0] != id))
            continue;
        token_map_add(&m->direct, token, n, id);
    }
out:
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
                   "this tokenizer's BPE model sets %s, which is not supported; use a model whose "
                   "tokenizer does not",
                   name);
}

static int init_symbols(struct bpe *m, const struct token_map *vocab, bool byte_level,
                        struct err *err)
{
    *m = (struct bpe){.unk_id = -1, .vocab = vocab, .byte_level = byte_level};
    for (int byte = 0; byte < 256; byte++)
        m->byte_id[byte] = -1;
    if (!byte_level)
        return fill_char_ids(m, err);
    fill_alphabet_ids(m);
    return 0;
}

int bpe_init_from_json(struct bpe *m, const json_t *model, const struct token_map *vocab,
                       bool byte_level, struct err *err)
{
    const json_t *unk = json_object_get(model, "unk_token");
    struct bpe bpe = {0};
    int rc = 0;

    TRY(refuse_option(model, "dropout", err));
    TRY(refuse_option(model, "continuing_subword_prefix", err));
    TRY(refuse_option(model, "end_of_word_suffix", err));
    TRY(init_symbols(&bpe, vocab, byte_level, err));
    bpe.fuse_unk = json_is_true(json_object_get(model, "fuse_unk"));
    bpe.ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    /* A byte-level piece whose byte is missing would fall back to its alphabet's bytes: no such
     * tokenizer is known. */
    if (byte_level)
        TRY(refuse_option(model, "byte_fallback", err));
    bpe.byte_fallback = json_is_true(json_object_get(model, "byte_fallback"));
    if (bpe.byte_fallback)
        fill_fallback_ids(&bpe);
    if (json_is_string(unk)) {
        bpe.unk_id = token_map_find(vocab, json_string_value(unk), json_string_length(unk));
        bpe.unk_missing = bpe.unk_id < 0;
    }
    TRY(load_merges_json(&bpe, json_object_get(model, "merges"), err));
    TRY(fill_direct(&bpe, err));
    *m = bpe;
    return 0;
out:
    bpe_fini(&bpe);
    return rc;
}

int bpe_init_from_text(struct bpe *m, const struct token_map *vocab, const char *merges, size_t n,
                       struct err *err)
{
    struct bpe bpe = {0};
    int rc = 0;

    TRY(init_symbols(&bpe, vocab, true, err));
    TRY(load_merges_text(&bpe, merges, n, err));
    TRY(fill_direct(&bpe, err));
    *m = bpe;
    return 0;
out:
    bpe_fini(&bpe);
    return rc;
}

void bpe_fini(struct bpe *m)
{
    token_map_fini(&m->direct);
    pair_map_fini(&m->merges);
    free(m->char_id);
    free(m->joins_mark);
    memset(m, 0, sizeof(*m));
}
