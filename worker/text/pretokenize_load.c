/* The "pre_tokenizer" member of tokenizer.json to a chain of stages. */
#include <string.h>

#include "worker/text/pretokenize.h"
#include "worker/text/unicode.h"
#include "worker/text/utf8.h"

struct loader {
    struct pretokenizer chain;
    int nesting;
};

static int unsupported(struct err *err, const char *what)
{
    return err_set(err, ERR_UNSUPPORTED,
                   "this tokenizer's pre-tokenizer %.60s is not supported; supported are "
                   "ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, "
                   "CharDelimiterSplit, BertPreTokenizer, Metaspace and Sequence",
                   what);
}

/* The member's boolean, or `fallback` when it is absent. */
static bool get_flag(const json_t *json, const char *key, bool fallback)
{
    const json_t *value = json_object_get(json, key);

    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

static struct pretokenize_stage *next_stage(struct loader *l, enum pretokenize_kind kind)
{
    struct pretokenize_stage *stage = &l->chain.stages[l->chain.n];

    stage->kind = kind;
    stage->behavior = SPLIT_ISOLATED;
    return stage;
}

static int add_byte_level(struct loader *l, bool prefix_space, bool use_regex, struct err *err)
{
    struct pretokenize_stage *stage = next_stage(l, PRETOKENIZE_BYTE_LEVEL);
    int rc = 0;

    if (l->chain.byte_level)
        return unsupported(err, "chain with two ByteLevel stages");
    if (use_regex)
        rc = regex_create(REGEX_GPT2, strlen(REGEX_GPT2), false, &stage->regex, err);
    if (rc != 0)
        return rc;
    stage->prefix_space = prefix_space;
    l->chain.byte_level = true;
    l->chain.n++;
    return 0;
}

static bool read_behavior(const json_t *json, enum split_behavior *out)
{
    static const char *const names[] = {
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_CONTIGUOUS] = "Contiguous",
        [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
    };
    const char *name = json_string_value(json_object_get(json, "behavior"));

    for (int i = 0; name && i <= SPLIT_MERGED_WITH_NEXT; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (enum split_behavior)i;
            return true;
        }
    return false;
}

static int add_split(struct loader *l, const json_t *json, struct err *err)
{
    struct pretokenize_stage *stage = next_stage(l, PRETOKENIZE_REGEX);
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *literal = json_object_get(pattern, "String");
    const json_t *source = literal ? literal : json_object_get(pattern, "Regex");

    if (!read_behavior(json, &stage->behavior))
        return unsupported(err, "Split with such a behavior");
    if (!json_is_string(source))
        return unsupported(err, "Split without a pattern");
    stage->invert = get_flag(json, "invert", false);
    int rc = regex_create(json_string_value(source), json_string_length(source), literal != NULL,
                          &stage->regex, err);
    if (rc == 0)
        l->chain.n++;
    return rc;
}

static void add_class(struct loader *l, bool (*matches)(uint32_t), enum split_behavior behavior)
{
    struct pretokenize_stage *stage = next_stage(l, PRETOKENIZE_CLASS);

    stage->is_match = matches;
    stage->behavior = behavior;
    l->chain.n++;
}

static int add_punctuation(struct loader *l, const json_t *json, struct err *err)
{
    enum split_behavior behavior = SPLIT_ISOLATED;

    if (json_object_get(json, "behavior") && !read_behavior(json, &behavior))
        return unsupported(err, "Punctuation with such a behavior");
    add_class(l, unicode_is_punctuation, behavior);
    return 0;
}

/* The member's one character; false where it is not one. */
static bool read_character(const json_t *json, const char *key, uint32_t *c, size_t *bytes)
{
    const json_t *value = json_object_get(json, key);
    size_t n = json_string_length(value);

    if (n == 0)
        return false;
    *c = utf8_read(json_string_value(value), n, bytes);
    return *bytes == n;
}

static int add_delimiter(struct loader *l, const json_t *json, struct err *err)
{
    uint32_t c;
    size_t bytes;

    if (!read_character(json, "delimiter", &c, &bytes))
        return unsupported(err, "CharDelimiterSplit without a character");
    l->chain.stages[l->chain.n].delimiter = c;
    add_class(l, NULL, SPLIT_REMOVED);
    return 0;
}

static int add_metaspace(struct loader *l, const json_t *json, struct err *err)
{
    static const char *const names[] = {
        [PREPEND_NEVER] = "never", [PREPEND_FIRST] = "first", [PREPEND_ALWAYS] = "always"};
    struct pretokenize_stage *stage = next_stage(l, PRETOKENIZE_METASPACE);
    const json_t *scheme = json_object_get(json, "prepend_scheme");
    uint32_t c;
    int i = PREPEND_ALWAYS;

    if (!read_character(json, "replacement", &c, &stage->replacement_n))
        return unsupported(err, "Metaspace without a replacement character");
    utf8_write(c, stage->replacement);
    if (scheme)
        for (i = 0; i <= PREPEND_ALWAYS; i++)
            if (json_is_string(scheme) && strcmp(names[i], json_string_value(scheme)) == 0)
                break;
    if (i > PREPEND_ALWAYS)
        return unsupported(err, "Metaspace with such a prepend_scheme");
    /* The older way to say it; the reference refuses files where the two disagree. */
    if (!get_flag(json, "add_prefix_space", true)) {
        if (scheme && i != PREPEND_NEVER)
            return unsupported(err, "Metaspace with add_prefix_space against its prepend_scheme");
        i = PREPEND_NEVER;
    }
    stage->prepend = (enum prepend_scheme)i;
    stage->split = get_flag(json, "split", true);
    l->chain.n++;
    return 0;
}

static int add_stage(struct loader *l, const char *type, const json_t *json, struct err *err)
{
    bool rewrites = strcmp(type, "ByteLevel") == 0 || strcmp(type, "Metaspace") == 0;

    if (l->chain.byte_level && rewrites)
        return unsupported(err, "chain with a second stage that rewrites behind ByteLevel");
    if (strcmp(type, "ByteLevel") == 0)
        return add_byte_level(l, get_flag(json, "add_prefix_space", true),
                              get_flag(json, "use_regex", true), err);
    if (strcmp(type, "Split") == 0)
        return add_split(l, json, err);
    if (strcmp(type, "Metaspace") == 0)
        return add_metaspace(l, json, err);
    if (strcmp(type, "Punctuation") == 0)
        return add_punctuation(l, json, err);
    if (strcmp(type, "CharDelimiterSplit") == 0)
        return add_delimiter(l, json, err);
    if (strcmp(type, "Digits") == 0) {
        bool each = get_flag(json, "individual_digits", false);
        add_class(l, unicode_is_numeric, each ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS);
    } else if (strcmp(type, "WhitespaceSplit") == 0) {
        add_class(l, unicode_is_space, SPLIT_REMOVED);
    } else if (strcmp(type, "BertPreTokenizer") == 0 && l->chain.n + 2 <= PRETOKENIZE_MAX_STAGES) {
        add_class(l, unicode_is_space, SPLIT_REMOVED);
        add_class(l, unicode_is_punctuation, SPLIT_ISOLATED);
    } else if (strcmp(type, "Whitespace") == 0) {
        next_stage(l, PRETOKENIZE_WORDS);
        l->chain.n++;
    } else {
        return unsupported(err, type);
    }
    return 0;
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
    if (l->chain.n == PRETOKENIZE_MAX_STAGES)
        return unsupported(err, "chain of more than 8 stages");
    return add_stage(l, type, json, err);
}

/* Stages behind ByteLevel work on its alphabet; where there are none, bytes stay bytes. */
static void settle_alphabet(struct pretokenizer *p)
{
    for (int i = 0; i + 1 < p->n; i++)
        if (p->stages[i].kind == PRETOKENIZE_BYTE_LEVEL)
            p->stages[i].write_alphabet = p->read_alphabet = true;
}

int pretokenizer_init(struct pretokenizer *p, const json_t *json, struct err *err)
{
    struct loader l = {0};
    int rc = json && !json_is_null(json) ? add_any(&l, json, err) : 0;

    settle_alphabet(&l.chain);
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
