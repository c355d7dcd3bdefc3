/* Host memory of jobs, on machines that are described by files. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/train/host_memory.h"

static char root[] = "/tmp/castor-memory-XXXXXX";

static void make_root(void)
{
    cr_assert_not_null(mkdtemp(root));
}

static void remove_root(void)
{
    cr_assert_eq(fs_remove_tree(root, NULL), 0);
}

TestSuite(host_memory, .init = make_root, .fini = remove_root);

static void put(const char *file, const char *text)
{
    char *path = xasprintf("%s/%s", root, file);
    char *dir = xstrndup(path, (size_t)(strrchr(path, '/') - path));
    cr_assert_eq(fs_mkdir_p(dir, false, NULL), 0);
    cr_assert_eq(fs_write_file_atomic(path, text, strlen(text), NULL), 0);
    free(dir);
    free(path);
}

static void put_mib(const char *file, int64_t mib)
{
    char *text = xasprintf("%lld\n", (long long)mib << 20);
    put(file, text);
    free(text);
}

/* 64 GiB, of which 61 are left. */
static void put_machine(void)
{
    put("proc/meminfo", "MemTotal:       67108864 kB\nMemFree:         1000 kB\n"
                        "MemAvailable:   63963136 kB\n");
}

static void put_version_2(const char *mountinfo_root, const char *group)
{
    char *mount = xasprintf("30 1 0:26 %s /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw\n",
                            mountinfo_root);
    char *own = xasprintf("0::%s\n", group);
    put("proc/self/mountinfo", mount);
    put("proc/self/cgroup", own);
    free(own);
    free(mount);
}

/* So many MiB, less a share of `of` and 64 MiB, and the words are there. */
static void expect(enum host_moment moment, double mib, double share, double of, const char *words)
{
    struct host_memory m;
    host_memory_look(root, moment, &m);
    double want = mib - share * of - 64, got = (double)m.bytes / 1048576;
    cr_expect(got > want - 0.01 && got < want + 0.01, "%.2f MiB, not %.2f (%s)", got, want, m.part);
    cr_expect(strstr(m.part, words) != NULL, "\"%s\" lacks \"%s\"", m.part, words);
}

Test(host_memory, without_groups_the_machine_bounds)
{
    put_machine();
    expect(HOST_WHOLE, 65536, 0.07, 65536, "the 65536.0 MiB that the machine has");
    expect(HOST_LEFT, 65536, 0.07, 65536, "that the machine has"); /* the reserve is in use */
    put("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n");
    expect(HOST_WHOLE, 65536, 0.07, 65536, "that the machine has");
    expect(HOST_LEFT, 32768, 0.02, 65536, "the 32768.0 MiB that are available on the machine now");
}

Test(host_memory, there_is_always_a_bound)
{
    struct host_memory m;
    double machine = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / 1048576;
    expect(HOST_LEFT, machine, 0.07, machine, "that the machine has"); /* without proc */
    put("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 1000 kB\n");
    host_memory_look(root, HOST_LEFT, &m);
    cr_expect_eq(m.bytes, 1);
}

Test(host_memory, the_tightest_group_of_version_2_bounds)
{
    put_machine();
    put_version_2("/", "/jobs.slice/castor.service");
    put_mib("sys/fs/cgroup/jobs.slice/memory.max", 4096);
    put_mib("sys/fs/cgroup/jobs.slice/memory.current", 3000);
    put("sys/fs/cgroup/jobs.slice/memory.stat",
        "anon 1\nfile 2\ninactive_file 1048576000\nactive_file 524288000\n"
        "slab_reclaimable 524288000\nworkingset_refault_file 7\n");
    put("sys/fs/cgroup/jobs.slice/castor.service/memory.max", "max\n");
    put_mib("sys/fs/cgroup/jobs.slice/castor.service/memory.current", 900);
    expect(HOST_WHOLE, 4096, 0.07, 4096, "the 4096.0 MiB that the control group /jobs.slice is");
    /* 2000 of the 3000 MiB are files' */
    expect(HOST_LEFT, 3096, 0.02, 4096,
           "group /jobs.slice has left now of its limit of 4096.0 MiB");
    put_mib("sys/fs/cgroup/jobs.slice/castor.service/memory.high", 2048);
    expect(HOST_WHOLE, 2048, 0.07, 2048, "group /jobs.slice/castor.service is limited to");
    expect(HOST_LEFT, 1148, 0.02, 2048, "/jobs.slice/castor.service has left now");
}

Test(host_memory, a_container_sees_its_own_group_as_the_root)
{
    put_machine();
    put_version_2("/", "/");
    put_mib("sys/fs/cgroup/memory.max", 1024);
    put_mib("sys/fs/cgroup/memory.current", 16);
    expect(HOST_WHOLE, 1024, 0.07, 1024, "the control group / is limited to");
    put_version_2("/../../elsewhere", "/../other"); /* outside of what it may see */
    expect(HOST_WHOLE, 1024, 0.07, 1024, "the control group / is limited to");
    put_version_2("/docker/abc", "/docker/abc/inner");
    put_mib("sys/fs/cgroup/inner/memory.max", 512);
    expect(HOST_WHOLE, 512, 0.07, 512, "the control group /inner is limited to");
}

Test(host_memory, groups_of_version_1_bound_with_those_out_of_sight)
{
    put_machine();
    put("proc/self/mountinfo",
        "31 1 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 1 0:28 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
    put("proc/self/cgroup", "5:cpu,cpuacct:/docker/xyz\n4:memory:/docker/abc/rank\n0::/\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put_mib("sys/fs/cgroup/memory/memory.usage_in_bytes", 600);
    put("sys/fs/cgroup/memory/memory.stat", "hierarchical_memory_limit 2147483648\n"
                                            "total_inactive_file 104857600\n");
    put("sys/fs/cgroup/cpu/memory.limit_in_bytes", "1048576\n"); /* none that counts */
    expect(HOST_WHOLE, 2048, 0.07, 2048, "the control group / is limited to");
    expect(HOST_LEFT, 1548, 0.02, 2048, "the control group / has left now");
    put_mib("sys/fs/cgroup/memory/rank/memory.limit_in_bytes", 1024);
    put("sys/fs/cgroup/memory/rank/memory.stat", "hierarchical_memory_limit 1\n");
    expect(HOST_WHOLE, 1024, 0.07, 1024, "the control group /rank is limited to");
}

Test(host_memory, one_process_holds_the_lock_at_a_time)
{
    volatile sig_atomic_t wait = 0, go_on = 1;
    int first = host_memory_lock(&wait); /* a job of this machine's may hold it */
    cr_assert_geq(first, 0);
    cr_expect_eq(host_memory_lock(&go_on), -1);
    close(first);
    int next = host_memory_lock(&wait);
    cr_expect_geq(next, 0);
    close(next);
}
