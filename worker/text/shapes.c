#include "worker/text/shapes.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/buf.h"

static const char *kind_of(const json_t *value)
{
    static const char *const kinds[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "an array", [JSON_STRING] = "a string",
        [JSON_INTEGER] = "a number", [JSON_REAL] = "a number",  [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",      [JSON_NULL] = "null",
    };
    return value ? kinds[json_typeof(value)] : "missing";
}

struct why {
    char *text;
    size_t cap;
};

__attribute__((format(printf, 2, 3))) static bool bad(const struct why *why, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(why->text, why->cap, fmt, args);
    va_end(args);
    return false;
}

/* A member that must be a string. */
static bool read_string(const json_t *object, const char *key, bool may_be_empty, const char **out,
                        size_t *n, const struct why *why)
{
    const json_t *value = json_object_get(object, key);

    if (!value)
        return bad(why, "the object has no \"%s\"", key);
    if (!json_is_string(value))
        return bad(why, "\"%s\" must be a string, not %s", key, kind_of(value));
    if (!may_be_empty && json_string_length(value) == 0)
        return bad(why, "\"%s\" is empty; remove the line", key);
    *out = json_string_value(value);
    *n = json_string_length(value);
    return true;
}

/* --- messages --- */

static bool is_one_of(const char *word, const char *const *words)
{
    for (; *words; words++)
        if (strcmp(word, *words) == 0)
            return true;
    return false;
}

bool message_is_from_assistant(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));

    return role && strcmp(role, "assistant") == 0;
}

bool message_is_trained(const json_t *message)
{
    const json_t *weight = json_object_get(message, "weight");

    return message_is_from_assistant(message) &&
           !(json_is_number(weight) && json_number_value(weight) == 0);
}

/* Content in parts becomes one string; templates of text models know no other. */
static bool join_parts(json_t *message, size_t index, const struct why *why)
{
    const json_t *parts = json_object_get(message, "content");
    struct buf text = {0};
    bool ok = true;

    for (size_t i = 0; ok && i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const json_t *type = json_object_get(part, "type"), *s = json_object_get(part, "text");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 ||
            !json_is_string(s))
            ok = bad(why,
                     "messages[%zu].content[%zu] is not {\"type\": \"text\", \"text\": \"...\"}; "
                     "only text can be trained on",
                     index, i);
        else
            buf_add(&text, json_string_value(s), json_string_length(s));
    }
    if (ok)
        json_object_set_new(message, "content", json_stringn(buf_str(&text), text.len));
    buf_fini(&text);
    return ok;
}

static bool check_content(json_t *message, size_t index, const struct why *why)
{
    const json_t *content = json_object_get(message, "content");
    const json_t *calls = json_object_get(message, "tool_calls");
    bool calls_something =
        json_array_size(calls) > 0 || json_is_object(json_object_get(message, "function_call"));

    if (calls && !json_is_array(calls) && !json_is_null(calls))
        return bad(why, "messages[%zu].tool_calls must be an array, not %s", index, kind_of(calls));
    if (json_is_array(content))
        return join_parts(message, index, why);
    if ((!content || json_is_null(content)) && calls_something)
        return true;
    if (!json_is_string(content))
        return bad(why, "messages[%zu].content must be a string, not %s", index, kind_of(content));
    return true;
}

static bool check_messages(json_t *messages, const struct why *why)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant",
                                        "tool",   "function",  NULL};
    bool answered = false;

    if (!json_is_array(messages))
        return bad(why, "\"messages\" must be an array, not %s", kind_of(messages));
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        const json_t *role = json_object_get(message, "role");
        const json_t *weight = json_object_get(message, "weight");
        if (!json_is_object(message))
            return bad(why, "messages[%zu] must be an object, not %s", i, kind_of(message));
        if (!json_is_string(role))
            return bad(why, "messages[%zu].role must be a string, not %s", i, kind_of(role));
        if (!is_one_of(json_string_value(role), roles))
            return bad(why,
                       "messages[%zu].role is \"%.40s\"; known are system, developer, user, "
                       "assistant, tool and function",
                       i, json_string_value(role));
        if (weight && !json_is_null(weight) &&
            !(json_is_number(weight) &&
              (json_number_value(weight) == 0 || json_number_value(weight) == 1)))
            return bad(why, "messages[%zu].weight must be 0 or 1", i);
        if (!check_content(message, i, why))
            return false;
        answered |= message_is_from_assistant(message);
    }
    return answered || bad(why, "\"messages\" has no message of the role \"assistant\", so there "
                                "is nothing to learn; add the answer, or remove the line");
}

static bool read_messages(json_t *object, struct example *out, const struct why *why)
{
    json_t *messages = json_object_get(object, "messages");
    const json_t *tools = json_object_get(object, "tools");

    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return bad(why, "\"tools\" must be an array, not %s", kind_of(tools));
    if (!check_messages(messages, why))
        return false;
    *out = (struct example){.kind = EXAMPLE_MESSAGES,
                            .messages = json_incref(messages),
                            .tools = json_is_array(tools) ? tools : NULL};
    return true;
}

static void add_message(json_t *messages, const char *role, const json_t *content)
{
    json_array_append_new(messages, json_pack("{s:s, s:O}", "role", role, "content", content));
}

/* A string that says something. */
static bool has_text(const json_t *value)
{
    return json_is_string(value) && json_string_length(value) > 0;
}

static const char *role_of_speaker(const char *from)
{
    static const char *const pairs[][2] = {
        {"human", "user"},
        {"user", "user"},
        {"gpt", "assistant"},
        {"chatgpt", "assistant"},
        {"assistant", "assistant"},
        {"model", "assistant"},
        {"function_call", "assistant"},
        {"system", "system"},
        {"developer", "developer"},
        {"tool", "tool"},
        {"observation", "tool"},
        {"function", "function"},
    };
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        if (strcmp(from, pairs[i][0]) == 0)
            return pairs[i][1];
    return NULL;
}

static bool read_conversation(json_t *object, struct example *out, const struct why *why)
{
    const json_t *list = json_object_get(object, "conversations");
    const json_t *tools = json_object_get(object, "tools");
    json_t *messages = NULL;

    if (!json_is_array(list))
        return bad(why, "\"conversations\" must be an array, not %s", kind_of(list));
    messages = json_array();
    if (has_text(json_object_get(object, "system")))
        add_message(messages, "system", json_object_get(object, "system"));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *turn = json_array_get(list, i), *value = json_object_get(turn, "value");
        const char *from = json_string_value(json_object_get(turn, "from"));
        const char *role = from ? role_of_speaker(from) : NULL;
        if (!json_is_string(value) || !role) {
            json_decref(messages);
            return role ? bad(why, "conversations[%zu].value must be a string, not %s", i,
                              kind_of(value))
                        : bad(why,
                              "conversations[%zu].from is %s%.40s; known are human, gpt, system, "
                              "observation and function_call",
                              i, from ? "" : "no string", from ? from : "");
        }
        add_message(messages, role, value);
        const json_t *weight = json_object_get(turn, "weight");
        if (weight)
            json_object_set(json_array_get(messages, json_array_size(messages) - 1), "weight",
                            (json_t *)weight);
    }
    if (!check_messages(messages, why)) {
        json_decref(messages);
        return false;
    }
    *out = (struct example){.kind = EXAMPLE_MESSAGES,
                            .messages = messages,
                            .tools = json_is_array(tools) ? tools : NULL};
    return true;
}

/* --- instructions --- */

/* Earlier turns: [[question, answer], ...]. */
static bool add_history(json_t *messages, const json_t *history, const struct why *why)
{
    if (!history || json_is_null(history))
        return true;
    for (size_t i = 0; i < json_array_size(history); i++) {
        const json_t *pair = json_array_get(history, i);
        const json_t *question = json_array_get(pair, 0), *answer = json_array_get(pair, 1);
        if (json_array_size(pair) != 2 || !json_is_string(question) || !json_is_string(answer))
            return bad(why, "history[%zu] must be a pair of strings, question and answer", i);
        add_message(messages, "user", question);
        add_message(messages, "assistant", answer);
    }
    return json_is_array(history) ||
           bad(why, "\"history\" must be an array, not %s", kind_of(history));
}

static bool read_instruction(json_t *object, struct example *out, const struct why *why)
{
    const json_t *input = json_object_get(object, "input");
    const json_t *system = json_object_get(object, "system");
    const char *instruction, *output;
    json_t *messages = json_array(), *question;
    struct buf text = {0};
    size_t n, output_n;

    if (has_text(system))
        add_message(messages, "system", system);
    if (!read_string(object, "instruction", true, &instruction, &n, why) ||
        !read_string(object, "output", true, &output, &output_n, why) ||
        !add_history(messages, json_object_get(object, "history"), why))
        goto fail;
    if (input && !json_is_null(input) && !json_is_string(input)) {
        bad(why, "\"input\" must be a string, not %s", kind_of(input));
        goto fail;
    }
    if (n == 0 && !has_text(input)) {
        bad(why, "\"instruction\" is empty; remove the line");
        goto fail;
    }
    buf_add(&text, instruction, n);
    if (has_text(input)) {
        buf_add_str(&text, n ? "\n\n" : "");
        buf_add(&text, json_string_value(input), json_string_length(input));
    }
    question = json_stringn(buf_str(&text), text.len);
    add_message(messages, "user", question);
    json_decref(question);
    add_message(messages, "assistant", json_object_get(object, "output"));
    buf_fini(&text);
    *out = (struct example){.kind = EXAMPLE_MESSAGES, .messages = messages, .is_instruction = true};
    return true;
fail:
    json_decref(messages);
    return false;
}

/* --- which shape --- */

static bool read_text(json_t *object, struct example *out, const struct why *why)
{
    struct example e = {.kind = EXAMPLE_TEXT};

    if (!read_string(object, "text", false, &e.text, &e.n, why))
        return false;
    *out = e;
    return true;
}

static bool read_prompt(json_t *object, struct example *out, const struct why *why)
{
    struct example e = {.kind = EXAMPLE_PROMPT};

    if (!read_string(object, "prompt", true, &e.prompt, &e.prompt_n, why) ||
        !read_string(object, "completion", true, &e.text, &e.n, why))
        return false;
    *out = e;
    return true;
}

static const struct shape {
    const char *member, *also; /* the members that make it out */
    enum data_format format;
    bool (*read)(json_t *object, struct example *out, const struct why *why);
} shapes[] = {
    {"messages", "messages", DATA_MESSAGES, read_messages},
    {"conversations", "conversations", DATA_MESSAGES, read_conversation},
    {"prompt", "completion", DATA_PROMPT, read_prompt},
    {"instruction", "output", DATA_PROMPT, read_instruction},
    {"text", "text", DATA_TEXT, read_text},
};
enum { N_SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static const char *const optional_members[] = {"input", "system", "history", "tools", NULL};

bool shape_member_is_optional(const char *name)
{
    return is_one_of(name, optional_members);
}

bool shape_has_member(const char *name)
{
    return is_one_of(name, example_members);
}

bool shape_fits(const char *const *names, size_t n)
{
    for (int i = 0; i < N_SHAPES; i++) {
        bool member = false, also = false;
        for (size_t k = 0; k < n; k++) {
            member |= strcmp(names[k], shapes[i].member) == 0;
            also |= strcmp(names[k], shapes[i].also) == 0;
        }
        if (member && also)
            return true;
    }
    return false;
}

static const char *const format_needs[] = {
    [DATA_AUTO] = ("\"text\", \"messages\", \"prompt\" with \"completion\", or \"instruction\" "
                   "with \"output\""),
    [DATA_TEXT] = "\"text\"; an example is {\"text\": \"...\"}",
    [DATA_PROMPT] = "\"prompt\" with \"completion\", or \"instruction\" with \"output\"",
    [DATA_MESSAGES] = "\"messages\" or \"conversations\"",
};

bool shape_read(json_t *object, enum data_format format, struct example *out, char *why_text,
                size_t why_cap)
{
    const struct why why = {why_text, why_cap};
    const struct shape *found = NULL;

    if (!json_is_object(object))
        return bad(
            &why, "the line is %s, not an object like {\"text\": \"...\"}%s", kind_of(object),
            json_is_array(object) ? "; write one example a line, without an array around" : "");
    if (json_object_get(object, "chosen") || json_object_get(object, "rejected") ||
        json_object_get(object, "preferred_output"))
        return bad(&why, "the line is a preference between two answers; the method \"supervised\" "
                         "needs one answer an example");
    for (int i = 0; i < N_SHAPES; i++) {
        const struct shape *s = &shapes[i];
        if ((format != DATA_AUTO && format != s->format) ||
            (!json_object_get(object, s->member) && !json_object_get(object, s->also)))
            continue;
        if (found)
            return bad(&why,
                       "the line has both \"%s\" and \"%s\"; remove one, or say by dataset.format "
                       "which is meant",
                       found->member, s->member);
        found = s;
    }
    if (!found)
        return bad(&why, "the object has no %s", format_needs[format]);
    return found->read(object, out, &why);
}

void example_fini(struct example *e)
{
    json_decref(e->messages);
    memset(e, 0, sizeof(*e));
}
