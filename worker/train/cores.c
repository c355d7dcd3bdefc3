#include "worker/train/cores.h"

#include <dirent.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "core/log.h"

enum { LEAST = 2, LIST_BYTES = 1 << 14 };

/* "0-3,8" into a set; false for anything else. */
static bool parse_list(const char *text, cpu_set_t *out)
{
    CPU_ZERO(out);
    while (*text && *text != '\n') {
        char *end;
        long first = strtol(text, &end, 10), last = first;
        bool sound = end != text;
        if (sound && *end == '-') {
            text = end + 1;
            last = strtol(text, &end, 10);
            sound = end != text;
        }
        if (!sound || first < 0 || last >= CPU_SETSIZE || (*end && !strchr(",\n", *end)))
            return false;
        for (long cpu = first; cpu <= last; cpu++)
            CPU_SET((int)cpu, out);
        text = *end == ',' ? end + 1 : end;
    }
    return CPU_COUNT(out) > 0;
}

/* The usable processors next to a GPU; none when nothing is known. */
static void next_to(const char *root, const char *address, const cpu_set_t *usable, cpu_set_t *out)
{
    char *path = xasprintf("%s/sys/bus/pci/devices/%s/local_cpulist", root, address);
    struct buf text = {0};
    if (fs_read_file(path, LIST_BYTES, &text, NULL) != 0 || !parse_list(buf_str(&text), out))
        CPU_ZERO(out);
    CPU_AND(out, out, usable);
    buf_fini(&text);
    free(path);
}

/* Of the GPUs next to the same processors: how many there are, and how many stand before this one.
 */
static int count_neighbours(const char *root, const char *address, const cpu_set_t *usable,
                            const cpu_set_t *local, int *before)
{
    char *path = xasprintf("%s/proc/driver/nvidia/gpus", root);
    DIR *dir = opendir(path);
    bool listed = false;
    int n = 0;

    *before = 0;
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        cpu_set_t other;
        if (e->d_name[0] == '.')
            continue;
        next_to(root, e->d_name, usable, &other);
        if (!CPU_EQUAL(&other, local))
            continue;
        n++;
        *before += strcmp(e->d_name, address) < 0;
        listed = listed || strcmp(e->d_name, address) == 0;
    }
    if (dir)
        closedir(dir);
    free(path);
    return listed ? n : 0;
}

void cores_part(const char *root, const char *address, const cpu_set_t *usable, cpu_set_t *out)
{
    cpu_set_t local;
    int before, at = 0;

    *out = *usable;
    next_to(root, address, usable, &local);
    int n = count_neighbours(root, address, usable, &local, &before), all = CPU_COUNT(&local);
    if (n == 0 || all / n < LEAST)
        return;
    CPU_ZERO(out);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &local))
            continue;
        if (at >= all * before / n && at < all * (before + 1) / n)
            CPU_SET(cpu, out);
        at++;
    }
}

uint64_t cores_nodes(const char *root, const cpu_set_t *processors)
{
    uint64_t nodes = 0;
    for (int n = 0; n < CORES_MAX_NODES; n++) {
        char *path = xasprintf("%s/sys/devices/system/node/node%d/cpulist", root, n);
        struct buf text = {0};
        cpu_set_t of;
        bool known = fs_read_file(path, LIST_BYTES, &text, NULL) == 0;
        if (known && parse_list(buf_str(&text), &of)) { /* else a node of memory alone */
            CPU_AND(&of, &of, processors);
            nodes |= (uint64_t)(CPU_COUNT(&of) > 0) << n;
        }
        buf_fini(&text);
        free(path);
    }
    return nodes;
}

bool cores_spread_pages(uint64_t nodes)
{
    unsigned long mask[CORES_MAX_NODES / (8 * sizeof(unsigned long))];
    memcpy(mask, &nodes, sizeof mask);
    /* the kernel looks at one bit less than it is told */
    return syscall(SYS_set_mempolicy, MPOL_INTERLEAVE, mask, CORES_MAX_NODES + 1) == 0;
}

static void take_memory(const cpu_set_t *part)
{
    uint64_t nodes = cores_nodes("", part);
    int n = __builtin_popcountll(nodes);
    if (n > 1 && cores_spread_pages(nodes))
        log_info("cores", "memory takes turns among the %d nodes of this job's processors", n);
}

void cores_take(const struct device *d)
{
    cpu_set_t usable, part;

    if (sched_getaffinity(0, sizeof usable, &usable) != 0)
        return;
    part = usable;
    if (d->address[0])
        cores_part("", d->address, &usable, &part);
    if (!CPU_EQUAL(&part, &usable) && sched_setaffinity(0, sizeof part, &part) == 0)
        log_info("cores", "%d of %d processors are this job's: its part of those next to %s",
                 CPU_COUNT(&part), CPU_COUNT(&usable), d->address);
    take_memory(&part);
}
