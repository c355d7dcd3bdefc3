#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/buf.h"
#include "core/fs.h"
#include "tests/unit/worker/train/rig.h"
#include "worker/train/event_writer.h"

static void limit_files(rlim_t bytes)
{
    struct rlimit l = {0};
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &l), 0);
    l.rlim_cur = bytes;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &l), 0);
}

static int write_phase(struct event_writer *w, struct err *err)
{
    struct event e = {.type = EVENT_PHASE, .phase = PHASE_TRAINING};
    return event_write(w, &e, err);
}

static int check_line(void *ud, json_t *value, int64_t offset_after, struct err *err)
{
    int64_t *n = ud;
    struct event e;
    cr_assert_not_null(value);
    cr_assert_eq(event_from_json(value, &e, err), 0, "%s", err->msg);
    cr_assert_eq(e.seq, ++*n);
    cr_assert_eq(e.attempt, 7);
    return 0;
}

/* The file holds events 1 .. n and nothing else. */
static void expect_events(const char *path, int64_t n)
{
    struct err err = {0};
    int64_t offset = 0, seen = 0, bytes = 0;
    cr_assert_eq(jsonl_read_from(path, &offset, 1 << 20, check_line, &seen, &err), 0, "%s",
                 err.msg);
    cr_expect_eq(seen, n);
    cr_assert_eq(fs_file_size(path, &bytes, NULL), 0);
    cr_expect_eq(bytes, offset);
}

Test(event_writer, numbers_events_without_gaps)
{
    struct event_writer w;
    char *dir = rig_make_dir();
    char *path = fs_join(dir, "events.jsonl");
    cr_assert_eq(event_writer_init(&w, path, 7, NULL), 0);
    for (int k = 0; k < 5; k++)
        cr_expect_eq(write_phase(&w, NULL), 0);
    expect_events(path, 5);
    event_writer_fini(&w);
    event_writer_fini(&w);
    free(path);
    rig_remove_dir(dir);
}

Test(event_writer, keeps_events_while_the_disk_is_full)
{
    struct event_writer w;
    char *dir = rig_make_dir();
    char *path = fs_join(dir, "events.jsonl");
    cr_assert_eq(event_writer_init(&w, path, 7, NULL), 0);
    limit_files(250); /* two events and part of a third */
    for (int k = 0; k < 10; k++)
        cr_expect_eq(write_phase(&w, NULL), 0);
    expect_events(path, 2);
    cr_expect_neq(event_writer_sync(&w, NULL), 0);
    limit_files(RLIM_INFINITY);
    cr_expect_eq(write_phase(&w, NULL), 0);
    expect_events(path, 11);
    event_writer_fini(&w);
    free(path);
    rig_remove_dir(dir);
}

Test(event_writer, refuses_events_behind_a_full_backlog)
{
    struct event_writer w;
    struct err err = {0};
    char *dir = rig_make_dir();
    char *path = fs_join(dir, "events.jsonl");
    cr_assert_eq(event_writer_init(&w, path, 7, NULL), 0);
    limit_files(1);
    for (int k = 0; k < EVENT_BACKLOG; k++)
        cr_assert_eq(write_phase(&w, &err), 0, "%s", err.msg);
    for (int k = 0; k < 3; k++) {
        err_clear(&err);
        cr_expect_eq(write_phase(&w, &err), ERR_IO);
        cr_expect(strstr(err.msg, "1024 events"), "%s", err.msg);
    }
    limit_files(RLIM_INFINITY);
    cr_expect_eq(write_phase(&w, NULL), 0);
    expect_events(path, EVENT_BACKLOG + 1);
    event_writer_fini(&w);
    free(path);
    rig_remove_dir(dir);
}

Test(event_writer, events_left_over_at_the_end_are_freed)
{
    struct event_writer w;
    char *dir = rig_make_dir();
    char *path = fs_join(dir, "events.jsonl");
    cr_assert_eq(event_writer_init(&w, path, 7, NULL), 0);
    limit_files(1);
    cr_expect_eq(write_phase(&w, NULL), 0);
    event_writer_fini(&w); /* LeakSanitizer looks on */
    limit_files(RLIM_INFINITY);
    expect_events(path, 0);
    free(path);
    rig_remove_dir(dir);
}
