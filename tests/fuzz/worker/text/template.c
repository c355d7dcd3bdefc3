/* The chat template language: any template, rendered for one conversation with tools. */
#include <jansson.h>
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"
#include "worker/text/template.h"

static const char CONVERSATION[] =
    "[{\"role\": \"system\", \"content\": \"Be brief.\"},"
    " {\"role\": \"user\", \"content\": \"Caf\\u00e9 \\ud83d\\udc4d?\\n  2 + 2\"},"
    " {\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": \"function\","
    "  \"function\": {\"name\": \"add\", \"arguments\": {\"a\": 2, \"b\": [1.5, true, null]}}}]},"
    " {\"role\": \"tool\", \"content\": [{\"type\": \"text\", \"text\": \"4\"}]},"
    " {\"role\": \"assistant\", \"content\": \" Four. \"}]";
static const char TOOLS[] =
    "[{\"type\": \"function\", \"function\": {\"name\": \"add\", \"parameters\": {}}}]";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static json_t *messages, *tools, *tokens;
    const struct template_limits limits = {
        .output_bytes = 1 << 16, .memory_bytes = 1 << 22, .steps = 100000};
    struct chat_rendering out = {0};
    struct chat_template *t = NULL;
    int64_t steps = 0;

    if (!messages) {
        messages = json_loads(CONVERSATION, 0, NULL);
        tools = json_loads(TOOLS, 0, NULL);
        tokens = json_pack("{s:s, s:s}", "bos_token", "<s>", "eos_token", "</s>");
    }
    if (chat_template_create((const char *)data, n, tokens, 1700000000, &t, NULL) != 0)
        return 0;
    for (int with_tools = 0; with_tools < 2; with_tools++) {
        int rc =
            chat_template_render(t, messages, json_array_size(messages), with_tools ? tools : NULL,
                                 !with_tools, &limits, &out, &steps, NULL);
        /* Spans lie in the text, in order. */
        for (size_t i = 0; rc == 0 && i < out.n_generated; i++)
            if (out.generated[i].from > out.generated[i].to || out.generated[i].to > out.text.len)
                abort();
        chat_rendering_fini(&out);
    }
    chat_template_destroy(t);
    return 0;
}
