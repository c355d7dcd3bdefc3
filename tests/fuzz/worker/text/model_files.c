/* The small files beside a model, split at the input's first bytes of value 1: vocab.json,
 * merges.txt, tokenizer_config.json (with the chat template) and special_tokens_map.json. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "worker/text/template.h"
#include "worker/text/tokenizer.h"

static void use_tokenizer(const struct tokenizer *t)
{
    static const char text[] = "low lower\n newest <s>\xC3\xA9</s>";
    struct token_list ids = {0};
    struct buf back = {0};

    if (tokenizer_encode(t, text, strlen(text), true, &ids, NULL) == 0)
        for (int64_t i = 0; i < ids.n; i++)
            if (ids.ids[i] < 0 || ids.ids[i] >= tokenizer_vocab_size(t))
                abort();
    tokenizer_decode(t, ids.ids, ids.n, false, &back, NULL);
    buf_fini(&back);
    token_list_fini(&ids);
}

static void use_template(const struct chat_template *t)
{
    const struct template_limits limits = {
        .output_bytes = 1 << 16, .memory_bytes = 1 << 22, .steps = 100000};
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "Hi");
    struct chat_rendering out = {0};

    chat_template_render(t, messages, 1, NULL, true, &limits, &out, NULL, NULL);
    chat_rendering_fini(&out);
    json_decref(messages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json",
                                        "special_tokens_map.json"};
    struct tokenizer *tokenizer = NULL;
    struct chat_template *chat = NULL;

    for (int i = 0; i < 4; i++) {
        const uint8_t *end = i < 3 && n > 0 ? memchr(data, 1, n) : NULL;
        size_t part = end ? (size_t)(end - data) : n;

        fuzz_file(names[i], data, part);
        part += end != NULL;
        data += part;
        n -= part;
    }
    if (tokenizer_load(fuzz_dir(), &tokenizer, NULL) == 0) {
        use_tokenizer(tokenizer);
        tokenizer_destroy(tokenizer);
    }
    if (chat_template_load(fuzz_dir(), 1700000000, &chat, NULL) == 0 && chat)
        use_template(chat);
    chat_template_destroy(chat);
    return 0;
}
