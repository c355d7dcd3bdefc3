/* tokenizer.json: any file, then a few texts and the file itself to ids and back. */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "worker/text/tokenizer.h"

static void use(const struct tokenizer *t, const char *text, size_t n)
{
    struct token_list ids = {0};
    struct buf back = {0};

    if (tokenizer_encode(t, text, n, true, &ids, NULL) == 0)
        for (int64_t i = 0; i < ids.n; i++)
            if (ids.ids[i] < 0 || ids.ids[i] >= tokenizer_vocab_size(t))
                abort();
    for (int skip = 0; skip < 2; skip++) {
        tokenizer_decode(t, ids.ids, ids.n, skip, &back, NULL);
        buf_clear(&back);
    }
    buf_fini(&back);
    token_list_fini(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char *const texts[] = {
        "", "ab abc  Hello, world's 123\r\n\t", "\xE2\x96\x81x\xC3\xA9 e\xCC\x81 \xEF\xAC\x81",
        "\xE6\x97\xA5\xE6\x9C\xAC\xF0\x9F\x91\x8D<s></s><|x|> <unk>"};
    struct tokenizer *t = NULL;

    fuzz_file("tokenizer.json", data, n);
    if (tokenizer_load(fuzz_dir(), &t, NULL) != 0)
        return 0;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        use(t, texts[i], strlen(texts[i]));
    use(t, (const char *)data, n);
    tokenizer_destroy(t);
    return 0;
}
