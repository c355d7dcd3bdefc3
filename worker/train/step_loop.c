/* The training steps of one attempt: queue, collect, report, and what happens at step boundaries.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/clock.h"
#include "worker/train/lr.h"
#include "worker/train/run.h"

enum { MAX_BAD_STEPS = 3 }; /* non-finite gradients in a row before training is given up */

/* What a step in flight was given; its result comes later. */
struct pending {
    bool active;
    int64_t step;
    struct run_step given;
};

struct loop {
    struct run *r;
    struct pending slots[STEP_SLOTS];
    double last_collect; /* monotonic */
};

/* --- one step --- */

/* Rows [first, end) as far as they fit; what is left over in the last micro-batch of a batch that
 * the micro-batch does not divide is padding. */
static int fill_micro(const struct session *s, int64_t epoch, int64_t first, int64_t end,
                      struct batch *b, struct err *err)
{
    int64_t rows = b->B;
    int rc = 0;

    if (rows > end - first)
        b->B = end - first;
    TRY(dataset_fill(s->train, epoch, first, b, err));
    for (int64_t i = b->B * b->T; i < rows * b->T; i++) {
        b->tokens[i] = 0;
        b->targets[i] = TARGET_IGNORE;
        b->positions[i] = 0;
        b->first_key[i] = (int32_t)(i % b->T);
    }
    b->B = rows;
out:
    return rc;
}

int run_queue_step(struct run *r, int64_t step, struct run_step *out, struct err *err)
{
    const struct session *s = &r->session;
    int slot = (int)(step % STEP_SLOTS);
    int64_t epoch = (step - 1) / s->steps_per_epoch;
    int64_t batch = s->spec.hyper.batch_size.value;
    int64_t row = (step - 1) % s->steps_per_epoch * batch;
    struct run_step q = {.learning_rate = lr_at(&s->spec.optimization, step, s->total_steps),
                         .speculates = speculation_next(&r->speculation)};
    int rc = 0;

    for (int64_t m = 0; m < s->micro_batches; m++) {
        struct batch b;
        executor_batch(r->executor, slot, m, &b);
        TRY(fill_micro(s, epoch, row + m * s->micro_batch, row + batch, &b, err));
        q.tokens += b.n_tokens;
        q.targets += b.n_targets;
    }
    struct step_input in = {.step = step,
                            .learning_rate = q.learning_rate,
                            .wait_for_norm = !q.speculates,
                            .grad_scale = q.targets > 0 ? 1.0 / (double)q.targets : 0};
    TRY(executor_step(r->executor, slot, &in, err));
    *out = q;
out:
    return rc;
}

static int queue_step(struct loop *l, int64_t step, struct err *err)
{
    struct pending *p = &l->slots[step % STEP_SLOTS];
    int rc = run_queue_step(l->r, step, &p->given, err);
    if (rc == 0) {
        p->active = true;
        p->step = step;
    }
    return rc;
}

static struct event_memory tier_memory(const struct run *r, enum plan_tier tier, size_t now,
                                       size_t peak)
{
    return (struct event_memory){
        .planned_peak = (int64_t)r->plan->claim[tier], .peak = (int64_t)peak, .now = (int64_t)now};
}

/* Did updates that were made ahead of the norm turn out to be wrong? */
static bool is_undone(const struct step_result *res)
{
    return res->clipped || !res->finite;
}

static void count_clips(struct run *r, const struct pending *p, const struct step_result *res,
                        double seconds)
{
    bool undone = is_undone(res);
    speculation_note(&r->speculation, p->given.speculates, undone, seconds);
    r->clipped_steps += res->clipped;
    r->redone_steps += undone && p->given.speculates;
}

static struct event_stalls stalls_by_cause(const struct step_result *r)
{
    return (struct event_stalls){.h2d = r->stall[QUEUE_H2D],
                                 .d2h = r->stall[QUEUE_D2H],
                                 .disk = r->stall[QUEUE_READ] + r->stall[QUEUE_WRITE] +
                                         r->fetch_stall[QUEUE_READ] + r->fetch_stall[QUEUE_WRITE],
                                 .updates = r->fetch_stall[QUEUE_CPU]};
}

/* Of a step whose updates waited for the norm, or of one where those that need not did not. */
static void set_planned(const struct run *r, const struct pending *p, const struct step_result *res,
                        struct event_step *out)
{
    bool waited = r->plan->in.clip && (!p->given.speculates || is_undone(res));
    out->planned_seconds = waited ? r->planned.seconds_clipped : r->planned.seconds;
    out->bound_seconds = waited ? r->planned.bound_clipped : r->planned.bound;
}

static int report_step(struct loop *l, const struct pending *p, const struct step_result *res,
                       double seconds, struct err *err)
{
    struct run *r = l->r;
    const struct device_counters *c = &r->device->counters;
    struct nvme_counters disk = executor_disk_counters(r->executor);
    double n = p->given.targets > 0 ? (double)p->given.targets : 1;
    double speed = (double)p->given.tokens / seconds;

    r->speed = r->speed > 0 ? 0.9 * r->speed + 0.1 * speed : speed;
    count_clips(r, p, res, seconds);
    r->state.step = p->step;
    r->state.trained_tokens += p->given.tokens;
    r->state.train_loss = res->loss_sum / n;
    r->state.train_accuracy = (double)res->correct / n;
    r->state.target_tokens += p->given.targets;
    if (res->loss_scale.scale > 0) {
        r->state.loss_scale = (double)res->loss_scale.scale;
        r->state.loss_scale_good = res->loss_scale.good;
        r->state.skipped_steps = res->loss_scale.skipped;
    }
    struct event e = {.type = EVENT_STEP,
                      .step = {.step = p->step,
                               .total_steps = r->session.total_steps,
                               .epoch = (double)p->step / (double)r->session.steps_per_epoch,
                               .loss = r->state.train_loss,
                               .accuracy = r->state.train_accuracy,
                               .grad_norm = res->grad_norm,
                               .clipped = res->clipped,
                               .clipped_steps = r->clipped_steps,
                               .redone_steps = r->redone_steps,
                               .loss_scale = r->state.loss_scale,
                               .skipped_steps = r->state.skipped_steps,
                               .learning_rate = p->given.learning_rate,
                               .tokens = p->given.tokens,
                               .target_tokens = p->given.targets,
                               .total_target_tokens = r->state.target_tokens,
                               .seconds = seconds,
                               .tokens_per_second = speed,
                               .seconds_remaining = (double)(r->session.total_steps - p->step) *
                                                    (double)p->given.tokens / r->speed,
                               .gpu = tier_memory(r, TIER_GPU, c->device_now, c->device_peak),
                               .host = tier_memory(r, TIER_HOST, c->host_now, c->host_peak),
                               .nvme = tier_memory(r, TIER_NVME, disk.reserved, disk.reserved),
                               .h2d_bytes = (int64_t)c->h2d_bytes,
                               .d2h_bytes = (int64_t)c->d2h_bytes,
                               .disk_read_bytes = (int64_t)disk.read,
                               .disk_write_bytes = (int64_t)disk.written,
                               .stalls = stalls_by_cause(res),
                               .update_seconds = res->updating,
                               .cpu_update_share = r->cpu_update_share}};
    set_planned(r, p, res, &e.step);
    return event_write(&r->events, &e, err);
}

static int check_numbers(struct run *r, const struct pending *p, const struct step_result *res,
                         struct err *err)
{
    if (res->finite && isfinite(res->loss_sum)) {
        r->bad_steps = 0;
        return 0;
    }
    /* The scale was too large; there are smaller ones to try. */
    if (isfinite(res->loss_sum) && res->loss_scale.scale > 1)
        return 0;
    char text[160];
    snprintf(text, sizeof text,
             "step %lld: the loss or a gradient is not finite; no update was made",
             (long long)p->step);
    if (++r->bad_steps < MAX_BAD_STEPS)
        return run_warn(r, "not_finite", text, err);
    int rc =
        err_set(err, ERR_NUMERIC,
                "the loss or gradients were not finite in %d steps in a row, the last one %lld; a "
                "lower optimization.learning_rate or a longer warm-up usually helps",
                MAX_BAD_STEPS, (long long)p->step);
    return err_set_reason(err, rc, "nan_loss");
}

static int collect_step(struct loop *l, int slot, struct err *err)
{
    struct pending *p = &l->slots[slot];
    struct step_result res;
    int rc = 0;

    if (!p->active)
        return 0;
    TRY(executor_collect(l->r->executor, slot, &res, err));
    double now = clock_monotonic();
    p->active = false;
    TRY(report_step(l, p, &res, now - l->last_collect, err));
    l->last_collect = now;
    TRY(check_numbers(l->r, p, &res, err));
out:
    return rc;
}

/* --- between steps --- */

/* After pruning; an array of steps. */
static int list_kept(const struct run *r, json_t **out, struct err *err)
{
    int64_t *steps = NULL, n = 0;
    int rc = job_dir_checkpoint_steps(r->options->jobdir, &steps, &n, err);
    if (rc)
        return rc;
    *out = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(*out, json_integer(steps[i]));
    free(steps);
    return 0;
}

int run_checkpoint(struct run *r, const char *request, struct err *err)
{
    double start = clock_monotonic();
    int64_t bytes = 0;
    json_t *kept = NULL;
    char path[64];
    int rc = 0;

    TRY(run_phase(r, PHASE_CHECKPOINTING, err));
    TRY(checkpoint_save(r->options->jobdir, r->plan, r->executor, &r->state,
                        (uint64_t)r->session.spec.seed, &bytes, err));
    r->last_saved = r->state.step;
    TRY(checkpoint_prune(r->options->jobdir, r->session.spec.optimization.keep_checkpoints,
                         r->state.best_step, err));
    TRY(list_kept(r, &kept, err));
    snprintf(path, sizeof path, "checkpoints/step-%lld", (long long)r->state.step);
    struct event e = {.type = EVENT_CHECKPOINT,
                      .checkpoint = {.step = r->state.step,
                                     .path = path,
                                     .bytes = bytes,
                                     .seconds = clock_monotonic() - start,
                                     .train_loss = r->state.train_loss,
                                     .train_accuracy = r->state.train_accuracy,
                                     .valid_loss = r->state.valid_loss,
                                     .valid_accuracy = r->state.valid_accuracy,
                                     .request = request,
                                     .kept = kept}};
    TRY(event_write(&r->events, &e, err));
out:
    json_decref(kept);
    return rc;
}

/* A checkpoint that cannot be written for lack of space must not cost the run: warn, go on with
 * what there is. */
static int scheduled_checkpoint(struct run *r, const char *request, struct err *err)
{
    struct err cause = {0};
    int rc = run_checkpoint(r, request, &cause);
    if (rc == ERR_NOSPACE)
        return run_warn(r, "checkpoint_failed", cause.msg, err);
    if (rc)
        *err = cause;
    return rc;
}

static bool every(int64_t step, int64_t interval, int64_t steps_per_epoch)
{
    return step % (interval > 0 ? interval : steps_per_epoch) == 0;
}

/* Nothing in flight behind this: what looks at the model needs it at rest. */
static int drain(struct loop *l, struct err *err)
{
    int64_t next = l->r->state.step + 1; /* collecting moves state.step */
    int rc = 0;
    for (int64_t k = 0; k < STEP_SLOTS; k++)
        TRY(collect_step(l, (int)((next + k) % STEP_SLOTS), err));
out:
    return rc;
}

void run_obey_stop(struct run *r, const struct control *c)
{
    r->end = c->type == CONTROL_CANCEL ? RUN_CANCELLED : RUN_PAUSED;
    snprintf(r->request, sizeof r->request, "%s", c->id);
}

static int obey(struct loop *l, struct err *err)
{
    struct run *r = l->r;
    struct control c;
    bool found;
    int rc = 0;

    for (;;) {
        TRY(control_reader_next(&r->control, &c, &found, err));
        if (!found)
            break;
        TRY(drain(l, err));
        if (c.type == CONTROL_CHECKPOINT) {
            TRY(scheduled_checkpoint(r, c.id, err));
            continue;
        }
        run_obey_stop(r, &c);
        return 0;
    }
    if (*r->options->terminate)
        r->end = RUN_PREEMPTED;
out:
    return rc;
}

/* Sample and evaluate where it is due and was not done: also in front of the first step, for
 * comparison, and where an earlier attempt was stopped before it could. */
static int evaluate(struct run *r, struct err *err)
{
    const struct spec_optimization *o = &r->session.spec.optimization;
    const struct run_state *st = &r->state;
    int rc = 0;

    if (st->eval_step != st->step &&
        (st->step == r->session.total_steps ||
         every(st->step, o->eval_interval, r->session.steps_per_epoch))) {
        TRY(run_sample(r, err)); /* first: an evaluation that is finished counts as done */
        TRY(run_evaluate(r, err));
    }
    if (o->early_stopping.patience > 0 && st->without_gain >= o->early_stopping.patience)
        r->end = RUN_EARLY_STOP;
out:
    return rc;
}

/* The best evaluation is the best whose weights are kept, if they may be exported: where a full
 * disk costs a new one, the one before it goes on as the best. */
static int end_of_step(struct run *r, struct err *err)
{
    const struct spec_optimization *o = &r->session.spec.optimization;
    double best_loss = r->state.best_loss;
    int64_t step = r->state.step, best_step = r->state.best_step;
    int rc = 0;

    TRY(evaluate(r, err));
    if (step == r->session.total_steps || r->end != RUN_GOES_ON)
        return 0; /* the end has a checkpoint of its own */
    bool may_export = o->early_stopping.patience > 0 || o->export == EXPORT_BEST;
    bool export_later = may_export && r->state.best_step == step;
    if (export_later || every(step, o->checkpoint_interval, r->session.steps_per_epoch))
        TRY(scheduled_checkpoint(r, NULL, err));
    if (export_later && r->last_saved != step) {
        r->state.best_loss = best_loss;
        r->state.best_step = best_step;
    }
out:
    return rc;
}

static bool is_boundary(const struct run *r, int64_t step)
{
    const struct spec_optimization *o = &r->session.spec.optimization;
    int64_t epoch = r->session.steps_per_epoch;
    return step == r->session.total_steps || every(step, o->eval_interval, epoch) ||
           every(step, o->checkpoint_interval, epoch);
}

int run_steps(struct run *r, struct err *err)
{
    struct loop l = {.r = r, .last_collect = clock_monotonic()};
    int64_t in_flight = r->options->steps_in_flight;
    bool planned = false; /* queuing a step has met every shape that it multiplies */
    int rc = 0;

    if (in_flight == 0) /* the CPU device has nothing to overlap with */
        in_flight = r->device->kind == DEVICE_CPU ? 1 : STEP_SLOTS;
    TRY(evaluate(r, err));
    if (r->end != RUN_GOES_ON)
        return 0;
    TRY(run_phase(r, PHASE_TRAINING, err));
    l.last_collect = clock_monotonic();
    for (int64_t step = r->state.step + 1; step <= r->session.total_steps; step++) {
        TRY(obey(&l, err));
        if (r->end != RUN_GOES_ON)
            break;
        TRY(queue_step(&l, step, err));
        if (!planned)
            TRY(run_save_gemm_plans(r, err));
        planned = true;
        if (in_flight == 1 || is_boundary(r, step)) {
            TRY(drain(&l, err));
        } else {
            TRY(collect_step(&l, (int)((step + 1) % STEP_SLOTS), err)); /* the one before */
        }
        if (is_boundary(r, step)) {
            TRY(end_of_step(r, err));
            if (r->end != RUN_GOES_ON)
                break;
            if (step < r->session.total_steps)
                TRY(run_phase(r, PHASE_TRAINING, err));
            l.last_collect = clock_monotonic();
        }
    }
    TRY(drain(&l, err));
out:
    return rc;
}
