/* The disk tier: what is written is read, at every size and place; a full disk is told at once. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/memory/nvme.h"

static char directory[] = "/tmp/castor-nvme-XXXXXX";

static void make_directory(void)
{
    cr_assert_not_null(mkdtemp(directory));
}

/* Fails while anything is left in it. */
static void remove_directory(void)
{
    cr_assert_eq(rmdir(directory), 0);
}

TestSuite(nvme, .init = make_directory, .fini = remove_directory);

static char *aligned(size_t bytes)
{
    char *p = aligned_alloc(NVME_ALIGN, bytes);
    cr_assert_not_null(p);
    return p;
}

static char pattern(size_t offset)
{
    return (char)(offset * 2654435761u >> 13);
}

Test(nvme, reads_what_was_written)
{
    enum { PAGES = 3 * NVME_DEPTH * (NVME_PIECE / NVME_ALIGN) + 5 };
    size_t bytes = (size_t)PAGES * NVME_ALIGN;
    struct nvme_file *f = NULL;
    struct err err = {0};
    char *out = aligned(bytes), *in = aligned(bytes);

    cr_assert_eq(nvme_file_create(directory, bytes, &f, &err), 0, "%s", err.msg);
    for (size_t k = 0; k < bytes; k++)
        out[k] = pattern(k);
    cr_assert_eq(nvme_file_write(f, out, bytes, 0, &err), 0, "%s", err.msg);
    size_t sizes[] = {NVME_ALIGN, NVME_PIECE, NVME_PIECE + NVME_ALIGN, bytes - 7 * NVME_ALIGN};
    for (int k = 0; k < 4; k++) {
        memset(in, 0, bytes);
        cr_assert_eq(nvme_file_read(f, in, sizes[k], 7 * NVME_ALIGN, &err), 0, "%s", err.msg);
        cr_assert_eq(memcmp(in, out + 7 * NVME_ALIGN, sizes[k]), 0);
    }
    /* a part in the middle is replaced and its neighbours are not */
    memset(in, 1, NVME_PIECE);
    cr_assert_eq(nvme_file_write(f, in, NVME_ALIGN, 2 * NVME_ALIGN, &err), 0, "%s", err.msg);
    cr_assert_eq(nvme_file_read(f, in, 4 * NVME_ALIGN, NVME_ALIGN, &err), 0, "%s", err.msg);
    cr_assert_eq(memcmp(in, out + NVME_ALIGN, NVME_ALIGN), 0);
    cr_assert_eq(in[NVME_ALIGN], 1);
    cr_assert_eq(in[2 * NVME_ALIGN - 1], 1);
    cr_assert_eq(memcmp(in + 2 * NVME_ALIGN, out + 3 * NVME_ALIGN, 2 * NVME_ALIGN), 0);
    nvme_file_destroy(f);
    free(out);
    free(in);
}

struct writer {
    struct nvme_file *file;
    char *from;
    size_t bytes;
    int failed;
};

static void *write_often(void *ud)
{
    struct writer *w = ud;
    for (int k = 0; k < 20; k++)
        w->failed += nvme_file_write(w->file, w->from, w->bytes, w->bytes, NULL) != 0;
    return NULL;
}

Test(nvme, reads_while_another_thread_writes)
{
    enum { BYTES = (NVME_DEPTH + 3) * NVME_PIECE };
    struct writer w = {.from = aligned(BYTES), .bytes = BYTES};
    struct err err = {0};
    char *in = aligned(BYTES), *there = aligned(BYTES);
    pthread_t id;

    for (size_t k = 0; k < BYTES; k++) {
        there[k] = pattern(k);
        w.from[k] = pattern(k + 77);
    }
    cr_assert_eq(nvme_file_create(directory, (size_t)2 * BYTES, &w.file, &err), 0, "%s", err.msg);
    cr_assert_eq(nvme_file_write(w.file, there, BYTES, 0, &err), 0, "%s", err.msg);
    cr_assert_eq(pthread_create(&id, NULL, write_often, &w), 0);
    for (int k = 0; k < 20; k++) {
        memset(in, 0, BYTES);
        cr_assert_eq(nvme_file_read(w.file, in, BYTES, 0, &err), 0, "%s", err.msg);
        cr_assert_eq(memcmp(in, there, BYTES), 0);
    }
    pthread_join(id, NULL);
    cr_assert_eq(w.failed, 0);
    cr_assert_eq(nvme_file_read(w.file, in, BYTES, BYTES, &err), 0, "%s", err.msg);
    cr_assert_eq(memcmp(in, w.from, BYTES), 0);
    struct nvme_counters c = nvme_file_counters(w.file);
    cr_assert_eq(c.read, (uint64_t)21 * BYTES);
    cr_assert_eq(c.written, (uint64_t)21 * BYTES);
    nvme_file_destroy(w.file);
    free(w.from);
    free(there);
    free(in);
}

Test(nvme, says_that_the_disk_is_too_small)
{
    struct nvme_file *f = NULL;
    struct err err = {0};
    cr_assert_eq(nvme_file_create(directory, (size_t)1 << 50, &f, &err), err.code);
    /* a file system may also have a limit for one file */
    cr_assert(err.code == ERR_NOSPACE || err.code == ERR_IO);
    cr_assert(strstr(err.msg, "placement.nvme_limit") != NULL, "%s", err.msg);
    cr_assert_null(f);
}

Test(nvme, says_that_the_directory_is_missing)
{
    struct nvme_file *f = NULL;
    struct err err = {0};
    cr_assert_eq(nvme_file_create("/nonexistent/volume", NVME_ALIGN, &f, &err), ERR_NOT_FOUND);
    cr_assert(strstr(err.msg, "/nonexistent/volume") != NULL, "%s", err.msg);
}
