/* What a castord left behind that was killed while it created or ended a job, or took or removed a
 * file. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "api/job_dir.h"
#include "core/fs.h"
#include "core/log.h"
#include "scheduler/scheduler_impl.h"

typedef void (*entry_fn)(struct scheduler *s, const char *dir, const char *name);

static void for_each(struct scheduler *s, const char *folder, const char *prefix, entry_fn fn)
{
    char *dir = fs_join(s->state_dir, folder);
    const struct dirent *entry;
    DIR *d = opendir(dir);

    while (d && (entry = readdir(d)))
        if (strncmp(entry->d_name, prefix, strlen(prefix)) == 0)
            fn(s, dir, entry->d_name);
    if (d)
        closedir(d);
    free(dir);
}

static void remove_unstored(const char *kind, const char *name, const char *path)
{
    struct err err = {0};

    if (fs_remove_tree(path, &err) == 0)
        log_info("scheduler", "%s=%s was never stored; it is removed", kind, name);
    else
        log_warn("scheduler", "%s=%s was never stored: %s", kind, name, err.msg);
}

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

static void remove_job_if_unknown(struct scheduler *s, const char *dir, const char *name)
{
    char *jobdir = fs_join(dir, name);
    struct job job = {0};

    int rc = store_get_job(s->store, name, &job, NULL);
    if (rc == 0) {
        if (job_status_is_final(job.status))
            hub_access_drop_token(jobdir);
        job_fini(&job);
    } else if (rc == ERR_NOT_FOUND && is_untouched(jobdir)) {
        remove_unstored("job", name, jobdir);
    }
    free(jobdir);
}

/* Written after the oldest file that the store knows. Others may be those of a store that was lost.
 */
static bool is_younger_than_the_store(struct scheduler *s, const char *path)
{
    struct store_page oldest = {.limit = 1, .ascending = true};
    struct store_file *rows = NULL;
    bool more = false, younger = false;
    struct stat st;
    int64_t n = 0;

    if (store_list_files(s->store, NULL, oldest, &rows, &n, &more, NULL) != 0)
        return false;
    for (int64_t i = 0; i < n; i++) {
        younger = lstat(path, &st) == 0 && st.st_mtime > rows[i].created_at;
        store_file_fini(&rows[i]);
    }
    free(rows);
    return younger;
}

static void remove_file_if_unknown(struct scheduler *s, const char *dir, const char *name)
{
    char *path = fs_join(dir, name);
    struct store_file file = {0};

    int rc = store_get_file(s->store, name, &file, NULL);
    store_file_fini(&file);
    if (rc == ERR_NOT_FOUND && is_younger_than_the_store(s, path))
        remove_unstored("file", name, path);
    free(path);
}

void orphans_remove(struct scheduler *s)
{
    for_each(s, "jobs", "ftjob-", remove_job_if_unknown);
    for_each(s, "files", "file-", remove_file_if_unknown);
}
