#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "scheduler/job.h"

static struct plan_report plan;

/* A job of this status as it could be: running means attempt 1 lives. */
static void make(struct job *job, enum job_status status)
{
    struct fault_list faults = {0};
    json_t *body = json_pack("{s:s,s:s,s:s}", "model", "org/name", "training_file", "file-a",
                             "suffix", "mine");

    job_init(job);
    cr_assert(job_spec_from_request(body, &job->spec, NULL, &faults) == 0);
    json_decref(body);
    snprintf(job->id, sizeof(job->id), "%s", "ftjob-1");
    snprintf(job->spec.id, sizeof(job->spec.id), "%s", "ftjob-1");
    job->status = status;
    if (status >= JOB_RUNNING)
        job->attempt = 1;
    job->attempt_live = status == JOB_RUNNING;
}

static int apply(struct job *job, struct job_input in)
{
    struct err err = {0};
    int rc = job_apply(job, &in, &err);

    cr_assert((rc == 0) == (err.code == ERR_OK));
    return rc;
}

enum { CONFLICT = -1 };

/* What becomes of each status by each occurrence; CONFLICT = refused, state unchanged. */
static const int table[][JOB_OCC_COUNT] = {
/*                 VALIDATED   INVALID     STARTED      ATTEMPT_ENDED and EVENT apart;
                   CANCEL         PAUSE        RESUME      TIMEOUT; NO_SLOT is for QUEUED alone */
#define ROW(validated, invalid, started, ended, cancel, pause, resume, timeout)                    \
    {                                                                                              \
        [JOB_OCC_VALIDATED] = validated, [JOB_OCC_INVALID] = invalid, [JOB_OCC_STARTED] = started, \
        [JOB_OCC_ATTEMPT_ENDED] = ended, [JOB_OCC_CANCEL] = cancel, [JOB_OCC_PAUSE] = pause,       \
        [JOB_OCC_RESUME] = resume, [JOB_OCC_TIMEOUT] = timeout                                     \
    }
    [JOB_VALIDATING] = ROW(JOB_QUEUED, JOB_FAILED, CONFLICT, JOB_VALIDATING, JOB_CANCELLED,
                           CONFLICT, CONFLICT, JOB_VALIDATING),
    [JOB_QUEUED] = ROW(CONFLICT, CONFLICT, JOB_RUNNING, JOB_QUEUED, JOB_CANCELLED, CONFLICT,
                       CONFLICT, JOB_QUEUED),
    [JOB_RUNNING] = ROW(CONFLICT, CONFLICT, CONFLICT, JOB_FAILED, JOB_RUNNING, JOB_RUNNING,
                        CONFLICT, JOB_RUNNING),
    [JOB_PAUSED] = ROW(CONFLICT, CONFLICT, CONFLICT, JOB_PAUSED, JOB_CANCELLED, JOB_PAUSED,
                       JOB_QUEUED, JOB_PAUSED),
    [JOB_SUCCEEDED] = ROW(CONFLICT, CONFLICT, CONFLICT, JOB_SUCCEEDED, CONFLICT, CONFLICT, CONFLICT,
                          JOB_SUCCEEDED),
    [JOB_FAILED] =
        ROW(CONFLICT, CONFLICT, CONFLICT, JOB_FAILED, CONFLICT, CONFLICT, CONFLICT, JOB_FAILED),
    [JOB_CANCELLED] = ROW(CONFLICT, CONFLICT, CONFLICT, JOB_CANCELLED, JOB_CANCELLED, CONFLICT,
                          CONFLICT, JOB_CANCELLED),
};

static void make_plan(void)
{
    struct job job;

    make(&job, JOB_VALIDATING);
    memset(&plan, 0, sizeof(plan));
    plan.fits = true;
    plan.spec = job.spec;
    plan.steps = 30;
    plan.step_seconds = plan.step_seconds_bound = NAN;
    plan.step_seconds_clipped = plan.step_seconds_clipped_bound = NAN;
}

Test(job, every_status_meets_every_occurrence)
{
    make_plan();
    for (int status = JOB_VALIDATING; status <= JOB_CANCELLED; status++)
        for (int kind = 0; kind < JOB_OCC_COUNT; kind++) {
            struct job job;
            int want = table[status][kind];
            if (kind == JOB_OCC_EVENT)
                continue;
            if (kind == JOB_OCC_NO_SLOT)
                want = status == JOB_QUEUED ? JOB_QUEUED : CONFLICT;
            make(&job, (enum job_status)status);
            json_t *before = job_state_to_json(&job);
            int rc = apply(&job, (struct job_input){.kind = (enum job_occurrence)kind,
                                                    .t = 50,
                                                    .attempt = kind == JOB_OCC_STARTED ? 2 : 1,
                                                    .plan = &plan,
                                                    .error_code = "c",
                                                    .error_message = "m",
                                                    .control_id = "ctl-1"});
            json_t *after = job_state_to_json(&job);
            cr_assert(rc == (want == CONFLICT ? ERR_CONFLICT : 0), "%s, occurrence %d: rc %d",
                      job_status_name((enum job_status)status), kind, rc);
            cr_assert((int)job.status == (want == CONFLICT ? status : want),
                      "%s, occurrence %d: %s", job_status_name((enum job_status)status), kind,
                      job_status_name(job.status));
            cr_assert(want != CONFLICT || json_equal(before, after));
            cr_assert(job_status_is_final((enum job_status)status) ||
                      (job.finished_at == 50) == job_status_is_final(job.status));
            json_decref(before);
            json_decref(after);
            job_fini(&job);
        }
    plan_report_fini(&plan);
}

static int event(struct job *job, struct event e)
{
    e.attempt = e.attempt ? e.attempt : 1;
    return apply(
        job, (struct job_input){.kind = JOB_OCC_EVENT, .t = 60, .attempt = e.attempt, .event = &e});
}

Test(job, every_status_meets_every_event)
{
    static const struct {
        struct event e;
        enum job_status when_running;
    } cases[] = {
        {{.type = EVENT_PHASE, .phase = PHASE_TRAINING}, JOB_RUNNING},
        {{.type = EVENT_DOWNLOAD, .download = {"f", 1, 2, 3, 4}}, JOB_RUNNING},
        {{.type = EVENT_STEP, .step = {.step = 5, .loss = 1}}, JOB_RUNNING},
        {{.type = EVENT_EVAL, .eval = {.step = 5}}, JOB_RUNNING},
        {{.type = EVENT_SAMPLE, .sample = {5, 0, "p", "c"}}, JOB_RUNNING},
        {{.type = EVENT_CHECKPOINT, .checkpoint = {.step = 5, .path = "p"}}, JOB_RUNNING},
        {{.type = EVENT_WARNING, .warning = {"c", "m"}}, JOB_RUNNING},
        {{.type = EVENT_STOPPED, .stopped = {.reason = STOP_CANCELLED}}, JOB_CANCELLED},
        {{.type = EVENT_STOPPED, .stopped = {.reason = STOP_PAUSED}}, JOB_PAUSED},
        {{.type = EVENT_STOPPED, .stopped = {.reason = STOP_PREEMPTED}}, JOB_QUEUED},
        {{.type = EVENT_FINISHED, .finished = {.output = "output"}}, JOB_SUCCEEDED},
        {{.type = EVENT_FAILED, .failed = {ERR_NUMERIC, "nan_loss", "m", NULL}}, JOB_FAILED},
        {{.type = EVENT_FAILED, .failed = {.message = "m", .fits_alone = true}}, JOB_QUEUED},
    };

    for (int status = JOB_VALIDATING; status <= JOB_CANCELLED; status++)
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            struct job job;
            make(&job, (enum job_status)status);
            job.attempt = 1;
            struct event other = cases[i].e;
            other.attempt = 2;
            json_t *before = job_state_to_json(&job);
            cr_assert(event(&job, other) == 0);
            json_t *after = job_state_to_json(&job);
            cr_assert(json_equal(before, after), "another attempt's event changed the job");
            json_decref(after);
            cr_assert(event(&job, cases[i].e) == 0);
            after = job_state_to_json(&job);
            if (status == JOB_RUNNING)
                cr_assert(job.status == cases[i].when_running, "event %zu", i);
            else if (status == JOB_VALIDATING && other.type == EVENT_DOWNLOAD)
                cr_assert(job.status == JOB_VALIDATING && job.bytes_done == 3 &&
                          job.bytes_total == 4);
            else
                cr_assert(json_equal(before, after), "%s, event %zu",
                          job_status_name((enum job_status)status), i);
            cr_assert(job.attempt_live == (status == JOB_RUNNING), "an event ended the attempt");
            json_decref(before);
            json_decref(after);
            job_fini(&job);
        }
}

Test(job, a_plan_cannot_change_what_identifies_the_job)
{
    struct job job;

    make_plan();
    make(&job, JOB_VALIDATING);
    plan.spec.model.commit = xstrdup("0123");
    plan.spec.hyper.n_epochs = (struct auto_int){false, 7};
    snprintf(plan.spec.id, sizeof(plan.spec.id), "%s", "ftjob-evil");
    memcpy(plan.spec.suffix, "evil", sizeof("evil"));
    memcpy(plan.spec.training_file.id, "file-z", sizeof("file-z"));
    plan.spec.scheduling.priority = 99;
    apply(&job, (struct job_input){.kind = JOB_OCC_VALIDATED, .t = 1, .plan = &plan});
    cr_assert_str_eq(job.spec.id, "ftjob-1");
    cr_assert_str_eq(job.spec.suffix, "mine");
    cr_assert_str_eq(job.spec.training_file.id, "file-a");
    cr_assert_str_eq(job.spec.model.commit, "0123");
    cr_assert(job.spec.scheduling.priority == 0 && job.spec.hyper.n_epochs.value == 7);
    cr_assert(job.total_steps == 30 && job.plan && !json_object_get(job.plan, "spec"));
    job_fini(&job);
    plan_report_fini(&plan);
}

static char *set(char **text, const char *value)
{
    free(*text);
    return *text = xstrdup(value);
}

Test(job, a_plan_says_which_commit_data_on_the_hub_have)
{
    static const char *const sha = "0123456789012345678901234567890123456789";
    struct spec_file *mine, *planned = &plan.spec.training_file;
    struct job job;

    make_plan();
    for (int i = 0; i < 3; i++) {
        make(&job, JOB_VALIDATING);
        mine = &job.spec.training_file;
        set(&mine->repo, "org/mine");
        set(&mine->revision, "main");
        set(&planned->repo, "org/evil");
        set(&planned->revision, i == 0 ? "refs/convert/parquet" : "evil");
        set(&planned->commit, i == 2 ? "../../../../../../../../../../../../evil" : sha);
        apply(&job, (struct job_input){.kind = JOB_OCC_VALIDATED, .t = 1, .plan = &plan});
        mine = &job.spec.training_file;
        cr_assert_str_eq(mine->repo, "org/mine");
        cr_assert_str_eq(mine->revision, i == 0 ? "refs/convert/parquet" : "main");
        cr_assert_str_eq(mine->commit ? mine->commit : "", i == 2 ? "" : sha);
        job_fini(&job);
    }
    plan_report_fini(&plan);
}

static void ended(struct job *job)
{
    apply(job, (struct job_input){.kind = JOB_OCC_ATTEMPT_ENDED,
                                  .t = 100,
                                  .attempt = job->attempt,
                                  .error_code = "worker_crashed",
                                  .error_message = "m"});
}

Test(job, ends_of_an_attempt_without_a_last_word)
{
    struct job job;

    make(&job, JOB_RUNNING);
    job.spec.scheduling.max_restarts = 1;
    ended(&job);
    cr_assert(job.status == JOB_QUEUED && job.restarts == 1 && !job.attempt_live);
    apply(&job, (struct job_input){.kind = JOB_OCC_STARTED, .t = 110, .attempt = 2});
    ended(&job);
    cr_assert(job.status == JOB_FAILED);
    cr_assert_str_eq(job.error_code, "worker_crashed");
    job_fini(&job);

    make(&job, JOB_RUNNING);
    apply(&job, (struct job_input){.kind = JOB_OCC_CANCEL, .t = 5, .control_id = "ctl-9"});
    cr_assert(job.cancel_requested && job.stop_asked_at == 5);
    cr_assert_str_eq(job.control_id, "ctl-9");
    apply(&job, (struct job_input){.kind = JOB_OCC_CANCEL, .t = 6, .control_id = "ctl-10"});
    cr_assert_str_eq(job.control_id, "ctl-9", "a repeated cancel is another request");
    ended(&job);
    cr_assert(job.status == JOB_CANCELLED);
    job_fini(&job);

    make(&job, JOB_RUNNING);
    apply(&job, (struct job_input){.kind = JOB_OCC_TIMEOUT, .t = 5, .control_id = "ctl-9"});
    event(&job, (struct event){.type = EVENT_STOPPED, .stopped = {.reason = STOP_CANCELLED}});
    cr_assert(job.status == JOB_FAILED);
    cr_assert_str_eq(job.error_code, "timeout");
    job_fini(&job);
}

static void refuse_for_memory(struct job *job)
{
    event(job, (struct event){.type = EVENT_FAILED,
                              .attempt = job->attempt,
                              .failed = {.code = ERR_DEVICE_OOM,
                                         .reason = "insufficient_memory",
                                         .message = "1 MiB short",
                                         .fits_alone = true}});
}

Test(job, what_others_hold_is_waited_for_and_counts_as_nothing)
{
    struct job job;

    make(&job, JOB_RUNNING);
    for (int attempt = 1; attempt <= 3; attempt++) {
        struct job_input start = {.kind = JOB_OCC_STARTED, .t = 10, .attempt = attempt + 1};
        refuse_for_memory(&job);
        cr_assert(job.status == JOB_QUEUED && job.waits_for_memory && !job.error_code);
        cr_assert(apply(&job, start) == ERR_CONFLICT, "its processes may live");
        ended(&job);
        cr_assert(job.status == JOB_QUEUED && job.restarts == 0 && job.run_seconds == 0);
        cr_assert(apply(&job, start) == 0 && !job.waits_for_memory);
    }
    refuse_for_memory(&job);
    cr_assert(apply(&job, (struct job_input){.kind = JOB_OCC_CANCEL, .t = 5}) == 0);
    cr_assert(job.status == JOB_CANCELLED && !job.waits_for_memory);
    job_fini(&job);
}

Test(job, what_was_to_stop_does_not_wait_for_memory)
{
    struct job job;

    make(&job, JOB_RUNNING);
    apply(&job, (struct job_input){.kind = JOB_OCC_CANCEL, .t = 5, .control_id = "ctl-9"});
    refuse_for_memory(&job);
    cr_assert(job.status == JOB_CANCELLED);
    job_fini(&job);
    make(&job, JOB_RUNNING);
    apply(&job, (struct job_input){.kind = JOB_OCC_TIMEOUT, .t = 5, .control_id = "ctl-9"});
    refuse_for_memory(&job);
    cr_assert(job.status == JOB_FAILED);
    cr_assert_str_eq(job.error_code, "timeout");
    job_fini(&job);
}

Test(job, a_resumed_job_waits_for_its_old_attempt)
{
    struct job job;

    make(&job, JOB_RUNNING);
    event(&job, (struct event){.type = EVENT_STOPPED, .stopped = {.reason = STOP_PAUSED}});
    cr_assert(apply(&job, (struct job_input){.kind = JOB_OCC_RESUME, .t = 70}) == 0);
    struct job_input start = {.kind = JOB_OCC_STARTED, .t = 71, .attempt = 2};
    cr_assert(apply(&job, start) == ERR_CONFLICT);
    ended(&job);
    cr_assert(job.status == JOB_QUEUED, "the end of a paused attempt is no crash");
    cr_assert(apply(&job, start) == 0 && job.tail_offset == 0);
    job_fini(&job);
}

Test(job, state_round_trips_and_copies_are_deep)
{
    struct job job, copy, back;
    struct err err = {0};

    make(&job, JOB_RUNNING);
    event(&job, (struct event){.type = EVENT_STEP,
                               .step = {.step = 5,
                                        .total_steps = 9,
                                        .loss = 0.5,
                                        .accuracy = NAN,
                                        .epoch = 1,
                                        .tokens_per_second = 3,
                                        .seconds_remaining = 4}});
    event(&job, (struct event){.type = EVENT_FAILED, .failed = {ERR_IO, "disk_full", "m", "p"}});
    job.waits_for_memory = job.told_no_slot = true;
    job_copy(&copy, &job);
    json_t *state = job_state_to_json(&job);
    job_fini(&job);
    job_init(&back);
    cr_assert(job_state_from_json(state, &back, &err) == 0, "%s", err.msg);
    json_t *again = job_state_to_json(&back), *third = job_state_to_json(&copy);
    cr_assert(json_equal(state, again) && json_equal(state, third));
    cr_assert(back.waits_for_memory && back.told_no_slot && back.step == 5 &&
              isnan(back.train_accuracy) && isnan(back.valid_loss));
    cr_assert_str_eq(back.error_param, "p");
    json_decref(state);
    json_decref(again);
    json_decref(third);
    job_fini(&back);
    job_fini(&copy);
}
