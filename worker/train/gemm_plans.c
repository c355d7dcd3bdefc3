/* Where the plans of matrix products are kept: JOBDIR/gemm.plans, and a file of the machine's. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/log.h"
#include "worker/train/run.h"

static char *job_path(const struct run *r)
{
    return fs_join(r->options->jobdir, "gemm.plans");
}

/* Beside the device profile. */
static char *machine_path(void)
{
    char *profile = device_profile_path("gemm");
    char *path = xasprintf("%s.plans", profile);
    free(profile);
    return path;
}

int run_load_gemm_plans(struct run *r, struct err *err)
{
    char *job = job_path(r), *machine = machine_path();
    struct err cause = {0};
    int rc = 0;

    device_tune(r->device, true);
    if (fs_exists(job)) {
        if (device_plans_load(r->device, job, &cause) != 0)
            rc = run_warn(r, "gemm_plans", cause.msg, err);
    } else if (fs_exists(machine) && device_plans_load(r->device, machine, &cause) != 0) {
        log_info("train", "planning matrix products anew: %s", cause.msg);
    }
    free(job);
    free(machine);
    return rc;
}

/* Written aside and renamed: another job may read it meanwhile. */
static int save_to(struct run *r, const char *path, struct err *err)
{
    char *tmp = xasprintf("%s.%ld", path, (long)getpid());
    int rc = 0;
    TRY(device_plans_save(r->device, tmp, err));
    if (fs_exists(tmp)) /* a device that plans nothing writes nothing */
        TRY(fs_rename_sync(tmp, path, err));
out:
    free(tmp);
    return rc;
}

int run_save_gemm_plans(struct run *r, struct err *err)
{
    char *job = job_path(r), *machine = machine_path(), *folder = xstrdup(machine);
    struct err ignored = {0};
    int rc = save_to(r, job, err);
    *strrchr(folder, '/') = 0;
    /* The machine's file saves time only. */
    if (rc == 0 && (fs_mkdir_p(folder, false, &ignored) != 0 || save_to(r, machine, &ignored) != 0))
        log_info("train", "%s", ignored.msg);
    free(folder);
    free(job);
    free(machine);
    return rc;
}
