#include "worker/train/trainer.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/log.h"
#include "kernels/op_table.h"
#include "worker/model/weights.h"
#include "worker/train/cores.h"
#include "worker/train/export.h"
#include "worker/train/run.h"

enum { LOCK_WAIT_SECONDS = 10, GPU_RESERVE = 320 << 20 };

/* --- device --- */

int trainer_open_device(const struct job_spec *spec, struct device **out, struct err *err)
{
    enum device_kind kind = session_device(spec);
    if (spec->resources.device == DEVICE_ONLY_GPU && kind != DEVICE_CUDA) {
        int rc = err_set(err, ERR_UNSUPPORTED,
                         "the job asks for a GPU and this machine has none that works; set "
                         "resources.device to \"auto\" or \"cpu\"");
        err_set_reason(err, rc, "no_gpu");
        return err_set_param(err, rc, "resources.device");
    }
    struct device_options o = {.memory_limit = (size_t)spec->placement.gpu_memory_limit};
    return device_open(kind, 0, &o, out, err);
}

int trainer_pick_ops(struct device *d, const struct job_spec *spec, const struct op_table **out,
                     struct err *err)
{
    enum dtype compute = session_dtype(spec);
    bool eight_bits = spec->precision.compute == COMPUTE_FP8;
    const struct op_table *ops = device_ops(d, compute);
    if (!ops || (eight_bits && !d->fp8)) {
        const char *instead = d->kind == DEVICE_CPU                     ? "fp32"
                              : spec->precision.compute == COMPUTE_BF16 ? "fp16"
                                                                        : "auto";
        int rc = err_set(err, ERR_UNSUPPORTED,
                         "%s does not compute in %s; set precision.compute to \"%s\"", d->name,
                         compute_dtype_name(spec->precision.compute), instead);
        err_set_reason(err, rc, "unsupported_precision");
        return err_set_param(err, rc, "precision.compute");
    }
    *out = ops;
    return 0;
}

/* --- events --- */

int run_phase(struct run *r, enum event_phase phase, struct err *err)
{
    struct event e = {.type = EVENT_PHASE, .phase = phase};
    return event_write(&r->events, &e, err);
}

int run_warn(struct run *r, const char *code, const char *message, struct err *err)
{
    struct event e = {.type = EVENT_WARNING, .warning = {.code = code, .message = message}};
    log_warn("train", "%s: %s", code, message);
    return event_write(&r->events, &e, err);
}

static void on_phase(void *ud, enum event_phase phase)
{
    run_phase(ud, phase, NULL);
}

/* A download can be broken off: what it has is kept for the next attempt. */
static bool look_for_stop(struct run *r)
{
    struct control c;
    bool found = false;

    if (*r->options->terminate)
        r->end = RUN_PREEMPTED;
    else if (control_reader_peek_stop(&r->control, &c, &found, NULL) == 0 && found)
        run_obey_stop(r, &c);
    return r->end != RUN_GOES_ON;
}

static int on_progress(void *ud, const char *file, int64_t done, int64_t total, int64_t all_done,
                       int64_t all_total)
{
    struct run *r = ud;
    if (r->download_told == 0)
        run_phase(r, PHASE_DOWNLOADING, NULL);
    r->download_told = clock_monotonic();
    struct event e = {.type = EVENT_DOWNLOAD,
                      .download = {.file = file,
                                   .bytes_done = done,
                                   .bytes_total = total,
                                   .total_bytes_done = all_done,
                                   .total_bytes_total = all_total}};
    event_write(&r->events, &e, NULL);
    return look_for_stop(r) ? ERR_CANCELLED : 0;
}

/* --- preparing --- */

/* What a GPU's driver, other processes and our kernels hold is gone. The reserve is for those of
 * cuBLASLt, which are loaded in the first step, when memory has been claimed and products are
 * planned, for what planning tries beside an operand (and does without where it is not had), and
 * for the kernels' stacks. */
size_t trainer_limit(enum device_kind kind, size_t all, size_t left)
{
    if (kind != DEVICE_CUDA)
        return all;
    left = left > GPU_RESERVE ? left - GPU_RESERVE : 1; /* 0 would be no limit */
    return all < left ? all : left;
}

size_t trainer_limit_alone(enum device_kind kind, const struct device_profile *p)
{
    return trainer_limit(kind, (size_t)p->memory, (size_t)p->memory_free);
}

int trainer_device_limit(struct device *d, size_t *limit, struct err *err)
{
    size_t left = 0;
    int rc = 0;

    if (d->kind == DEVICE_CUDA)
        TRY(device_memory_free(d, &left, err));
    *limit = trainer_limit(d->kind, d->memory_total, left);
out:
    return rc;
}

/* Of the trained parameters: those that live in host memory. */
static double cpu_update_share(const struct plan *p)
{
    double all = 0, cpu = 0;
    for (int64_t c = 0; c < p->chunks.n_chunks; c++) {
        const struct plan_chunk *pc = &p->chunk[c];
        double n = p->chunks.chunks[c].trainable ? (double)p->chunks.chunks[c].n : 0;
        all += n;
        if (n > 0 && p->places[pc->param].tier != TIER_GPU)
            cpu += n;
    }
    return all > 0 ? cpu / all : 0;
}

/* Numbers depend on the rows of a micro-batch: an attempt that goes on keeps those it began with.
 */
static int keep_micro_batch(struct run *r, struct err *err)
{
    int64_t rows = 0;
    int rc = 0;

    if (!r->session.micro_batch_open || r->last_saved < 0)
        return 0;
    TRY(checkpoint_micro_batch(r->options->jobdir, r->last_saved, &rows, err));
    if (rows > 0) {
        session_set_micro_batch(&r->session, rows);
        r->session.micro_batch_open = false;
    }
out:
    return rc;
}

/* What is refused for memory that others hold may have been asked to stop while it prepared: then
 * that is how it ends, so that the request is answered. */
static int plan_in_what_is_left(struct run *r, struct err *err)
{
    const struct device_profile *profile = r->profiled ? &r->profile : NULL;
    size_t alone = profile ? trainer_limit_alone(r->device->kind, profile) : 0;
    int rc;

    alone = alone > r->memory.device ? alone : r->memory.device;
    host_memory_look("/", HOST_LEFT, &r->memory.host);
    rc = session_plan(&r->session, r->ops, profile, &r->memory, &r->plan, err);
    if (rc == ERR_DEVICE_OOM)
        r->fits_alone = session_fits_alone(&r->session, r->ops, profile, alone);
    return r->fits_alone && look_for_stop(r) ? ERR_CANCELLED : rc;
}

static int prepare_plan(struct run *r, struct err *err)
{
    struct plan_report report = {0};
    int rc = 0;

    TRY(run_phase(r, PHASE_COMPILING, err));
    TRY(trainer_open_device(&r->session.spec, &r->device, err));
    cores_take(r->device);
    TRY(trainer_pick_ops(r->device, &r->session.spec, &r->ops, err));
    const char *kind = r->device->kind == DEVICE_CUDA ? "cuda" : "cpu";
    r->profiled =
        device_profile_find(kind, &r->profile) && strcmp(r->profile.device, r->device->name) == 0;
    TRY(trainer_device_limit(r->device, &r->memory.device, err));
    TRY(keep_micro_batch(r, err));
    r->memory_lock = host_memory_lock(r->options->terminate);
    TRY(plan_in_what_is_left(r, err));
    TRY(plan_simulate(r->plan, LIST_TRAIN, &r->planned, err));
    r->speculation.break_even = r->planned.break_even;
    r->cpu_update_share = cpu_update_share(r->plan);
    TRY(session_report(&r->session, r->plan, kind, r->device->name, &report, err));
    json_t *j = plan_report_to_json(&report);
    struct event e = {.type = EVENT_PLAN, .plan = j};
    rc = event_write(&r->events, &e, err);
    json_decref(j);
out:
    plan_report_fini(&report);
    return rc;
}

/* Between the look at the device's memory and the claim another process took of it. */
static void tell_fit(struct run *r, struct err *err)
{
    if (trainer_device_limit(r->device, &r->memory.device, NULL) != 0)
        return;
    host_memory_look("/", HOST_LEFT, &r->memory.host);
    session_tell_fit(&r->session, r->ops, r->profiled ? &r->profile : NULL, &r->memory, err);
}

static int prepare_executor(struct run *r, struct err *err)
{
    const struct spec_optimization *o = &r->session.spec.optimization;
    char *crumb = job_dir_crumb(r->options->jobdir, r->options->attempt, r->options->rank);
    int rc = 0;

    TRY(run_load_gemm_plans(r, err));
    TRY(crumb_open(crumb, &r->crumb, err));
    TRY(comm_self_create(r->device, &r->comm, err));
    struct executor_config config = {.plan = r->plan,
                                     .device = r->device,
                                     .data_comm = r->comm,
                                     .crumb = r->crumb,
                                     .nvme_directory = r->session.spec.placement.nvme_directory,
                                     .seed = (uint64_t)r->session.spec.seed,
                                     .beta1 = o->beta1,
                                     .beta2 = o->beta2,
                                     .epsilon = o->epsilon,
                                     .weight_decay = o->weight_decay,
                                     .max_grad_norm = o->max_grad_norm};
    rc = executor_create(&config, &r->executor, err);
    if (rc == ERR_DEVICE_OOM)
        tell_fit(r, err);
out:
    free(crumb);
    return rc;
}

/* Gradients in float16 lose what is small and overflow where they are large. The first scale and
 * the interval are PyTorch's. */
static int scale_losses(struct run *r, struct err *err)
{
    struct run_state *st = &r->state;
    if (r->ops->compute != DT_F16)
        return 0;
    if (isnan(st->loss_scale))
        st->loss_scale = 65536;
    struct loss_scale scale = {.scale = (float)st->loss_scale,
                               .good = (int32_t)st->loss_scale_good,
                               .skipped = (int32_t)st->skipped_steps,
                               .interval = 2000};
    return executor_set_loss_scale(r->executor, scale, err);
}

static int load_weights(struct run *r, struct err *err)
{
    struct weights_reader *weights = NULL;
    int64_t step = r->last_saved;
    int rc = 0;

    TRY(run_phase(r, PHASE_LOADING, err));
    if (step < 0 || r->session.model.adapters.rank > 0) {
        rc = weights_open(r->session.sources.model_dir, &r->session.model, &weights, err);
        if (rc) {
            err_set_param(err, rc, "model");
            goto out;
        }
    }
    if (step >= 0) {
        TRY(checkpoint_load(r->options->jobdir, step, weights, r->plan, r->executor,
                            (uint64_t)r->session.spec.seed, &r->state, err));
        /* the attempt before may have died between saving and pruning */
        TRY(checkpoint_prune(r->options->jobdir, r->session.spec.optimization.keep_checkpoints,
                             r->state.best_step, err));
        log_info("train", "resumed step=%lld", (long long)step);
    } else {
        rc = checkpoint_load_weights(weights, (uint64_t)r->session.spec.seed, r->plan, r->executor,
                                     err);
        if (rc) {
            err_set_param(err, rc, "model");
            goto out;
        }
        r->state = (struct run_state){.eval_step = -1,
                                      .train_loss = NAN,
                                      .train_accuracy = NAN,
                                      .valid_loss = NAN,
                                      .valid_accuracy = NAN,
                                      .best_loss = NAN,
                                      .loss_scale = NAN};
    }
    TRY(scale_losses(r, err));
out:
    weights_close(weights);
    return rc;
}

/* --- the end --- */

static int write_stopped(struct run *r, struct err *err)
{
    static const enum stop_reason reasons[] = {[RUN_CANCELLED] = STOP_CANCELLED,
                                               [RUN_PAUSED] = STOP_PAUSED,
                                               [RUN_PREEMPTED] = STOP_PREEMPTED};
    struct event e = {.type = EVENT_STOPPED,
                      .stopped = {.reason = reasons[r->end],
                                  .request = r->request[0] ? r->request : NULL,
                                  .step = r->state.step,
                                  .checkpoint_step = r->last_saved}};
    return event_write(&r->events, &e, err);
}

static int finish_stopped(struct run *r, struct err *err)
{
    int rc = 0;

    if (r->end != RUN_CANCELLED && r->state.step > r->last_saved)
        TRY(run_checkpoint(r, r->request[0] ? r->request : NULL, err));
    TRY(write_stopped(r, err));
out:
    return rc;
}

/* Its checkpoint was written behind its evaluation; there is none in front of the first step. */
static int find_best(struct run *r, int64_t *step, struct err *err)
{
    int64_t best = r->state.best_step;
    char *path = job_dir_checkpoint(r->options->jobdir, best);
    bool there = fs_exists(path);
    char text[200];

    free(path);
    if (there) {
        *step = best;
        return 0;
    }
    snprintf(text, sizeof text,
             best == 0 ? "no evaluation whose weights were kept found a lower loss than the one "
                         "before training; the weights of the last step, %lld, are exported"
                       : "there is no checkpoint of the best evaluation; the weights of the last "
                         "step, %lld, are exported",
             (long long)r->state.step);
    return run_warn(r, "best_not_kept", text, err);
}

static int finish_trained(struct run *r, struct err *err)
{
    struct run_state *st = &r->state;
    int64_t exported = st->step;
    int rc = 0;

    if (r->last_saved != st->step)
        TRY(run_checkpoint(r, NULL, err));
    if (r->end == RUN_EARLY_STOP || r->session.spec.optimization.export == EXPORT_BEST)
        TRY(find_best(r, &exported, err));
    TRY(run_phase(r, PHASE_EXPORTING, err));
    TRY(export_model(r->options->jobdir, exported, r->session.sources.model_dir, &r->session.model,
                     &r->session.spec, err));
    struct event e = {.type = EVENT_FINISHED,
                      .finished = {.steps = st->step,
                                   .trained_tokens = st->trained_tokens,
                                   .output = "output",
                                   .train_loss = st->train_loss,
                                   .valid_loss = st->valid_loss}};
    TRY(event_write(&r->events, &e, err));
out:
    return rc;
}

/* --- the attempt --- */

static void unlock_memory(struct run *r)
{
    if (r->memory_lock >= 0)
        close(r->memory_lock);
    r->memory_lock = -1;
}

static int train(struct run *r, const struct job_spec *spec, struct err *err)
{
    struct session_options options = {.scratch_dir = r->options->jobdir,
                                      .want_weights = true,
                                      .progress = on_progress,
                                      .on_phase = on_phase,
                                      .ud = r};
    int rc = 0;

    TRY(session_prepare(spec, &options, &r->session, err));
    TRY(prepare_plan(r, err));
    TRY(prepare_executor(r, err));
    TRY(load_weights(r, err));
    executor_hold_memory(r->executor);
    unlock_memory(r);
    if (r->options->profile)
        TRY(run_profile(r, err));
    else
        TRY(run_steps(r, err));
    if (r->end == RUN_GOES_ON || r->end == RUN_EARLY_STOP)
        TRY(finish_trained(r, err));
    else
        TRY(finish_stopped(r, err));
out:
    return rc;
}

/* What attempts before left half-written. */
static int remove_unfinished(const char *dir, struct err *err)
{
    DIR *d = opendir(dir);
    int rc = 0;

    if (!d)
        return errno == ENOENT ? 0 : err_set_errno(err, errno, "%s", dir);
    for (struct dirent *f; rc == 0 && (f = readdir(d));) {
        if (strncmp(f->d_name, "tmp-", 4) != 0)
            continue;
        char *path = fs_join(dir, f->d_name);
        rc = fs_remove_tree(path, err);
        free(path);
    }
    closedir(d);
    return rc;
}

static void release(struct run *r)
{
    unlock_memory(r);
    executor_destroy(r->executor);
    comm_destroy(r->comm);
    crumb_close(r->crumb);
    plan_destroy(r->plan);
    if (r->device)
        device_close(r->device);
    session_fini(&r->session);
    control_reader_fini(&r->control);
    event_writer_fini(&r->events);
}

static int write_failed(struct run *r, int rc, const struct err *cause, struct err *err)
{
    struct event e = {.type = EVENT_FAILED,
                      .failed = {.code = rc,
                                 .reason = cause->reason[0] ? cause->reason : err_code_name(rc),
                                 .message = cause->msg,
                                 .param = cause->param[0] ? cause->param : NULL,
                                 .fits_alone = r->fits_alone}};
    return event_write(&r->events, &e, err);
}

/* Ranks of an attempt whose supervisor was killed die a moment later: wait for them, then make sure
 * that nobody else writes to this job. */
static int take_over(struct run *r, int *lock, struct err *err)
{
    const char *jobdir = r->options->jobdir;
    char *path = fs_join(jobdir, "lock");
    char *checkpoints = job_dir_checkpoints(jobdir);
    double deadline = clock_monotonic() + LOCK_WAIT_SECONDS;
    struct err busy = {0};
    int rc = 0;

    while ((rc = fs_lock_file(path, lock, &busy)) == ERR_CONFLICT && clock_monotonic() < deadline) {
        err_clear(&busy);
        clock_sleep(0.05);
    }
    if (rc) {
        if (err)
            *err = busy;
        goto out;
    }
    TRY(remove_unfinished(jobdir, err));
    TRY(remove_unfinished(checkpoints, err));
    TRY(job_dir_last_checkpoint(jobdir, &r->last_saved, err));
out:
    free(checkpoints);
    free(path);
    return rc;
}

int trainer_run(const struct trainer_options *options, struct err *err)
{
    struct run r = {.options = options, .last_saved = -1, .memory_lock = -1, .events.file.fd = -1};
    char *spec_path = job_dir_spec(options->jobdir);
    char *events = job_dir_events(options->jobdir, options->attempt);
    struct job_spec spec = {0};
    struct err cause = {0};
    int lock = -1;
    int rc = 0;

    TRY(event_writer_init(&r.events, events, options->attempt, err));
    rc = take_over(&r, &lock, &cause);
    if (rc == 0)
        rc = job_spec_load(spec_path, &spec, &cause);
    if (rc == 0)
        rc = control_reader_init(&r.control, options->jobdir, options->attempt, &cause);
    if (rc == 0)
        rc = train(&r, &spec, &cause);
    if (rc == ERR_CANCELLED && r.end != RUN_GOES_ON) { /* before training began */
        rc = write_stopped(&r, err);
    } else if (rc) {
        log_error("train", "%s", cause.msg);
        write_failed(&r, rc, &cause, NULL);
        *err = cause;
    }
    int sync_rc = event_writer_sync(&r.events, err);
    rc = rc ? rc : sync_rc;
out:
    release(&r);
    job_spec_fini(&spec);
    if (lock >= 0)
        close(lock);
    free(events);
    free(spec_path);
    return rc;
}
