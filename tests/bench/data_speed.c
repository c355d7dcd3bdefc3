/*
 * The data pipeline on command, for data_speed.py, which times its peers in between. A line of
 * stdin is "load FILE" (read, render by the chat template, tokenize, mark, cut and pack into rows
 * of ROW_TOKENS), or "rows FILE" (all columns of a Parquet file as JSON objects); the answer is the
 * seconds it took, and tokens and targets, or rows.
 *
 *   data_speed MODEL_DIR SCRATCH_DIR
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "worker/text/dataset.h"
#include "worker/text/parquet.h"
#include "worker/text/template.h"

enum { ROW_TOKENS = 1024 };

static void fail(const char *why)
{
    fprintf(stderr, "data_speed: %s\n", why);
    exit(1);
}

static void load(const char *path, const struct tokenizer *t, struct dataset_options *o)
{
    struct dataset *set = NULL;
    struct dataset_stats stats;
    struct err err = {0};

    if (dataset_load(&path, 1, t, o, &set, &err) != 0)
        fail(err.msg);
    dataset_get_stats(set, &stats);
    dataset_destroy(set);
    printf("%" PRId64 " %" PRId64 " ", stats.tokens, stats.target_tokens);
}

static void read_rows(const char *path)
{
    struct parquet *p = NULL;
    struct err err = {0};
    json_t *row = NULL;
    char why[200];
    int64_t n = 0;
    bool got = true;

    if (parquet_open(path, &p, &err) != 0)
        fail(err.msg);
    for (int i = 0; i < parquet_columns(p); i++)
        if (parquet_select(p, i, &err) != 0)
            fail(err.msg);
    for (; got; n += got) {
        if (parquet_next(p, &got, &row, why, sizeof(why), &err) != 0)
            fail(err.msg);
        json_decref(row);
        row = NULL;
    }
    parquet_close(p);
    printf("%" PRId64 " 0 ", n);
}

int main(int argc, char **argv)
{
    struct tokenizer *t = NULL;
    struct chat_template *chat = NULL;
    struct err err = {0};
    char command[1024];

    if (argc != 3)
        fail("usage: data_speed MODEL_DIR SCRATCH_DIR");
    if (tokenizer_load(argv[1], &t, &err) != 0 || chat_template_load(argv[1], 0, &chat, &err) != 0)
        fail(err.msg);
    struct dataset_options o = {.chat = chat,
                                .max_seq_length = ROW_TOKENS,
                                .packing = true,
                                .scratch_dir = argv[2],
                                .param = "training_file",
                                .name = "the file"};
    while (fgets(command, sizeof(command), stdin)) {
        command[strcspn(command, "\n")] = '\0';
        double start = clock_monotonic();
        if (strncmp(command, "load ", 5) == 0)
            load(command + 5, t, &o);
        else
            read_rows(command + 5);
        printf("%.6f\n", clock_monotonic() - start);
        fflush(stdout);
    }
    chat_template_destroy(chat);
    tokenizer_destroy(t);
    return 0;
}
