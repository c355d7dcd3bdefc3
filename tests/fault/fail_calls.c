/*
 * A shared object to preload: makes the n-th file operation on a chosen part of the file tree fail.
 *
 *   FAULT_PATH   operations on paths that contain this text are counted, and no others
 *
 *   FAULT_CALLS  which: "write", "fsync", "rename", "mkdir", "open" (for writing), "unlink",
 *                "reserve", "pread", "pwrite" (these two without io_uring, as where a container
 *                forbids it), or "all"
 *
 *   FAULT_NTH    the first one that fails, from 1; 0 = none
 *
 *   FAULT_EVERY  1: every later one fails, too
 *
 *   FAULT_ERRNO  the number it fails with
 *
 *   FAULT_DELAY  microseconds that every operation which is counted takes longer
 *
 *   FAULT_VMSTAT a file to read in place of /proc/vmstat
 *
 *   FAULT_COUNT  a file that is overwritten with the count at exit
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long calls;

static long number(const char *name)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : 0;
}

/* Count the call; is it one that fails? */
static int fails(const char *call, const char *path)
{
    const char *part = getenv("FAULT_PATH"), *which = getenv("FAULT_CALLS");
    if (!part || !which || !path || !strstr(path, part))
        return 0;
    if (strcmp(which, "all") != 0 && strcmp(which, call) != 0)
        return 0;
    if (number("FAULT_DELAY") > 0)
        usleep((useconds_t)number("FAULT_DELAY"));
    long n = number("FAULT_NTH"), now = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    if (n == 0 || now < n || (now > n && !number("FAULT_EVERY")))
        return 0;
    errno = (int)number("FAULT_ERRNO");
    return 1;
}

static int fails_fd(const char *call, int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        return 0;
    path[n] = 0;
    return fails(call, path);
}

#define REAL(type, name, ...)                                                                      \
    static type (*real)(__VA_ARGS__);                                                              \
    if (!real)                                                                                     \
    *(void **)&real = dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *bytes, size_t n)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!fails_fd("write", fd))
        return real(fd, bytes, n);
    if (n > 1) { /* a full disk takes a part first */
        int why = errno;
        if (real(fd, bytes, n / 2) < 0)
            return -1;
        errno = why;
    }
    return -1;
}

int fsync(int fd)
{
    REAL(int, "fsync", int);
    return fails_fd("fsync", fd) ? -1 : real(fd);
}

int posix_fallocate(int fd, off_t offset, off_t bytes)
{
    REAL(int, "posix_fallocate", int, off_t, off_t);
    return fails_fd("reserve", fd) ? errno : real(fd, offset, bytes);
}

ssize_t pread(int fd, void *bytes, size_t n, off_t offset)
{
    REAL(ssize_t, "pread", int, void *, size_t, off_t);
    return fails_fd("pread", fd) ? -1 : real(fd, bytes, n, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset)
{
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return fails_fd("pwrite", fd) ? -1 : real(fd, bytes, n, offset);
}

int io_uring_queue_init(unsigned entries, void *ring, unsigned flags)
{
    REAL(int, "io_uring_queue_init", unsigned, void *, unsigned);
    const char *which = getenv("FAULT_CALLS");
    return which && which[0] == 'p' ? -EPERM : real(entries, ring, flags);
}

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    return fails("rename", to) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    return fails("mkdir", path) ? -1 : real(path, mode);
}

int unlinkat(int dir, const char *name, int flags)
{
    REAL(int, "unlinkat", int, const char *, int);
    return fails_fd("unlink", dir) ? -1 : real(dir, name, flags);
}

int open(const char *path, int flags, ...)
{
    REAL(int, "open", const char *, int, ...);
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list args;
        va_start(args, flags);
        mode = (mode_t)va_arg(args, int);
        va_end(args);
        if (fails("open", path))
            return -1;
    }
    const char *vmstat = getenv("FAULT_VMSTAT");
    return real(vmstat && strcmp(path, "/proc/vmstat") == 0 ? vmstat : path, flags, mode);
}

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("FAULT_COUNT");
    char text[32];
    if (!path || calls == 0) /* the supervisor has nothing to tell */
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        return;
    int n = snprintf(text, sizeof text, "%ld", calls);
    if (write(fd, text, (size_t)n) < 0)
        return;
    close(fd);
}
