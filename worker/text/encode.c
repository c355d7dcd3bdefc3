#include "worker/text/encode.h"

#include <string.h>

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

static int encode_messages(struct encoding *g, const struct example *x, struct err *err)
{
    int rc;

    if (x->is_instruction)
        return encode_paragraphs(g, x, err);
    rc = err_set(err, ERR_UNSUPPORTED,
                 "conversations cannot be trained on, because the model has no chat template; use "
                 "a model that has one, or write {\"prompt\", \"completion\"} lines");
    return err_set_reason(err, rc, "missing_chat_template");
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
