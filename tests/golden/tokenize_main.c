/*
 * Tokenize by hand, for tokenizer_compare.py. A line of stdin is a JSON string or an array of ids.
 * A string's ids are printed on one line, then the text that they decode to with special tokens and
 * without, as JSON, parted by tabs; of an array only the two texts; "! message" for an error. A
 * first argument of --special applies the template.
 *
 *   tokenize_main [--special] MODEL_DIR < lines.jsonl
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/text/tokenizer.h"

static int print_text(const struct tokenizer *t, const struct token_list *ids, bool skip,
                      struct err *err)
{
    struct buf text = {0};
    int rc = tokenizer_decode(t, ids->ids, ids->n, skip, &text, err);

    if (rc == 0) {
        json_t *string = json_stringn(buf_str(&text), text.len);
        char *line = json_dumps(string, JSON_ENCODE_ANY);
        printf("\t%s", line ? line : "?");
        free(line);
        json_decref(string);
    }
    buf_fini(&text);
    return rc;
}

static int print_line(const struct tokenizer *t, const json_t *in, bool special, struct err *err)
{
    struct token_list ids = {0};
    int rc = 0;

    for (size_t i = 0; i < json_array_size(in); i++)
        token_list_add(&ids, (int32_t)json_integer_value(json_array_get(in, i)));
    if (json_is_string(in))
        TRY(tokenizer_encode(t, json_string_value(in), json_string_length(in), special, &ids, err));
    for (int64_t i = 0; i < ids.n; i++)
        printf("%s%" PRId32, i ? " " : "", ids.ids[i]);
    TRY(print_text(t, &ids, false, err));
    TRY(print_text(t, &ids, true, err));
out:
    token_list_fini(&ids);
    return rc;
}

int main(int argc, char **argv)
{
    bool special = argc > 1 && strcmp(argv[1], "--special") == 0;
    struct tokenizer *tokenizer = NULL;
    struct err err = {0};
    char *line = NULL;
    size_t cap = 0;

    if (argc != 2 + special) {
        fprintf(stderr, "usage: %s [--special] MODEL_DIR < lines.jsonl\n", argv[0]);
        return 2;
    }
    if (tokenizer_load(argv[1 + special], &tokenizer, &err) != 0) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;) {
        json_t *in = json_loadb(line, (size_t)n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        err_clear(&err);
        if (print_line(tokenizer, in, special, &err) != 0)
            printf("! %s", err.msg);
        putchar('\n');
        json_decref(in);
    }
    free(line);
    tokenizer_destroy(tokenizer);
    return 0;
}
