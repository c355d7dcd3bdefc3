/* A data file tokenized, packed and read as batches. The first byte of the input picks format,
 * loss, packing and chat template, the second the row length. */
#include <stdlib.h>
#include <string.h>

#include "core/fs.h"
#include "tests/fuzz/fuzz.h"
#include "worker/text/dataset.h"
#include "worker/text/template.h"

enum { ROWS = 2, MAX_LENGTH = 33 };

static struct chat_template *load_template(const char *name)
{
    struct chat_template *t = NULL;
    struct buf text = {0};
    char path[80];

    snprintf(path, sizeof(path), "tests/fuzz/corpus/template/%s", name);
    if (fs_read_file(path, 1 << 20, &text, NULL) != 0 ||
        chat_template_create(text.data, text.len, NULL, 1700000000, &t, NULL) != 0)
        abort(); /* started elsewhere than at the root of the source tree */
    buf_fini(&text);
    return t;
}

/* One token: what attention sees begins at or before it, its target is the token behind it. */
static void check_token(const struct batch *b, int64_t at, int64_t column, int64_t vocab)
{
    int32_t target = b->targets[at], first = b->first_key[at];

    if (b->tokens[at] < 0 || b->tokens[at] >= vocab || first < 0 || first > column)
        abort();
    if (b->positions[at] != 0 && b->positions[at] != column - first)
        abort();
    if (target == TARGET_IGNORE)
        return;
    if (column + 1 == b->T ? target < 0 || target >= vocab
                           : target != b->tokens[at + 1] || b->first_key[at + 1] != first)
        abort();
}

static void use(const struct dataset *d, int64_t length, int64_t vocab)
{
    static int32_t tokens[ROWS * MAX_LENGTH], targets[ROWS * MAX_LENGTH];
    static int32_t positions[ROWS * MAX_LENGTH], first_key[ROWS * MAX_LENGTH];
    struct batch b = {.B = ROWS,
                      .T = length,
                      .tokens = tokens,
                      .targets = targets,
                      .positions = positions,
                      .first_key = first_key};
    struct dataset_stats stats;
    int64_t n_targets = 0;

    dataset_get_stats(d, &stats);
    for (int64_t row = 0; row < stats.rows; row += ROWS) {
        if (dataset_fill(d, 1, row, &b, NULL) != 0)
            abort();
        for (int64_t i = 0; i < ROWS * length; i++)
            check_token(&b, i, i % length, vocab);
        n_targets += b.n_targets;
    }
    if (n_targets != stats.target_tokens || n_targets == 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const enum data_format formats[] = {DATA_AUTO, DATA_TEXT, DATA_PROMPT, DATA_MESSAGES};
    static struct chat_template *templates[3];
    static struct tokenizer *tokenizer;
    struct dataset *set = NULL;

    if (!tokenizer) {
        if (tokenizer_load("tests/golden/tokenizer", &tokenizer, NULL) != 0)
            abort();
        templates[1] = load_template("chatml");
        templates[2] = load_template("chatml_marked");
    }
    if (n < 2)
        return 0;
    int64_t length = 2 + data[1] % (MAX_LENGTH - 1);
    const char *path = fuzz_file("data", data + 2, n - 2);
    const struct dataset_options options = {.format = formats[data[0] & 3],
                                            .loss_on = (enum loss_on)((data[0] >> 2 & 3) % 3),
                                            .packing = data[0] >> 4 & 1,
                                            .chat = templates[(data[0] >> 5) % 3],
                                            .max_seq_length = length,
                                            .seed = 7,
                                            .scratch_dir = fuzz_dir(),
                                            .param = "training_file",
                                            .name = "data"};
    if (dataset_load(&path, 1, tokenizer, &options, &set, NULL) != 0)
        return 0;
    use(set, length, tokenizer_vocab_size(tokenizer));
    dataset_destroy(set);
    return 0;
}
