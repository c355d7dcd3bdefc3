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

static void mark(const struct encoding *g, int64_t from, bool trained)
{
    if (trained || g->e->loss_on == LOSS_ON_ALL)
        return;
    for (int64_t i = from; i < g->out->n; i++)
        g->out->ids[i] = ~g->out->ids[i];
}

static int add_part(struct encoding *g, const char *text, size_t n, bool trained, struct err *err)
{
    int64_t from = g->out->n;
    int rc = tokenizer_encode(g->e->tokenizer, text, n, false, g->out, err);

    if (rc == 0)
        mark(g, from, trained);
    return rc;
}

static void add_before(struct encoding *g, bool trained)
{
    int64_t from = g->out->n;

    tokenizer_add_before(g->e->tokenizer, g->out);
    mark(g, from, trained);
}

/* Special suffix and end-of-text behind a part that began at `from`. */
static void add_end(struct encoding *g, int64_t from, bool trained)
{
    int32_t eos = tokenizer_eos(g->e->tokenizer);
    int64_t end = g->out->n;

    /* A lone first token is the prefix, which for some models is the same token as eos. */
    if (from < g->first + 1)
        from = g->first + 1;
    tokenizer_add_after(g->e->tokenizer, g->out);
    if (g->out->n <= from || marked_id(g->out->ids[g->out->n - 1]) != eos)
        token_list_add(g->out, eos);
    mark(g, end, trained);
}

static int encode_text(struct encoding *g, const struct example *x, struct err *err)
{
    add_before(g, true);
    int rc = add_part(g, x->text, x->n, true, err);
    if (rc == 0)
        add_end(g, g->first, true);
    return rc;
}

static int encode_prompt(struct encoding *g, const struct example *x, struct err *err)
{
    int64_t from;
    int rc = 0;

    add_before(g, false);
    TRY(add_part(g, x->prompt, x->prompt_n, false, err));
    from = g->out->n;
    TRY(add_part(g, x->text, x->n, true, err));
    add_end(g, from, true);
out:
    return rc;
}

/* Paragraphs; an earlier answer ends with the blank line, which is not trained on. */
static int encode_paragraphs(struct encoding *g, const struct example *x, struct err *err)
{
    size_t n = json_array_size(x->messages);
    int64_t from = g->first;
    int rc = 0;

    add_before(g, false);
    for (size_t i = 0; i < n; i++) {
        const json_t *message = json_array_get(x->messages, i);
        const json_t *content = json_object_get(message, "content");
        from = g->out->n;
        TRY(add_part(g, json_string_value(content), json_string_length(content),
                     message_is_trained(message), err));
        if (i + 1 < n)
            TRY(add_part(g, "\n\n", 2, false, err));
    }
    add_end(g, from, true);
out:
    return rc;
}

/* --- conversations ---------------------------------------------------------------------------- */

enum { MAX_TURNS = 1024 };

/* A conversation's rendering, and where in it the assistant speaks. */
struct talk {
    const struct chat_template *chat;
    const struct example *x;
    struct chat_rendering whole;
    struct text_span spans[MAX_TURNS];
    size_t n_spans;
    int64_t steps;
};

static int too_many_turns(struct err *err)
{
    return err_set(err, ERR_INVALID,
                   "the conversation has more than %d turns of the assistant; split it", MAX_TURNS);
}

static size_t count_answers(const json_t *messages)
{
    size_t n = 0;

    for (size_t i = 0; i < json_array_size(messages); i++)
        n += message_is_from_assistant(json_array_get(messages, i));
    return n;
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
    if (part.text.len > t->whole.text.len ||
        memcmp(buf_str(&part.text), buf_str(&t->whole.text), part.text.len) != 0)
        rc = err_set(err, ERR_INVALID,
                     "the model's chat template writes the first %zu messages otherwise when the "
                     "conversation goes on, so it cannot be told what the assistant says; split "
                     "the conversation, give its earlier answers the weight 0, or set "
                     "dataset.loss_on to \"all\"",
                     n);
    else
        *length = part.text.len;
out:
    chat_rendering_fini(&part);
    return rc;
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
        t->n_spans += span->to > span->from;
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
    const char *text = buf_str(&t->whole.text);
    size_t at = 0;
    int64_t answer = g->first;
    int32_t eos = tokenizer_eos(g->e->tokenizer);
    int rc = 0;

    for (size_t i = 0; i < t->n_spans; i++) {
        if (t->spans[i].from < at)
            return err_set(err, ERR_INVALID, "the model's chat template marks an answer twice");
        TRY(add_part(g, text + at, t->spans[i].from - at, false, err));
        answer = g->out->n;
        at = t->spans[i].to;
        TRY(add_part(g, text + t->spans[i].from, at - t->spans[i].from, true, err));
    }
    TRY(add_part(g, text + at, t->whole.text.len - at, false, err));
    if (t->n_spans == 0 || !message_is_trained(last))
        return 0;
    for (int64_t i = answer; i < g->out->n; i++)
        if (marked_id(g->out->ids[i]) == eos)
            return 0;
    token_list_add(g->out, eos);
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
