#include "tests/unit/worker/text/dataset_rig.h"

#include "core/buf.h"

struct tokenizer *rig_tokenizer(void)
{
    struct tokenizer *t = NULL;
    struct err err = {0};

    cr_assert_eq(tokenizer_load("tests/golden/tokenizer", &t, &err), 0, "%s", err.msg);
    return t;
}

struct dataset_options rig_options(void)
{
    return (struct dataset_options){.max_seq_length = 16,
                                    .packing = true,
                                    .seed = 5,
                                    .scratch_dir = "/tmp",
                                    .param = "training_file",
                                    .name = "my.jsonl"};
}

int rig_number_words(int i)
{
    return 1 + i * 7 % (i % 9 == 0 ? 60 : 9);
}

struct dataset *rig_load_text(const struct tokenizer *t, const char *text, struct dataset_options o)
{
    struct dataset *set = NULL;
    struct scratch_dir d;
    struct err err = {0};

    scratch_dir_init(&d);
    const char *path = scratch_dir_text(&d, "f", text);
    cr_assert_eq(dataset_load(&path, 1, t, &o, &set, &err), 0, "%s", err.msg);
    scratch_dir_fini(&d);
    return set;
}

struct dataset *rig_load_numbers(const struct tokenizer *t, int n, struct dataset_options o)
{
    struct buf text = {0};

    for (int i = 0; i < n; i++) {
        buf_add_str(&text, "{\"text\": \"");
        for (int j = 0; j < rig_number_words(i); j++)
            buf_printf(&text, "%s%d", j ? " " : "", i);
        buf_add_str(&text, "\"}\n");
    }
    struct dataset *set = rig_load_text(t, buf_str(&text), o);
    buf_fini(&text);
    return set;
}

void batch_init(struct batch *b, int64_t B, int64_t T)
{
    size_t n = (size_t)(B * T);

    *b = (struct batch){.B = B,
                        .T = T,
                        .tokens = malloc(n * 4),
                        .targets = malloc(n * 4),
                        .positions = malloc(n * 4),
                        .first_key = malloc(n * 4)};
}

void batch_fini(struct batch *b)
{
    free(b->tokens);
    free(b->targets);
    free(b->positions);
    free(b->first_key);
}

void rig_fill(const struct dataset *d, int64_t epoch, int64_t row, struct batch *b)
{
    struct err err = {0};

    cr_assert_eq(dataset_fill(d, epoch, row, b, &err), 0, "%s", err.msg);
}
