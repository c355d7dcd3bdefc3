#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/buf.h"
#include "core/jsonl.h"
#include "tests/unit/core/tmpdir.h"

/* What a reader was handed: compact lines, "invalid" for what does not parse. */
struct seen {
    struct buf text;
    int count;
    int64_t last_offset;
    int stop_at; /* return 77 at this line; 0 never */
};

static int see(void *ud, json_t *value, int64_t offset_after, struct err *err)
{
    struct seen *seen = ud;
    char *line = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : strdup("invalid");

    buf_printf(&seen->text, "%s;", line);
    free(line);
    cr_assert(offset_after > seen->last_offset);
    seen->last_offset = offset_after;
    return ++seen->count == seen->stop_at ? 77 : 0;
}

static void expect(const char *path, int64_t from, const char *lines, int64_t offset_after)
{
    struct seen seen = {.last_offset = from};
    struct err err = {0};
    int64_t offset = from;

    cr_assert_eq(jsonl_read_from(path, &offset, 1000, see, &seen, &err), 0, "%s", err.msg);
    cr_assert_str_eq(buf_str(&seen.text), lines);
    cr_assert_eq(offset, offset_after, "offset %ld", (long)offset);
    buf_fini(&seen.text);
}

static int append(struct jsonl_writer *w, int i, struct err *err)
{
    json_t *value = json_pack("{s:i,s:s}", "i", i, "text", "a\nb");
    int rc = jsonl_writer_append(w, value, err);

    json_decref(value);
    return rc;
}

Test(jsonl, round_trip)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    struct jsonl_writer w = {0};
    struct err err = {0};
    struct stat st;

    cr_assert_eq(jsonl_writer_init(&w, path, &err), 0);
    cr_assert_eq(append(&w, 1, &err), 0);
    cr_assert_eq(append(&w, 2, &err), 0);
    cr_assert_eq(jsonl_writer_sync(&w, &err), 0);
    cr_assert(tmpdir_holds(path, "{\"i\":1,\"text\":\"a\\nb\"}\n{\"i\":2,\"text\":\"a\\nb\"}\n"));
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777 & ~022, 0644);
    expect(path, 0, "{\"i\":1,\"text\":\"a\\nb\"};{\"i\":2,\"text\":\"a\\nb\"};", 44);
    expect(path, 22, "{\"i\":2,\"text\":\"a\\nb\"};", 44);
    expect(path, 44, "", 44);
    jsonl_writer_fini(&w);
    jsonl_writer_fini(&w);
    tmpdir_fini(&d);
}

Test(jsonl, fini_of_a_zeroed_writer_closes_nothing)
{
    struct jsonl_writer w = {0};

    jsonl_writer_fini(&w);
    cr_assert(fcntl(0, F_GETFD) >= 0, "descriptor 0 is still open");
}

Test(jsonl, reopening_appends_and_cuts_half_a_line)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    static const char *const rows[][2] = {
        {"{\"i\":0}\n", "{\"i\":0}\n1\n"},
        {"{\"i\":0}\n{\"i\":", "{\"i\":0}\n1\n"},
        {"{\"i\":", "1\n"},
        {"", "1\n"},
        {"\n", "\n1\n"},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct jsonl_writer w;
        json_t *one = json_integer(1);
        tmpdir_put(path, rows[i][0]);
        cr_assert_eq(jsonl_writer_init(&w, path, NULL), 0);
        cr_assert_eq(jsonl_writer_append(&w, one, NULL), 0);
        jsonl_writer_fini(&w);
        cr_assert(tmpdir_holds(path, rows[i][1]), "row %zu", i);
        json_decref(one);
    }
    tmpdir_fini(&d);
}

Test(jsonl, half_a_line_longer_than_a_block_is_cut)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    struct jsonl_writer w;
    FILE *f = fopen(path, "w");

    fputs("[1]\n", f);
    for (int i = 0; i < 20000; i++)
        fputc('x', f);
    fclose(f);
    cr_assert_eq(jsonl_writer_init(&w, path, NULL), 0);
    jsonl_writer_fini(&w);
    cr_assert(tmpdir_holds(path, "[1]\n"));
    tmpdir_fini(&d);
}

Test(jsonl, writer_open_error_names_the_path)
{
    struct jsonl_writer w = {.fd = 55};
    struct err err = {0};

    cr_assert_eq(jsonl_writer_init(&w, "/nowhere/events.jsonl", &err), ERR_NOT_FOUND);
    cr_assert_not_null(strstr(err.msg, "/nowhere/events.jsonl"));
    cr_assert_eq(w.fd, 55);
}

/* A line that only fits in part is cut off again at once, and the next one starts clean. */
Test(jsonl, full_disk_leaves_whole_lines)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    struct jsonl_writer w;
    struct err err = {0};
    struct stat st;

    cr_assert_eq(jsonl_writer_init(&w, path, NULL), 0);
    tmpdir_limit_file_size(30); /* one line of 22 bytes and a piece of the second */
    cr_assert_eq(append(&w, 1, &err), 0);
    for (int i = 0; i < 3; i++) {
        err_clear(&err);
        cr_assert_eq(append(&w, 2, &err), ERR_IO);
        cr_assert_not_null(strstr(err.msg, path));
        cr_assert_eq(stat(path, &st), 0);
        cr_assert_eq(st.st_size, 22);
    }
    tmpdir_limit_file_size(1000);
    cr_assert_eq(append(&w, 3, NULL), 0);
    cr_assert(tmpdir_holds(path, "{\"i\":1,\"text\":\"a\\nb\"}\n{\"i\":3,\"text\":\"a\\nb\"}\n"));
    jsonl_writer_fini(&w);
    tmpdir_fini(&d);
}

Test(jsonl, full_device_says_so)
{
    struct jsonl_writer w;
    struct err err = {0};

    cr_assert_eq(jsonl_writer_init(&w, "/dev/full", &err), 0, "%s", err.msg);
    cr_assert_eq(append(&w, 1, &err), ERR_NOSPACE);
    cr_assert_not_null(strstr(err.msg, "/dev/full"));
    jsonl_writer_fini(&w);
}

/* Half a line that a failed cut left behind is cut by the next append. */
Test(jsonl, append_repairs_what_another_failure_left)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    struct jsonl_writer w;

    cr_assert_eq(jsonl_writer_init(&w, path, NULL), 0);
    cr_assert_eq(append(&w, 1, NULL), 0);
    cr_assert_eq(write(w.fd, "{\"i\":", 5), 5);
    cr_assert_eq(append(&w, 2, NULL), 0);
    cr_assert(tmpdir_holds(path, "{\"i\":1,\"text\":\"a\\nb\"}\n{\"i\":2,\"text\":\"a\\nb\"}\n"));
    jsonl_writer_fini(&w);
    tmpdir_fini(&d);
}

Test(jsonl, reader_ignores_an_unterminated_last_line)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");

    tmpdir_put(path, "[1]\n[2]");
    expect(path, 0, "[1];", 4);
    tmpdir_put(path, "[1]\n[2]\n");
    expect(path, 4, "[2];", 8);
    tmpdir_put(path, "[1]");
    expect(path, 0, "", 0);
    tmpdir_put(path, "");
    expect(path, 0, "", 0);
    expect(tmpdir_at(&d, "missing"), 0, "", 0);
    tmpdir_fini(&d);
}

Test(jsonl, lines_that_are_not_json_are_handed_out_as_null)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");

    tmpdir_put(path, "[1]\n\nnonsense\n{\"a\":1,\"a\":2}\n7\n");
    expect(path, 0, "[1];invalid;invalid;invalid;7;", 30);
    tmpdir_fini(&d);
}

static bool no_memory;

static void *scarce(size_t n)
{
    return no_memory ? NULL : malloc(n);
}

/* Not a broken line: it is there to be read when there is memory again. */
Test(jsonl, a_line_without_memory_for_it_is_not_a_broken_one)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    struct seen seen = {0};
    struct err err = {0};
    int64_t offset = 4;

    tmpdir_put(path, "[1]\n[\"2\"]\n[3]\n");
    json_set_alloc_funcs(scarce, free);
    no_memory = true;
    cr_expect_eq(jsonl_read_from(path, &offset, 1000, see, &seen, &err), ERR_NOMEM);
    no_memory = false;
    cr_expect_not_null(strstr(err.msg, "events.jsonl: the line at byte 4"), "%s", err.msg);
    cr_expect_eq(offset, 4);
    cr_expect_eq(seen.count, 0);
    expect(path, offset, "[\"2\"];[3];", 14);
    buf_fini(&seen.text);
    tmpdir_fini(&d);
}

Test(jsonl, callback_stops_the_reading)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    struct seen seen = {.stop_at = 2};
    int64_t offset = 0;

    tmpdir_put(path, "[1]\n[2]\n[3]\n");
    cr_assert_eq(jsonl_read_from(path, &offset, 1000, see, &seen, NULL), 77);
    cr_assert_eq(offset, 8, "past the line that was handed out");
    cr_assert_str_eq(buf_str(&seen.text), "[1];[2];");
    buf_fini(&seen.text);
    expect(path, offset, "[3];", 12);
    tmpdir_fini(&d);
}

Test(jsonl, line_length_limit_is_exact)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    static const char *const rows[] = {"[1]\n[12]\n[1]\n", "[1]\n[12]"};
    struct err err = {0};

    for (int i = 0; i < 2; i++) {
        struct seen seen = {0};
        int64_t offset = 0;
        tmpdir_put(path, rows[i]);
        err_clear(&err);
        cr_assert_eq(jsonl_read_from(path, &offset, 3, see, &seen, &err), ERR_CORRUPT);
        cr_assert_not_null(strstr(err.msg, "byte 4"), "%s", err.msg);
        cr_assert_eq(offset, 4);
        cr_assert_str_eq(buf_str(&seen.text), "[1];");
        buf_fini(&seen.text);
    }
    struct seen seen = {0};
    int64_t offset = 0;
    tmpdir_put(path, rows[0]);
    cr_assert_eq(jsonl_read_from(path, &offset, 4, see, &seen, NULL), 0);
    cr_assert_eq(seen.count, 3);
    buf_fini(&seen.text);
    tmpdir_fini(&d);
}

Test(jsonl, lines_longer_than_a_read_and_many_lines)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    FILE *f = fopen(path, "w");
    struct seen seen = {0};
    int64_t offset = 0;

    for (int i = 0; i < 30000; i++)
        fprintf(f, "%d\n", i % 1000);
    fputc('"', f);
    for (int i = 0; i < 300000; i++)
        fputc('x', f);
    fputs("\"\n[2]\n", f);
    fclose(f);
    cr_assert_eq(jsonl_read_from(path, &offset, 1 << 20, see, &seen, NULL), 0);
    cr_assert_eq(seen.count, 30002);
    const char *tail = buf_str(&seen.text) + seen.text.len - 7;
    cr_assert_str_eq(tail, "x\";[2];");
    cr_assert_null(strstr(buf_str(&seen.text), "invalid"));
    buf_fini(&seen.text);
    tmpdir_fini(&d);
}

Test(jsonl, file_shorter_than_what_was_read)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    struct seen seen = {0};
    struct err err = {0};
    int64_t offset = 100;

    tmpdir_put(path, "[1]\n");
    cr_assert_eq(jsonl_read_from(path, &offset, 1000, see, &seen, &err), ERR_CORRUPT);
    cr_assert_eq(offset, 100);
    cr_assert_eq(seen.count, 0);
    tmpdir_fini(&d);
}

static int see_in_order(void *ud, json_t *value, int64_t offset_after, struct err *err)
{
    int *next = ud;

    cr_assert_not_null(value, "a torn line at %ld", (long)offset_after);
    cr_assert_eq(json_integer_value(json_object_get(value, "i")), *next);
    ++*next;
    return 0;
}

/* A writer whose every other attempt fails half-way, and a reader behind it. */
Test(jsonl, reader_never_sees_half_a_line)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "events.jsonl");
    enum { LINES = 2000 };
    int next = 0;
    int64_t offset = 0;
    pid_t writer = fork();

    if (writer == 0) {
        struct jsonl_writer w;
        if (jsonl_writer_init(&w, path, NULL) != 0)
            _exit(1);
        for (int i = 0; i < LINES; i++) {
            struct stat st;
            fstat(w.fd, &st);
            tmpdir_limit_file_size((unsigned long)st.st_size + 9);
            if (append(&w, 999999, NULL) == 0)
                _exit(2);
            tmpdir_limit_file_size(1 << 20);
            if (append(&w, i, NULL) != 0)
                _exit(3);
        }
        _exit(0);
    }
    while (next < LINES && waitpid(writer, NULL, WNOHANG) == 0)
        cr_assert_eq(jsonl_read_from(path, &offset, 1000, see_in_order, &next, NULL), 0);
    cr_assert_eq(jsonl_read_from(path, &offset, 1000, see_in_order, &next, NULL), 0);
    cr_assert_eq(next, LINES);
    tmpdir_fini(&d);
}
