#include "tests/unit/core/tmpdir.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
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

int tmpdir_write(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    if (!f)
        return -1;
    int put = fputs(text, f);
    return fclose(f) == 0 && put >= 0 ? 0 : -1;
}

void tmpdir_put(const char *path, const char *text)
{
    cr_assert_eq(tmpdir_write(path, text), 0, "%s", path);
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

enum { JAIL_FAILED = 1, JAIL_IMPOSSIBLE = 77 };

void tmpdir_jail_failed(const char *file, int line, const char *what)
{
    dprintf(STDERR_FILENO, "%s:%d: CHECK failed: %s\n", file, line, what);
    _exit(JAIL_FAILED);
}

/* The identities are compared as well, since everything depends on chroot(2) having worked. */
static int enter_jail(const char *path)
{
    struct stat want, root, here;

    if (stat(path, &want) != 0)
        return -1;
    if (chroot(path) != 0 && (unshare(CLONE_NEWUSER) != 0 || chroot(path) != 0))
        return -1;
    if (chdir("/") != 0 || stat("/", &root) != 0 || stat(".", &here) != 0)
        return -1;
    if (root.st_dev != want.st_dev || root.st_ino != want.st_ino)
        return -1;
    return here.st_dev == want.st_dev && here.st_ino == want.st_ino ? 0 : -1;
}

void tmpdir_jail(void (*test)(void))
{
    struct tmpdir d = tmpdir_make();
    int status = -1;

    pid_t child = fork();
    if (child == 0) {
        if (enter_jail(d.path) != 0)
            _exit(JAIL_IMPOSSIBLE);
        test();
        _exit(0);
    }
    cr_assert(child > 0);
    cr_assert_eq(waitpid(child, &status, 0), child);
    tmpdir_fini(&d);
    if (WIFEXITED(status) && WEXITSTATUS(status) == JAIL_IMPOSSIBLE)
        cr_skip_test("changing the root directory is not allowed here");
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d, see above", status);
}
