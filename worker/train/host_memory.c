#include "worker/train/host_memory.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/log.h"
#include "core/units.h"

enum { FILE_BYTES = 1 << 20, LOCK_SECONDS = 60 };

/* Shares that are kept back: of the whole, with what is in use; of the same, beside it. */
static const double reserve_whole = 0.07, reserve_left = 0.02;
/* Of a process that trains, beside arenas: allocator, threads, libraries. */
static const double process_bytes = 64.0 * 1048576;

/* What a version of control groups calls things. */
struct group_files {
    const char *mount_type, *controller;
    const char *limits[2];
    const char *usage;
    const char *stat_limit;     /* in memory.stat: the tightest, of groups out of sight too */
    const char *reclaimable[3]; /* in memory.stat: in use, but given up when memory is short */
};
static const struct group_files versions[] = {
    {"cgroup",
     "memory",
     {"memory.limit_in_bytes", NULL},
     "memory.usage_in_bytes",
     "hierarchical_memory_limit",
     {"total_inactive_file", "total_active_file", NULL}},
    {"cgroup2",
     "",
     {"memory.max", "memory.high"},
     "memory.current",
     NULL,
     {"inactive_file", "active_file", "slab_reclaimable"}},
};

/* --- files --- */

static void read_text(const char *dir, const char *file, struct buf *out)
{
    char *path = fs_join(dir, file);
    buf_clear(out);
    if (fs_read_file(path, FILE_BYTES, out, NULL) != 0)
        buf_clear(out);
    free(path);
}

static double number(const char *text, double otherwise)
{
    char *end;
    double n = strtod(text, &end);
    return end == text ? otherwise : n;
}

/* A file that holds a number; "max" and a file that is not there are `otherwise`. */
static double read_number(const char *dir, const char *file, double otherwise)
{
    struct buf text = {0};
    read_text(dir, file, &text);
    double n = text.len > 0 && buf_str(&text)[0] >= '0' && buf_str(&text)[0] <= '9'
                   ? number(buf_str(&text), otherwise)
                   : otherwise;
    buf_fini(&text);
    return n;
}

/* Of lines "key value" or "key: value". */
static double find_number(const char *lines, const char *key, double otherwise)
{
    size_t n = strlen(key);
    for (const char *line = lines; line && *line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, n) == 0 && strchr(": ", line[n]))
            return number(line + n + 1, otherwise);
    }
    return otherwise;
}

/* In a list with commas. */
static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, word, n) == 0 && (at[n] == ',' || at[n] == '\0'))
            return true;
    }
    return false;
}

/* --- bounds --- */

__attribute__((format(printf, 3, 4))) static void bound(struct host_memory *m, double bytes,
                                                        const char *fmt, ...)
{
    va_list args;
    bytes = bytes > 1 ? bytes : 1; /* 0 would be no bound */
    if (bytes >= (double)m->bytes)
        return;
    m->bytes = (size_t)bytes;
    va_start(args, fmt);
    vsnprintf(m->part, sizeof m->part, fmt, args);
    va_end(args);
}

static double without_reserve(double all, double of, double share)
{
    return all - share * of - process_bytes;
}

static void look_at_group(const struct group_files *v, const char *dir, const char *group,
                          enum host_moment moment, struct host_memory *m)
{
    const char *name = group[0] ? group : "/";
    struct buf stat = {0};
    double limit = (double)SIZE_MAX, used = read_number(dir, v->usage, 0);

    read_text(dir, "memory.stat", &stat);
    if (v->stat_limit && !group[0])
        limit = find_number(buf_str(&stat), v->stat_limit, limit);
    for (int k = 0; k < 2 && v->limits[k]; k++) {
        double n = read_number(dir, v->limits[k], limit);
        limit = n < limit ? n : limit;
    }
    for (int k = 0; k < 3 && v->reclaimable[k]; k++)
        used -= find_number(buf_str(&stat), v->reclaimable[k], 0);
    buf_fini(&stat);
    bound(m, without_reserve(limit, limit, reserve_whole),
          "the %.1f MiB that the control group %s is limited to", mib(limit), name);
    if (moment == HOST_LEFT)
        bound(m, without_reserve(limit - used, limit, reserve_left),
              "the %.1f MiB that the control group %s has left now of its limit of %.1f MiB",
              mib(limit - used), name, mib(limit));
}

/* From the group up to the root of what is mounted. */
static void look_at_groups(const struct group_files *v, const char *root, const char *mount,
                           char *group, enum host_moment moment, struct host_memory *m)
{
    for (;;) {
        char *dir = xasprintf("%s%s%s", root, mount, group);
        look_at_group(v, dir, group, moment, m);
        free(dir);
        char *slash = strrchr(group, '/');
        if (!slash)
            return;
        *slash = '\0';
    }
}

/* This process's group of a version, "" at the root; NULL where there is none. */
static char *own_group(const struct group_files *v, const char *root)
{
    struct buf text = {0};
    char *found = NULL;

    read_text(root, "proc/self/cgroup", &text);
    for (const char *line = buf_str(&text); line && *line && !found; line = strchr(line, '\n')) {
        char controllers[256] = "", path[4096] = "";
        line += *line == '\n';
        bool named = sscanf(line, "%*d:%255[^:\n]:%4095[^\n]", controllers, path) == 2;
        bool unnamed = sscanf(line, "%*d::%4095[^\n]", path) == 1;
        if (v->controller[0] ? named && has_word(controllers, v->controller) : unnamed)
            found = xstrdup(path);
    }
    buf_fini(&text);
    return found;
}

/* In a container the root of what is mounted may be the container's group, and a group's name
 * begins there or at the machine's own root. */
static void look_at_mounts(const struct group_files *v, const char *root, enum host_moment moment,
                           struct host_memory *m)
{
    char *group = own_group(v, root);
    struct buf text = {0};

    read_text(root, "proc/self/mountinfo", &text);
    for (const char *line = buf_str(&text); group && line && *line; line = strchr(line, '\n')) {
        char top[2048], mount[2048], type[32], options[512];
        line += *line == '\n';
        const char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*d %*d %*s %2047s %2047s", top, mount) != 2 ||
            sscanf(rest, " - %31s %*s %511s", type, options) != 2 ||
            strcmp(type, v->mount_type) != 0 ||
            (v->controller[0] && !has_word(options, v->controller)))
            continue;
        size_t n = strcmp(top, "/") == 0 ? 0 : strlen(top);
        bool below = strncmp(group, top, n) == 0 && (group[n] == '/' || group[n] == '\0');
        char *within = xstrdup(strncmp(group, "/..", 3) == 0 ? "" : below ? group + n : group);
        if (within[0] && within[strlen(within) - 1] == '/')
            within[strlen(within) - 1] = '\0';
        look_at_groups(v, root, mount, within, moment, m);
        free(within);
    }
    buf_fini(&text);
    free(group);
}

void host_memory_look(const char *root, enum host_moment moment, struct host_memory *out)
{
    struct host_memory m = {.bytes = SIZE_MAX};
    struct buf text = {0};

    read_text(root, "proc/meminfo", &text); /* in KiB */
    double all = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    all = 1024 * find_number(buf_str(&text), "MemTotal", all / 1024);
    double left = 1024 * find_number(buf_str(&text), "MemAvailable", all / 1024);
    buf_fini(&text);
    bound(&m, without_reserve(all, all, reserve_whole), "the %.1f MiB that the machine has",
          mib(all));
    if (moment == HOST_LEFT)
        bound(&m, without_reserve(left, all, reserve_left),
              "the %.1f MiB that are available on the machine now", mib(left));
    for (size_t v = 0; v < sizeof versions / sizeof versions[0]; v++)
        look_at_mounts(&versions[v], root, moment, &m);
    *out = m;
}

/* --- the lock --- */

int host_memory_lock(const volatile sig_atomic_t *terminate)
{
    double deadline = clock_monotonic() + LOCK_SECONDS;
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);

    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) {
        bool late = clock_monotonic() > deadline;
        if (late)
            log_warn("memory", "another job has been claiming host memory for %d s; going on",
                     LOCK_SECONDS);
        if (late || *terminate) {
            close(fd);
            return -1;
        }
        clock_sleep(0.05);
    }
    return fd;
}
