#include "worker/train/crumb.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int crumb_open(const char *path, struct crumb **out, struct err *err)
{
    int rc = 0;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_set_errno(err, errno, "%s", path);
    struct crumb first = {.step = -1};
    if (write(fd, &first, sizeof first) != (ssize_t)sizeof first) {
        rc = err_set_errno(err, errno, "%s", path);
        goto out;
    }
    void *p = mmap(NULL, sizeof first, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        rc = err_set_errno(err, errno, "mapping %s", path);
        goto out;
    }
    *out = p;
out:
    close(fd);
    return rc;
}

void crumb_close(struct crumb *c)
{
    if (c)
        munmap(c, sizeof *c);
}

void crumb_read(const char *path, struct crumb *out)
{
    *out = (struct crumb){.step = -1};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    struct crumb c;
    if (read(fd, &c, sizeof c) == (ssize_t)sizeof c) {
        c.where[sizeof c.where - 1] = 0;
        *out = c;
    }
    close(fd);
}
