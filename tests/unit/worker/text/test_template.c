/* Chat templates: the same renderings as the reference, and bounds on hostile ones. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/json.h"
#include "tests/unit/worker/text/scratch_dir.h"
#include "worker/text/template.h"

static json_t *special_tokens(void)
{
    return json_pack("{s:s, s:s, s:s}", "bos_token", "<s>", "eos_token", "</s>", "pad_token",
                     "<pad>");
}

static int render_text(const char *text, size_t n, const json_t *messages, const json_t *tools,
                       bool prompt, const struct template_limits *limits,
                       struct chat_rendering *out, struct err *err)
{
    json_t *tokens = special_tokens();
    struct chat_template *t = NULL;

    memset(out, 0, sizeof(*out));
    int rc = chat_template_create(text, n, tokens, 0, &t, err);
    if (rc == 0)
        rc = chat_template_render(t, messages, json_array_size(messages), tools, prompt, limits,
                                  out, NULL, err);
    chat_template_destroy(t);
    json_decref(tokens);
    return rc;
}

/* One line of the goldens against a rendering of ours. */
static void check_case(const json_t *line, const json_t *templates)
{
    const char *name = json_string_value(json_array_get(line, 1));
    const json_t *text = json_object_get(templates, name), *tools = json_array_get(line, 3);
    const json_t *want = json_array_get(line, 5), *spans = json_array_get(line, 6);
    struct chat_rendering got;
    struct err err = {0};

    text = text ? text : json_array_get(line, 1);
    int rc = render_text(json_string_value(text), json_string_length(text), json_array_get(line, 2),
                         json_is_null(tools) ? NULL : tools, json_is_true(json_array_get(line, 4)),
                         NULL, &got, &err);
    if (json_is_null(want)) {
        cr_expect_neq(rc, 0, "%s: gives %s", name, buf_str(&got.text));
        cr_expect_str_neq(err.msg, "");
    } else {
        cr_expect_eq(rc, 0, "%s: %s", name, err.msg);
        cr_expect(got.text.len == json_string_length(want) &&
                      memcmp(buf_str(&got.text), json_string_value(want), got.text.len) == 0,
                  "%s: gives %s, not %s", name, buf_str(&got.text), json_string_value(want));
        cr_assert_eq(got.n_generated, json_array_size(spans), "%s", name);
        for (size_t i = 0; i < got.n_generated; i++) {
            const json_t *span = json_array_get(spans, i);
            cr_expect_eq((json_int_t)got.generated[i].from,
                         json_integer_value(json_array_get(span, 0)));
            cr_expect_eq((json_int_t)got.generated[i].to,
                         json_integer_value(json_array_get(span, 1)));
        }
    }
    chat_rendering_fini(&got);
}

Test(template, renders_as_the_reference_does)
{
    FILE *f = fopen("tests/golden/template/cases.jsonl", "r");
    json_t *templates = json_object();
    char *line = NULL;
    size_t cap = 0;
    int cases = 0;

    cr_assert_not_null(f);
    for (ssize_t n; (n = getline(&line, &cap, f)) > 0;) {
        json_t *item = json_loadb(line, (size_t)n, 0, NULL);
        cr_assert_not_null(item);
        if (strcmp(json_string_value(json_array_get(item, 0)), "template") == 0) {
            json_object_set(templates, json_string_value(json_array_get(item, 1)),
                            json_array_get(item, 2));
        } else {
            check_case(item, templates);
            cases++;
        }
        json_decref(item);
    }
    cr_expect_gt(cases, 300);
    free(line);
    json_decref(templates);
    fclose(f);
}

/* --- hostile templates --- */

static void expect_refused(const char *text, const char *why)
{
    const struct template_limits limits = {
        .output_bytes = 1 << 20, .memory_bytes = 16 << 20, .steps = 1000000};
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "hello");
    struct chat_rendering out;
    struct err err = {0};
    clock_t start = clock();

    cr_expect_eq(render_text(text, strlen(text), messages, NULL, false, &limits, &out, &err),
                 ERR_INVALID, "%.80s", text);
    cr_expect_lt(clock() - start, 20 * CLOCKS_PER_SEC, "%.80s", text);
    cr_expect_not_null(strstr(err.msg, why), "%.80s: %s", text, err.msg);
    cr_expect_null(out.text.data);
    json_decref(messages);
}

Test(template, loops_strings_and_recursion_are_bounded)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
         "more than"},
        {"{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
         "more than"},
        {"{% for a in range(1000000000) %}{% endfor %}", "a range has more than"},
        {"{{ range(0, 9223372036854775807, 9223372036854775807) | list }}{{ 9223372036854775807 + "
         "1 }}",
         "too large"},
        {"{{ 'x' * 1000000000000 }}", "too long"},
        {"{{ [1] * 100000000000 }}", "too long"},
        {"{{ 'x' * 2000000 }}", "writes more than"},
        {"{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s "
         "%}"
         "{% endfor %}",
         "more than"},
        {"{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s.replace('x', "
         "'xxx') %}"
         "{% endfor %}",
         "more than"},
        {"{% set ns = namespace(l=[1]) %}{% for a in range(99) %}{% set ns.l = ns.l + ns.l %}{% "
         "endfor %}",
         "more than"},
        {"{% set ns = namespace(l=[1]) %}{% for a in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% "
         "endfor %}"
         "{{ ns.l }}",
         "more than"},
        {"{% set ns = namespace(l=[1]) %}{% for a in range(999) %}{% set ns.l = [ns.l] %}{% endfor "
         "%}"
         "{{ ns.l | tojson }}",
         "nested too deeply"},
        {"{% set ns = namespace(l=[1]) %}{% set ns.l = ns %}{{ ns.l }}", "nested too deeply"},
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "without end"},
        {"{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}", "without end"},
        {"{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{{ a() }}{% endmacro %}{{ "
         "b() }}",
         "without end"},
        {"{% set d = 'ab' * 999999 %}{% for a in range(99999) %}{{ d.isalpha() }}{% endfor %}",
         "more than"},
        {"{% set d = 'ab' * 999999 %}{% for a in range(99999) %}{{ d.endswith(d) }}{% endfor %}",
         "more than"},
        {"{{ 2 ** 64 }}", "too large"},
        {"{{ (-9223372036854775807 - 1) // -1 }}", "too large"},
        {"{{ 3 ** 9223372036854775807 }}", "too large"},
        {"{{ (-9223372036854775807 - 1) | abs }}", "absolute"},
        {"{{ 'abc'[::-9223372036854775807 - 1] }}", "step"},
        {"{{ 'a' | indent(100000000) }}", "indent"},
        {"{{ [1] | tojson(indent=1000000) }}", "indent"},
        {"{{ [1] | map('map', 'map', 'map') | list }}", "cannot be iterated"},
        {"{{ strftime_now('%c' * 1000) }}", "strftime_now"},
        {"{{ raise_exception('\xC3\xA9' * 5000) }}", "refuses"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        expect_refused(cases[i].text, cases[i].why);
}

/* `open` n times, `middle`, `close` n times. */
static char *nested(const char *open, const char *middle, const char *close, int n)
{
    struct buf b = {0};

    for (int i = 0; i < n; i++)
        buf_add_str(&b, open);
    buf_add_str(&b, middle);
    for (int i = 0; i < n; i++)
        buf_add_str(&b, close);
    return buf_take(&b);
}

Test(template, deep_nesting_and_long_chains_are_bounded)
{
    static const struct {
        const char *open, *middle, *close, *around;
    } cases[] = {
        {"(", "1", ")", "{{ %s }}"},
        {"[", "1", "]", "{{ %s }}"},
        {"{'a':", "1", "}", "{{ %s }}"},
        {"-", "1", "", "{{ %s }}"},
        {"not ", "1", "", "{{ %s }}"},
        {"1 + ", "1", "", "{{ %s }}"},
        {"1 if 1 else ", "1", "", "{{ %s }}"},
        {"1 and ", "1", "", "{{ %s }}"},
        {"", "x", ".a", "{{ %s }}"},
        {"", "x", "|list", "{{ %s }}"},
        {"", "x", "()", "{{ %s }}"},
        {"", "x", " is defined", "{{ %s }}"},
        {"{% if 1 %}", "1", "{% endif %}", "%s"},
        {"{% for x in [1] %}", "1", "{% endfor %}", "%s"},
        {"{% macro m() %}", "1", "{% endmacro %}", "%s"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *inner = nested(cases[i].open, cases[i].middle, cases[i].close, 20000), *text = NULL;
        const char *hole = strstr(cases[i].around, "%s");
        cr_assert(asprintf(&text, "%.*s%s%s", (int)(hole - cases[i].around), cases[i].around, inner,
                           hole + 2) > 0);
        if (strlen(text) < 512 << 10)
            expect_refused(text, "the chat template fails");
        else
            expect_refused(text, "longer than");
        free(text);
        text = nested(cases[i].open, cases[i].middle, cases[i].close, 2000);
        free(inner);
        cr_assert(asprintf(&inner, "%.*s%s%s", (int)(hole - cases[i].around), cases[i].around, text,
                           hole + 2) > 0);
        expect_refused(inner, "line 1");
        free(text);
        free(inner);
    }
}

Test(template, cut_off_templates_are_refused_or_render)
{
    static const char whole[] = "{%- macro m(a, b=1) -%}{{ a ~ b }}{%- endmacro -%}{% for k, v in "
                                "{'a': [1, 2][0:1]}.items() if k "
                                "is string %}{% set x = v | default('x', true) | tojson(indent=2) "
                                "%}{{ m(x, b=\"\\u00e9\") }}"
                                "{# c #}{% raw %}{{{% endraw %}{% elif %}{% else %}{% endfor %}{{ "
                                "-1.5e3 if not a.b[1] else 2 }}";
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "hello");

    for (size_t from = 0; from < 40; from += 13)
        for (size_t n = 0; n + from <= strlen(whole); n++) {
            char *part = malloc(n + 1); /* so that reading past the end is seen */
            struct chat_rendering out;
            memcpy(part, whole + from, n);
            render_text(part, n, messages, NULL, false, NULL, &out, NULL);
            chat_rendering_fini(&out);
            free(part);
        }
    json_decref(messages);
}

/* --- files --- */

static char *render_dir(const char *dir, bool with_tools, struct err *err)
{
    json_t *messages = json_array(), *tools = json_array();
    struct chat_rendering out = {0};
    struct chat_template *t = NULL;

    cr_assert_eq(chat_template_load(dir, 86400, &t, err), 0, "%s", err->msg);
    int rc = t ? chat_template_render(t, messages, 0, with_tools ? tools : NULL, false, NULL, &out,
                                      NULL, err)
               : -1;
    char *text = rc == 0 ? buf_take(&out.text) : NULL;
    chat_rendering_fini(&out);
    chat_template_destroy(t);
    json_decref(messages);
    json_decref(tools);
    return text;
}

static void expect_dir(const char *dir, bool with_tools, const char *want)
{
    struct err err = {0};
    char *got = render_dir(dir, with_tools, &err);

    if (want)
        cr_expect(got && strcmp(got, want) == 0, "%s, not %s: %s", got ? got : "-", want, err.msg);
    else
        cr_expect_null(got);
    free(got);
}

Test(template, is_found_in_the_models_files)
{
    struct scratch_dir d;
    struct err err = {0};

    scratch_dir_init(&d);
    expect_dir(d.path, false, NULL);
    scratch_dir_text(&d, "tokenizer_config.json", "{\"bos_token\": {\"content\": \"<b>\"}}");
    expect_dir(d.path, false, NULL);
    scratch_dir_text(&d, "tokenizer_config.json",
                     "{\"bos_token\": {\"content\": \"<b>\"}, \"chat_template\": \"{{ bos_token }}"
                     "{{ eos_token }}{{ strftime_now('%Y-%m-%d') }}\"}");
    scratch_dir_text(&d, "special_tokens_map.json",
                     "{\"eos_token\": \"<e>\", \"bos_token\": \"no\"}");
    expect_dir(d.path, true, "<b><e>1970-01-02");
    scratch_dir_text(
        &d, "tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, {\"name\": "
        "\"default\", \"template\": \"D\"}]}");
    expect_dir(d.path, false, "D");
    expect_dir(d.path, true, "T");
    scratch_dir_text(&d, "chat_template.jinja", "J\n");
    expect_dir(d.path, false, "J");
    scratch_dir_text(&d, "chat_template.jinja", "a\n{% nonsense %}");
    free(render_dir(d.path, false, &err));
    cr_expect_eq(err.code, ERR_UNSUPPORTED);
    cr_expect_not_null(strstr(err.msg, "line 2"), "%s", err.msg);
    scratch_dir_fini(&d);
}
