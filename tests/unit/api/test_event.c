#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "api/event.h"
#include "core/json.h"

static const struct event samples[] = {
    {1, 1, 10.5, EVENT_PHASE, .phase = PHASE_EXPORTING},
    {2, 1, 11, EVENT_DOWNLOAD, .download = {"model.safetensors", 5, 10, 15, 20}},
    {3, 1, 12, EVENT_STEP,
     .step = {.step = 7,
              .total_steps = 9,
              .epoch = 1.25,
              .loss = 2.5,
              .accuracy = 0.5,
              .grad_norm = 1,
              .clipped = true,
              .clipped_steps = 6,
              .redone_steps = 2,
              .loss_scale = 32768,
              .skipped_steps = 3,
              .learning_rate = 1e-4,
              .tokens = 100,
              .target_tokens = 90,
              .total_target_tokens = 900,
              .seconds = 0.5,
              .planned_seconds = NAN,
              .bound_seconds = 0.25,
              .tokens_per_second = 200,
              .seconds_remaining = 3,
              .gpu = {1, 2, 3},
              .host = {4, 5, 6},
              .nvme = {7, 8, 9},
              .h2d_bytes = 10,
              .d2h_bytes = 11,
              .disk_read_bytes = 12,
              .disk_write_bytes = 13,
              .network_bytes = 14,
              .stalls = {0.125, 0.0625, 0.5, 0.03125},
              .update_seconds = 1.5,
              .cpu_update_share = 0.75}},
    {4, 1, 13, EVENT_EVAL, .eval = {7, 2.25, 0.75, 50, true, true}},
    {5, 1, 14, EVENT_SAMPLE, .sample = {7, 1, "Once", " upon \"a\" time\n"}},
    {6, 1, 15, EVENT_CHECKPOINT,
     .checkpoint = {7, "checkpoints/step-7", 99, 0.25, 2.5, 0.5, NAN, NAN, "ctl-1"}},
    {7, 1, 16, EVENT_WARNING, .warning = {"slow_disk", "text"}},
    {8, 1, 17, EVENT_STOPPED, .stopped = {STOP_PAUSED, "ctl-2", 7, 7}},
    {9, 1, 18, EVENT_FINISHED, .finished = {9, 900, "output", 2.5, NAN}},
    {10, 1, 19, EVENT_FAILED, .failed = {ERR_NUMERIC, "nan_loss", "loss is NaN", NULL}},
    {11, 1, 20, EVENT_FAILED,
     .failed = {ERR_DEVICE_OOM, "insufficient_memory", "1 MiB short", NULL, .fits_alone = true}},
};

Test(event, every_type_round_trips)
{
    for (size_t i = 0; i < sizeof(samples) / sizeof(samples[0]); i++) {
        struct err err = {0};
        struct event back;
        json_t *line = event_to_json(&samples[i]);
        cr_assert(event_from_json(line, &back, &err) == 0, "%s", err.msg);
        cr_assert(back.type == samples[i].type && back.seq == samples[i].seq &&
                  back.t == samples[i].t);
        json_t *again = event_to_json(&back);
        cr_assert(json_equal(line, again), "%s", event_type_name(samples[i].type));
        json_decref(line);
        json_decref(again);
    }
}

Test(event, members_have_the_documented_names)
{
    char *line;
    json_t *value = event_to_json(&samples[8]);

    line = json_to_line(value);
    cr_assert_str_eq(line, "{\"v\":1,\"seq\":9,\"attempt\":1,\"t\":18.0,\"type\":\"finished\","
                           "\"steps\":9,\"trained_tokens\":900,\"output\":\"output\","
                           "\"train_loss\":2.5}");
    free(line);
    json_decref(value);
    value = event_to_json(&samples[2]);
    cr_assert(json_integer_value(json_object_get(json_object_get(value, "host"), "peak")) == 5);
    cr_assert_null(json_object_get(value, "planned_seconds"), "NaN must be absent");
    json_decref(value);
}

Test(event, absent_reals_read_as_nan_and_absent_texts_as_null)
{
    json_t *line = json_pack("{s:i,s:i,s:f,s:s,s:i,s:s}", "seq", 1, "attempt", 1, "t", 1.0, "type",
                             "checkpoint", "step", 3, "path", "checkpoints/step-3");
    struct event e;

    cr_assert(event_from_json(line, &e, NULL) == 0);
    cr_assert(isnan(e.checkpoint.valid_loss) && e.checkpoint.request == NULL);
    json_decref(line);
}

Test(event, a_plan_event_carries_its_report)
{
    json_t *plan = json_pack("{s:s}", "object", "fine_tuning.plan");
    struct event e = {1, 2, 3, EVENT_PLAN, .plan = plan}, back;
    json_t *line = event_to_json(&e);

    cr_assert(event_from_json(line, &back, NULL) == 0);
    cr_assert(json_equal(back.plan, plan));
    json_object_set_new(line, "plan", json_integer(1));
    cr_assert(event_from_json(line, &back, NULL) == ERR_INVALID);
    json_decref(line);
    json_decref(plan);
}

Test(event, what_is_no_event_is_an_error)
{
    static const char *const bad[] = {
        "3",
        "{}",
        "{\"seq\":0,\"attempt\":1,\"t\":1,\"type\":\"phase\",\"phase\":\"training\"}",
        "{\"seq\":1,\"attempt\":1,\"t\":1,\"type\":\"phase\",\"phase\":\"dreaming\"}",
        "{\"seq\":1,\"attempt\":1,\"t\":1,\"type\":\"step\"}",
        "{\"seq\":1,\"attempt\":1,\"t\":1,\"type\":\"step\",\"step\":\"x\"}",
        "{\"seq\":1,\"attempt\":1,\"t\":1,\"type\":\"failed\",\"message\":5}",
        "{\"seq\":1,\"attempt\":1,\"t\":1,\"type\":\"warning\",\"code\":null,\"message\":\"x\"}",
    };
    struct event e;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        json_t *line = json_loads(bad[i], JSON_DECODE_ANY, NULL);
        cr_assert(event_from_json(line, &e, NULL) == ERR_INVALID, "%s", bad[i]);
        json_decref(line);
    }
    json_t *line = json_pack("{s:i,s:i,s:f,s:s}", "seq", 1, "attempt", 1, "t", 1.0, "type", "new");
    cr_assert(event_from_json(line, &e, NULL) == ERR_UNSUPPORTED);
    json_decref(line);
}

Test(event, text_that_is_not_utf8_still_makes_a_line)
{
    struct event e = {1, 1, 1, EVENT_SAMPLE, .sample = {1, 0, "p", "caf\xe9 \xff"}};
    json_t *line = event_to_json(&e);

    cr_assert_str_eq(json_string_value(json_object_get(line, "completion")), "caf? ?");
    json_decref(line);
}

Test(event, phases_have_names)
{
    cr_assert_str_eq(event_phase_name(PHASE_COMPILING), "compiling");
}

Test(event, a_checkpoint_says_which_ones_are_kept)
{
    json_t *kept = json_pack("[i,i]", 3, 9);
    struct event e = {.seq = 1,
                      .attempt = 1,
                      .t = 1,
                      .type = EVENT_CHECKPOINT,
                      .checkpoint = {.step = 9, .path = "checkpoints/step-9", .kept = kept}};
    struct event back;
    json_t *line = event_to_json(&e);

    cr_assert(event_from_json(line, &back, NULL) == 0);
    cr_assert(json_equal(back.checkpoint.kept, kept));
    json_object_set_new(line, "kept", json_pack("[s]", "3"));
    cr_assert(event_from_json(line, &back, NULL) == ERR_INVALID);
    json_object_set_new(line, "kept", json_integer(3));
    cr_assert(event_from_json(line, &back, NULL) == ERR_INVALID);
    json_object_del(line, "kept");
    cr_assert(event_from_json(line, &back, NULL) == 0 && back.checkpoint.kept == NULL);
    json_decref(line);
    json_decref(kept);
}
