/*
 * castor-worker --plan and --print: everything up to the plan, from configuration and data alone.
 * On a machine that has been probed no device is opened; else one is, to learn its name and memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/event.h"
#include "api/job_dir.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/json.h"
#include "kernels/device.h"
#include "kernels/registry.h"
#include "worker/plan/alternatives.h"
#include "worker/plan/plan.h"
#include "worker/train/session.h"
#include "worker/train/trainer.h"
#include "worker/worker.h"

/* What a plan is made for. */
struct machine {
    const struct op_table *ops;
    struct device_profile profile;
    bool known; /* there is a profile */
    enum device_kind kind;
    char name[64];
    struct session_memory memory;
};

static const char *kind_name(enum device_kind kind)
{
    return kind == DEVICE_CUDA ? "cuda" : "cpu";
}

/* Does the profile tell all that the job asks? A GPU that it does not show to compute in eight bits
 * may lack that, and what is wrong with a type that the device does not compute in it cannot say.
 */
static bool use_profile(const struct job_spec *spec, struct machine *m)
{
    enum dtype compute = session_dtype(spec);
    bool found = device_profile_find(kind_name(m->kind), &m->profile);

    m->ops = device_kind_ops(m->kind, compute);
    bool fp8 = m->profile.flops_fp8 > m->profile.flops_layer;
    bool half = compute == DT_F32 || compute == DT_F16 || compute == device_half_type(m->kind, 0);
    if (!found || !half || !m->ops || (spec->precision.compute == COMPUTE_FP8 && !fp8) ||
        (m->kind == DEVICE_CPU && compute != DT_F32))
        return false;
    snprintf(m->name, sizeof m->name, "%s", m->profile.device);
    m->memory.device = trainer_limit_alone(m->kind, &m->profile);
    return true;
}

static int use_device(const struct job_spec *spec, struct machine *m, struct err *err)
{
    struct device *d = NULL;
    int rc = 0;

    TRY(trainer_open_device(spec, &d, err));
    TRY(trainer_pick_ops(d, spec, &m->ops, err)); /* the table outlives the device */
    m->kind = d->kind;
    m->known = m->known && strcmp(m->profile.device, d->name) == 0;
    snprintf(m->name, sizeof m->name, "%s", d->name);
    TRY(trainer_device_limit(d, &m->memory.device, err));
out:
    if (d)
        device_close(d);
    return rc;
}

static int find_machine(const struct job_spec *spec, struct machine *m, struct err *err)
{
    m->kind = session_device(spec);
    host_memory_look("/", HOST_WHOLE, &m->memory.host);
    m->known = use_profile(spec, m);
    /* A job for a GPU where there is none is the device's to refuse. */
    if (m->known && (spec->resources.device != DEVICE_ONLY_GPU || m->kind == DEVICE_CUDA))
        return 0;
    return use_device(spec, m, err);
}

struct download_told {
    int64_t lines;
    double at; /* monotonic */
};

/* Whoever waits for the report learns from lines before it that data still come: events as an
 * attempt writes them, once a second. */
static int tell_download(void *ud, const char *file, int64_t done, int64_t total, int64_t all_done,
                         int64_t all_total)
{
    struct download_told *told = ud;
    double now = clock_monotonic();
    struct event e = {.type = EVENT_DOWNLOAD,
                      .attempt = 1,
                      .seq = told->lines + 1,
                      .t = clock_wall(),
                      .download = {.file = file,
                                   .bytes_done = done,
                                   .bytes_total = total,
                                   .total_bytes_done = all_done,
                                   .total_bytes_total = all_total}};

    if (told->lines > 0 && now - told->at < 1)
        return 0;
    json_t *j = event_to_json(&e);
    char *line = json_to_line(j);
    puts(line);
    fflush(stdout);
    free(line);
    json_decref(j);
    told->lines++;
    told->at = now;
    return 0;
}

static json_t *alternatives_of(const struct session *s, const struct session_memory *memory,
                               const struct plan_input *in, const struct plan *plan)
{
    size_t most[TIER_COUNT];
    session_limits(s, memory, most);
    return plan_alternatives(in, most, plan);
}

/* `progress` and `listing` may be NULL. `alternatives` is filled also where the job does not fit.
 */
static int make_report(const char *jobdir, hub_progress_fn progress, struct plan_report *report,
                       json_t **alternatives, struct buf *listing, struct err *err)
{
    char *path = job_dir_spec(jobdir);
    struct download_told told = {0};
    struct session_options options = {.scratch_dir = jobdir, .progress = progress, .ud = &told};
    struct job_spec spec = {0};
    struct session session = {0};
    struct machine m = {0};
    struct plan_input in;
    struct plan *plan = NULL;
    int rc = 0;

    TRY(job_spec_load(path, &spec, err));
    TRY(session_prepare(&spec, &options, &session, err));
    TRY(find_machine(&session.spec, &m, err));
    const struct device_profile *profile = m.known ? &m.profile : NULL;
    rc = session_plan(&session, m.ops, profile, &m.memory, &plan, err);
    if (alternatives &&
        (rc == 0 || rc == ERR_DEVICE_OOM) && /* to what it settled on or tried last */
        session_plan_input(&session, m.ops, profile, &m.memory, &in, NULL) == 0)
        *alternatives = alternatives_of(&session, &m.memory, &in, plan);
    if (rc)
        goto out;
    TRY(session_report(&session, plan, kind_name(m.kind), m.name, report, err));
    if (listing)
        plan_print(plan, LIST_TRAIN, listing);
out:
    plan_destroy(plan);
    session_fini(&session);
    job_spec_fini(&spec);
    free(path);
    return rc;
}

int worker_plan(const char *jobdir)
{
    struct plan_report report = {0};
    struct err err = {0};
    json_t *alternatives = NULL;
    int rc = make_report(jobdir, tell_download, &report, &alternatives, NULL, &err);
    if (rc) {
        report.fits = false;
        report.error = err;
    }
    report.alternatives = alternatives;
    json_t *j = plan_report_to_json(&report);
    char *line = json_to_line(j);
    puts(line);
    free(line);
    json_decref(j);
    plan_report_fini(&report);
    return rc == 0 && fflush(stdout) == 0 ? 0 : 1;
}

int worker_print(const char *jobdir)
{
    struct plan_report report = {0};
    struct buf listing = {0};
    struct err err = {0};
    int rc = make_report(jobdir, NULL, &report, NULL, &listing, &err);
    if (rc)
        fprintf(stderr, "castor-worker --print: %s\n", err.msg);
    fputs(buf_str(&listing), stdout);
    buf_fini(&listing);
    plan_report_fini(&report);
    return rc == 0 && fflush(stdout) == 0 ? 0 : 1;
}
