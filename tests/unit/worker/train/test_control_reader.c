#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/fs.h"
#include "tests/unit/worker/train/rig.h"
#include "worker/train/control_reader.h"
#include "worker/train/event_writer.h"

static void ask(const char *dir, const char *id, const char *type)
{
    char *path = job_dir_control(dir);
    FILE *f = fopen(path, "a");
    cr_assert_not_null(f);
    fprintf(f, "{\"v\":1,\"id\":\"%s\",\"t\":1,\"type\":\"%s\"}\n", id, type);
    fclose(f);
    free(path);
}

static void expect(struct control_reader *r, const char *id)
{
    struct control c;
    bool found = !id;
    cr_assert_eq(control_reader_next(r, &c, &found, NULL), 0);
    cr_assert_eq(found, id != NULL, "%s", found ? c.id : id);
    if (id)
        cr_expect_str_eq(c.id, id);
}

Test(control_reader, hands_out_each_request_once_in_order)
{
    struct control_reader r;
    char *dir = rig_make_dir();
    cr_assert_eq(control_reader_init(&r, dir, 1, NULL), 0);
    expect(&r, NULL); /* no file yet */
    ask(dir, "ctl-1", "checkpoint");
    ask(dir, "ctl-2", "pause");
    expect(&r, "ctl-1");
    expect(&r, "ctl-2");
    expect(&r, NULL);
    ask(dir, "ctl-3", "cancel");
    expect(&r, "ctl-3");
    expect(&r, NULL);
    control_reader_fini(&r);
    control_reader_fini(&r);
    rig_remove_dir(dir);
}

Test(control_reader, passes_over_what_it_does_not_know)
{
    struct control_reader r;
    char *dir = rig_make_dir();
    ask(dir, "ctl-1", "dance");
    char *path = job_dir_control(dir);
    FILE *f = fopen(path, "a");
    fputs("half a li\n\n[]\n{\"v\":2}\n", f);
    fclose(f);
    ask(dir, "ctl-2", "pause");
    f = fopen(path, "a");
    fputs("{\"v\":1,\"id\":\"ctl-3\",\"t\":1,\"type\":\"can", f); /* still being written */
    fclose(f);
    cr_assert_eq(control_reader_init(&r, dir, 1, NULL), 0);
    expect(&r, "ctl-2");
    expect(&r, NULL);
    f = fopen(path, "a");
    fputs("cel\"}\n", f);
    fclose(f);
    expect(&r, "ctl-3");
    free(path);
    control_reader_fini(&r);
    rig_remove_dir(dir);
}

/* Attempt `attempt` answers a request by an event. */
static void answer(const char *dir, int64_t attempt, const struct event *event)
{
    struct event_writer w;
    struct event e = *event;
    char *parent = job_dir_attempt(dir, attempt);
    char *path = job_dir_events(dir, attempt);
    cr_assert_eq(fs_mkdir_p(parent, false, NULL), 0);
    cr_assert_eq(event_writer_init(&w, path, attempt, NULL), 0);
    cr_assert_eq(event_write(&w, &e, NULL), 0);
    event_writer_fini(&w);
    free(path);
    free(parent);
}

Test(control_reader, passes_over_what_earlier_attempts_answered)
{
    struct control_reader r;
    char *dir = rig_make_dir();
    static const char *const ids[] = {"ctl-1", "ctl-2", "ctl-3", "ctl-4"};
    for (int k = 0; k < 4; k++)
        ask(dir, ids[k], k == 1 ? "pause" : "checkpoint");
    answer(dir, 1, &(struct event){.type = EVENT_CHECKPOINT, .checkpoint = {.request = "ctl-1"}});
    answer(dir, 2, &(struct event){.type = EVENT_STOPPED, .stopped = {.request = "ctl-2"}});
    /* of the attempt that reads, and later: not an earlier one's */
    answer(dir, 3, &(struct event){.type = EVENT_CHECKPOINT, .checkpoint = {.request = "ctl-3"}});
    cr_assert_eq(control_reader_init(&r, dir, 3, NULL), 0);
    expect(&r, "ctl-3");
    expect(&r, "ctl-4");
    expect(&r, NULL);
    control_reader_fini(&r);
    rig_remove_dir(dir);
}

Test(control_reader, peeking_finds_the_first_stop_and_leaves_everything_unread)
{
    struct control_reader r;
    struct control c;
    bool found = true;
    char *dir = rig_make_dir();
    cr_assert_eq(control_reader_init(&r, dir, 1, NULL), 0);
    ask(dir, "ctl-1", "checkpoint");
    cr_assert_eq(control_reader_peek_stop(&r, &c, &found, NULL), 0);
    cr_expect(!found);
    ask(dir, "ctl-2", "cancel");
    ask(dir, "ctl-3", "pause");
    for (int k = 0; k < 2; k++) {
        cr_assert_eq(control_reader_peek_stop(&r, &c, &found, NULL), 0);
        cr_assert(found);
        cr_expect_str_eq(c.id, "ctl-2");
        cr_expect_eq(c.type, CONTROL_CANCEL);
    }
    expect(&r, "ctl-1");
    control_reader_fini(&r);
    rig_remove_dir(dir);
}
