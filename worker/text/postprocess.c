#include "worker/text/postprocess.h"

#include <string.h>

enum { MAX_NESTING = 8, MAX_SPECIAL_IDS = 1024 };

static int unsupported(struct err *err, const char *what)
{
    return err_set(err, ERR_UNSUPPORTED,
                   "this tokenizer's post-processor %.60s is not supported; supported are "
                   "TemplateProcessing, RobertaProcessing, BertProcessing, ByteLevel and Sequence",
                   what);
}

static int add_id(struct token_list *list, const json_t *value, int64_t n_ids, struct err *err)
{
    json_int_t id = json_integer_value(value);

    if (!json_is_integer(value) || id < 0 || id >= n_ids)
        return err_set(err, ERR_INVALID,
                       "the tokenizer's post-processor has an id that is no token");
    if (list->n >= MAX_SPECIAL_IDS)
        return unsupported(err, "with more than 1024 special tokens");
    token_list_add(list, (int32_t)id);
    return 0;
}

/* The template's ids before and behind $A. */
static int read_template(const json_t *json, int64_t n_ids, struct token_list *before,
                         struct token_list *after, struct err *err)
{
    const json_t *single = json_object_get(json, "single");
    const json_t *specials = json_object_get(json, "special_tokens");
    struct token_list *side = before;
    int rc = 0;

    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *sequence = json_object_get(piece, "Sequence");
        const json_t *special = json_object_get(piece, "SpecialToken");
        if (sequence) {
            const char *which = json_string_value(json_object_get(sequence, "id"));
            if (side == after || !which || strcmp(which, "A") != 0)
                return unsupported(err, "TemplateProcessing with more than one $A");
            side = after;
            continue;
        }
        const char *name = json_string_value(json_object_get(special, "id"));
        const json_t *ids = json_object_get(name ? json_object_get(specials, name) : NULL, "ids");
        if (!json_is_array(ids))
            return err_set(err, ERR_INVALID,
                           "the tokenizer's template names the special token '%.60s', but gives no "
                           "ids for it",
                           name ? name : "?");
        for (size_t j = 0; rc == 0 && j < json_array_size(ids); j++)
            rc = add_id(side, json_array_get(ids, j), n_ids, err);
        if (rc != 0)
            return rc;
    }
    return side == after ? 0 : unsupported(err, "TemplateProcessing without $A");
}

/* Roberta's and Bert's ["token", id] members. */
static int read_pair(const json_t *json, const char *key, int64_t n_ids, struct token_list *list,
                     struct err *err)
{
    return add_id(list, json_array_get(json_object_get(json, key), 1), n_ids, err);
}

static int add_any(struct postprocessor *p, const json_t *json, int64_t n_ids, int nesting,
                   struct err *err)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    const json_t *inner = json_object_get(json, "processors");
    struct token_list before = {0}, after = {0};
    int rc = 0;

    if (!type)
        return unsupported(err, "without a type");
    if (strcmp(type, "ByteLevel") == 0)
        return 0;
    if (strcmp(type, "Sequence") == 0 && nesting < MAX_NESTING) {
        for (size_t i = 0; rc == 0 && i < json_array_size(inner); i++)
            rc = add_any(p, json_array_get(inner, i), n_ids, nesting + 1, err);
        return rc;
    }
    if (strcmp(type, "TemplateProcessing") == 0) {
        TRY(read_template(json, n_ids, &before, &after, err));
    } else if (strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0) {
        TRY(read_pair(json, "cls", n_ids, &before, err));
        TRY(read_pair(json, "sep", n_ids, &after, err));
    } else {
        TRY(unsupported(err, type));
    }
    for (int64_t i = 0; i < p->before.n; i++)
        token_list_add(&before, p->before.ids[i]);
    token_list_fini(&p->before);
    p->before = before;
    memset(&before, 0, sizeof(before));
    for (int64_t i = 0; i < after.n; i++)
        token_list_add(&p->after, after.ids[i]);
out:
    token_list_fini(&before);
    token_list_fini(&after);
    return rc;
}

int postprocessor_init(struct postprocessor *p, const json_t *json, int64_t n_ids, struct err *err)
{
    struct postprocessor all = {0};
    int rc = json && !json_is_null(json) ? add_any(&all, json, n_ids, 0, err) : 0;

    if (rc == 0)
        *p = all;
    else
        postprocessor_fini(&all);
    return rc;
}

void postprocessor_fini(struct postprocessor *p)
{
    token_list_fini(&p->before);
    token_list_fini(&p->after);
}
