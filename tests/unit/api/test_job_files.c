/* What lies in a job directory besides the spec and the events. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/attempt_exit.h"
#include "api/control.h"
#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/jsonl.h"

static char dir[64];

static void setup(void)
{
    snprintf(dir, sizeof(dir), "/tmp/castor-jobdir-XXXXXX");
    cr_assert(mkdtemp(dir));
}

static void teardown(void)
{
    fs_remove_tree(dir, NULL);
}

TestSuite(job_files, .init = setup, .fini = teardown);

static void make_dir(const char *name)
{
    char *path = fs_join(dir, name);
    cr_assert(fs_mkdir_p(path, false, NULL) == 0);
    free(path);
}

Test(job_files, paths)
{
    char *p = job_dir_events("/j", 2);
    cr_assert_str_eq(p, "/j/attempt-2/events.jsonl");
    free(p);
    p = job_dir_rank_log("/j", 1, 3);
    cr_assert_str_eq(p, "/j/attempt-1/rank-3.log");
    free(p);
    p = job_dir_checkpoint("/j", 88);
    cr_assert_str_eq(p, "/j/checkpoints/step-88");
    free(p);
    p = job_dir_supervisor_log("/j", 1);
    cr_assert_str_eq(p, "/j/attempt-1/supervisor.log");
    free(p);
}

Test(job_files, highest_attempt_and_checkpoint)
{
    int64_t n = 99;

    cr_assert(job_dir_last_attempt(dir, &n, NULL) == 0 && n == 0);
    cr_assert(job_dir_last_checkpoint(dir, &n, NULL) == 0 && n == -1);
    make_dir("attempt-2");
    make_dir("attempt-10");
    make_dir("attempt-011");
    make_dir("attempt-99x");
    make_dir("attempt-99999999999999999999");
    make_dir("checkpoints/step-5");
    make_dir("checkpoints/step-40");
    make_dir("checkpoints/tmp-step-70");
    cr_assert(job_dir_last_attempt(dir, &n, NULL) == 0 && n == 10);
    cr_assert(job_dir_last_checkpoint(dir, &n, NULL) == 0 && n == 40);
    int64_t *steps = NULL;
    cr_assert(job_dir_checkpoint_steps(dir, &steps, &n, NULL) == 0);
    cr_assert(n == 2 && steps[0] == 5 && steps[1] == 40);
    free(steps);
    char *file = fs_join(dir, "spec.json");
    cr_assert(fs_write_file_atomic(file, "x", 1, NULL) == 0);
    cr_assert(job_dir_last_attempt(file, &n, NULL) != 0);
    free(file);
}

static int check_line(void *ud, json_t *value, int64_t offset_after, struct err *err)
{
    struct control *last = ud;
    struct control c;

    cr_assert(control_from_json(value, &c, err) == 0, "%s", err->msg);
    cr_assert_str_neq(c.id, last->id);
    *last = c;
    return 0;
}

Test(job_files, control_requests_are_lines_with_ids_of_their_own)
{
    struct control posted = {0}, last = {0};
    struct err err = {0};
    int64_t offset = 0;

    control_init(&posted, CONTROL_PAUSE);
    cr_assert(control_append(dir, &posted, &err) == 0, "%s", err.msg);
    control_init(&posted, CONTROL_CANCEL);
    cr_assert(control_append(dir, &posted, &err) == 0, "%s", err.msg);
    char *path = job_dir_control(dir);
    cr_assert(jsonl_read_from(path, &offset, 4096, check_line, &last, &err) == 0, "%s", err.msg);
    free(path);
    cr_assert(last.type == CONTROL_CANCEL && strncmp(last.id, "ctl-", 4) == 0);
    cr_assert_str_eq(last.id, posted.id);
    json_t *bad = json_pack("{s:s,s:s}", "id", "ctl-1", "type", "explode");
    cr_assert(control_from_json(bad, &last, NULL) == ERR_INVALID);
    json_decref(bad);
    cr_assert(control_append("/nonexistent", &posted, NULL) == ERR_NOT_FOUND);
}

Test(job_files, exit_record_round_trips)
{
    struct rank_exit ranks[2] = {
        {0, 10, 0, 0, 5, "", ""},
        {1, 11, -1, 9, 4, "FORWARD block 3", "killed\nfor memory"},
    };
    struct attempt_exit e = {12.5, false, 1, 2, ranks}, back = {0};
    struct err err = {0};
    json_t *value = attempt_exit_to_json(&e);

    cr_assert(attempt_exit_from_json(value, &back, &err) == 0, "%s", err.msg);
    cr_assert(back.n_ranks == 2 && back.ranks[1].signal == 9 && back.ranks[1].exit_code == -1);
    cr_assert(!back.ok && back.first_failed_rank == 1 && back.t == 12.5);
    cr_assert_str_eq(back.ranks[1].log_tail, "killed\nfor memory");
    attempt_exit_fini(&back);
    attempt_exit_fini(&back);
    json_object_set_new(value, "ranks", json_pack("[i]", 3));
    cr_assert(attempt_exit_from_json(value, &back, NULL) == ERR_INVALID);
    json_object_del(value, "ranks");
    cr_assert(attempt_exit_from_json(value, &back, NULL) == ERR_INVALID);
    json_decref(value);
}

Test(job_files, supervisor_record_tells_the_living_from_the_dead)
{
    struct supervisor_record self, back, child;
    char *path = fs_join(dir, "supervisor.json");
    struct err err = {0};

    cr_assert(supervisor_record_self(&self, &err) == 0, "%s", err.msg);
    cr_assert(supervisor_record_save(path, &self, &err) == 0);
    cr_assert(supervisor_record_load(path, &back, &err) == 0, "%s", err.msg);
    cr_assert(back.pid == getpid() && back.start_ticks == self.start_ticks);
    cr_assert_str_eq(back.boot_id, self.boot_id);
    cr_assert(supervisor_record_alive(&back));
    back.start_ticks++;
    cr_assert_not(supervisor_record_alive(&back), "a reused pid counts as alive");
    back = self;
    back.boot_id[0] ^= 1;
    cr_assert_not(supervisor_record_alive(&back), "a pid of another boot counts as alive");
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    cr_assert(supervisor_record_of(pid, &child, &err) == 0, "%s", err.msg);
    cr_assert(supervisor_record_alive(&child));
    kill(pid, SIGKILL);
    siginfo_t info;
    waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
    cr_assert_not(supervisor_record_alive(&child), "a zombie counts as alive");
    waitpid(pid, NULL, 0);
    cr_assert_not(supervisor_record_alive(&child));
    free(path);
}
