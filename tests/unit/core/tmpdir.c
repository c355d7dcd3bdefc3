#include "tests/unit/core/tmpdir.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

struct tmpdir tmpdir_make(void)
{
    struct tmpdir d = {"/tmp/castor-core-XXXXXX"};

    cr_assert_not_null(mkdtemp(d.path));
    return d;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

void tmpdir_fini(struct tmpdir *d)
{
    nftw(d->path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *tmpdir_at(const struct tmpdir *d, const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof(paths[0]), "%s/%s", d->path, name);
    return path;
}

void tmpdir_put(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    cr_assert_not_null(f);
    fputs(text, f);
    cr_assert_eq(fclose(f), 0);
}

int tmpdir_holds(const char *path, const char *text)
{
    char content[8192];
    FILE *f = fopen(path, "r");
    size_t n;

    if (!f)
        return 0;
    n = fread(content, 1, sizeof(content), f);
    fclose(f);
    return n == strlen(text) && memcmp(content, text, n) == 0;
}

void tmpdir_limit_file_size(unsigned long bytes)
{
    struct rlimit limit = {bytes, RLIM_INFINITY};

    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}
