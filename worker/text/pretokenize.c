#include "worker/text/pretokenize.h"

#include <string.h>
#include <utf8proc.h>

#include "worker/text/utf8.h"

void pretokenize_scratch_fini(struct pretokenize_scratch *s)
{
    for (int i = 0; i < PRETOKENIZE_MAX_STAGES; i++) {
        regex_cursor_fini(&s->cursors[i]);
        buf_fini(&s->prefixed[i]);
    }
}

/* --- running ---------------------------------------------------------------------------------- */

struct run {
    const struct pretokenizer *chain;
    struct pretokenize_scratch *scratch;
    pretokenize_fn fn;
    void *ud;
    struct err *err;
};

static int run_stage(struct run *run, int stage, const char *text, size_t n);

/* What one stage does with the parts of a text, matches and the gaps between them, as they come. */
struct splitter {
    struct run *run;
    int stage;
    const char *text;
    size_t start, end; /* the part held back, because its neighbour may be merged with it */
    bool held, last_was_match;
};

static int emit(struct splitter *s, size_t start, size_t end)
{
    return run_stage(s->run, s->stage + 1, s->text + start, end - start);
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

/* Unicode's general categories Nd, Nl, No, as Rust's char::is_numeric. */
static bool is_numeric(const char *text, size_t n, size_t *bytes)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)utf8_read(text, n, bytes));

    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
           category == UTF8PROC_CATEGORY_NO;
}

/* Each numeric character is a match, all else between two of them a gap. */
static int split_digits(struct splitter *s, const char *text, size_t n)
{
    size_t gap = 0, bytes;
    int rc = 0;

    for (size_t i = 0; i < n; i += bytes) {
        if (!is_numeric(text + i, n - i, &bytes))
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

static int split_regex(struct splitter *s, const char *text, size_t n)
{
    struct regex_cursor *cursor = &s->run->scratch->cursors[s->stage];
    size_t gap = 0, start, end;
    bool found;
    int rc = 0;

    regex_cursor_start(cursor, s->run->chain->stages[s->stage].regex, text, n);
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

static int run_stage(struct run *run, int stage, const char *text, size_t n)
{
    struct splitter s = {.run = run, .stage = stage};
    int rc = 0;

    if (n == 0)
        return 0;
    if (stage == run->chain->n)
        return run->fn(run->ud, text, n, run->err);
    const struct pretokenize_stage *what = &run->chain->stages[stage];
    if (what->prefix_space && text[0] != ' ') {
        struct buf *prefixed = &run->scratch->prefixed[stage];
        buf_clear(prefixed);
        buf_add_char(prefixed, ' ');
        buf_add(prefixed, text, n);
        text = prefixed->data;
        n = prefixed->len;
    }
    s.text = text;
    if (what->digits)
        TRY(split_digits(&s, text, n));
    else if (what->regex)
        TRY(split_regex(&s, text, n));
    else
        TRY(emit(&s, 0, n));
    if (s.held)
        TRY(emit(&s, s.start, s.end));
out:
    return rc;
}

int pretokenizer_run(const struct pretokenizer *p, const char *text, size_t n,
                     struct pretokenize_scratch *s, pretokenize_fn fn, void *ud, struct err *err)
{
    struct run run = {p, s, fn, ud, err};

    return run_stage(&run, 0, text, n);
}

/* --- loading ---------------------------------------------------------------------------------- */

struct loader {
    struct pretokenizer chain;
    bool byte_level; /* seen: nothing may follow */
    int nesting;
};

static int unsupported(struct err *err, const char *what)
{
    return err_set(err, ERR_UNSUPPORTED,
                   "this tokenizer's pre-tokenizer %.60s is not supported; supported are "
                   "ByteLevel (last), Split, Digits and Sequence",
                   what);
}

/* The member's boolean, or `fallback` when it is absent. */
static bool get_flag(const json_t *json, const char *key, bool fallback)
{
    const json_t *value = json_object_get(json, key);

    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

static int add_byte_level(struct loader *l, bool prefix_space, bool use_regex, struct err *err)
{
    struct pretokenize_stage *stage = &l->chain.stages[l->chain.n];
    int rc = 0;

    if (use_regex)
        rc = regex_create(REGEX_GPT2, strlen(REGEX_GPT2), false, &stage->regex, err);
    if (rc != 0)
        return rc;
    stage->behavior = SPLIT_ISOLATED;
    stage->prefix_space = prefix_space;
    l->byte_level = true;
    l->chain.n++;
    return 0;
}

static int add_split(struct loader *l, const json_t *json, struct err *err)
{
    static const char *const behaviors[] = {
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_CONTIGUOUS] = "Contiguous",
        [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
    };
    struct pretokenize_stage *stage = &l->chain.stages[l->chain.n];
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *literal = json_object_get(pattern, "String");
    const json_t *regex = json_object_get(pattern, "Regex");
    const char *name = json_string_value(json_object_get(json, "behavior"));
    int behavior = 0;

    while (behavior < 5 && (!name || strcmp(behaviors[behavior], name) != 0))
        behavior++;
    if (behavior == 5)
        return unsupported(err, "Split with such a behavior");
    const json_t *source = literal ? literal : regex;
    if (!json_is_string(source))
        return unsupported(err, "Split without a pattern");
    stage->behavior = (enum split_behavior)behavior;
    stage->invert = get_flag(json, "invert", false);
    int rc = regex_create(json_string_value(source), json_string_length(source), literal != NULL,
                          &stage->regex, err);
    if (rc == 0)
        l->chain.n++;
    return rc;
}

static int add_any(struct loader *l, const json_t *json, struct err *err)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    const json_t *inner = json_object_get(json, "pretokenizers");
    int rc = 0;

    if (!type)
        return unsupported(err, "without a type");
    if (strcmp(type, "Sequence") == 0) {
        if (++l->nesting > PRETOKENIZE_MAX_STAGES)
            return unsupported(err, "Sequence, nested so deep,");
        for (size_t i = 0; rc == 0 && i < json_array_size(inner); i++)
            rc = add_any(l, json_array_get(inner, i), err);
        l->nesting--;
        return rc;
    }
    if (l->byte_level)
        return unsupported(err, "chain with a stage behind ByteLevel");
    if (l->chain.n == PRETOKENIZE_MAX_STAGES)
        return unsupported(err, "chain of more than 8 stages");
    if (strcmp(type, "ByteLevel") == 0)
        return add_byte_level(l, get_flag(json, "add_prefix_space", true),
                              get_flag(json, "use_regex", true), err);
    if (strcmp(type, "Split") == 0)
        return add_split(l, json, err);
    if (strcmp(type, "Digits") == 0) {
        struct pretokenize_stage *stage = &l->chain.stages[l->chain.n++];
        stage->digits = true;
        stage->behavior =
            get_flag(json, "individual_digits", false) ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return 0;
    }
    return unsupported(err, type);
}

int pretokenizer_init(struct pretokenizer *p, const json_t *json, struct err *err)
{
    struct loader l = {0};
    int rc = json_is_object(json) ? add_any(&l, json, err) : unsupported(err, "(there is none)");

    if (rc == 0 && !l.byte_level)
        rc = unsupported(err, "chain without ByteLevel");
    if (rc != 0)
        pretokenizer_fini(&l.chain);
    else
        *p = l.chain;
    return rc;
}

int pretokenizer_init_byte_level(struct pretokenizer *p, bool add_prefix_space, struct err *err)
{
    struct loader l = {0};
    int rc = add_byte_level(&l, add_prefix_space, true, err);

    if (rc == 0)
        *p = l.chain;
    return rc;
}

void pretokenizer_fini(struct pretokenizer *p)
{
    for (int i = 0; i < PRETOKENIZE_MAX_STAGES; i++)
        regex_destroy(p->stages[i].regex);
    memset(p, 0, sizeof(*p));
}
