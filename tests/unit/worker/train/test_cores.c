/* Processors of jobs, on machines that are described by files. */
#include <criterion/criterion.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/train/cores.h"

static char root[] = "/tmp/castor-cores-XXXXXX";

static void make_root(void)
{
    cr_assert_not_null(mkdtemp(root));
}

static void remove_root(void)
{
    cr_assert_eq(fs_remove_tree(root, NULL), 0);
}

TestSuite(cores, .init = make_root, .fini = remove_root);

static void put(const char *directory, const char *address, const char *file, const char *text)
{
    char *dir = xasprintf("%s/%s/%s", root, directory, address);
    char *path = xasprintf("%s/%s", dir, file);
    cr_assert_eq(fs_mkdir_p(dir, false, NULL), 0);
    cr_assert_eq(fs_write_file_atomic(path, text, strlen(text), NULL), 0);
    free(path);
    free(dir);
}

/* listed: the driver has it; next_to: NULL = the kernel does not say */
static void add_gpu(const char *address, bool listed, const char *next_to)
{
    if (listed)
        put("proc/driver/nvidia/gpus", address, "information", "Model: GPU\n");
    if (next_to)
        put("sys/bus/pci/devices", address, "local_cpulist", next_to);
}

static cpu_set_t range(int first, int end)
{
    cpu_set_t s;
    CPU_ZERO(&s);
    for (int cpu = first; cpu < end; cpu++)
        CPU_SET(cpu, &s);
    return s;
}

static void expect(const char *address, cpu_set_t usable, int first, int end)
{
    cpu_set_t got, want = range(first, end);
    cores_part(root, address, &usable, &got);
    cr_expect(CPU_EQUAL(&got, &want), "%s: %d processors, %d to %d wanted", address,
              CPU_COUNT(&got), first, end);
}

Test(cores, two_nodes_with_two_gpus_each_give_a_half_of_their_node)
{
    add_gpu("0000:18:00.0", true, "0-15\n");
    add_gpu("0000:3b:00.0", true, "0-15\n");
    add_gpu("0000:86:00.0", true, "16-31\n");
    add_gpu("0000:af:00.0", true, "16-31\n");
    add_gpu("0000:00:1f.0", false, "0-15\n"); /* no GPU */
    expect("0000:18:00.0", range(0, 32), 0, 8);
    expect("0000:3b:00.0", range(0, 32), 8, 16);
    expect("0000:86:00.0", range(0, 32), 16, 24);
    expect("0000:af:00.0", range(0, 32), 24, 32);
    /* of what the process may use */
    expect("0000:18:00.0", range(2, 8), 2, 5);
    expect("0000:3b:00.0", range(2, 8), 5, 8);
    expect("0000:86:00.0", range(2, 8), 2, 8); /* none of it is next to that one */
}

Test(cores, parts_do_not_overlap_and_leave_nothing)
{
    cpu_set_t usable = range(0, 13), sum, part;
    const char *gpus[] = {"0000:01:00.0", "0000:02:00.0", "0000:0a:00.0"};
    CPU_ZERO(&sum);
    for (int k = 0; k < 3; k++)
        add_gpu(gpus[k], true, "0-3,4,5-63\n");
    for (int k = 0; k < 3; k++) {
        cpu_set_t both;
        cores_part(root, gpus[k], &usable, &part);
        CPU_AND(&both, &sum, &part);
        cr_expect_eq(CPU_COUNT(&both), 0);
        cr_expect_geq(CPU_COUNT(&part), 4);
        CPU_OR(&sum, &sum, &part);
    }
    cr_expect(CPU_EQUAL(&sum, &usable));
}

Test(cores, one_gpu_or_nothing_known_leaves_everything)
{
    expect("0000:18:00.0", range(0, 16), 0, 16); /* no files */
    add_gpu("0000:18:00.0", true, "0-15\n");
    expect("0000:18:00.0", range(0, 16), 0, 16);
    expect("0000:18:00.0", range(0, 32), 0, 16); /* the other node is far away */
    expect("0000:99:00.0", range(0, 16), 0, 16); /* one that the driver does not list */
    add_gpu("0000:19:00.0", true, NULL);
    expect("0000:19:00.0", range(0, 16), 0, 16);
    const char *nonsense[] = {"", "\n", "x", "3-", "0-9999", "1;2", "-1", "5-1\n"};
    for (size_t k = 0; k < sizeof nonsense / sizeof nonsense[0]; k++) {
        add_gpu("0000:20:00.0", true, nonsense[k]);
        expect("0000:20:00.0", range(0, 16), 0, 16);
    }
}

Test(cores, too_few_processors_are_not_parted)
{
    add_gpu("0000:01:00.0", true, "0-7\n");
    add_gpu("0000:02:00.0", true, "0-7\n");
    expect("0000:01:00.0", range(0, 3), 0, 3);
    expect("0000:02:00.0", range(0, 3), 0, 3);
    expect("0000:02:00.0", range(0, 4), 2, 4);
}

/* --- memory --- */

static void add_node(const char *name, const char *processors)
{
    put("sys/devices/system/node", name, "cpulist", processors);
}

static uint64_t nodes_of(int first, int end)
{
    cpu_set_t processors = range(first, end);
    return cores_nodes(root, &processors);
}

Test(cores, memory_is_of_the_nodes_of_the_processors)
{
    cpu_set_t all = range(0, 64), part;
    cr_expect_eq(nodes_of(0, 64), 0); /* nothing known */
    /* two sockets of two nodes each, threads of a core far apart, and a node without processors */
    add_node("node0", "0-7,32-39\n");
    add_node("node1", "8-15,40-47\n");
    add_node("node2", "16-23,48-55\n");
    add_node("node3", "24-31,56-63\n");
    add_node("node4", "\n");
    cr_expect_eq(nodes_of(0, 64), 0xf);
    cr_expect_eq(nodes_of(0, 8), 0x1);
    cr_expect_eq(nodes_of(33, 35), 0x1);
    cr_expect_eq(nodes_of(12, 18), 0x6);
    cr_expect_eq(nodes_of(100, 101), 0);
    add_gpu("0000:18:00.0", true, "0-15,32-47\n");  /* of a socket */
    add_gpu("0000:86:00.0", true, "24-31,56-63\n"); /* of a node */
    cores_part(root, "0000:18:00.0", &all, &part);
    cr_expect_eq(cores_nodes(root, &part), 0x3);
    cores_part(root, "0000:86:00.0", &all, &part);
    cr_expect_eq(cores_nodes(root, &part), 0x8);
}

/* Of the nodes that there are, which may be one. */
Test(cores, pages_take_turns_among_nodes)
{
    unsigned long mask[CORES_MAX_NODES / (8 * sizeof(unsigned long))] = {0};
    cpu_set_t all;
    int policy = -1;
    cr_assert_eq(sched_getaffinity(0, sizeof all, &all), 0);
    uint64_t nodes = cores_nodes("", &all), got = 0;
    if (nodes == 0 || syscall(SYS_get_mempolicy, &policy, NULL, 0, NULL, 0) != 0)
        cr_skip("this system tells nothing of nodes");
    cr_expect_eq(policy, MPOL_DEFAULT);
    cr_assert(cores_spread_pages(nodes));
    cr_assert_eq(syscall(SYS_get_mempolicy, &policy, mask, CORES_MAX_NODES + 1, NULL, 0), 0);
    memcpy(&got, mask, sizeof got);
    cr_expect_eq(policy, MPOL_INTERLEAVE);
    cr_expect_eq(got, nodes);
    cr_expect(!cores_spread_pages(0));
}
