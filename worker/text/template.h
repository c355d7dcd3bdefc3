/*
 * Chat templates: conversations to text, by the template that a model's author wrote.
 *
 * The language is a subset of Jinja, run here: a template comes with a model, so it is untrusted.
 * It can read what it is given and write text, nothing else; output, memory, steps, nesting and the
 * template's size are bounded, and beyond them rendering is ERR_INVALID. Results are those of
 * transformers' apply_chat_template, for what is supported:
 *
 *   tags      if elif else, for (else, if, unpacking; loop.*), break, continue, set (also as a
 *             block), macro, call, filter, raw, generation; with trim_blocks and lstrip_blocks, and
 *             white space control by '-' and '+'
 *   values    strings, integers, floats, booleans, none, lists, tuples, mappings, slices,
 *             arithmetic, ~, comparisons, in, conditions, namespace
 *   names     messages, tools, documents (none), add_generation_prompt, the special tokens
 *             (bos_token, eos_token, ...), raise_exception, strftime_now, range, dict, namespace
 *   filters, tests and methods: the tables in template_{calls,tests,methods}.c
 *
 * Anything else is an error that names the line.
 *
 * Where it is from: chat_template.jinja, else "chat_template" of tokenizer_config.json: a string,
 * or a list of {"name", "template"}, of which "tool_use" is taken for conversations with tools and
 * "default" otherwise.
 *
 * A loaded template is immutable and shared by threads.
 */
#ifndef CASTOR_WORKER_TEXT_TEMPLATE_H
#define CASTOR_WORKER_TEXT_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "core/buf.h"
#include "core/err.h"

struct chat_template;

struct template_limits {
    size_t output_bytes, memory_bytes;
    int64_t steps;
};
extern const struct template_limits TEMPLATE_LIMITS;

struct text_span {
    size_t from, to; /* bytes */
};

/* Zero-initialise; chat_rendering_fini is idempotent. */
struct chat_rendering {
    struct buf text;
    struct text_span *generated; /* what stood in {% generation %} blocks, in order */
    size_t n_generated, generated_cap;
};
void chat_rendering_fini(struct chat_rendering *r);

/* *out = NULL and 0 where the model has no template. One that cannot be read or parsed is loaded
 * all the same: rendering is then ERR_UNSUPPORTED and says why, as not all data need it. `now` is
 * the time that strftime_now tells, in UTC: a job's, so that it always gives the same. */
int chat_template_load(const char *model_dir, time_t now, struct chat_template **out,
                       struct err *err);
/* From its text; `tokens` (may be NULL) is an object of the special tokens' names. */
int chat_template_create(const char *text, size_t n, const json_t *tokens, time_t now,
                         struct chat_template **out, struct err *err);
void chat_template_destroy(struct chat_template *t);

/* Does it mark what the assistant says by {% generation %}? */
bool chat_template_marks_generation(const struct chat_template *t, bool with_tools);

/* Render the first n_messages. `tools` may be NULL. limits: of this call; NULL: TEMPLATE_LIMITS.
 * *out is overwritten, and zeroed on failure. Adds the steps taken to *steps (may be NULL). */
int chat_template_render(const struct chat_template *t, const json_t *messages, size_t n_messages,
                         const json_t *tools, bool add_generation_prompt,
                         const struct template_limits *limits, struct chat_rendering *out,
                         int64_t *steps, struct err *err);

#endif
