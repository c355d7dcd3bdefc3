#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "tests/unit/core/tmpdir.h"

static mode_t mode_of(const char *path)
{
    struct stat st;

    cr_assert_eq(stat(path, &st), 0, "%s", path);
    return st.st_mode & 0777;
}

static int entry_count(const char *dir)
{
    char command[600];
    int n = -1;

    snprintf(command, sizeof(command), "ls -A %s | wc -l", dir);
    FILE *f = popen(command, "r");
    cr_assert_eq(fscanf(f, "%d", &n), 1);
    pclose(f);
    return n;
}

Test(fs, mkdir_p)
{
    struct tmpdir d = tmpdir_make();

    umask(022);
    cr_assert_eq(fs_mkdir_p(tmpdir_at(&d, "a/b/c"), false, NULL), 0);
    cr_assert_eq(mode_of(tmpdir_at(&d, "a/b/c")), 0755);
    cr_assert_eq(fs_mkdir_p(tmpdir_at(&d, "a/b/c"), false, NULL), 0, "again");
    cr_assert_eq(fs_mkdir_p(tmpdir_at(&d, "p//q/"), true, NULL), 0);
    cr_assert_eq(mode_of(tmpdir_at(&d, "p")), 0700);
    cr_assert_eq(mode_of(tmpdir_at(&d, "p/q")), 0700);
    cr_assert_eq(fs_mkdir_p("/", false, NULL), 0);
    cr_assert_eq(chdir(d.path), 0);
    cr_assert_eq(fs_mkdir_p("r/s", false, NULL), 0);
    cr_assert(fs_exists(tmpdir_at(&d, "r/s")));
    cr_assert_eq(symlink("a", tmpdir_at(&d, "link")), 0);
    cr_assert_eq(fs_mkdir_p(tmpdir_at(&d, "link/z"), false, NULL), 0);
    cr_assert(fs_exists(tmpdir_at(&d, "a/z")));
    tmpdir_fini(&d);
}

Test(fs, mkdir_p_fails_at_a_file_and_names_it)
{
    struct tmpdir d = tmpdir_make();
    struct err err = {0};

    tmpdir_put(tmpdir_at(&d, "f"), "");
    cr_assert_eq(fs_mkdir_p(tmpdir_at(&d, "f/g/h"), false, &err), ERR_IO);
    cr_assert_not_null(strstr(err.msg, tmpdir_at(&d, "f")));
    cr_assert_not_null(strstr(err.msg, "Not a directory"), "%s", err.msg);
    cr_assert_eq(fs_mkdir_p(tmpdir_at(&d, "f"), false, NULL), ERR_IO);
    cr_assert_eq(fs_mkdir_p("", false, NULL), ERR_NOT_FOUND);
    tmpdir_fini(&d);
}

/* Every call of fs_remove_tree runs in a jail (tmpdir.h): code that is wrong in any way removes a
 * temporary directory there and nothing else. */
static void jailed_remove_tree(void)
{
    CHECK(fs_mkdir_p("/top/x/y", false, NULL) == 0);
    for (int i = 0; i < 500; i++) {
        char name[64];
        snprintf(name, sizeof(name), "/top/x/f%d", i);
        CHECK(tmpdir_write(name, "content") == 0);
    }
    CHECK(tmpdir_write("/top/.hidden", "") == 0);
    CHECK(mkfifo("/top/fifo", 0600) == 0);
    CHECK(tmpdir_write("/beside", "keep") == 0);
    CHECK(fs_remove_tree("/top", NULL) == 0);
    CHECK(!fs_exists("/top"));
    CHECK(fs_remove_tree("/top", NULL) == 0); /* a missing path is fine */
    CHECK(fs_remove_tree("/no/parent", NULL) == 0);
    CHECK(tmpdir_write("/top", "a file") == 0);
    CHECK(fs_remove_tree("/top", NULL) == 0);
    CHECK(!fs_exists("/top"));
    CHECK(fs_mkdir_p("/dir/inner", false, NULL) == 0);
    CHECK(chdir("/dir") == 0);
    CHECK(fs_remove_tree("inner//", NULL) == 0); /* relative */
    CHECK(!fs_exists("/dir/inner"));
    CHECK(tmpdir_holds("/beside", "keep"));
}

Test(fs, remove_tree)
{
    tmpdir_jail(jailed_remove_tree);
}

static void jailed_remove_tree_with_links(void)
{
    static const char *const how[] = {"/link", "/link/", "/link//"};
    struct stat st;

    CHECK(fs_mkdir_p("/precious", false, NULL) == 0);
    CHECK(fs_mkdir_p("/top/sub", false, NULL) == 0);
    CHECK(tmpdir_write("/precious/f", "keep") == 0);
    CHECK(symlink("../precious", "/top/link") == 0);
    CHECK(symlink("../../precious/f", "/top/sub/file-link") == 0);
    CHECK(symlink("gone", "/top/dangling") == 0);
    CHECK(fs_remove_tree("/top", NULL) == 0);
    CHECK(!fs_exists("/top"));
    CHECK(tmpdir_holds("/precious/f", "keep"));
    for (int i = 0; i < 3; i++) {
        CHECK(symlink("precious", "/link") == 0);
        CHECK(fs_remove_tree(how[i], NULL) == 0);
        CHECK(lstat("/link", &st) != 0); /* the link itself is gone */
        CHECK(tmpdir_holds("/precious/f", "keep"));
    }
}

Test(fs, remove_tree_does_not_follow_links)
{
    tmpdir_jail(jailed_remove_tree_with_links);
}

static void jailed_remove_tree_of_the_root(void)
{
    static const char *const names[] = {"///", "/", "/.", "/sub/..", ".", "..", ""};

    CHECK(fs_mkdir_p("/sub", false, NULL) == 0);
    CHECK(tmpdir_write("/keep", "keep") == 0);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        CHECK(fs_remove_tree(names[i], NULL) == ERR_INVALID);
    CHECK(tmpdir_holds("/keep", "keep"));
    CHECK(fs_exists("/sub"));
}

Test(fs, remove_tree_refuses_the_root)
{
    tmpdir_jail(jailed_remove_tree_of_the_root);
}

Test(fs, read_file_appends)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "f");
    struct buf b = {0};

    tmpdir_put(path, "hello");
    buf_add_str(&b, ">");
    cr_assert_eq(fs_read_file(path, 5, &b, NULL), 0);
    cr_assert_str_eq(buf_str(&b), ">hello");
    tmpdir_put(path, "");
    cr_assert_eq(fs_read_file(path, 0, &b, NULL), 0);
    cr_assert_str_eq(buf_str(&b), ">hello");
    buf_clear(&b);
    cr_assert_eq(fs_read_file("/proc/self/status", 1 << 20, &b, NULL), 0);
    cr_assert(b.len > 100, "a file that says it has 0 bytes");
    buf_fini(&b);
    tmpdir_fini(&d);
}

Test(fs, read_file_of_some_megabytes)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "f");
    struct buf b = {0};
    size_t n = 3000001;
    FILE *f = fopen(path, "w");

    for (size_t i = 0; i < n; i++)
        fputc((int)(i * 7 % 251), f);
    fclose(f);
    cr_assert_eq(fs_read_file(path, n, &b, NULL), 0);
    cr_assert_eq(b.len, n);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq((unsigned char)b.data[i], i * 7 % 251);
    buf_fini(&b);
    tmpdir_fini(&d);
}

Test(fs, read_file_failures_leave_the_buffer)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "f");
    struct buf b = {0};
    struct err err = {0};

    tmpdir_put(path, "hello");
    buf_add_str(&b, ">");
    cr_assert_eq(fs_read_file(path, 4, &b, &err), ERR_INVALID);
    cr_assert_not_null(strstr(err.msg, path));
    cr_assert_eq(fs_read_file("/proc/self/status", 10, &b, NULL), ERR_INVALID);
    cr_assert_eq(fs_read_file(tmpdir_at(&d, "none"), 10, &b, NULL), ERR_NOT_FOUND);
    cr_assert_eq(fs_read_file(d.path, 1 << 20, &b, NULL), ERR_IO);
    cr_assert_str_eq(buf_str(&b), ">");
    cr_assert_eq(b.len, 1);
    buf_fini(&b);
    tmpdir_fini(&d);
}

Test(fs, read_tail)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "f");
    struct buf b = {0};
    struct err err = {0};

    tmpdir_put(path, "hello\n");
    cr_assert_eq(fs_read_tail(path, 3, &b, NULL), 0);
    cr_assert_eq(fs_read_tail(path, 6, &b, NULL), 0);
    cr_assert_eq(fs_read_tail(path, 100, &b, NULL), 0);
    cr_assert_str_eq(buf_str(&b), "lo\nhello\nhello\n");
    tmpdir_put(path, "");
    cr_assert_eq(fs_read_tail(path, 3, &b, NULL), 0);
    cr_assert_eq(fs_read_tail("/nowhere/f", 3, &b, &err), ERR_NOT_FOUND);
    cr_assert_str_eq(buf_str(&b), "lo\nhello\nhello\n");
    buf_fini(&b);
    /* a log of 100 GiB, of which 3 bytes are read */
    cr_assert_eq(truncate(path, (off_t)100 << 30), 0);
    cr_assert_eq(fs_read_tail(path, 3, &b, NULL), 0);
    cr_assert_eq(b.len, 3);
    buf_fini(&b);
    tmpdir_fini(&d);
}

Test(fs, write_atomic_creates_and_replaces)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "f");

    umask(022);
    cr_assert_eq(fs_write_file_atomic(path, "one", 3, NULL), 0);
    cr_assert(tmpdir_holds(path, "one"));
    cr_assert_eq(mode_of(path), 0644);
    cr_assert_eq(fs_write_file_atomic(path, "twotwo", 6, NULL), 0);
    cr_assert(tmpdir_holds(path, "twotwo"));
    cr_assert_eq(fs_write_file_atomic(path, NULL, 0, NULL), 0);
    cr_assert(tmpdir_holds(path, ""));
    cr_assert_eq(entry_count(d.path), 1, "nothing is left aside");
    cr_assert_eq(chdir(d.path), 0);
    cr_assert_eq(fs_write_file_atomic("relative", "x", 1, NULL), 0);
    cr_assert(tmpdir_holds(tmpdir_at(&d, "relative"), "x"));
    tmpdir_fini(&d);
}

Test(fs, write_atomic_failure_leaves_the_old_file)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "f");
    char bytes[1000] = {0};
    struct err err = {0};

    tmpdir_put(path, "old");
    tmpdir_limit_file_size(100);
    cr_assert_eq(fs_write_file_atomic(path, bytes, sizeof(bytes), &err), ERR_IO);
    cr_assert_not_null(strstr(err.msg, path));
    cr_assert(tmpdir_holds(path, "old"));
    cr_assert_eq(entry_count(d.path), 1, "the file aside is removed");
    cr_assert_eq(mkdir(tmpdir_at(&d, "dir"), 0755), 0);
    cr_assert_neq(fs_write_file_atomic(tmpdir_at(&d, "dir"), "x", 1, NULL), 0);
    cr_assert_eq(entry_count(d.path), 2, "also when the rename fails");
    cr_assert_eq(fs_write_file_atomic(tmpdir_at(&d, "no/f"), "x", 1, NULL), ERR_NOT_FOUND);
    tmpdir_fini(&d);
}

Test(fs, write_all_to_a_full_device)
{
    struct err err = {0};
    int fd = open("/dev/full", O_WRONLY);

    cr_assert(fd >= 0);
    cr_assert_eq(fs_write_all(fd, "x", 1, "the-path", &err), ERR_NOSPACE);
    cr_assert_not_null(strstr(err.msg, "the-path"));
    cr_assert_eq(fs_write_all(fd, NULL, 0, "the-path", NULL), 0);
    close(fd);
}

static volatile sig_atomic_t interruptions;

static void interrupt(int sig)
{
    (void)sig;
    interruptions++;
}

/* A pipe holds 64 KiB. A write that waits for room behind that returns what it has done so far when
 * a signal comes, or EINTR. */
Test(fs, write_all_goes_on_after_short_writes)
{
    enum { N = 1000000 };
    struct sigaction action = {.sa_handler = interrupt}; /* without SA_RESTART */
    struct itimerval each_ms = {{0, 1000}, {0, 1000}}, never = {0};
    unsigned char *bytes = malloc(N);
    int ends[2];

    for (int i = 0; i < N; i++)
        bytes[i] = (unsigned char)(i * 7 % 251);
    cr_assert_eq(pipe(ends), 0);
    pid_t reader = fork();
    if (reader == 0) {
        size_t n = 0;
        ssize_t got;
        unsigned char chunk[777];
        close(ends[1]);
        while ((got = read(ends[0], chunk, sizeof(chunk))) > 0) {
            usleep(20);
            for (ssize_t i = 0; i < got; i++)
                if (chunk[i] != n++ * 7 % 251)
                    _exit(1);
        }
        _exit(n == N ? 0 : 2);
    }
    close(ends[0]);
    cr_assert_eq(sigaction(SIGALRM, &action, NULL), 0);
    cr_assert_eq(setitimer(ITIMER_REAL, &each_ms, NULL), 0);
    cr_expect_eq(fs_write_all(ends[1], bytes, N, "pipe", NULL), 0);
    setitimer(ITIMER_REAL, &never, NULL);
    cr_expect_gt(interruptions, 3);
    close(ends[1]);
    int status;
    cr_assert_eq(waitpid(reader, &status, 0), reader);
    cr_assert_eq(status, 0);
    free(bytes);
}

/* Read by several threads: every byte from its place, and what is missing is missed. */
Test(fs, pread_all_of_much)
{
    enum { BYTES = 40 << 20, FROM = 12345 };
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "much");
    unsigned char *wrote = xmalloc(BYTES), *read = xcalloc(BYTES, 1);
    struct err err = {0};

    for (size_t i = 0; i < BYTES; i++)
        wrote[i] = (unsigned char)(i * 2654435761u >> 13);
    cr_assert_eq(fs_write_file_atomic(path, wrote, BYTES, NULL), 0);
    int fd = open(path, O_RDONLY);
    cr_assert_eq(fs_pread_all(fd, read, BYTES - FROM, FROM, path, NULL), 0);
    cr_assert_eq(memcmp(read, wrote + FROM, BYTES - FROM), 0);
    cr_assert_eq(fs_pread_all(fd, read, BYTES - FROM, FROM + 1, path, &err), ERR_CORRUPT);
    cr_assert(strstr(err.msg, path), "%s", err.msg);
    close(fd);
    free(wrote);
    free(read);
    tmpdir_fini(&d);
}

Test(fs, pread_all)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "f");
    char out[8] = {0};
    struct err err = {0};

    tmpdir_put(path, "0123456789");
    int fd = open(path, O_RDONLY);
    cr_assert_eq(fs_pread_all(fd, out, 4, 6, path, NULL), 0);
    cr_assert_str_eq(out, "6789");
    cr_assert_eq(fs_pread_all(fd, out, 0, 100, path, NULL), 0);
    cr_assert_eq(fs_pread_all(fd, out, 5, 6, path, &err), ERR_CORRUPT);
    cr_assert_not_null(strstr(err.msg, path));
    cr_assert_not_null(strstr(err.msg, "ends at byte 10"), "%s", err.msg);
    close(fd);
    cr_assert_eq(fs_pread_all(fd, out, 1, 0, path, NULL), ERR_IO);
    tmpdir_fini(&d);
}

Test(fs, rename_sync)
{
    struct tmpdir d = tmpdir_make();
    struct err err = {0};

    tmpdir_put(tmpdir_at(&d, "a"), "new");
    tmpdir_put(tmpdir_at(&d, "b"), "old");
    cr_assert_eq(fs_rename_sync(tmpdir_at(&d, "a"), tmpdir_at(&d, "b"), NULL), 0);
    cr_assert(tmpdir_holds(tmpdir_at(&d, "b"), "new"));
    cr_assert_not(fs_exists(tmpdir_at(&d, "a")));
    cr_assert_eq(fs_rename_sync(tmpdir_at(&d, "a"), tmpdir_at(&d, "b"), &err), ERR_NOT_FOUND);
    cr_assert_not_null(strstr(err.msg, tmpdir_at(&d, "a")));
    tmpdir_fini(&d);
}

Test(fs, sync_dir)
{
    struct tmpdir d = tmpdir_make();

    cr_assert_eq(fs_sync_dir(d.path, NULL), 0);
    cr_assert_eq(fs_sync_dir(tmpdir_at(&d, "none"), NULL), ERR_NOT_FOUND);
    tmpdir_put(tmpdir_at(&d, "f"), "");
    cr_assert_eq(fs_sync_dir(tmpdir_at(&d, "f"), NULL), ERR_IO);
    tmpdir_fini(&d);
}

Test(fs, size_and_existence)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "f");
    int64_t n = -1;

    cr_assert_not(fs_exists(path));
    cr_assert_eq(fs_file_size(path, &n, NULL), ERR_NOT_FOUND);
    cr_assert_eq(n, -1);
    tmpdir_put(path, "12345");
    cr_assert(fs_exists(path));
    cr_assert_eq(fs_file_size(path, &n, NULL), 0);
    cr_assert_eq(n, 5);
    cr_assert_eq(truncate(path, 5000000000), 0);
    cr_assert_eq(fs_file_size(path, &n, NULL), 0);
    cr_assert_eq(n, 5000000000);
    cr_assert_eq(symlink("gone", tmpdir_at(&d, "dangling")), 0);
    cr_assert_not(fs_exists(tmpdir_at(&d, "dangling")));
    tmpdir_fini(&d);
}

Test(fs, free_bytes)
{
    int64_t n = -1;
    struct statvfs st;

    cr_assert_eq(fs_free_bytes("/nowhere", &n, NULL), ERR_NOT_FOUND);
    cr_assert_eq(n, -1);
    cr_assert_eq(fs_free_bytes("/tmp", &n, NULL), 0);
    cr_assert_eq(statvfs("/tmp", &st), 0);
    int64_t all = (int64_t)st.f_blocks * (int64_t)st.f_frsize;
    cr_assert(n > 0 && n <= all, "%ld of %ld", (long)n, (long)all);
}

Test(fs, lock_is_exclusive_between_processes_and_ends_with_them)
{
    struct tmpdir d = tmpdir_make();
    const char *path = tmpdir_at(&d, "lock");
    struct err err = {0};
    int ends[2], fd = -1, second = -1;
    char byte;

    cr_assert_eq(pipe(ends), 0);
    pid_t holder = fork();
    if (holder == 0) {
        int held = -1;
        byte = fs_lock_file(path, &held, NULL) == 0 ? 'y' : 'n';
        if (write(ends[1], &byte, 1) == 1)
            pause();
        _exit(1);
    }
    cr_assert_eq(read(ends[0], &byte, 1), 1);
    cr_assert_eq(byte, 'y');
    cr_assert_eq(fs_lock_file(path, &fd, &err), ERR_CONFLICT);
    cr_assert_eq(fd, -1);
    cr_assert_not_null(strstr(err.msg, path));
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
    cr_assert_eq(fs_lock_file(path, &fd, NULL), 0, "the dead holder's lock is free");
    cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    cr_assert_eq(fs_lock_file(path, &second, NULL), ERR_CONFLICT);
    close(fd);
    cr_assert_eq(fs_lock_file(path, &second, NULL), 0);
    close(second);
    cr_assert_eq(fs_lock_file(tmpdir_at(&d, "no/lock"), &fd, NULL), ERR_NOT_FOUND);
    tmpdir_fini(&d);
}

Test(fs, join)
{
    static const char *const rows[][3] = {{"a", "b", "a/b"},
                                          {"a/", "b", "a/b"},
                                          {"/", "b", "/b"},
                                          {"", "b", "b"},
                                          {"a/b", "c/d", "a/b/c/d"}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char *path = fs_join(rows[i][0], rows[i][1]);
        cr_assert_str_eq(path, rows[i][2]);
        free(path);
    }
}
