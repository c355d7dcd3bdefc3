#include "worker/text/template.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "worker/text/template_run.h"
#include "worker/text/tokenizer.h"

const struct template_limits TEMPLATE_LIMITS = {
    .output_bytes = TOKENIZER_MAX_TEXT,
    .memory_bytes = 256 << 20,
    .steps = 20000000,
};

enum { PARSE_MEMORY = 64 << 20, PARSE_STEPS = 4 << 20, MAX_CONFIG = 16 << 20 };

/* One template's tree and the memory it lies in. */
struct parsed {
    struct tv_arena arena;
    struct node *root; /* NULL: there is none */
    bool marks_generation;
};

struct chat_template {
    struct parsed plain, tools; /* `tools` only where there is one of its own */
    json_t *tokens;             /* "bos_token": "<s>", ... */
    char *problem;              /* why it cannot be used, or NULL */
    time_t now;
};

void chat_rendering_fini(struct chat_rendering *r)
{
    buf_fini(&r->text);
    free(r->generated);
    memset(r, 0, sizeof(*r));
}

void chat_template_destroy(struct chat_template *t)
{
    if (!t)
        return;
    tv_arena_fini(&t->plain.arena);
    tv_arena_fini(&t->tools.arena);
    json_decref(t->tokens);
    free(t->problem);
    free(t);
}

/* --- loading --- */

static int parse(struct parsed *p, const char *text, size_t n, struct err *err)
{
    p->arena.max_bytes = PARSE_MEMORY;
    p->arena.max_steps = PARSE_STEPS;
    p->root = template_parse(&p->arena, text, n);
    p->marks_generation = n > 0 && memmem(text, n, "endgeneration", strlen("endgeneration"));
    return p->root ? 0 : err_set(err, p->arena.err.code, "%s", p->arena.err.msg);
}

static const char *text_of_token(const json_t *value)
{
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

static void take_tokens(struct chat_template *t, const json_t *config)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const char *text = text_of_token(json_object_get(config, names[i]));
        if (text && !json_object_get(t->tokens, names[i]))
            json_object_set_new(t->tokens, names[i], json_string(text));
    }
}

static struct chat_template *new_template(time_t now)
{
    struct chat_template *t = xcalloc(1, sizeof(*t));

    t->tokens = json_object();
    t->now = now;
    return t;
}

int chat_template_create(const char *text, size_t n, const json_t *tokens, time_t now,
                         struct chat_template **out, struct err *err)
{
    struct chat_template *t = new_template(now);
    int rc = parse(&t->plain, text, n, err);

    take_tokens(t, tokens);
    if (rc == 0)
        *out = t;
    else
        chat_template_destroy(t);
    return rc;
}

static int parse_string(struct parsed *p, const json_t *text, struct err *err)
{
    return parse(p, json_string_value(text), json_string_length(text), err);
}

static int parse_named(struct chat_template *t, const json_t *list, struct err *err)
{
    int rc = 0;

    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i), *text = json_object_get(entry, "template");
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (!name || !json_is_string(text))
            return err_set(err, ERR_INVALID,
                           "a chat template in tokenizer_config.json has no name "
                           "or no text");
        if (strcmp(name, "default") == 0 && !t->plain.root)
            TRY(parse_string(&t->plain, text, err));
        else if (strcmp(name, "tool_use") == 0 && !t->tools.root)
            TRY(parse_string(&t->tools, text, err));
    }
    if (!t->plain.root)
        rc = err_set(err, ERR_UNSUPPORTED,
                     "none of the chat templates in tokenizer_config.json is "
                     "named \"default\"");
out:
    return rc;
}

static int load_json(const char *dir, const char *name, json_t **out, struct err *err)
{
    char *path = fs_join(dir, name);
    int rc = fs_exists(path) ? json_parse_file(path, MAX_CONFIG, JSON_MAX_DEPTH_FILE, out, err) : 0;

    free(path);
    return rc;
}

int chat_template_load(const char *model_dir, time_t now, struct chat_template **out,
                       struct err *err)
{
    char *path = fs_join(model_dir, "chat_template.jinja");
    struct chat_template *t = new_template(now);
    json_t *config = NULL, *map = NULL;
    struct buf text = {0};
    struct err bad = {0};
    int rc = 0;

    TRY(load_json(model_dir, "tokenizer_config.json", &config, err));
    TRY(load_json(model_dir, "special_tokens_map.json", &map, err));
    take_tokens(t, config);
    take_tokens(t, map);
    const json_t *member = json_object_get(config, "chat_template");
    if (fs_exists(path)) {
        rc = fs_read_file(path, TEMPLATE_MAX_BYTES, &text, &bad);
        rc = rc ? rc : parse(&t->plain, buf_str(&text), text.len, &bad);
    } else if (json_is_string(member)) {
        rc = parse_string(&t->plain, member, &bad);
    } else if (json_array_size(member) > 0) {
        rc = parse_named(t, member, &bad);
    }
    if (rc) {
        t->problem = xstrdup(bad.msg);
        rc = 0;
    } else if (!t->plain.root) {
        chat_template_destroy(t);
        t = NULL;
    }
    *out = t;
    t = NULL;
out:
    chat_template_destroy(t);
    json_decref(config);
    json_decref(map);
    buf_fini(&text);
    free(path);
    return rc ? err_wrap(err, rc, "loading the chat template of %s", model_dir) : 0;
}

/* --- rendering --- */

static const struct parsed *choose(const struct chat_template *t, bool with_tools)
{
    return with_tools && t->tools.root ? &t->tools : &t->plain;
}

bool chat_template_marks_generation(const struct chat_template *t, bool with_tools)
{
    return choose(t, with_tools)->marks_generation;
}

static struct tv first_messages(struct tv_arena *a, const json_t *messages, size_t n)
{
    struct tv list = tv_new_list(a, false);

    for (size_t i = 0; i < n && !a->failed; i++)
        tv_push(a, list, tv_from_json(a, json_array_get(messages, i)));
    return list;
}

int chat_template_render(const struct chat_template *t, const json_t *messages, size_t n_messages,
                         const json_t *tools, bool add_generation_prompt,
                         const struct template_limits *limits, struct chat_rendering *out,
                         int64_t *steps, struct err *err)
{
    const struct template_limits *l = limits ? limits : &TEMPLATE_LIMITS;
    struct tv_arena a = {.max_bytes = l->memory_bytes, .max_steps = l->steps, .line = 1};
    struct scope scope = {0};
    const char *name;
    json_t *value;

    *out = (struct chat_rendering){0};
    if (t->problem)
        return err_set(err, ERR_UNSUPPORTED, "the model's chat template cannot be used: %s",
                       t->problem);
    struct run r = {
        .a = &a, .out = &out->text, .rendering = out, .max_output = l->output_bytes, .now = t->now};
    scope_set(&r, &scope, "messages", first_messages(&a, messages, n_messages));
    scope_set(&r, &scope, "tools", tv_from_json(&a, tools));
    scope_set(&r, &scope, "documents", tv_from_json(&a, NULL));
    scope_set(&r, &scope, "add_generation_prompt", tv_bool(add_generation_prompt));
    json_object_foreach(t->tokens, name, value)
        scope_set(&r, &scope, name, tv_from_json(&a, value));
    if (!a.failed)
        run_body(&r, choose(t, tools != NULL)->root, &scope);
    if (steps)
        *steps += a.steps;
    int rc = a.failed ? err_set(err, a.err.code, "%s", a.err.msg) : 0;
    tv_arena_fini(&a);
    if (rc)
        chat_rendering_fini(out);
    return rc;
}
