/* Columns that a mapping makes examples of, in files of every kind. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "core/buf.h"
#include "tests/unit/worker/text/scratch_dir.h"
#include "worker/text/columns.h"
#include "worker/text/dataset.h"
#include "worker/text/examples.h"
#include "worker/text/shapes.h"

/* What was read, an example a line: "prompt|text" or "faults: ...". */
static int add_example(void *ud, int64_t line, const struct example *x, struct err *err)
{
    buf_printf(ud, "%s%s%s\n", x->prompt ? x->prompt : "", x->prompt ? "|" : "",
               x->text       ? x->text
               : x->messages ? "messages"
                             : "columns");
    return 0;
}

static int add_fault(void *ud, int64_t line, const char *message, struct err *err)
{
    buf_printf(ud, "fault in %d: %s\n", (int)line, message);
    return 0;
}

static void expect_file(const char *path, const char *mapping, bool any, const char *want)
{
    struct buf got = {0};
    struct err err = {0};
    json_t *map = mapping ? json_loads(mapping, 0, NULL) : NULL;
    struct example_reader reader = {
        .mapping = map, .any_columns = any, .fn = add_example, .fault_fn = add_fault, .ud = &got};

    int rc = examples_read(&reader, path, &err);
    if (rc != 0)
        buf_printf(&got, "error: %s [%s]\n", err.msg, err.param);
    if (want)
        cr_expect_str_eq(buf_str(&got), want);
    else /* a fault in every row */
        cr_expect_eq(
            strncmp(buf_str(&got), "fault in 1: \"prompt\" must be a string, not a number\n", 52),
            0, "%s", buf_str(&got));
    json_decref(map);
    buf_fini(&got);
}

static void expect(const char *text, const char *mapping, bool any, const char *want)
{
    struct scratch_dir d;

    scratch_dir_init(&d);
    expect_file(scratch_dir_text(&d, "f", text), mapping, any, want);
    scratch_dir_fini(&d);
}

#define PAIR "{\"prompt\": \"question\", \"completion\": \"answer\"}"

Test(columns, json_members_are_mapped)
{
    expect("{\"question\": \"a\", \"answer\": \"b\", \"text\": \"c\"}\n", PAIR, false, "a|b\n");
    expect("{\"question\": \"a\", \"text\": \"c\"}\n{\"question\": \"a\", \"answer\": 1}\n", PAIR,
           false,
           "fault in 1: there is no column \"answer\"; the columns are \"question\", \"text\"\n"
           "fault in 2: \"completion\" must be a string, not a number\n");
    expect("{\"q\": \"a\", \"a\": \"b\"}\n",
           "{\"instruction\": \"q\", \"output\": \"a\", \"input\": \"context\"}", false,
           "messages\n");
    expect("{\"question\": \"a\", \"answer\": \"b\"}\n[1]\n", PAIR, false,
           "a|b\nfault in 2: the line is an array, not an object like {\"text\": \"...\"}; write "
           "one example a line, without an array around\n");
}

Test(columns, headers_are_checked_at_once)
{
    expect("id,question,answer\n1,a,b\n2,\"c\nd\",e\n", PAIR, false, "a|b\nc\nd|e\n");
    expect("id,question,reply\n1,a,b\n", PAIR, false,
           "error: dataset.column_mapping.completion names the column \"answer\", which is not "
           "there; the columns are "
           "\"id\", \"question\", \"reply\" [dataset.column_mapping]\n");
    expect("text,label\na,1\n", NULL, false, "a\n");
    expect("id,label\na,1\n", NULL, false,
           "id,label\na,1\n"); /* plain text, as far as anyone can tell */
}

Test(columns, parquet_columns_are_chosen)
{
    const char *flat = "tests/golden/parquet/no_rows.parquet";

    expect_file(flat, NULL, false, "");
    expect_file(
        flat, PAIR, false,
        "error: dataset.column_mapping.prompt names the column \"question\", which is not there; "
        "the columns "
        "are \"text\", \"large\", \"word\", \"i32\", \"i64\", \"u8\", \"f32\", \"f64\", \"flag\" "
        "[dataset.column_mapping]\n");
    expect_file("tests/golden/parquet/required.parquet",
                "{\"prompt\": \"n\", \"completion\": \"text\"}", true, NULL);
}

Test(columns, files_without_a_shape_wait_for_a_mapping)
{
    expect("{\"question\": \"a\", \"answer\": \"b\"}\n{\"text\": 1}\n[]\n", NULL, true,
           "columns\ncolumns\nfault in 3: the line is an array, not an object like {\"text\": "
           "\"...\"}; write one "
           "example a line, without an array around\n");
    expect("{\"prompt\": \"a\"}\n", NULL, true, "fault in 1: the object has no \"completion\"\n");
    expect("{\"question\": \"a\"}\n", NULL, false,
           "fault in 1: the object has no \"text\", \"messages\", \"prompt\" with \"completion\", "
           "or \"instruction\" "
           "with \"output\"\n");
}

/* api/job_spec.h has the one list of members: each is optional or makes a shape with another. */
Test(columns, the_members_that_a_mapping_may_name_are_those_of_shapes)
{
    int members = 0, optional = 0;

    for (const char *const *m = example_members; *m; m++, members++) {
        bool makes_one = false;
        for (const char *const *other = example_members; *other; other++)
            makes_one = makes_one || (shape_fits((const char *const[]){*m, *other}, 2) &&
                                      (m == other || !shape_fits(other, 1)));
        optional += shape_member_is_optional(*m);
        cr_expect(shape_has_member(*m));
        cr_expect_neq(makes_one, shape_member_is_optional(*m), "%s", *m);
    }
    cr_expect_eq(members, 11);
    cr_expect_eq(optional, 4);
    cr_expect_not(shape_has_member("question"));
}
