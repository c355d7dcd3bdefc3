/*
 * Encodes and decodes documents on command, for tokenizer_speed.py, which times the reference in
 * between. Reads "encode" or "decode" lines from stdin; answers each with the seconds that all
 * documents took and how many tokens they are.
 *
 *   tokenizer_speed MODEL_DIR DOCUMENTS.jsonl      (a JSON string a line)
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "worker/text/tokenizer.h"

struct documents {
    json_t **texts;
    struct token_list *ids;
    size_t n;
};

static void fail(const char *why)
{
    fprintf(stderr, "tokenizer_speed: %s\n", why);
    exit(1);
}

static void read_documents(struct documents *d, const char *path)
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t cap = 0;

    if (!f)
        fail("cannot open the documents");
    for (ssize_t n; (n = getline(&line, &cap, f)) > 0; d->n++) {
        d->texts = xrealloc(d->texts, (d->n + 1) * sizeof(*d->texts));
        d->texts[d->n] = json_loadb(line, (size_t)n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        if (!json_is_string(d->texts[d->n]))
            fail("a document is no JSON string");
    }
    d->ids = xcalloc(d->n, sizeof(*d->ids));
    free(line);
    fclose(f);
}

static void encode_all(const struct tokenizer *t, struct documents *d)
{
    struct err err = {0};

    for (size_t i = 0; i < d->n; i++) {
        d->ids[i].n = 0;
        if (tokenizer_encode(t, json_string_value(d->texts[i]), json_string_length(d->texts[i]),
                             false, &d->ids[i], &err) != 0)
            fail(err.msg);
    }
}

static void decode_all(const struct tokenizer *t, const struct documents *d)
{
    struct buf text = {0};
    struct err err = {0};

    for (size_t i = 0; i < d->n; i++) {
        buf_clear(&text);
        if (tokenizer_decode(t, d->ids[i].ids, d->ids[i].n, false, &text, &err) != 0)
            fail(err.msg);
    }
    buf_fini(&text);
}

int main(int argc, char **argv)
{
    struct tokenizer *t = NULL;
    struct documents d = {0};
    struct err err = {0};
    char command[16];

    if (argc != 3)
        fail("usage: tokenizer_speed MODEL_DIR DOCUMENTS.jsonl");
    if (tokenizer_load(argv[1], &t, &err) != 0)
        fail(err.msg);
    read_documents(&d, argv[2]);
    while (fgets(command, sizeof(command), stdin)) {
        int64_t tokens = 0;
        double start = clock_monotonic();
        if (strcmp(command, "encode\n") == 0)
            encode_all(t, &d);
        else
            decode_all(t, &d);
        double seconds = clock_monotonic() - start;
        for (size_t i = 0; i < d.n; i++)
            tokens += d.ids[i].n;
        printf("%.6f %" PRId64 "\n", seconds, tokens);
        fflush(stdout);
    }
    for (size_t i = 0; i < d.n; i++) {
        json_decref(d.texts[i]);
        token_list_fini(&d.ids[i]);
    }
    free(d.texts);
    free(d.ids);
    tokenizer_destroy(t);
    return 0;
}
