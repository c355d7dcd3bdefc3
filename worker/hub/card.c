#include "worker/hub/card.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "core/alloc.h"

enum { MAX_DEPTH = 16, MAX_NODES = 100000 };

/* --- YAML to JSON: scalars become strings --- */

struct reader {
    yaml_parser_t parser;
    int depth, nodes;
};

static int next_event(struct reader *r, yaml_event_t *event, struct err *err)
{
    if (yaml_parser_parse(&r->parser, event))
        return 0;
    return err_set(err, ERR_CORRUPT, "line %zu: %s", r->parser.problem_mark.line + 1,
                   r->parser.problem ? r->parser.problem : "this is not YAML");
}

static int read_node(struct reader *r, const yaml_event_t *event, json_t **out, struct err *err);

/* What is between the start and the end of a sequence or a mapping. */
static int read_members(struct reader *r, bool mapping, json_t *into, struct err *err)
{
    yaml_event_t event = {0};
    json_t *value = NULL;
    char *key = NULL;
    int rc = 0;

    for (;;) {
        TRY(next_event(r, &event, err));
        if (event.type == YAML_SEQUENCE_END_EVENT || event.type == YAML_MAPPING_END_EVENT)
            break;
        TRY(read_node(r, &event, &value, err));
        yaml_event_delete(&event);
        if (mapping && !key) {
            key = xstrdup(json_is_string(value) ? json_string_value(value) : "");
            json_decref(value);
        } else if (mapping) {
            json_object_set_new(into, key, value);
            free(key);
            key = NULL;
        } else {
            json_array_append_new(into, value);
        }
        value = NULL;
    }
out:
    yaml_event_delete(&event);
    json_decref(value);
    free(key);
    return rc;
}

static int read_node(struct reader *r, const yaml_event_t *event, json_t **out, struct err *err)
{
    bool mapping = event->type == YAML_MAPPING_START_EVENT;
    json_t *node = NULL;
    int rc = 0;

    if (++r->nodes > MAX_NODES || r->depth == MAX_DEPTH)
        return err_set(err, ERR_CORRUPT, "it is too long or too deep");
    if (event->type == YAML_SCALAR_EVENT) {
        *out = json_stringn((const char *)event->data.scalar.value, event->data.scalar.length);
        return *out ? 0 : err_set(err, ERR_CORRUPT, "a text is not UTF-8");
    }
    if (!mapping && event->type != YAML_SEQUENCE_START_EVENT)
        return err_set(err, ERR_CORRUPT, "line %zu: aliases are not supported",
                       event->start_mark.line + 1);
    node = mapping ? json_object() : json_array();
    r->depth++;
    TRY(read_members(r, mapping, node, err));
    r->depth--;
    *out = node;
    node = NULL;
out:
    json_decref(node);
    return rc;
}

static int read_document(const char *text, size_t n, json_t **out, struct err *err)
{
    struct reader r = {0};
    yaml_event_t event = {0};
    int rc = 0;

    *out = NULL;
    if (!yaml_parser_initialize(&r.parser))
        return err_set(err, ERR_INTERNAL, "libyaml could not be initialised");
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n);
    do {
        yaml_event_delete(&event);
        TRY(next_event(&r, &event, err));
    } while (event.type == YAML_STREAM_START_EVENT || event.type == YAML_DOCUMENT_START_EVENT);
    if (event.type != YAML_STREAM_END_EVENT)
        rc = read_node(&r, &event, out, err);
out:
    yaml_event_delete(&event);
    yaml_parser_delete(&r.parser);
    return rc;
}

/* --- the configs --- */

static int refuse(struct err *err, const char *what)
{
    return err_set(err, ERR_CORRUPT, "%s", what);
}

/* A pattern or a list of them. */
static json_t *patterns_of(const json_t *value)
{
    const json_t *item;
    size_t i;

    if (json_is_string(value))
        return json_pack("[O]", value);
    if (!json_is_array(value))
        return NULL;
    json_array_foreach((json_t *)value, i, item)
    {
        if (!json_is_string(item))
            return NULL;
    }
    return json_incref((json_t *)value);
}

/* data_files: patterns (of the split train), or a list of {split, path}. */
static int read_data_files(const json_t *value, json_t **out, struct err *err)
{
    json_t *splits = json_object(), *patterns = patterns_of(value);
    const json_t *item;
    size_t i;
    int rc = 0;

    if (patterns) {
        json_object_set_new(splits, "train", patterns);
    } else if (!json_is_array(value)) {
        rc = refuse(err, "data_files is neither a pattern nor a list");
    } else {
        json_array_foreach((json_t *)value, i, item)
        {
            const char *split = json_string_value(json_object_get(item, "split"));
            patterns = patterns_of(json_object_get(item, "path"));
            if (!split || !*split || !patterns || json_object_get(splits, split)) {
                json_decref(patterns);
                rc = refuse(err, "an item of data_files must have a split, once, and a path");
                break;
            }
            json_object_set_new(splits, split, patterns);
        }
    }
    if (rc == 0)
        *out = splits;
    else
        json_decref(splits);
    return rc;
}

static int read_config(const json_t *value, json_t *into, struct err *err)
{
    const char *name = json_string_value(json_object_get(value, "config_name"));
    const char *folder = json_string_value(json_object_get(value, "data_dir"));
    const char *is_default = json_string_value(json_object_get(value, "default"));
    const json_t *files = json_object_get(value, "data_files");
    json_t *splits = NULL;
    int rc = 0;

    if (!json_is_object(value))
        return refuse(err, "an item of configs is not a mapping");
    if (files)
        TRY(read_data_files(files, &splits, err));
    json_array_append_new(into,
                          json_pack("{s:s, s:b, s:s?, s:o}", "name", name ? name : "default",
                                    "is_default", is_default && strcmp(is_default, "true") == 0,
                                    "folder", folder, "splits", splits ? splits : json_null()));
out:
    return rc;
}

/* The lines between "---" and "---" at the beginning; NULL when there are none. */
static const char *front_matter(const char *text, size_t n, size_t *length)
{
    const char *start = text, *end = text + n;

    if (n < 4 || memcmp(text, "---", 3) != 0 || (text[3] != '\n' && text[3] != '\r'))
        return NULL;
    start = text + 4;
    for (const char *p = start; p && end - p >= 3; p = memchr(p, '\n', (size_t)(end - p))) {
        p += *p == '\n';
        if (end - p >= 3 && memcmp(p, "---", 3) == 0) {
            *length = (size_t)(p - start);
            return start;
        }
    }
    return NULL;
}

int card_read_configs(const char *readme, size_t n, json_t **configs, struct err *err)
{
    json_t *found = json_array(), *document = NULL, *list = NULL, *item;
    size_t length = 0, i;
    const char *yaml = front_matter(readme, n, &length);
    int rc = 0;

    if (yaml)
        TRY(read_document(yaml, length, &document, err));
    list = json_object_get(document, "configs");
    if (list && !json_is_array(list)) {
        rc = refuse(err, "configs is not a list");
        goto out;
    }
    json_array_foreach(list, i, item)
    {
        TRY(read_config(item, found, err));
    }
    *configs = found;
    found = NULL;
out:
    if (rc != 0)
        err_wrap(err, rc, "the head of README.md cannot be read");
    json_decref(found);
    json_decref(document);
    return rc;
}
