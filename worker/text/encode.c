#include "worker/text/encode.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"

/* One example on its way. */
struct encoding {
    const struct example_encoder *e;
    struct token_list *out;
    int64_t first; /* of this example in out */
};

/* Ids [from, to) are not trained on. */
static void mark(const struct encoding *g, int64_t from, int64_t to)
{
    for (int64_t i = from; g->e->loss_on != LOSS_ON_ALL && i < to; i++)
        g->out->ids[i] = ~g->out->ids[i];
}

/* A text of which the spans are trained on; *last (may be NULL): where the last one's ids begin. */
static int add_spans(struct encoding *g, const char *text, size_t n, const struct text_span *spans,
                     size_t n_spans, int64_t *last, struct err *err)
{
    size_t *cuts = xcalloc(2 * n_spans + 1, sizeof(*cuts));
    int64_t *at = xcalloc(2 * n_spans + 1, sizeof(*at)), done = g->out->n;
    int rc = 0;

    for (size_t i = 0; i < n_spans; i++) {
        cuts[2 * i] = spans[i].from;
        cuts[2 * i + 1] = spans[i].to;
    }
    TRY(tokenizer_encode_cut(g->e->tokenizer, text, n, cuts, 2 * n_spans, at, g->out, err));
    for (size_t i = 0; i < n_spans; i++) {
        mark(g, done, at[2 * i]);
        done = at[2 * i + 1];
    }
    mark(g, done, g->out->n);
    if (last)
        *last = n_spans > 0 ? at[2 * n_spans - 2] : g->out->n;
out:
    free(cuts);
    free(at);
    return rc;
}

/* What the tokenizer writes in front, but not a first token that the text itself begins with. */
static int add_text(struct encoding *g, const char *text, size_t n, const struct text_span *spans,
                    size_t n_spans, bool trained, int64_t *last, struct err *err)
{
    struct token_list *out = g->out;
    int32_t bos = tokenizer_bos(g->e->tokenizer);
    int rc = 0;

    tokenizer_add_before(g->e->tokenizer, out);
    int64_t text_at = out->n;
    if (!trained)
        mark(g, g->first, text_at);
    TRY(add_spans(g, text, n, spans, n_spans, last, err));
    if (text_at > g->first && out->n > text_at && marked_id(out->ids[text_at - 1]) == bos &&
        marked_id(out->ids[text_at]) == bos) {
        out->n--;
        memmove(out->ids + text_at, out->ids + text_at + 1,
                (size_t)(out->n - text_at) * sizeof(*out->ids));
        if (last && *last > text_at)
            --*last;
    }
out:
    return rc;
}

/* Special suffix and end-of-text behind a part that began at `from`; they are trained on. */
static void add_end(struct encoding *g, int64_t from)
{
    int32_t eos = tokenizer_eos(g->e->tokenizer);

    /* A lone first token is the prefix, which for some models is the same token as eos. */
    if (from < g->first + 1)
        from = g->first + 1;
    tokenizer_add_after(g->e->tokenizer, g->out);
    if (g->out->n <= from || marked_id(g->out->ids[g->out->n - 1]) != eos)
        token_list_add(g->out, eos);
}

static int encode_text(struct encoding *g, const struct example *x, struct err *err)
{
    const struct text_span all = {0, x->n};
    int rc = add_text(g, x->text, x->n, &all, 1, true, NULL, err);

    if (rc == 0)
        add_end(g, g->first);
    return rc;
}

static int encode_prompt(struct encoding *g, const struct example *x, struct err *err)
{
    const struct text_span completion = {x->prompt_n, x->prompt_n + x->n};
    struct buf text = {0};
    int64_t from;
    int rc = 0;

    buf_add(&text, x->prompt, x->prompt_n);
    buf_add(&text, x->text, x->n);
    TRY(add_text(g, buf_str(&text), text.len, &completion, 1, false, &from, err));
    add_end(g, from);
out:
    buf_fini(&text);
    return rc;
}

enum { MAX_TURNS = 1024 };

static int too_many_turns(struct err *err)
{
    return err_set(err, ERR_INVALID,
                   "the conversation has more than %d turns of the assistant; split it", MAX_TURNS);
}

/* Paragraphs; an earlier answer ends with the blank line, which is not trained on. */
static int encode_paragraphs(struct encoding *g, const struct example *x, struct err *err)
{
    struct text_span *spans = xcalloc(MAX_TURNS, sizeof(*spans));
    size_t n = json_array_size(x->messages), n_spans = 0;
    struct buf text = {0};
    int64_t from;
    int rc = 0;

    for (size_t i = 0; i < n; i++) {
        const json_t *message = json_array_get(x->messages, i);
        const json_t *content = json_object_get(message, "content");
        size_t start = text.len;
        buf_add(&text, json_string_value(content), json_string_length(content));
        if (message_is_trained(message) && n_spans == MAX_TURNS) {
            rc = too_many_turns(err);
            goto out;
        }
        if (message_is_trained(message))
            spans[n_spans++] = (struct text_span){start, text.len};
        if (i + 1 < n)
            buf_add_str(&text, "\n\n");
    }
    TRY(add_text(g, buf_str(&text), text.len, spans, n_spans, false, &from, err));
    add_end(g, from);
out:
    free(spans);
    buf_fini(&text);
    return rc;
}

/* --- conversations --- */

/* A conversation's rendering, and where in it the assistant speaks. */
struct talk {
    const struct tokenizer *tokenizer;
    const struct chat_template *chat;
    const struct example *x;
    struct chat_rendering whole;
    struct text_span spans[MAX_TURNS];
    size_t n_spans;
    int64_t steps;
};

/* The end of text[from, to) without white space. */
static size_t trim_end(const char *text, size_t from, size_t to)
{
    while (to > from && (text[to - 1] == ' ' || (text[to - 1] >= '\t' && text[to - 1] <= '\r')))
        to--;
    return to;
}

static size_t count_answers(const json_t *messages)
{
    size_t n = 0;

    for (size_t i = 0; i < json_array_size(messages); i++)
        n += message_is_from_assistant(json_array_get(messages, i));
    return n;
}

/* How much of a rendering of the first messages begins the whole one: all of it, but perhaps for
 * the end-of-text token that some templates put behind any conversation. SIZE_MAX: less. */
static size_t shared_length(const struct talk *t, const struct buf *part)
{
    const char *text = buf_str(part), *whole = buf_str(&t->whole.text);
    int32_t eos = tokenizer_eos(t->tokenizer);
    struct buf end = {0};
    size_t n = part->len;

    if (n <= t->whole.text.len && memcmp(text, whole, n) == 0)
        return n;
    tokenizer_decode(t->tokenizer, &eos, 1, false, &end, NULL);
    n = trim_end(text, 0, n);
    bool ends = end.len > 0 && n >= end.len && memcmp(text + n - end.len, end.data, end.len) == 0;
    n -= ends ? end.len : 0;
    buf_fini(&end);
    return ends && n <= t->whole.text.len && memcmp(text, whole, n) == 0 ? n : SIZE_MAX;
}

/* Render the first n messages; *length gets the rendering's, which must begin the whole one. All
 * renderings of a conversation share one limit of steps. */
static int measure(struct talk *t, size_t n, bool prompt, size_t *length, struct err *err)
{
    struct template_limits limits = TEMPLATE_LIMITS;
    struct chat_rendering part = {0};
    int rc = 0;

    if (t->steps >= limits.steps)
        return err_set(err, ERR_INVALID,
                       "the conversation is too long for the model's chat template; split it");
    limits.steps -= t->steps;
    TRY(chat_template_render(t->chat, t->x->messages, n, t->x->tools, prompt, &limits, &part,
                             &t->steps, err));
    *length = shared_length(t, &part.text);
    if (*length == SIZE_MAX)
        rc = err_set(err, ERR_CONFLICT,
                     "the model's chat template writes the first %zu messages otherwise when the "
                     "conversation goes on, so it cannot be told what the assistant says; split "
                     "the conversation, give its earlier answers the weight 0, or set "
                     "dataset.loss_on to \"all\"",
                     n);
out:
    chat_rendering_fini(&part);
    return rc;
}

/* What of [from, to) is trained on: not the white space behind the token that ends the turn, which
 * is never generated, as generation stops at that token. */
static size_t turn_end(const struct talk *t, size_t from, size_t to)
{
    const char *text = buf_str(&t->whole.text);
    size_t end = trim_end(text, from, to);

    return tokenizer_ends_in_special(t->tokenizer, text + from, end - from) ? end : to;
}

static int find_by_prefixes(struct talk *t, struct err *err)
{
    size_t n = json_array_size(t->x->messages);
    int rc = 0;

    for (size_t i = 0; i < n; i++) {
        struct text_span *span = &t->spans[t->n_spans];
        if (!message_is_trained(json_array_get(t->x->messages, i)))
            continue;
        TRY(measure(t, i, true, &span->from, err));
        TRY(measure(t, i + 1, false, &span->to, err));
        if (span->to <= span->from)
            continue;
        span->to = turn_end(t, span->from, span->to);
        t->n_spans++;
    }
out:
    return rc;
}

/* The template's own marks; without weights they may be fewer or more than the messages. */
static int take_marks(struct talk *t, struct err *err)
{
    const json_t *messages = t->x->messages;
    size_t answers = count_answers(messages), trained = 0, mark = 0;

    for (size_t i = 0; i < json_array_size(messages); i++)
        trained += message_is_trained(json_array_get(messages, i));
    if (t->whole.n_generated > MAX_TURNS)
        return too_many_turns(err);
    if (trained < answers && t->whole.n_generated != answers)
        return err_set(err, ERR_INVALID,
                       "the model's chat template marks %zu answers where the conversation has "
                       "%zu, so their weights cannot be told apart",
                       t->whole.n_generated, answers);
    if (trained == answers) {
        if (t->whole.n_generated)
            memcpy(t->spans, t->whole.generated, t->whole.n_generated * sizeof(t->spans[0]));
        t->n_spans = t->whole.n_generated;
        return 0;
    }
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *message = json_array_get(messages, i);
        if (message_is_trained(message))
            t->spans[t->n_spans++] = t->whole.generated[mark];
        mark += message_is_from_assistant(message);
    }
    return 0;
}

static int encode_talk(struct encoding *g, struct talk *t, struct err *err)
{
    const json_t *messages = t->x->messages;
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    int64_t answer;
    int rc = 0;

    for (size_t i = 1; i < t->n_spans; i++)
        if (t->spans[i].from < t->spans[i - 1].to)
            return err_set(err, ERR_INVALID, "the model's chat template marks an answer twice");
    TRY(add_spans(g, buf_str(&t->whole.text), t->whole.text.len, t->spans, t->n_spans, &answer,
                  err));
    if (t->n_spans == 0 || !message_is_trained(last))
        return 0;
    for (int64_t i = answer; i < g->out->n; i++)
        if (tokenizer_stops_at(t->tokenizer, marked_id(g->out->ids[i])))
            return 0;
    token_list_add(g->out, tokenizer_eos(t->tokenizer));
out:
    return rc;
}

static int encode_messages(struct encoding *g, const struct example *x, struct err *err)
{
    struct talk *t;
    int rc = 0;

    if (!g->e->chat && x->is_instruction)
        return encode_paragraphs(g, x, err);
    if (!g->e->chat) {
        rc = err_set(err, ERR_UNSUPPORTED,
                     "conversations cannot be trained on, because the model has no chat template; "
                     "use a model that has one, or write {\"prompt\", \"completion\"} lines");
        return err_set_reason(err, rc, "missing_chat_template");
    }
    if (count_answers(x->messages) > MAX_TURNS)
        return too_many_turns(err);
    t = xcalloc(1, sizeof(*t));
    t->tokenizer = g->e->tokenizer;
    t->chat = g->e->chat;
    t->x = x;
    TRY(chat_template_render(t->chat, x->messages, json_array_size(x->messages), x->tools, false,
                             NULL, &t->whole, &t->steps, err));
    if (g->e->loss_on != LOSS_ON_ALL) {
        if (chat_template_marks_generation(t->chat, x->tools != NULL))
            TRY(take_marks(t, err));
        else
            TRY(find_by_prefixes(t, err));
    }
    TRY(encode_talk(g, t, err));
out:
    chat_rendering_fini(&t->whole);
    free(t);
    return rc;
}

int encode_example(const struct example_encoder *e, const struct example *example,
                   struct token_list *out, struct err *err)
{
    struct encoding g = {.e = e, .out = out, .first = out->n};
    int rc = example->kind == EXAMPLE_TEXT     ? encode_text(&g, example, err)
             : example->kind == EXAMPLE_PROMPT ? encode_prompt(&g, example, err)
                                               : encode_messages(&g, example, err);

    if (rc != 0)
        out->n = g.first;
    return rc;
}
