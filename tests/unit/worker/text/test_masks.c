/* Which ids an example becomes and which of them are trained on, for tokenizers and chat templates
 * in the manner of model families: ids and masks of tests/golden/chat_gen.py, which are
 * transformers'. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"
#include "worker/text/encode.h"
#include "worker/text/shapes.h"

#define CHAT "tests/golden/chat/"
static const char *const families[] = {"smollm2", "qwen2",         "llama3",
                                       "mistral", "mistral_first", "mistral_always",
                                       "gemma",   "phi3",          "zephyr"};
enum { N_FAMILIES = sizeof(families) / sizeof(families[0]) };

static char *show(const struct tokenizer *t, const int32_t *marked, int64_t n)
{
    struct buf out = {0};

    for (int64_t i = 0; i < n; i++) {
        int32_t id = marked_id(marked[i]);
        buf_add_str(&out, marked_is_trained(marked[i]) ? "[" : "(");
        tokenizer_decode(t, &id, 1, false, &out, NULL);
        buf_printf(&out, " %d%s", id, marked_is_trained(marked[i]) ? "]" : ")");
    }
    return buf_take(&out);
}

/* The case's ids, marked; without the marks that only a template without marks leaves to us. */
static void read_case(const json_t *one, bool by_marks, struct token_list *out)
{
    const json_t *ids = json_object_get(one, "ids"), *mask = json_object_get(one, "mask");
    size_t n = json_array_size(ids);

    for (size_t i = 0; i < n; i++) {
        bool trained = json_integer_value(json_array_get(mask, i)) != 0;
        if (by_marks && i + 1 == n && json_object_get(one, "unmarked_end"))
            trained = false;
        int32_t id = (int32_t)json_integer_value(json_array_get(ids, i));
        token_list_add(out, trained ? id : ~id);
    }
}

static void expect_case(const struct example_encoder *e, const json_t *one, bool by_marks,
                        const char *where)
{
    json_t *object = json_deep_copy(json_object_get(one, "example"));
    struct token_list got = {0}, want = {0};
    struct example x = {0};
    struct err err = {0};
    char why[200];

    read_case(one, by_marks, &want);
    cr_assert(shape_read(object, DATA_AUTO, &x, why, sizeof(why)), "%s: %s", where, why);
    cr_expect_eq(encode_example(e, &x, &got, &err), 0, "%s: %s", where, err.msg);
    if (got.n != want.n || memcmp(got.ids, want.ids, (size_t)want.n * sizeof(*want.ids)) != 0) {
        char *a = show(e->tokenizer, got.ids, got.n), *b = show(e->tokenizer, want.ids, want.n);
        cr_expect_str_eq(a, b, "%s%s\n got: %s\nwant: %s", where, by_marks ? ", marked" : "", a, b);
        free(a);
        free(b);
    }
    token_list_fini(&got);
    token_list_fini(&want);
    example_fini(&x);
    json_decref(object);
}

static struct chat_template *marked_template(const json_t *first, const json_t *config)
{
    const json_t *text = json_object_get(first, "marked");
    struct chat_template *chat = NULL;
    struct err err = {0};

    cr_assert_eq(chat_template_create(json_string_value(text), json_string_length(text), config, 0,
                                      &chat, &err),
                 0, "%s", err.msg);
    return chat;
}

static void expect_family(const char *name, struct example_encoder *plain,
                          struct example_encoder *marked)
{
    char path[200], where[80], *line = NULL;
    size_t cap = 0;
    int n = 0;

    snprintf(path, sizeof(path), CHAT "%s/tokenizer_config.json", name);
    json_t *config = json_load_file(path, 0, NULL);
    snprintf(path, sizeof(path), CHAT "%s/cases.jsonl", name);
    FILE *f = fopen(path, "r");
    cr_assert_not_null(f, "%s", path);
    while (getline(&line, &cap, f) > 0) {
        json_t *one = json_loads(line, 0, NULL);
        if (n++ == 0) {
            marked->chat = marked_template(one, config);
        } else {
            snprintf(where, sizeof(where), "%s, line %d", name, n);
            expect_case(plain, one, false, where);
            expect_case(marked, one, true, where);
        }
        json_decref(one);
    }
    cr_expect_gt(n, 30, "%s", name);
    free(line);
    fclose(f);
    json_decref(config);
}

Test(masks, families_have_the_ids_and_masks_of_the_reference)
{
    for (int i = 0; i < N_FAMILIES; i++) {
        struct tokenizer *t = NULL;
        struct chat_template *chat = NULL;
        struct err err = {0};
        char path[200];

        snprintf(path, sizeof(path), CHAT "%s", families[i]);
        cr_assert_eq(tokenizer_load(path, &t, &err), 0, "%s", err.msg);
        cr_assert_eq(chat_template_load(path, 0, &chat, &err), 0, "%s", err.msg);
        struct example_encoder plain = {.tokenizer = t, .chat = chat}, marked = {.tokenizer = t};
        expect_family(families[i], &plain, &marked);
        chat_template_destroy((struct chat_template *)marked.chat);
        chat_template_destroy(chat);
        tokenizer_destroy(t);
    }
}
