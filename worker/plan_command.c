/* castor-worker --plan and --print: everything up to the plan, nothing on a device but opening it,
 * no weights.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/buf.h"
#include "core/json.h"
#include "kernels/device.h"
#include "worker/plan/plan.h"
#include "worker/train/session.h"
#include "worker/train/trainer.h"
#include "worker/worker.h"

/* `listing` may be NULL. */
static int make_report(const char *jobdir, struct plan_report *report, struct buf *listing,
                       struct err *err)
{
    char *path = job_dir_spec(jobdir);
    struct session_options options = {.scratch_dir = jobdir};
    struct job_spec spec = {0};
    struct session session = {0};
    struct device *device = NULL;
    struct plan *plan = NULL;
    const struct op_table *ops = NULL;
    struct device_profile profile;
    int rc = 0;

    TRY(job_spec_load(path, &spec, err));
    TRY(session_prepare(&spec, &options, &session, err));
    TRY(trainer_open_device(&session.spec, &device, err));
    TRY(trainer_pick_ops(device, &session.spec, &ops, err));
    const char *kind = device->kind == DEVICE_CUDA ? "cuda" : "cpu";
    char *profile_path = device_profile_path(kind);
    bool known = device_profile_load(profile_path, &profile, NULL) == 0 &&
                 strcmp(profile.device, device->name) == 0;
    free(profile_path);
    TRY(session_plan(&session, ops, known ? &profile : NULL,
                     device->memory_limit ? device->memory_limit : device->memory_total, &plan,
                     err));
    TRY(session_report(&session, plan, kind, device->name, report, err));
    if (listing)
        plan_print(plan, LIST_TRAIN, listing);
out:
    plan_destroy(plan);
    if (device)
        device_close(device);
    session_fini(&session);
    job_spec_fini(&spec);
    free(path);
    return rc;
}

int worker_plan(const char *jobdir)
{
    struct plan_report report = {0};
    struct err err = {0};
    int rc = make_report(jobdir, &report, NULL, &err);
    if (rc) {
        report.fits = false;
        report.error = err;
    }
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
    int rc = make_report(jobdir, &report, &listing, &err);
    if (rc)
        fprintf(stderr, "castor-worker --print: %s\n", err.msg);
    fputs(buf_str(&listing), stdout);
    buf_fini(&listing);
    plan_report_fini(&report);
    return rc == 0 && fflush(stdout) == 0 ? 0 : 1;
}
