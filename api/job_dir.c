#include "api/job_dir.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

char *job_dir_spec(const char *jobdir)
{
    return xasprintf("%s/spec.json", jobdir);
}

char *job_dir_hub_token(const char *jobdir)
{
    return xasprintf("%s/hub-token", jobdir);
}

char *job_dir_control(const char *jobdir)
{
    return xasprintf("%s/control.jsonl", jobdir);
}

char *job_dir_attempt(const char *jobdir, int64_t attempt)
{
    return xasprintf("%s/attempt-%" PRId64, jobdir, attempt);
}

char *job_dir_events(const char *jobdir, int64_t attempt)
{
    return xasprintf("%s/attempt-%" PRId64 "/events.jsonl", jobdir, attempt);
}

char *job_dir_exit(const char *jobdir, int64_t attempt)
{
    return xasprintf("%s/attempt-%" PRId64 "/exit.json", jobdir, attempt);
}

char *job_dir_supervisor(const char *jobdir, int64_t attempt)
{
    return xasprintf("%s/attempt-%" PRId64 "/supervisor.json", jobdir, attempt);
}

char *job_dir_supervisor_wait(const char *jobdir, int64_t attempt)
{
    return xasprintf("%s/attempt-%" PRId64 "/supervisor.wait", jobdir, attempt);
}

char *job_dir_supervisor_log(const char *jobdir, int64_t attempt)
{
    return xasprintf("%s/attempt-%" PRId64 "/supervisor.log", jobdir, attempt);
}

char *job_dir_rank_log(const char *jobdir, int64_t attempt, int64_t rank)
{
    return xasprintf("%s/attempt-%" PRId64 "/rank-%" PRId64 ".log", jobdir, attempt, rank);
}

char *job_dir_crumb(const char *jobdir, int64_t attempt, int64_t rank)
{
    return xasprintf("%s/attempt-%" PRId64 "/crumb-%" PRId64, jobdir, attempt, rank);
}

char *job_dir_checkpoints(const char *jobdir)
{
    return xasprintf("%s/checkpoints", jobdir);
}

char *job_dir_checkpoint(const char *jobdir, int64_t step)
{
    return xasprintf("%s/checkpoints/step-%" PRId64, jobdir, step);
}

char *job_dir_output(const char *jobdir)
{
    return xasprintf("%s/output", jobdir);
}

/* The number of "prefixN", digits only and without leading zeros; -1 for other names. */
static int64_t numbered(const char *name, const char *prefix)
{
    size_t skip = strlen(prefix);
    const char *digits = name + skip;
    size_t n;

    if (strncmp(name, prefix, skip) != 0)
        return -1;
    n = strspn(digits, "0123456789");
    if (n == 0 || n > 18 || digits[n] != '\0' || (n > 1 && digits[0] == '0'))
        return -1;
    return (int64_t)strtoll(digits, NULL, 10);
}

/* The highest N of entries "prefixN" of a directory; a missing directory has none. */
static int highest(const char *dir, const char *prefix, int64_t none, int64_t *out, struct err *err)
{
    const struct dirent *entry;
    int64_t best = none;
    int failed;

    DIR *d = opendir(dir);
    if (!d && errno != ENOENT)
        return err_set_errno(err, errno, "cannot list %s", dir);
    while (d && (errno = 0, entry = readdir(d))) {
        int64_t n = numbered(entry->d_name, prefix);
        if (n > best)
            best = n;
    }
    failed = d ? errno : 0;
    if (d)
        closedir(d);
    if (failed)
        return err_set_errno(err, failed, "cannot list %s", dir);
    *out = best;
    return 0;
}

int job_dir_last_attempt(const char *jobdir, int64_t *attempt, struct err *err)
{
    return highest(jobdir, "attempt-", 0, attempt, err);
}

int job_dir_last_checkpoint(const char *jobdir, int64_t *step, struct err *err)
{
    char *dir = job_dir_checkpoints(jobdir);
    int rc = highest(dir, "step-", -1, step, err);

    free(dir);
    return rc;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

int job_dir_checkpoint_steps(const char *jobdir, int64_t **steps, int64_t *n, struct err *err)
{
    char *dir = job_dir_checkpoints(jobdir);
    const struct dirent *entry;
    int64_t *list = NULL, count = 0, step;
    int failed, rc = 0;

    DIR *d = opendir(dir);
    if (!d && errno != ENOENT) {
        rc = err_set_errno(err, errno, "cannot list %s", dir);
        goto out;
    }
    while (d && (errno = 0, entry = readdir(d))) {
        step = numbered(entry->d_name, "step-");
        if (step < 0)
            continue;
        list = xrealloc(list, (size_t)(count + 1) * sizeof(*list));
        list[count++] = step;
    }
    failed = d ? errno : 0;
    if (d)
        closedir(d);
    if (failed) {
        rc = err_set_errno(err, failed, "cannot list %s", dir);
        goto out;
    }
    if (count > 0)
        qsort(list, (size_t)count, sizeof(*list), ascending);
    *steps = list;
    *n = count;
    list = NULL;
out:
    free(list);
    free(dir);
    return rc;
}
