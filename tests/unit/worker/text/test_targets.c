/* What of an example is trained on, in batches. Tokens come from the golden tokenizer. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"
#include "tests/unit/worker/text/dataset_rig.h"
#include "worker/text/template.h"

/* --- what is trained on --- */

/* "token:target ..." of the set's rows of 32, one row a line; padding left out, "_" is no target.
 */
static char *show_rows(const char *lines, struct dataset_options o, struct err *err)
{
    struct tokenizer *t = rig_tokenizer();
    int rc;
    struct dataset_stats stats;
    struct dataset *set = NULL;
    struct scratch_dir d;
    struct batch b;
    struct buf out = {0};

    scratch_dir_init(&d);
    o.packing = false;
    rc = dataset_load((const char *[]){scratch_dir_text(&d, "f", lines)}, 1, t, &o, &set, err);
    scratch_dir_fini(&d);
    if (rc == 0) {
        dataset_get_stats(set, &stats);
        batch_init(&b, stats.rows, o.max_seq_length);
        rig_fill(set, 0, 0, &b);
        cr_expect_eq(b.n_targets, stats.target_tokens);
        for (int64_t r = 0; r < stats.rows; r++) {
            for (int64_t i = r * b.T; i < (r + 1) * b.T && b.tokens[i] != PAD; i++) {
                struct buf word = {0};
                cr_assert_eq(tokenizer_decode(t, &b.tokens[i], 1, false, &word, NULL), 0);
                buf_printf(&out, "[%s]", buf_str(&word));
                buf_clear(&word);
                cr_assert(b.targets[i] == TARGET_IGNORE || b.targets[i] == b.tokens[i + 1]);
                buf_add_str(&out, b.targets[i] == TARGET_IGNORE ? "" : ">");
                buf_fini(&word);
            }
            buf_add_char(&out, '\n');
        }
        batch_fini(&b);
        dataset_destroy(set);
    }
    tokenizer_destroy(t);
    return buf_take(&out);
}

static void expect_rows(const char *lines, enum loss_on loss_on, int64_t length, const char *want)
{
    struct dataset_options o = rig_options();
    struct err err = {0};

    o.loss_on = loss_on;
    o.max_seq_length = length;
    char *got = show_rows(lines, o, &err);
    cr_expect_str_eq(err.msg, "", "%s: %s", lines, err.msg);
    cr_expect_str_eq(got, want, "%s: %s", lines, got);
    free(got);
}

Test(targets, completions_are_trained_on_and_prompts_are_not)
{
    static const char one[] = "{\"prompt\": \"a b\", \"completion\": \" the a\"}";

    /* '>' stands behind a token whose successor is a target. */
    expect_rows(one, LOSS_ON_AUTO, 32, "[<s>][a][ b]>[ the]>[ a]>[</s>]\n");
    expect_rows(one, LOSS_ON_ASSISTANT, 32, "[<s>][a][ b]>[ the]>[ a]>[</s>]\n");
    expect_rows(one, LOSS_ON_ALL, 32, "[<s>]>[a]>[ b]>[ the]>[ a]>[</s>]\n");
    expect_rows("{\"text\": \"a b\"}", LOSS_ON_AUTO, 32, "[<s>]>[a]>[ b]>[</s>]\n");
    expect_rows("{\"text\": \"a b\"}", LOSS_ON_ASSISTANT, 32, "[<s>]>[a]>[ b]>[</s>]\n");
    /* No token lies on both sides: "th" + "e" is not "the". */
    expect_rows("{\"prompt\": \"t\", \"completion\": \"he\"}", LOSS_ON_AUTO, 32,
                "[<s>][t]>[he]>[</s>]\n");
    /* An empty completion still ends. */
    expect_rows("{\"prompt\": \"a\", \"completion\": \"\"}", LOSS_ON_AUTO, 32, "[<s>][a]>[</s>]\n");
    /* A part of nothing but prompt is left out. */
    expect_rows("{\"prompt\": \"a b c d e f\", \"completion\": \" the\"}", LOSS_ON_AUTO, 4,
                "[ the]>[</s>]\n");
}

Test(targets, instructions_become_paragraphs_where_there_is_no_chat_template)
{
    expect_rows("{\"instruction\": \"a\", \"input\": \"b\", \"output\": \"c\", \"system\": \"d\", "
                "\"history\": [[\"e\", \"f\"]]}",
                LOSS_ON_AUTO, 32,
                "[<s>][d][\n][\n][e][\n][\n]>[f][\n][\n][a][\n][\n][b][\n][\n]>[c]>[</s>]\n");
}

Test(targets, conversations_need_a_chat_template)
{
    struct dataset_options o = rig_options();
    struct err err = {0};

    free(show_rows(
        "{\"text\": \"a\"}\n{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}", o,
        &err));
    cr_expect_eq(err.code, ERR_UNSUPPORTED);
    cr_expect_str_eq(err.reason, "missing_chat_template");
    cr_expect_str_eq(err.param, "training_file");
    cr_expect_not_null(strstr(err.msg, "line 2: conversations cannot"), "%s", err.msg);
}

/* As expect_rows, through a chat template. `want` NULL: the error must have `reason` in it. */
static void expect_talk(const char *template, const char *line, enum loss_on loss_on,
                        const char *want, const char *reason)
{
    struct dataset_options o = rig_options();
    struct chat_template *chat = NULL;
    json_t *tokens = json_pack("{s:s}", "eos_token", "</s>");
    struct err err = {0};

    cr_assert_eq(chat_template_create(template, strlen(template), tokens, 0, &chat, &err), 0, "%s",
                 err.msg);
    json_decref(tokens);
    o.loss_on = loss_on;
    o.max_seq_length = 64;
    o.chat = chat;
    char *got = show_rows(line, o, &err);
    if (want) {
        cr_expect_str_eq(err.msg, "", "%s: %s", line, err.msg);
        cr_expect_str_eq(got, want, "%s: %s", line, got);
    } else {
        cr_expect_not_null(strstr(err.msg, reason), "%s: %s", line, err.msg);
    }
    free(got);
    chat_template_destroy(chat);
}

#define USER(text)      "{\"role\": \"user\", \"content\": \"" text "\"}"
#define ASSISTANT(text) "{\"role\": \"assistant\", \"content\": \"" text "\"}"

static const char by_prefix[] =
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token if m.role == 'assistant' "
    "}}{% endfor %}{{ 'a:' if add_generation_prompt }}";
static const char by_marks[] =
    "{% for m in messages %}{% if m.role == 'assistant' %}a:{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.role[0] }}:{{ m.content }}{% endif %}{% endfor %}"
    "{{ 'a:' if add_generation_prompt }}";

Test(targets, assistant_turns_are_trained_on_by_marks_and_by_prefixes_alike)
{
    static const char talk[] = "{\"messages\": [" USER("x") ", " ASSISTANT("the") ", " USER(
        "y") ", " ASSISTANT(" the") "]}";
    static const char weighed[] = "{\"messages\": [" USER(
        "x") ", {\"role\": \"assistant\", \"content\": \"the\", \"weight\": "
             "0}, " USER("y") ", " ASSISTANT(" the") "]}";
    static const char all_weighed[] =
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"the\", \"weight\": 0}]}";

    for (int i = 0; i < 2; i++) {
        const char *template = i ? by_marks : by_prefix;
        expect_talk(template, talk, LOSS_ON_AUTO,
                    "[u][:][x][a][:]>[th]>[e]>[</s>][u][:][y][a][:]>[ the]>[</s>]\n", NULL);
        expect_talk(template, weighed, LOSS_ON_ASSISTANT,
                    "[u][:][x][a][:][th][e][</s>][u][:][y][a][:]>[ the]>[</s>]\n", NULL);
        expect_talk(template, all_weighed, LOSS_ON_AUTO, NULL, "no token to train on");
    }
    /* No first token is taken from the tokenizer's own template: no second <s>. */
    expect_talk("<s>{{ messages[0].content }}{{ eos_token }}",
                "{\"messages\": [" ASSISTANT("a") "]}", LOSS_ON_ALL, "[<s>]>[a]>[</s>]\n", NULL);
}

Test(targets, instructions_and_other_conversations_go_through_the_template)
{
    expect_talk(by_prefix, "{\"instruction\": \"x\", \"input\": \"\", \"output\": \"the\"}",
                LOSS_ON_AUTO, "[u][:][x][a][:]>[th]>[e]>[</s>]\n", NULL);
    expect_talk(by_prefix,
                "{\"conversations\": [{\"from\": \"human\", \"value\": \"x\"}, {\"from\": \"gpt\", "
                "\"value\": \"the\"}]}",
                LOSS_ON_AUTO, "[u][:][x][a][:]>[th]>[e]>[</s>]\n", NULL);
    expect_talk(by_prefix,
                "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": "
                "\"x\"}]}, " ASSISTANT("the") "]}",
                LOSS_ON_AUTO, "[u][:][x][a][:]>[th]>[e]>[</s>]\n", NULL);
}

Test(targets, a_conversation_that_would_not_end_gets_an_end)
{
    static const char endless[] =
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
        "{{ 'a:' if add_generation_prompt }}";

    expect_talk(endless, "{\"messages\": [" USER("x") ", " ASSISTANT("the") "]}", LOSS_ON_AUTO,
                "[u][:][x][;][a][:]>[th]>[e]>[;]>[</s>]\n", NULL);
    expect_talk(endless, "{\"messages\": [" ASSISTANT("the") ", " USER("x") "]}", LOSS_ON_AUTO,
                "[a][:]>[th]>[e]>[;][u][:][x][;]\n", NULL);
}

Test(targets, templates_that_hide_or_refuse_are_said_so)
{
    /* Begins with how long the conversation is. */
    expect_talk(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{\"messages\": [" USER("x") ", " ASSISTANT("a") ", " USER("y") ", " ASSISTANT("b") "]}",
        LOSS_ON_AUTO, NULL,
        "line 1: the model's chat template writes the first 1 messages otherwise");
    expect_talk("{{ raise_exception('never') }}", "{\"messages\": [" ASSISTANT("a") "]}",
                LOSS_ON_ALL, NULL, "refuses the conversation: never");
    expect_talk(
        "{% for m in messages %}{% generation %}a{% endgeneration %}{% generation %}b"
        "{% endgeneration %}{% endfor %}",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0}, " ASSISTANT(
            "b") "]}",
        LOSS_ON_AUTO, NULL, "marks 4 answers where the conversation has 2");
}

/* As Qwen3's does: the last answer comes with what was thought, earlier ones without. */
Test(targets, each_answer_is_an_example_where_a_template_rewrites_earlier_ones)
{
    static const char forgets[] =
        "{% for m in messages %}{{ m.role[0] }}:{{ '-' if loop.last and m.role == 'assistant' }}"
        "{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
        "{{ 'a:' if add_generation_prompt }}";
    static const char talk[] =
        "{\"messages\": [" USER("x") ", " ASSISTANT("b") ", " USER("y") ", " ASSISTANT("c") "]}";
    static const char weighed[] =
        "{\"messages\": [" USER("x") ", {\"role\": \"assistant\", \"content\": \"b\", \"weight\": "
                                     "0}, " USER("y") ", " ASSISTANT("c") "]}";
    static const char second[] = "[u][:][x][a][:][b][</s>][u][:][y][a][:]>[-]>[c]>[</s>]\n";
    static const char longer[] = "{\"messages\": [" USER(
        "x") ", {\"role\": \"assistant\", \"content\": \"b\", \"weight\": "
             "0}, " USER("y") ", " ASSISTANT("c") ", " USER("x") ", " ASSISTANT("b") "]}";
    static const char third[] =
        "[u][:][x][a][:][b][</s>][u][:][y][a][:][c][</s>][u][:][x][a][:]>[-]>[b]>[</s>]\n";
    char *both = NULL;

    cr_assert(asprintf(&both, "%s%s", second, "[u][:][x][a][:]>[-]>[b]>[</s>]\n") > 0);
    expect_talk(forgets, talk, LOSS_ON_AUTO, both, NULL);
    expect_talk(forgets, weighed, LOSS_ON_AUTO, second, NULL);
    free(both);
    cr_assert(asprintf(&both, "%s%s", third, second) > 0);
    expect_talk(forgets, longer, LOSS_ON_AUTO, both, NULL);
    free(both);
}
