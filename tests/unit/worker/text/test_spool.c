/* Data sets larger than memory, and disks smaller than data sets. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/buf.h"
#include "tests/unit/worker/text/dataset_rig.h"
#include "worker/text/spool.h"

Test(spool, elements_come_back)
{
    enum { N = 200000 };
    struct spool s = {0};
    struct err err = {0};
    int64_t got[700];

    cr_assert_eq(spool_init(&s, "/tmp", sizeof(int64_t), &err), 0, "%s", err.msg);
    for (int64_t i = 0; i < N;) {
        int64_t n = i % 7 + 1, items[7];
        n = n < N - i ? n : N - i;
        for (int64_t k = 0; k < n; k++)
            items[k] = (i + k) * (i + k);
        cr_assert_eq(spool_add(&s, items, n, &err), 0, "%s", err.msg);
        i += n;
    }
    cr_assert_eq(spool_seal(&s, &err), 0, "%s", err.msg);
    cr_assert_eq(spool_map(&s, &err), 0, "%s", err.msg);
    cr_expect_eq(s.n, N);
    for (int64_t i = 0; i + 700 <= N; i += 333) {
        cr_assert_eq(spool_read(&s, i, 700, got, &err), 0, "%s", err.msg);
        for (int64_t k = 0; k < 700; k++)
            cr_assert(got[k] == (i + k) * (i + k) && ((int64_t *)s.map)[i + k] == got[k]);
    }
    spool_fini(&s);
    spool_fini(&s);
    cr_expect_eq(spool_init(&s, "/no/such/directory", 4, &err), ERR_NOT_FOUND);
    cr_expect_not_null(strstr(err.msg, "/no/such/directory"), "%s", err.msg);
}

/* n lines, generated; words are told by `line`. */
static char *make_lines(struct scratch_dir *d, int n)
{
    char *path = fs_join(d->path, "lines.jsonl");
    FILE *f = fopen(path, "w");

    cr_assert_not_null(f);
    for (int i = 0; i < n; i++) {
        fputs("{\"text\": \"", f);
        for (int k = 0; k < 4 + i % 13; k++)
            fprintf(f, " %s", (const char *[]){"the", "is", "of", "and"}[(i + k) % 4]);
        fputs("\"}\n", f);
    }
    cr_assert_eq(fclose(f), 0);
    return path;
}

/* Bytes of private memory that may be written to: what RLIMIT_DATA limits. */
static rlim_t data_bytes(void)
{
    struct buf text = {0};

    cr_assert_eq(fs_read_file("/proc/self/status", 1 << 16, &text, NULL), 0);
    const char *line = strstr(buf_str(&text), "VmData:");
    cr_assert_not_null(line);
    rlim_t kib = strtoull(line + 7, NULL, 10);
    buf_fini(&text);
    return kib << 10;
}

Test(spool, a_set_many_times_the_memory_is_loaded_split_and_read)
{
    enum { LINES = 300000, MEMORY = 2 << 20, B = 64, T = 64 };
    struct tokenizer *t = rig_tokenizer();
    struct dataset_options o = rig_options();
    struct dataset *set = NULL, *last = NULL;
    struct dataset_stats stats;
    struct scratch_dir d;
    struct err err = {0};
    struct batch b;
    int64_t tokens = 0, targets = 0;

    scratch_dir_init(&d);
    char *path = make_lines(&d, LINES);
    batch_init(&b, B, T);
    o.max_seq_length = T;
    o.scratch_dir = d.path;
    struct rlimit limit = {data_bytes() + MEMORY, RLIM_INFINITY};
#ifndef __SANITIZE_ADDRESS__ /* whose own memory is not bounded so */
    cr_assert_eq(setrlimit(RLIMIT_DATA, &limit), 0);
#endif

    cr_assert_eq(dataset_load((const char *[]){path}, 1, t, &o, &set, &err), 0, "%s", err.msg);
    dataset_get_stats(set, &stats);
    cr_expect_gt(stats.tokens * 4 + stats.examples * 32, 10 * (int64_t)MEMORY);
    cr_assert_eq(dataset_split(set, 0.4, &last, &err), 0, "%s", err.msg);
    for (int part = 0; part < 2; part++) {
        const struct dataset *one = part ? last : set;
        dataset_get_stats(one, &stats);
        tokens = targets = 0;
        for (int64_t row = 0; row < stats.rows; row += B) {
            rig_fill(one, 1, row, &b);
            tokens += b.n_tokens;
            targets += b.n_targets;
        }
        cr_expect_eq(tokens, stats.tokens);
        cr_expect_eq(targets, stats.target_tokens);
        cr_expect_eq(stats.sources, part ? LINES * 2 / 5 : LINES * 3 / 5);
    }
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_DATA, &limit);
    dataset_destroy(last);
    dataset_destroy(set);
    batch_fini(&b);
    free(path);
    scratch_dir_fini(&d);
    tokenizer_destroy(t);
}

/* Wherever the disk fills up, while tokens are written or rows are made, it is an error that says
 * so; nothing stays behind. */
Test(spool, a_full_disk_is_an_error_and_leaves_nothing)
{
    struct tokenizer *t = rig_tokenizer();
    struct dataset_options o = rig_options();
    struct scratch_dir d, disk;
    int failed = 0, loaded = 0;
    int64_t left;

    scratch_dir_init(&d);
    scratch_dir_init(&disk);
    char *path = make_lines(&d, 8000);
    o.scratch_dir = disk.path;
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        cr_skip_test("cannot mount (%s); run as root", strerror(errno));
    for (int kib = 64; kib <= 1024; kib += 64) {
        struct dataset *set = NULL;
        struct err err = {0};
        char size[40];
        snprintf(size, sizeof(size), "size=%dk", kib);
        cr_assert_eq(mount("tmpfs", disk.path, "tmpfs", 0, size), 0);
        int rc = dataset_load((const char *[]){path}, 1, t, &o, &set, &err);
        if (rc == 0) {
            loaded++;
        } else {
            failed++;
            cr_expect_eq(rc, ERR_NOSPACE, "%d KiB: %s", kib, err.msg);
            cr_expect_str_eq(err.reason, "disk_full");
            cr_expect_not_null(strstr(err.msg, disk.path), "%s", err.msg);
            cr_expect_not_null(strstr(err.msg, "max_examples"), "%s", err.msg);
        }
        dataset_destroy(set);
        cr_assert_eq(fs_free_bytes(disk.path, &left, NULL), 0);
        cr_expect_eq(left, (int64_t)kib << 10);
        cr_assert_eq(umount(disk.path), 0);
    }
    cr_expect_gt(failed, 5);
    cr_expect_gt(loaded, 0);
    free(path);
    scratch_dir_fini(&disk);
    scratch_dir_fini(&d);
    tokenizer_destroy(t);
}
