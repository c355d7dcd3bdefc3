#include "worker/text/pretokenize.h"

#include <string.h>

#include "worker/text/byte_alphabet.h"
#include "worker/text/unicode.h"
#include "worker/text/utf8.h"

void pretokenize_scratch_fini(struct pretokenize_scratch *s)
{
    for (int i = 0; i < PRETOKENIZE_MAX_STAGES; i++) {
        regex_cursor_fini(&s->cursors[i]);
        buf_fini(&s->rewritten[i]);
    }
    buf_fini(&s->alphabet);
    buf_fini(&s->bytes);
}

/* --- running --- */

struct run {
    const struct pretokenizer *chain;
    struct pretokenize_scratch *scratch;
    pretokenize_fn fn;
    void *ud;
    struct err *err;
};

static int run_stage(struct run *run, int stage, const char *text, size_t n, enum text_place place);

/* What one stage does with the parts of a text, matches and the gaps between them, as they come. */
struct splitter {
    struct run *run;
    int stage;
    const char *text;
    size_t start, end; /* the part held back, because its neighbour may be merged with it */
    bool held, last_was_match;
    enum text_place place;
};

static int emit(struct splitter *s, size_t start, size_t end)
{
    enum text_place place = start == 0 ? s->place : TEXT_FOLLOWS;

    if (s->run->chain->stages[s->stage].write_alphabet) {
        struct buf *work = &s->run->scratch->alphabet;
        buf_clear(work);
        byte_alphabet_add(work, s->text + start, end - start);
        return run_stage(s->run, s->stage + 1, work->data, work->len, place);
    }
    return run_stage(s->run, s->stage + 1, s->text + start, end - start, place);
}

static int add_part(struct splitter *s, size_t start, size_t end, bool is_match)
{
    const struct pretokenize_stage *stage = &s->run->chain->stages[s->stage];
    bool merge = false;
    int rc = 0;

    if (stage->invert)
        is_match = !is_match;
    switch (stage->behavior) {
    case SPLIT_REMOVED:
        return is_match ? 0 : emit(s, start, end);
    case SPLIT_ISOLATED:
        return emit(s, start, end);
    case SPLIT_CONTIGUOUS:
        merge = is_match == s->last_was_match;
        break;
    case SPLIT_MERGED_WITH_PREVIOUS:
        merge = is_match && !s->last_was_match;
        break;
    case SPLIT_MERGED_WITH_NEXT:
        merge = !is_match && s->last_was_match;
        break;
    }
    if (s->held && merge) {
        s->end = end;
    } else {
        if (s->held)
            rc = emit(s, s->start, s->end);
        s->start = start;
        s->end = end;
        s->held = true;
    }
    s->last_was_match = is_match;
    return rc;
}

static bool is_match(const struct pretokenize_stage *stage, uint32_t c)
{
    return stage->is_match ? stage->is_match(c) : c == stage->delimiter;
}

/* Each character of the class is a match, all else between two of them a gap. */
static int split_class(struct splitter *s, size_t n)
{
    const struct pretokenize_stage *stage = &s->run->chain->stages[s->stage];
    size_t gap = 0, bytes;
    int rc = 0;

    for (size_t i = 0; i < n; i += bytes) {
        if (!is_match(stage, utf8_read(s->text + i, n - i, &bytes)))
            continue;
        if (gap < i)
            TRY(add_part(s, gap, i, false));
        TRY(add_part(s, i, i + bytes, true));
        gap = i + bytes;
    }
    if (gap < n)
        TRY(add_part(s, gap, n, false));
out:
    return rc;
}

static int split_regex(struct splitter *s, size_t n)
{
    struct regex_cursor *cursor = &s->run->scratch->cursors[s->stage];
    size_t gap = 0, start, end;
    bool found;
    int rc = 0;

    regex_cursor_start(cursor, s->run->chain->stages[s->stage].regex, s->text, n);
    for (;;) {
        TRY(regex_next(cursor, &found, &start, &end, s->run->err));
        if (!found)
            break;
        if (gap != start)
            TRY(add_part(s, gap, start, false));
        TRY(add_part(s, start, end, true));
        gap = end;
    }
    if (gap != n)
        TRY(add_part(s, gap, n, false));
out:
    return rc;
}

enum word_class { WORD_SPACE, WORD_LETTER, WORD_OTHER };

static enum word_class word_class_of(uint32_t c)
{
    return unicode_is_word(c) ? WORD_LETTER : unicode_is_space(c) ? WORD_SPACE : WORD_OTHER;
}

static int split_words(struct splitter *s, size_t n)
{
    enum word_class kind = WORD_SPACE;
    size_t start = 0, bytes;
    int rc = 0;

    for (size_t i = 0; i < n; i += bytes) {
        enum word_class next = word_class_of(utf8_read(s->text + i, n - i, &bytes));
        if (next == kind)
            continue;
        if (kind != WORD_SPACE)
            TRY(emit(s, start, i));
        start = i;
        kind = next;
    }
    if (kind != WORD_SPACE)
        TRY(emit(s, start, n));
out:
    return rc;
}

/* Spaces become the replacement, one is put in front where asked for, and pieces begin at each. */
static int split_metaspace(struct splitter *s, size_t n)
{
    const struct pretokenize_stage *stage = &s->run->chain->stages[s->stage];
    struct buf *work = &s->run->scratch->rewritten[s->stage];
    const char *mark = stage->replacement, *at = s->text, *end = s->text + n, *next;
    size_t mark_n = stage->replacement_n, start = 0;
    int rc = 0;

    buf_clear(work);
    buf_reserve(work, n + n / 2 + mark_n);
    if ((stage->prepend == PREPEND_ALWAYS && s->place != TEXT_CONTINUES) ||
        (stage->prepend == PREPEND_FIRST && s->place == TEXT_BEGINS))
        if (*at != ' ' && (n < mark_n || memcmp(at, mark, mark_n) != 0))
            buf_add(work, mark, mark_n);
    for (; (next = memchr(at, ' ', (size_t)(end - at))) != NULL; at = next + 1) {
        buf_add(work, at, (size_t)(next - at));
        buf_add(work, mark, mark_n);
    }
    buf_add(work, at, (size_t)(end - at));
    s->text = work->data;
    if (stage->split)
        for (size_t i = 1; i + mark_n <= work->len; i++) {
            next = memchr(work->data + i, mark[0], work->len - i);
            if (!next)
                break;
            i = (size_t)(next - work->data);
            if (i + mark_n > work->len || memcmp(next, mark, mark_n) != 0)
                continue;
            TRY(emit(s, start, i));
            start = i;
        }
    TRY(emit(s, start, work->len));
out:
    return rc;
}

/* Prefix, pattern, alphabet. The characters of a match are written when it is handed on, so the
 * pattern runs over the text as it was. */
static int split_byte_level(struct splitter *s, size_t n)
{
    const struct pretokenize_stage *stage = &s->run->chain->stages[s->stage];
    struct buf *work = &s->run->scratch->rewritten[s->stage];

    if (stage->prefix_space && s->place != TEXT_CONTINUES && s->text[0] != ' ') {
        buf_clear(work);
        buf_add_char(work, ' ');
        buf_add(work, s->text, n);
        s->text = work->data;
        n = work->len;
    }
    return stage->regex ? split_regex(s, n) : emit(s, 0, n);
}

static int hand_out(struct run *run, const char *text, size_t n)
{
    struct buf *bytes = &run->scratch->bytes;

    if (!run->chain->read_alphabet)
        return run->fn(run->ud, text, n, run->err);
    buf_clear(bytes);
    byte_alphabet_to_bytes(text, n, bytes);
    return run->fn(run->ud, bytes->data, bytes->len, run->err);
}

static int run_stage(struct run *run, int stage, const char *text, size_t n, enum text_place place)
{
    struct splitter s = {.run = run, .stage = stage, .text = text, .place = place};
    int rc = 0;

    if (n == 0)
        return 0;
    if (stage == run->chain->n)
        return hand_out(run, text, n);
    switch (run->chain->stages[stage].kind) {
    case PRETOKENIZE_REGEX:
        TRY(split_regex(&s, n));
        break;
    case PRETOKENIZE_CLASS:
        TRY(split_class(&s, n));
        break;
    case PRETOKENIZE_WORDS:
        return split_words(&s, n);
    case PRETOKENIZE_METASPACE:
        return split_metaspace(&s, n);
    case PRETOKENIZE_BYTE_LEVEL:
        return split_byte_level(&s, n);
    }
    if (s.held)
        TRY(emit(&s, s.start, s.end));
out:
    return rc;
}

int pretokenizer_run(const struct pretokenizer *p, const char *text, size_t n,
                     enum text_place place, struct pretokenize_scratch *s, pretokenize_fn fn,
                     void *ud, struct err *err)
{
    struct run run = {p, s, fn, ud, err};

    return run_stage(&run, 0, text, n, place);
}
