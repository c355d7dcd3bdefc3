/* Render conversations as castor-worker does: one {"template", "messages", "tools"?, "tokens"?,
 * "prompt"?} a line on stdin, one {"text", "spans"} or {"error"} a line on stdout. Compiled by
 * hand, see template_compare.py. */
#include <stdio.h>
#include <stdlib.h>

#include "core/json.h"
#include "worker/text/template.h"

static json_t *render(const json_t *in)
{
    const json_t *text = json_object_get(in, "template"), *tools = json_object_get(in, "tools");
    const json_t *messages = json_object_get(in, "messages");
    struct chat_template *t = NULL;
    struct chat_rendering out = {0};
    struct err err = {0};

    int rc = chat_template_create(json_string_value(text), json_string_length(text),
                                  json_object_get(in, "tokens"), 1700000000, &t, &err);
    if (rc == 0)
        rc = chat_template_render(
            t, messages, json_array_size(messages), json_is_null(tools) ? NULL : tools,
            json_is_true(json_object_get(in, "prompt")), NULL, &out, NULL, &err);
    chat_template_destroy(t);
    if (rc != 0)
        return json_pack("{s:s}", "error", err.msg);
    json_t *spans = json_array();
    for (size_t i = 0; i < out.n_generated; i++)
        json_array_append_new(spans, json_pack("[I, I]", (json_int_t)out.generated[i].from,
                                               (json_int_t)out.generated[i].to));
    json_t *j = json_pack("{s:s%, s:o}", "text", buf_str(&out.text), out.text.len, "spans", spans);
    chat_rendering_fini(&out);
    return j;
}

int main(void)
{
    char *line = NULL;
    size_t cap = 0;

    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;) {
        json_t *in = NULL, *out;
        struct err err = {0};
        if (json_parse_limited(line, (size_t)n, 64 << 20, JSON_MAX_DEPTH_FILE, &in, &err) != 0)
            out = json_pack("{s:s}", "error", err.msg);
        else
            out = render(in);
        char *text = json_to_line(out);
        puts(text);
        free(text);
        json_decref(in);
        json_decref(out);
    }
    free(line);
    return 0;
}
