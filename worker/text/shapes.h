/*
 * The shapes that one JSON object of a data file may have, and what is wrong with it.
 *
 *   text      {"text"}
 *   prompt    {"prompt", "completion"}: the completion is what is to be learnt
 *   prompt    {"instruction", "input"?, "output", "system"?, "history"? [[question, answer], ...]}:
 *             becomes messages
 *   messages  {"messages": [{"role", "content", ...}], "tools"?}: roles system, developer, user,
 *             assistant, tool, function; an assistant's message may have "weight" 0 (is not trained
 *             on) and "tool_calls"; content may be a list of {"type": "text", "text"}, which are
 *             joined
 *   messages  {"conversations": [{"from", "value"}], "system"?, "tools"?}: becomes messages;
 *             human, gpt, observation, function_call and the roles above are known
 *
 * Left: the data_format that asks for the shape; with DATA_AUTO it is found by its members, and an
 * object with the members of two shapes is refused. Other members are metadata and ignored.
 */
#ifndef CASTOR_WORKER_TEXT_SHAPES_H
#define CASTOR_WORKER_TEXT_SHAPES_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "api/job_spec.h"

/* EXAMPLE_COLUMNS: an object that a mapping of columns is to make a shape of. */
enum example_kind { EXAMPLE_TEXT, EXAMPLE_PROMPT, EXAMPLE_MESSAGES, EXAMPLE_COLUMNS };

/* Strings are borrowed from the object that was read, or from the reader. */
struct example {
    enum example_kind kind;
    const char *prompt; /* EXAMPLE_PROMPT */
    size_t prompt_n;
    const char *text; /* the text, or the completion */
    size_t n;
    json_t *messages;    /* EXAMPLE_MESSAGES; owned */
    const json_t *tools; /* as in the line, or NULL */
    bool is_instruction; /* messages made of an instruction: need no chat template */
};

/* Read `object` (its messages may be changed in place). False and a sentence in `why` when it is no
 * example. */
bool shape_read(json_t *object, enum data_format format, struct example *out, char *why,
                size_t why_cap);
void example_fini(struct example *e);

/* The names that members of a shape may have; the optional ones make no shape by themselves. */
bool shape_has_member(const char *name);
bool shape_member_is_optional(const char *name);
/* Do objects with these members have a shape? */
bool shape_fits(const char *const *names, size_t n);

bool message_is_from_assistant(const json_t *message);
/* An assistant's message without "weight" 0. */
bool message_is_trained(const json_t *message);

#endif
