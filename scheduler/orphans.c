/* What a castord that was killed while it created or ended a job left behind. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_dir.h"
#include "core/fs.h"
#include "core/log.h"
#include "scheduler/scheduler_impl.h"

static const char job_prefix[] = "ftjob-";

/* Only a directory in which nothing was done yet: should the database be lost, the trained models
 * must not follow it. */
static bool is_untouched(const char *jobdir)
{
    char *output = job_dir_output(jobdir), *checkpoints = job_dir_checkpoints(jobdir);
    int64_t attempt = -1;
    bool untouched = !fs_exists(output) && !fs_exists(checkpoints) &&
                     job_dir_last_attempt(jobdir, &attempt, NULL) == 0 && attempt == 0;

    free(checkpoints);
    free(output);
    return untouched;
}

static void remove_if_unknown(struct scheduler *s, const char *dir, const char *name)
{
    char *jobdir = fs_join(dir, name);
    struct err err = {0};
    struct job job = {0};

    int rc = store_get_job(s->store, name, &job, &err);
    if (rc == 0) {
        if (job_status_is_final(job.status))
            hub_access_drop_token(jobdir);
        job_fini(&job);
    } else if (rc == ERR_NOT_FOUND && is_untouched(jobdir)) {
        err_clear(&err);
        if (fs_remove_tree(jobdir, &err) == 0)
            log_info("scheduler", "job=%s was never stored; its directory is removed", name);
        else
            log_warn("scheduler", "job=%s was never stored: %s", name, err.msg);
    }
    free(jobdir);
}

void orphans_remove(struct scheduler *s)
{
    char *dir = fs_join(s->state_dir, "jobs");
    const struct dirent *entry;
    DIR *d = opendir(dir);

    while (d && (entry = readdir(d)))
        if (strncmp(entry->d_name, job_prefix, sizeof(job_prefix) - 1) == 0)
            remove_if_unknown(s, dir, entry->d_name);
    if (d)
        closedir(d);
    free(dir);
}
