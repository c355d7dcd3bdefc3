/* Downloads that end in the middle: killed processes, two at once, full disks. */
#include <criterion/criterion.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/hash.h"
#include "tests/unit/worker/hub/fixture.h"
#include "worker/hub/cache.h"

static struct fixture fx;
static const char slow[] = "[{\"match\": \"store GET\", \"action\": \"slow\", \"rate\": 50000,"
                           " \"times\": 1}]";

static void start(void)
{
    fixture_start(&fx);
}

static void stop(void)
{
    fixture_stop(&fx);
}

TestSuite(resume, .init = start, .fini = stop, .timeout = 600);

/* A process that fetches org/tiny and exits with the error's code. */
static pid_t fetch_in_child(void)
{
    pid_t pid = fork();

    cr_assert_geq(pid, 0);
    if (pid == 0) {
        struct hub *hub = fixture_client(&fx);
        struct hub_snapshot s = {0};
        _exit(hub_fetch_model(hub, "org/tiny", "main", HUB_WANT_WEIGHTS, &s, NULL));
    }
    return pid;
}

/* The blob of the weights, or what there is of it. */
static char *weights_blob(const char *suffix)
{
    struct cache cache;
    char *noise = fixture_noise(TINY_WEIGHT_BYTES);
    struct hash h;
    char hex[65];

    hash_init(&h, HASH_SHA256, 0);
    hash_update(&h, noise, TINY_WEIGHT_BYTES);
    hash_final_hex(&h, hex);
    cache_init(&cache, fx.cache, "org/tiny");
    char *blob = cache_blob_path(&cache, hex);
    char *path = xasprintf("%s%s", blob, suffix);
    cache_fini(&cache);
    free(blob);
    free(noise);
    return path;
}

static int64_t size_of(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 ? st.st_size : -1;
}

static void wait_for_bytes(const char *path, int64_t bytes)
{
    for (int i = 0; i < 30000 && size_of(path) < bytes; i++)
        clock_sleep(0.01);
    cr_assert_geq(size_of(path), bytes, "the download does not go on");
}

Test(resume, a_killed_download_goes_on_where_it_was)
{
    char *partial = weights_blob(".incomplete");
    struct hub *hub = fixture_client(&fx);

    fixture_set_faults(&fx, "[{\"match\": \"store GET\", \"action\": \"stall\", \"bytes\": 100000,"
                            " \"seconds\": 600, \"times\": 1}]");
    pid_t pid = fetch_in_child();
    wait_for_bytes(partial, 60000);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    int64_t there = size_of(partial);
    cr_assert(there >= 60000 && there < TINY_WEIGHT_BYTES);
    fixture_expect_whole(&fx, hub, "org/tiny");
    char *range = fixture_last_range(&fx);
    char *expected = xasprintf("bytes=%ld-", (long)there);
    cr_expect_str_eq(range, expected);
    cr_expect_eq(size_of(partial), -1);
    free(expected);
    free(range);
    free(partial);
    hub_destroy(hub);
}

Test(resume, a_damaged_beginning_is_thrown_away)
{
    char *partial = weights_blob(".incomplete");
    char *bytes = xcalloc(1, TINY_WEIGHT_BYTES + 100);
    static const size_t sizes[] = {1000, TINY_WEIGHT_BYTES, TINY_WEIGHT_BYTES + 100};
    struct hub *hub = fixture_client(&fx);

    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_OK, NULL);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        char *blob = weights_blob("");
        cr_assert_eq(fs_write_file_atomic(partial, bytes, sizes[i], NULL), 0);
        fixture_expect_whole(&fx, hub, "org/tiny");
        cr_assert_eq(unlink(blob), 0);
        free(blob);
    }
    free(bytes);
    free(partial);
    hub_destroy(hub);
}

Test(resume, a_link_in_the_place_of_the_download_is_not_followed)
{
    char *partial = weights_blob(".incomplete");
    char *outside = fs_join(fx.dir, "outside");
    struct hub *hub = fixture_client(&fx);

    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_OK, NULL);
    cr_assert_eq(symlink(outside, partial), 0);
    fixture_expect(hub, "org/tiny", HUB_WANT_WEIGHTS, ERR_IO, NULL);
    cr_expect_eq(size_of(outside), -1);
    free(outside);
    free(partial);
    hub_destroy(hub);
}

Test(resume, two_processes_download_once)
{
    int status[2];

    fixture_set_faults(&fx, slow);
    pid_t pids[2] = {fetch_in_child(), fetch_in_child()};
    for (int i = 0; i < 2; i++) {
        waitpid(pids[i], &status[i], 0);
        cr_expect_eq(status[i], 0, "process %d ended with %#x", i, (unsigned)status[i]);
    }
    cr_expect_eq(fixture_count(&fx, "store", "GET", NULL), 1);
}

/* A small file system under the cache, for this process and its children only. Where mounting is
 * not allowed, the test ends here, as skipped. */
static void mount_small_disk(const char *options)
{
    cr_assert_eq(fs_mkdir_p(fx.cache, false, NULL), 0);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", fx.cache, "tmpfs", 0, options) != 0)
        cr_skip_test("cannot mount a small tmpfs (%s); run as root", strerror(errno));
}

Test(resume, a_download_that_does_not_fit_is_refused_before_it_begins)
{
    struct hub_snapshot s = {0};
    struct err err = {0};

    mount_small_disk("size=256k");
    struct hub *hub = fixture_client(&fx);
    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_OK, NULL);
    fixture_set_faults(&fx, "[]");
    cr_expect_eq(hub_fetch_model(hub, "org/tiny", "main", HUB_WANT_WEIGHTS, &s, &err), ERR_NOSPACE);
    cr_expect_str_eq(err.reason, "disk_full");
    cr_expect_not_null(strstr(err.msg, fx.cache), "%s", err.msg);
    cr_expect_eq(fixture_count(&fx, "store", NULL, NULL), 0);
    umount(fx.cache);
    hub_destroy(hub);
}

/* Somebody else fills the disk meanwhile. */
Test(resume, a_disk_that_fills_up_is_left_usable)
{
    int status;

    mount_small_disk("size=512k");
    char *partial = weights_blob(".incomplete"), *other = fs_join(fx.cache, "other");
    char *bytes = xcalloc(1, 300000);
    struct hub *hub = fixture_client(&fx);
    fixture_set_faults(&fx, slow);
    pid_t pid = fetch_in_child();
    wait_for_bytes(partial, 30000);
    cr_assert_eq(fs_write_file_atomic(other, bytes, 300000, NULL), 0);
    waitpid(pid, &status, 0);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == ERR_NOSPACE, "%#x", (unsigned)status);
    cr_expect_eq(size_of(partial), -1, "the useless beginning still takes the space");
    cr_assert_eq(unlink(other), 0);
    fixture_expect_whole(&fx, hub, "org/tiny");
    umount(fx.cache);
    free(partial);
    free(other);
    free(bytes);
    hub_destroy(hub);
}
