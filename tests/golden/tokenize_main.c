/*
 * Tokenize by hand, for tokenizer_compare.py: reads one JSON string a line from stdin, prints its
 * ids on one line (or "! message"). A first argument of --special applies the template; the time
 * spent in encoding goes to stderr.
 *
 *   tokenize_main [--special] MODEL_DIR < strings.jsonl
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "worker/text/tokenizer.h"

int main(int argc, char **argv)
{
    bool special = argc > 1 && strcmp(argv[1], "--special") == 0;
    struct tokenizer *tokenizer = NULL;
    struct token_list ids = {0};
    struct err err = {0};
    int64_t tokens = 0, bytes = 0;
    double seconds = 0;
    char *line = NULL;
    size_t cap = 0;

    if (argc != 2 + special) {
        fprintf(stderr, "usage: %s [--special] MODEL_DIR < strings.jsonl\n", argv[0]);
        return 2;
    }
    double start = clock_monotonic();
    if (tokenizer_load(argv[1 + special], &tokenizer, &err) != 0) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    double loaded = clock_monotonic() - start;
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;) {
        json_t *text = json_loadb(line, (size_t)n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        if (!json_is_string(text)) {
            fprintf(stderr, "not a JSON string: %s", line);
            return 1;
        }
        ids.n = 0;
        err_clear(&err);
        start = clock_monotonic();
        int rc = tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                                  special, &ids, &err);
        seconds += clock_monotonic() - start;
        bytes += (int64_t)json_string_length(text);
        tokens += ids.n;
        if (rc != 0)
            printf("! %s", err.msg);
        for (int64_t i = 0; rc == 0 && i < ids.n; i++)
            printf("%s%" PRId32, i ? " " : "", ids.ids[i]);
        putchar('\n');
        json_decref(text);
    }
    fprintf(stderr, "load %.4f s, %" PRId64 " bytes, %" PRId64 " tokens, encode %.4f s\n", loaded,
            bytes, tokens, seconds);
    free(line);
    token_list_fini(&ids);
    tokenizer_destroy(tokenizer);
    return 0;
}
